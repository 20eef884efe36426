"""How each function of a graph computes the values of its result."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional

from ..functions import attention, cuts, gathers, packing, pointwise, precision, shifts, statics
from . import functions as f
from .axes import CannotFuse, Leaf, extent, resolved
from .axis_rules import args, reduced_dims
from .graph_functions import POINTWISE
from .making import constant
from .row_program import Constant, How, Kind, Val

if TYPE_CHECKING:
    from .build import Builder

Where = Mapping[Leaf, int]


def value_pointwise(b: Builder, node: fx.Node, where: Where) -> Val:
    function = POINTWISE[node.target]
    return b.map(function, *(b.value(arg, where) for arg in args(node)))


def _value_passed_on(b: Builder, node: fx.Node, where: Where) -> Val:
    return b.value(args(node)[0], where)


def _value_real(b: Builder, node: fx.Node, where: Where) -> Val:
    value = b.value(args(node)[0], where)
    return value if value.kind is Kind.REAL else b.map(f.TO_REAL, value)


def _value_pow(b: Builder, node: fx.Node, where: Where) -> Val:
    x, exponent = (b.value(arg, where) for arg in args(node))
    if isinstance(exponent, Constant):
        found = _power(b, x, exponent.number)
        if found is not None:
            return found
    if x.kind is not Kind.REAL and exponent.kind is not Kind.REAL:
        raise CannotFuse("a power of whole numbers")
    return b.map(f.POW, *(v if v.kind is Kind.REAL else b.map(f.TO_REAL, v) for v in (x, exponent)))


def _power(b: Builder, x: Val, n: float) -> Val | None:
    """Small powers as products, which are exact where exp(n log x) is not."""
    if n == 2:
        return b.map(f.MUL, x, x)
    if n == 3:
        return b.map(f.MUL, x, b.map(f.MUL, x, x))
    if n == 4:
        square = b.map(f.MUL, x, x)
        return b.map(f.MUL, square, square)
    if x.kind is Kind.REAL and n in _ROOTS:
        return _ROOTS[n](b, x)
    return x if n == 1 else None


_ROOTS: dict[float, Callable[[Builder, Val], Val]] = {
    0.5: lambda b, x: b.map(f.SQRT, x),
    -0.5: lambda b, x: b.map(f.RSQRT, x),
    -1: lambda b, x: b.map(f.DIV, 1.0, x),
    -2: lambda b, x: b.map(f.DIV, 1.0, b.map(f.MUL, x, x)),
}


def _value_clamp(b: Builder, node: fx.Node, where: Where) -> Val:
    x, low, high = (*args(node), None, None)[:3]
    found = b.value(x, where)
    found = found if low is None else b.map(f.AT_LOW, found, low)
    return found if high is None else b.map(f.AT_HIGH, found, high)


def _value_where(b: Builder, node: fx.Node, where: Where) -> Val:
    condition, one, two = (b.value(arg, where) for arg in args(node)[:3])
    return b.map(f.WHERE, condition, one, two)


def _value_fill(b: Builder, node: fx.Node, where: Where) -> Val:
    x, present, fill = (b.value(arg, where) for arg in args(node))
    return b.map(f.WHERE, present, x, fill)


def _value_straight(b: Builder, node: fx.Node, where: Where) -> Val:
    value, carrier = (b.value(arg, where) for arg in args(node))
    return b.map(f.STRAIGHT, value, carrier)


def _value_select(b: Builder, node: fx.Node, where: Where) -> Val:
    x, dim, index = args(node)
    number = index
    fixed = dict(where)
    for leaf in reversed(resolved(b.dims[x][b.dim(x, dim)])):
        fixed[leaf] = number % leaf.size
        number //= leaf.size
    return b.value(x, fixed)


def _value_stack(b: Builder, node: fx.Node, where: Where) -> Val:
    parts = args(node)[0]
    dim = b.dims[node][b.dim(node, args(node)[1] if len(args(node)) > 1 else 0)]
    number = 0
    for leaf in resolved(dim):
        number = number * leaf.size + where[leaf]
    return b.value(parts[number], where)


def _value_cat(b: Builder, node: fx.Node, where: Where) -> Val:
    (leaf,) = resolved(b.dims[node][-1])
    return b.value(args(node)[0][where[leaf]], where)


def _of(b: Builder, x: fx.Node, dims: tuple[int, ...]) -> tuple[Leaf, ...]:
    return tuple(leaf for place in dims for leaf in resolved(b.dims[x][place]))


def _value_sum(b: Builder, node: fx.Node, where: Where) -> Val:
    x, dims = reduced_dims(b, node)
    return b.reduce(How.SUM, lambda w: b.value(x, w), _of(b, x, dims), where)


def _value_mean(b: Builder, node: fx.Node, where: Where) -> Val:
    x, dims = reduced_dims(b, node)
    return b.map(f.MUL, _value_sum(b, node, where), 1.0 / extent(_of(b, x, dims)))


def _extreme(how: How) -> Callable[[Builder, fx.Node, Where], Val]:
    def rule(b: Builder, node: fx.Node, where: Where) -> Val:
        x, dims = reduced_dims(b, node)
        return b.reduce(how, lambda w: b.value(x, w), _of(b, x, dims), where)

    return rule


def _flags(how: How) -> Callable[[Builder, fx.Node, Where], Val]:
    def rule(b: Builder, node: fx.Node, where: Where) -> Val:
        x, dims = reduced_dims(b, node)
        count = b.reduce(how, lambda w: b.map(f.TO_INT, b.value(x, w)), _of(b, x, dims), where)
        return b.map(f.NOT_EQUAL, count, 0)

    return rule


def _exponentials(
    b: Builder, x: fx.Node, leaves: tuple[Leaf, ...], where: Where
) -> tuple[Val, Val, Callable[[Where], Val]]:
    """The largest entry, the sum of exponentials over it, and each exponential."""
    rest = {leaf: part for leaf, part in where.items() if leaf not in leaves}
    key = ("exponentials", x, leaves, frozenset(rest.items()), b.shift)
    top = b.known.get((*key, "top"))
    if top is None:
        top = b.reduce(How.MAX, lambda w: b.value(x, w), leaves, rest)
        # Finite, so that a row of -inf gives exponentials of 0 and not of -inf - -inf.
        top = b.known[(*key, "top")] = b.map(f.STOP, b.map(f.MAXIMUM, top, -3e38))

    def exponential(w: Where) -> Val:
        return b.map(f.EXP, b.map(f.SUB, b.value(x, w), top))

    total = b.known.get((*key, "total"))
    if total is None:
        total = b.known[(*key, "total")] = b.reduce(How.SUM, exponential, leaves, rest)
    return top, total, exponential


def _value_logsumexp(b: Builder, node: fx.Node, where: Where) -> Val:
    x, dims = reduced_dims(b, node)
    top, total, _ = _exponentials(b, x, _of(b, x, dims), where)
    return b.map(f.ADD, b.map(f.LOG, total), top)


def _value_softmax(b: Builder, node: fx.Node, where: Where) -> Val:
    x, dims = reduced_dims(b, node)
    _, total, exponential = _exponentials(b, x, _of(b, x, dims), where)
    return b.map(f.DIV, exponential(where), total)


def _value_argmax(b: Builder, node: fx.Node, where: Where) -> Val:
    """The first: the least index among the entries that are as large as the largest."""
    x, dims = reduced_dims(b, node)
    leaves = _of(b, x, dims)
    top = b.reduce(How.MAX, lambda w: b.value(x, w), leaves, where)

    def index(w: Where) -> Val:
        number = b.number_in(b.dims[x][dims[0]], w)
        return b.map(f.WHERE, b.map(f.EQUAL, b.value(x, w), top), number, extent(leaves))

    return b.reduce(How.MIN, index, leaves, where)


def _value_entries(b: Builder, node: fx.Node, where: Where) -> Val:
    x, index, shared = args(node)
    dim = b.dims[x][shared - 1]
    wanted = b.value(index, where)

    def picked(w: Where) -> Val:
        return b.map(f.WHERE, b.map(f.EQUAL, b.number_in(dim, w), wanted), b.value(x, w), 0.0)

    return b.reduce(How.SUM, picked, resolved(dim), where)


def _value_attend(b: Builder, node: fx.Node, where: Where) -> Val:
    """Each row's own queries and keys: scores, their softmax over the keys, and the sum of values it weighs."""
    q, k, v, scale = args(node)
    keys, entries = _of(b, k, (0,)), _of(b, q, (2,))
    if not {*keys}.isdisjoint(_of(b, q, (0, 1, 2))):
        # Places of a grid attend to places of the grid: both are one axis here, and pairs of it have no name.
        raise CannotFuse("attention along an axis that the queries have too")

    def known(what: str, w: Where, of: Callable[[], Val]) -> Val:
        key = (what, node, frozenset(w.items()), b.shift)
        if key not in b.known:
            b.known[key] = of()
        return b.known[key]

    def score(w: Where) -> Val:
        product = lambda e: b.map(f.MUL, b.value(q, e), b.value(k, e))  # noqa: E731
        of = lambda: b.map(f.MUL, b.reduce(How.SUM, product, entries, w), scale)  # noqa: E731
        return known("score", {leaf: part for leaf, part in w.items() if leaf not in entries}, of)

    rest = {leaf: part for leaf, part in where.items() if leaf not in (*keys, *entries)}
    top = known("top", rest, lambda: b.map(f.STOP, b.reduce(How.MAX, score, keys, rest)))

    def grown(w: Where) -> Val:
        w = {leaf: part for leaf, part in w.items() if leaf not in entries}
        return known("grown", w, lambda: b.map(f.EXP, b.map(f.SUB, score(w), top)))

    total = known("total", rest, lambda: b.reduce(How.SUM, grown, keys, rest))
    weighed = lambda w: b.map(f.MUL, b.map(f.DIV, grown(w), total), b.value(v, w))  # noqa: E731
    return b.reduce(How.SUM, weighed, keys, where)


def _value_gather(table: int, index: int, in_runs: bool = False) -> Callable[[Builder, fx.Node, Where], Val]:
    def rule(b: Builder, node: fx.Node, where: Where) -> Val:
        source = args(node)[table]
        picked = args(node)[index]
        own = len(b.dims[picked])
        rest = tuple(leaf for dim in b.dims[node][own:] for leaf in resolved(dim))
        return b.load(source, rest, where, b.value(picked, where), in_runs)

    return rule


def _value_previous(b: Builder, node: fx.Node, where: Where) -> Val:
    x, position, k, first = args(node)
    inside = b.map(f.AT_LEAST, b.value(position, where), k)
    return _either(b, inside, b.value_at(x, where, -k), b.value(first, where))


def _value_next(b: Builder, node: fx.Node, where: Where) -> Val:
    x, there, k = args(node)
    shifted = b.value_at(x, where, k)
    absent = {Kind.REAL: 0.0, Kind.INT: 0, Kind.FLAG: False}[shifted.kind]
    return _either(b, b.value(there, where), shifted, constant(absent))


def _value_shifted_flags(b: Builder, node: fx.Node, where: Where) -> Val:
    present, k, inside = args(node)
    return b.map(f.AND, b.value(inside, where), b.value_at(present, where, k))


def _either(b: Builder, condition: Val, one: Val, two: Val) -> Val:
    if one.kind is not Kind.FLAG:
        return b.map(f.WHERE, condition, one, two)
    # Beside a written flag Triton would choose between numbers.
    if isinstance(two, Constant) and not two.number:
        return b.map(f.AND, condition, one)
    return b.map(f.OR, b.map(f.AND, condition, one), b.map(f.AND, b.map(f.NOT, condition), two))


VALUES: dict[Any, Callable[[Builder, fx.Node, Where], Val]] = {
    **dict.fromkeys(
        (
            torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze, operator.getitem,
            torch.permute, packing.expand,
        ),
        _value_passed_on,
    ),
    cuts.packed: _value_passed_on,  # how it is stored, its result says
    **dict.fromkeys((torch.Tensor.to, precision.real), _value_real),
    operator.pow: _value_pow,
    torch.clamp: _value_clamp,
    pointwise.where: _value_where,
    pointwise.fill_missing: _value_fill,
    pointwise.straight_through: _value_straight,
    torch.select: _value_select,
    torch.stack: _value_stack,
    torch.cat: _value_cat,
    statics.sum_static: _value_sum,
    statics.mean_static: _value_mean,
    statics.max_static: _extreme(How.MAX),
    statics.min_static: _extreme(How.MIN),
    statics.any_static: _flags(How.MAX),
    statics.all_static: _flags(How.MIN),
    statics.logsumexp_static: _value_logsumexp,
    statics.softmax_static: _value_softmax,
    statics.argmax_static: _value_argmax,
    functional.embedding: _value_gather(1, 0),
    gathers.rows_of_table: _value_gather(0, 1),
    torch.index_select: _value_gather(0, 2),
    cuts.spread: _value_gather(0, 1, in_runs=True),
    attention.attend_static: _value_attend,
    gathers.entries: _value_entries,
    shifts.previous_rows: _value_previous,
    shifts.next_rows: _value_next,
    shifts.shifted_flags: _value_shifted_flags,
}  # fmt: skip

# Everything a row program can be made of.
FUSIBLE = frozenset(POINTWISE) | frozenset(VALUES)
