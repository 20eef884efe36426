"""How each function of a graph passes the axes of its operands on to its result."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.nn import functional

from ..facts import dimension
from ..functions import attention, cuts, gathers, packing, precision, shifts, statics
from .axes import CannotFuse, Dim, extent, fresh, regrouped, resolved, unify

if TYPE_CHECKING:
    from .build import Builder


def args(node: fx.Node) -> Any:
    """The arguments of a call whose function is known, and with it what they are."""
    return node.args


def axes_pointwise(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    operands = [arg for arg in args(node) if isinstance(arg, fx.Node)]
    return _joined(b, operands)


def _joined(b: Builder, operands: list[fx.Node]) -> tuple[Dim, ...]:
    rank = max(len(b.dims[operand]) for operand in operands)
    result: list[Dim] = []
    for place in range(rank):
        found: Dim = ()
        for operand in operands:
            dims = b.dims[operand]
            dim = dims[place - rank + len(dims)] if place - rank + len(dims) >= 0 else ()
            if dim and found:
                unify(found, dim)
            found = found or dim
        result.append(found)
    return tuple(result)


def _axes_same(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    return b.dims[args(node)[0]]


def _axes_regrouped(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    return regrouped((leaf for dim in b.dims[args(node)[0]] for leaf in dim), b.facts[node].dims)


def _axes_permute(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    x = args(node)[0]
    places = [dimension(dim, b.facts[x]) for dim in args(node)[1]]
    return tuple(b.dims[x][place] for place in places if place >= 0)


def _axes_expand(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    dims = b.dims[args(node)[0]]
    sizes = b.facts[node].dims
    given = ((),) * (len(sizes) - len(dims)) + dims
    return tuple(dim or fresh((size,))[0] for dim, size in zip(given, sizes, strict=True))


def _axes_select(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    x = args(node)[0]
    place = b.dim(x, args(node)[1])
    b.apart.append(b.dims[x][place])
    return (*b.dims[x][:place], *b.dims[x][place + 1 :])


def _axes_stack(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    parts = args(node)[0]
    dims = _joined(b, list(parts))
    place = b.dim(node, args(node)[1] if len(args(node)) > 1 else 0)
    new = fresh((len(parts),))[0]
    b.apart.append(new)
    return (*dims[:place], new, *dims[place:])


def _axes_cat(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    """Along the last dimension, as `concat` is lowered."""
    parts = args(node)[0]
    if b.dim(node, args(node)[1]) != len(b.facts[node].dims) - 1:
        raise CannotFuse("a concatenation inside")
    for part in parts[1:]:
        for one, two in zip(b.dims[parts[0]][:-1], b.dims[part][:-1], strict=True):
            if bool(one) != bool(two):
                raise CannotFuse("a concatenation that broadcasts")
            unify(one, two)
    new = fresh(b.facts[node].dims[-1:])[0]
    b.joined.append((new, tuple(b.dims[part][-1] for part in parts)))
    return (*b.dims[parts[0]][:-1], new)


def reduced_dims(b: Builder, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]]:
    x = args(node)[0]
    dims = args(node)[1]
    return x, tuple(b.dim(x, dim) for dim in ((dims,) if isinstance(dims, int) else dims))


def _axes_reduced(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    x, gone = reduced_dims(b, node)
    return tuple(dim for place, dim in enumerate(b.dims[x]) if place not in gone)


def _axes_embedding(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    index, table = args(node)
    return (*b.dims[index], *fresh(b.facts[table].dims[1:]))


def _axes_rows_of_table(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    table, index = args(node)
    return (*b.dims[index], *fresh(b.facts[table].dims[1:]))


def _axes_index_select(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    return fresh(b.facts[node].dims)


def _axes_attend(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    """`q [queries, heads, D]`, `k [keys, heads, D]`, `v [keys, heads, Dv]` of each row, to `[queries, heads, Dv]`."""
    q, k, v = args(node)[:3]
    if len(args(node)) > 4 or node.kwargs or any(b.facts[x].level != b.facts[node].level for x in (q, k, v)):
        raise CannotFuse("attention with a mask, a bias or a formula, or to the same keys for all rows")
    queries, heads, entries = b.dims[q]
    # Heads that share keys stand side by side.
    key_heads, _ = regrouped(heads, (b.facts[k].dims[1], b.facts[q].dims[1] // b.facts[k].dims[1]))
    for one, two in ((key_heads, b.dims[k][1]), (key_heads, b.dims[v][1]), (b.dims[k][0], b.dims[v][0])):
        unify(one, two)
    unify(entries, b.dims[k][2])
    of_values = b.dims[v][2]
    if extent(resolved(of_values)) == extent(resolved(entries)):
        # What is summed over and what is left never meet, and one axis needs no change of layout between them.
        unify(entries, of_values)
    return (queries, heads, of_values)


def _axes_entries(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    """`entries(x, index, shared)` where the index has no axes of its own."""
    x, index, shared = args(node)
    dims, picked = b.dims[x], b.dims[index]
    if b.facts[x].level is None or shared - 1 != len(picked) or b.facts[index].level != b.facts[x].level:
        raise CannotFuse("a gather with axes of its own")
    for one, two in zip(dims, picked, strict=False):
        if bool(one) != bool(two):
            raise CannotFuse("a gather that broadcasts")
        unify(one, two)
    return (*dims[: shared - 1], *dims[shared:])


def _axes_previous(b: Builder, node: fx.Node) -> tuple[Dim, ...]:
    x, first = args(node)[0], args(node)[3]
    return _joined(b, [x, first]) if isinstance(first, fx.Node) else b.dims[x]


def tables(node: fx.Node) -> tuple[int, ...]:
    """Which operands are gathered from, and so must be in memory."""
    return _TABLES.get(node.target, ())


_TABLES: dict[Any, tuple[int, ...]] = {
    functional.embedding: (1,), gathers.rows_of_table: (0,), torch.index_select: (0,), cuts.spread: (0,),
}  # fmt: skip

AXES: dict[Any, Callable[[Builder, fx.Node], tuple[Dim, ...]]] = {
    **dict.fromkeys((torch.Tensor.to, precision.real, torch.clamp, torch.detach, cuts.packed), _axes_same),
    **dict.fromkeys((torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze), _axes_regrouped),
    operator.getitem: _axes_regrouped,
    torch.permute: _axes_permute,
    packing.expand: _axes_expand,
    torch.select: _axes_select,
    torch.stack: _axes_stack,
    torch.cat: _axes_cat,
    **dict.fromkeys(
        (
            statics.sum_static, statics.mean_static, statics.max_static, statics.min_static, statics.any_static,
            statics.all_static, statics.logsumexp_static, statics.argmax_static,
        ),
        _axes_reduced,
    ),
    statics.softmax_static: _axes_same,
    functional.embedding: _axes_embedding,
    gathers.rows_of_table: _axes_rows_of_table,
    torch.index_select: _axes_index_select,
    cuts.spread: _axes_index_select,
    attention.attend_static: _axes_attend,
    gathers.entries: _axes_entries,
    shifts.previous_rows: _axes_previous,
    shifts.next_rows: _axes_same,
    shifts.shifted_flags: _axes_same,
}  # fmt: skip
