"""What is known of every tensor of a lowered graph before it runs: its level, its static sizes, its type.

    linear [seq; 128] bfloat16      position [seq] int64      gain [; 128] float32

A fact follows from the node's function and its operands' facts, or from the value of the spec that the node computes.
Nodes with neither have none, and no pass may ask for their layout.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..dsl.program import Weight
from ..dsl.value_type import Flag, Real, ValueType
from . import place_facts
from .fact import EXAMPLES, Fact, Reader, Rule, broadcast, dimension, level_of
from .functions import attention, caches, gathers, packing, places, pointwise, precision, shifts, statics, windows
from .gpu import attention_caches
from .gpu.attention import attend
from .gpu.run_attention import attend_runs
from .origin import origin
from .row_facts import ROW_RULES

__all__ = ["EXAMPLES", "FACT", "WORKING", "Fact", "broadcast", "dimension", "facts"]

WORKING = "weft_working"
# On nodes that a pass made of functions of its own: it says what they are.
FACT = "weft_fact"


def facts(module: fx.GraphModule) -> dict[fx.Node, Fact]:
    """The facts of all nodes that have one."""
    working: torch.dtype = module.meta[WORKING]
    known: dict[fx.Node, Fact] = {}
    for node in module.graph.nodes:
        fact = _fact(module, node, known, working)
        if fact is not None:
            known[node] = fact
    return known


def _fact(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Fact], working: torch.dtype) -> Fact | None:
    if FACT in node.meta:
        return node.meta[FACT]
    if node.op == "get_attr":
        parameter = module.get_parameter(str(node.target))
        return Fact(None, tuple(parameter.shape), parameter.dtype)
    if node.op == "call_function":
        rule = _RULES.get(node.target)
        if rule is not None:
            found = rule(Reader(node, known))
            if found is not None:
                return found
    source = origin(node)
    if source.value is None or isinstance(source.value, Weight) or source.type is None:
        return None
    return _of_type(source.type, working, source.precise)


def _of_type(type_: ValueType, working: torch.dtype, precise: bool) -> Fact | None:
    if any(axis.size is None for axis in type_.static_axes):
        return None
    match type_.kind:
        case Real():
            dtype = torch.promote_types(working, torch.float32) if precise else working
        case Flag():
            dtype = torch.bool
        case _:
            dtype = torch.int64
    level = level_of(type_)
    return Fact(level, tuple(axis.size or 0 for axis in type_.static_axes), dtype)


def _promoted(facts_: list[Fact], numbers: list[Any]) -> torch.dtype:
    dtype = facts_[0].dtype
    for fact in facts_[1:]:
        dtype = torch.promote_types(dtype, fact.dtype)
    if any(isinstance(number, float) for number in numbers) and not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return dtype


def _operands(read: Reader) -> tuple[list[Fact], list[Any]] | None:
    found, numbers = [], []
    for argument in read.node.args:
        if isinstance(argument, fx.Node):
            fact = read.known.get(argument)
            if fact is None:
                return None
            found.append(fact)
        elif isinstance(argument, int | float):
            numbers.append(argument)
    return (found, numbers) if found else None


def _pointwise(result: torch.dtype | None = None, of: slice = slice(None)) -> Rule:
    """`result` fixes the type; else it is that of the operands in `of`."""

    def rule(read: Reader) -> Fact | None:
        operands = _operands(read)
        if operands is None or read.node.kwargs:
            return None
        placed = broadcast(operands[0])
        if placed is None:
            return None
        return replace(placed, dtype=result or _promoted(operands[0][of], operands[1]))

    return rule


def _to(read: Reader) -> Fact | None:
    fact, dtype = read.fact(), read.arg(1)
    return replace(fact, dtype=dtype) if fact is not None and isinstance(dtype, torch.dtype) else None


def _real(read: Reader) -> Fact | None:
    fact, dtype, precise = read.fact(), read.arg(1), read.arg(2, False)
    if fact is None:
        return None
    return replace(fact, dtype=torch.promote_types(dtype, torch.float32) if precise else dtype)


def _like_first(read: Reader) -> Fact | None:
    return read.fact()


def _reduced(dtype: torch.dtype | None = None) -> Rule:
    def rule(read: Reader) -> Fact | None:
        fact, dims = read.fact(), read.arg(1)
        if fact is None:
            return None
        gone = {dimension(dim, fact) for dim in ((dims,) if isinstance(dims, int) else dims)}
        if -1 in gone:
            return None
        kept = tuple(size for place, size in enumerate(fact.dims) if place not in gone)
        return Fact(fact.level, kept, dtype or fact.dtype)

    return rule


def _reshape(read: Reader) -> Fact | None:
    fact, shape = read.fact(), read.arg(1)
    if fact is None or not isinstance(shape, tuple):
        return None
    sizes = shape if fact.level is None else shape[1:]
    if fact.level is not None and (not shape or shape[0] != -1):
        return None
    if any(not isinstance(size, int) or size < 0 for size in sizes) or math.prod(sizes) != math.prod(fact.dims):
        return None
    return replace(fact, dims=tuple(sizes))


def _flatten(read: Reader) -> Fact | None:
    fact = read.fact()
    if fact is None:
        return None
    first, last = dimension(read.arg(1, 0), fact), dimension(read.arg(2, -1), fact)
    if first < 0:
        return None
    return replace(fact, dims=(*fact.dims[:first], math.prod(fact.dims[first : last + 1]), *fact.dims[last + 1 :]))


def _unflatten(read: Reader) -> Fact | None:
    fact = read.fact()
    if fact is None:
        return None
    place = dimension(read.arg(1), fact)
    if place < 0:
        return None  # rows among what owns them
    return replace(fact, dims=(*fact.dims[:place], *read.arg(2), *fact.dims[place + 1 :]))


def _permute(read: Reader) -> Fact | None:
    fact, order = read.fact(), read.arg(1)
    if fact is None:
        return None
    places = [dimension(dim, fact) for dim in order]
    if fact.level is not None:
        if places[0] != -1:
            return None
        places = places[1:]
    return replace(fact, dims=tuple(fact.dims[place] for place in places))


def _getitem(read: Reader) -> Fact | None:
    """`x[:, None, :]`: new dimensions of size one."""
    fact, index = read.fact(), read.arg(1)
    if fact is None or not isinstance(index, tuple):
        return None
    parts = list(index)
    if fact.level is not None and (not parts or parts.pop(0) != slice(None)):
        return None
    dims, left = [], list(fact.dims)
    for part in parts:
        if part is None:
            dims.append(1)
        elif part == slice(None) and left:
            dims.append(left.pop(0))
        else:
            return None
    return replace(fact, dims=(*dims, *left))


def _unsqueeze(read: Reader) -> Fact | None:
    fact, dim = read.fact(), read.arg(1)
    if fact is None:
        return None
    lead = fact.level is not None
    place = (dim if dim >= 0 else dim + len(fact.dims) + lead + 1) - lead
    return None if place < 0 else replace(fact, dims=(*fact.dims[:place], 1, *fact.dims[place:]))


def _squeeze(read: Reader) -> Fact | None:
    fact = read.fact()
    if fact is None:
        return None
    place = dimension(read.arg(1), fact)
    return None if place < 0 else replace(fact, dims=(*fact.dims[:place], *fact.dims[place + 1 :]))


_select = _squeeze  # the entry that is taken changes nothing about the rest


def _stack(read: Reader) -> Fact | None:
    parts, dim = read.arg(0), read.arg(1, 0)
    first = read.known.get(parts[0])
    if first is None or any(read.known.get(part) != first for part in parts):
        return None
    lead = first.level is not None
    place = (dim if dim >= 0 else dim + len(first.dims) + lead + 1) - lead
    return None if place < 0 else replace(first, dims=(*first.dims[:place], len(parts), *first.dims[place:]))


def _cat(read: Reader) -> Fact | None:
    found = [read.known.get(part) for part in read.arg(0)]
    first = found[0]
    if first is None or read.arg(1) != -1 or not first.dims:
        return None
    total = 0
    for part in found:
        if part is None or replace(part, dims=part.dims[:-1]) != replace(first, dims=first.dims[:-1]):
            return None
        total += part.dims[-1]
    return replace(first, dims=(*first.dims[:-1], total))


def _expand(read: Reader) -> Fact | None:
    fact, like, sizes = read.fact(0), read.fact(1), read.arg(2)
    if fact is None or (read.arg(1) is not None and like is None):
        return None
    level = like.level if like is not None else None
    return None if fact.level not in (None, level) else Fact(level, tuple(sizes), fact.dtype)


def _linear(read: Reader) -> Fact | None:
    x, weight = read.fact(0), read.fact(1)
    return None if x is None or weight is None else replace(x, dims=(*x.dims[:-1], weight.dims[0]))


def _embedding(read: Reader) -> Fact | None:
    index, table = read.fact(0), read.fact(1)
    return (
        None
        if index is None or table is None
        else replace(index, dims=(*index.dims, *table.dims[1:]), dtype=table.dtype)
    )


def _rows_of_table(read: Reader) -> Fact | None:
    table, index = read.fact(0), read.fact(1)
    if table is None or index is None or table.level is not None:
        return None
    return replace(index, dims=(*index.dims, *table.dims[1:]), dtype=table.dtype)


def _index_select(read: Reader) -> Fact | None:
    """Down to the rows: `index_select(per_example, 0, row_example)`."""
    x, index = read.fact(0), read.fact(2)
    if x is None or index is None or read.arg(1) != 0 or x.level is None or index.dims:
        return None
    return replace(x, level=index.level)


def _attend(read: Reader) -> Fact | None:
    q, v = read.fact(0), read.fact(2)
    return None if q is None or v is None else replace(q, dims=(*q.dims[:-1], v.dims[-1]))


def _entries(read: Reader) -> Fact | None:
    """`entries(x, index, shared)`: the dimension after the shared ones is replaced by the index's own."""
    x, index, shared = read.fact(0), read.fact(1), read.arg(2)
    if x is None or index is None or x.level is None or x.level != index.level:
        return None
    lead = broadcast([replace(x, dims=x.dims[: shared - 1]), replace(index, dims=index.dims[: shared - 1])])
    return None if lead is None else replace(x, dims=(*lead.dims, *index.dims[shared - 1 :], *x.dims[shared:]))


def _arange(read: Reader) -> Fact | None:
    count = read.arg(0)
    return Fact(None, (count,), torch.int64) if isinstance(count, int) and len(read.node.args) == 1 else None


_FLAGS = _pointwise(torch.bool)
_SAME = _pointwise()

# By the functions that reference graphs call; a test compares with what comes out, for the samples of all operators.
_RULES: dict[Any, Rule] = {
    **ROW_RULES,
    **dict.fromkeys(
        (
            operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
            operator.neg, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.abs, torch.sign, torch.floor, torch.ceil,
            torch.round, torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.erf, torch.relu, functional.softplus,
            pointwise.straight_through, torch.detach, torch.remainder,
        ),
        _SAME,
    ),
    caches.every_example: _like_first,
    **dict.fromkeys((pointwise.maximum, pointwise.minimum, torch.clamp), _SAME),
    **dict.fromkeys(
        (
            operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
            operator.invert, torch.logical_and, torch.logical_or, torch.logical_not,
        ),
        _FLAGS,
    ),
    pointwise.whole: _pointwise(torch.int64),
    precision.real: _real,
    torch.Tensor.to: _to,
    packing.beside: _like_first,
    shifts.previous_rows: _like_first,
    shifts.next_rows: _like_first,
    shifts.shifted_flags: _like_first,
    packing.expand: _expand,
    **dict.fromkeys((statics.sum_static, statics.mean_static, statics.max_static, statics.min_static), _reduced()),
    statics.logsumexp_static: _reduced(),
    statics.softmax_static: _like_first,
    statics.argmax_static: _reduced(torch.int64),
    **dict.fromkeys((statics.any_static, statics.all_static), _reduced(torch.bool)),
    torch.reshape: _reshape,
    torch.flatten: _flatten,
    torch.unflatten: _unflatten,
    torch.permute: _permute,
    torch.unsqueeze: _unsqueeze,
    torch.squeeze: _squeeze,
    torch.select: _select,
    torch.stack: _stack,
    torch.cat: _cat,
    operator.getitem: _getitem,
    functional.linear: _linear,
    places.conv: place_facts.conv,
    windows.windows: place_facts.windows,
    windows.conv_rows: place_facts.conv_rows,
    places.pool: place_facts.pool,
    places.spread: place_facts.spread,
    functional.embedding: _embedding,
    gathers.rows_of_table: _rows_of_table,
    torch.index_select: _index_select,
    gathers.entries: _entries,
    **dict.fromkeys(
        (
            attention.attend_packed, attention.attend_static, attend, attention_caches.attend_step,
            attention_caches.attend_extend, attention_caches.attend_general, attend_runs,
        ),
        _attend,
    ),
    torch.arange: _arange,
}  # fmt: skip


def _where(read: Reader) -> Fact | None:
    operands = _operands(read)
    if operands is None:
        return None
    placed = broadcast(operands[0])
    values = [fact for place in (1, 2) if (fact := read.fact(place)) is not None]
    dtype = values[0].dtype if values else read.arg(3)
    return None if placed is None or not isinstance(dtype, torch.dtype) else replace(placed, dtype=dtype)


def _fill_missing(read: Reader) -> Fact | None:
    x, value = read.fact(0), read.fact(2)
    if x is None or (value is None and isinstance(read.arg(2), fx.Node)):
        return None
    return x if value is None else broadcast([x, value])


_RULES[pointwise.where] = _where
_RULES[pointwise.fill_missing] = _fill_missing
