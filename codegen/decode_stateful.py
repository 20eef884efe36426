"""Stateful forms of the functions that read other rows, by the function of the reference graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..dsl import masks
from ..dsl.axes import Axis
from ..dsl.program import Value
from .decode_context import DecodeContext
from .functions import attention, caches, cuts, open_cuts, shifts
from .graph_context import NotLowered
from .ops.attend import AttendAttrs
from .ops.attend_formulas import sides_of
from .ops.cut import SpreadAttrs
from .ops.operands import sizes

# -- attention -------------------------------------------------------------------------------------


def _attend(
    ctx: DecodeContext,
    q: Any,
    k: Any,
    v: Any,
    q_offsets: Any,
    k_offsets: Any,
    scale: float,
    low: int | None = None,
    high: int | None = None,
    predicate: tuple[Any, ...] | None = None,
    bias: Any = None,
    score: tuple[Any, ...] | None = None,
    q_position: Any = None,
    k_position: Any = None,
) -> fx.Node | None:
    """Keys along an axis that grows: cached. Keys made once are read as they are, by new rows only."""
    attrs = ctx.node.attrs
    assert isinstance(attrs, AttendAttrs)
    keys_axis, queries = attrs.along, attrs.query_rows
    operands = (q, k, v, q_offsets, k_offsets, scale, low, high, predicate, bias, score)
    if not _grows(ctx, keys_axis):
        # Keys of another axis, complete since the beginning: only the queries' positions must be told.
        return ctx.plain(attention.attend_packed, *operands, None if queries is None else ctx.position(queries))
    if k_offsets is not ctx.offsets(keys_axis):
        # Segments that close, each with all its rows.
        return ctx.plain(attention.attend_packed, *operands, q_position, k_position)
    if queries is not keys_axis:
        return _attend_across(ctx, q, k, v, scale, low, high, predicate, bias, score)
    groups, width = math.prod(sizes(attrs.heads.of_keys)), math.prod(sizes(attrs.over))
    value_width, dtype = math.prod(sizes(attrs.value_axes)), ctx.types.attended
    offsets, lengths = ctx.offsets(keys_axis), ctx.lengths_of(keys_axis)
    if predicate is None and bias is None and score is None and high is not None and high <= 0:
        # A query reads back to position + low, so older rows are never read again.
        slots = None if low is None else max(1 - low, 1)
        keys = ctx.cache("keys", (groups,), slots, (width,), dtype)
        values = ctx.cache("values", (groups,), slots, (value_width,), dtype)
        if ctx.form != "step" or keys_axis is not ctx.plan.axis:
            return ctx.plain(caches.attend_extend, q, k, v, keys, values, offsets, lengths, scale, low, high)
        mask = _band_mask(ctx, low, high, keys, slots, dtype)
        return ctx.plain(
            caches.attend_step, q, k, v, keys, values, lengths, mask, ctx.columns, ctx.is_even, scale, high
        )
    keys = ctx.cache("keys", (), None, (groups, width), dtype)
    values = ctx.cache("values", (), None, (groups, value_width), dtype)
    captured = []
    if bias is not None:
        heads = attrs.heads.of_queries if ctx.node.inputs[3].type.static_axes else ()
        captured.append(ctx.cache("bias", (), None, (math.prod(sizes(heads)),), dtype))
    captured += _captured(ctx, attrs)
    position = ctx.position(keys_axis)
    return ctx.plain(
        caches.attend_general,
        q,
        k,
        v,
        keys,
        values,
        position,
        offsets,
        lengths,
        scale,
        low,
        high,
        predicate,
        bias,
        tuple(captured),
        score,
        # Of one row per sequence, where the host knows how many slots are in use.
        ctx.columns if ctx.form == "step" and keys_axis is ctx.plan.axis else None,
    )


def _attend_across(
    ctx: DecodeContext, q: Any, k: Any, v: Any, scale: float, low: int | None, high: int | None, predicate: Any,
    bias: Any, score: Any,
) -> fx.Node:  # fmt: skip
    """Queries along one axis that grows, keys along another: rows and their segments."""
    attrs = ctx.node.attrs
    assert isinstance(attrs, AttendAttrs)
    axis, queries = attrs.along, attrs.query_rows
    if queries is None or not _grows(ctx, queries) or bias is not None:
        raise NotLowered("decoding through an `attend` whose queries are not the new rows", ctx.node)
    groups, dtype = math.prod(sizes(attrs.heads.of_keys)), ctx.types.attended
    keys = ctx.cache("keys", (), None, (groups, math.prod(sizes(attrs.over))), dtype)
    values = ctx.cache("values", (), None, (groups, math.prod(sizes(attrs.value_axes))), dtype)
    captured = tuple(_captured(ctx, attrs))
    # Keys are cached with every row, also while nothing asks about them.
    return ctx.every_call(
        ctx.plan.axis if ctx.plan.axis in (queries, axis) else queries,
        open_cuts.attend_across,
        q,
        k,
        v,
        keys,
        values,
        ctx.position(queries),
        ctx.offsets(queries),
        ctx.offsets(axis),
        ctx.lengths_of(axis),
        scale,
        low,
        high,
        predicate,
        captured,
        score,
        gives_segments=queries is not ctx.plan.axis,
    )


def _grows(ctx: DecodeContext, axis: Axis) -> bool:
    return axis is ctx.plan.axis or axis in ctx.open


def _captured(ctx: DecodeContext, attrs: AttendAttrs) -> list[fx.Node]:
    """A cache for everything that keys have of a mask and a score, in the order in which they read it."""
    mask, score = attrs.mask_captures(ctx.node.inputs), attrs.score_captures(ctx.node.inputs)
    formula = None if masks.is_exactly_distance(attrs.mask.formula) else attrs.mask.formula
    sides = [] if attrs.score is None else sides_of(attrs.score.formula)
    read = _key_reads(formula, attrs.along)
    found = [mask[index] if isinstance(index, int) else index for index in read]
    found += [score[index] for side, index in sides if side == "key"]
    return [_captured_cache(ctx, attrs, value) for value in found]


def _captured_cache(ctx: DecodeContext, attrs: AttendAttrs, read: Value | masks.SegmentIndex) -> fx.Node:
    """What a score reads is written out for all heads; a mask reads one value per row, or the number of a segment. That
    of a mask is the same in all layers, and kept once."""
    if isinstance(read, Value) and read.type.static_axes:
        return ctx.cache("captured", (), None, (math.prod(sizes(attrs.heads.of_queries)),), ctx.cache_type(read))
    dtype = ctx.cache_type(read) if isinstance(read, Value) else torch.int64
    return ctx.shared_cache((read, attrs.along), "captured", dtype)


def _band_mask(
    ctx: DecodeContext, low: int | None, high: int, keys: fx.Node, slots: int | None, dtype: torch.dtype
) -> fx.Node:
    """One mask for all layers whose caches have as many slots."""

    def make() -> fx.Node:
        available = ctx.plain(_slots_of, keys)
        return ctx.plain(caches.band_mask, ctx.lengths, low, high, available, ctx.columns, ctx.is_even, dtype)

    return ctx._once(("band_mask", low, high, slots, dtype), lambda: ctx._plan(lambda _: make(), ctx.plan.axis))


def _slots_of(keys: torch.Tensor) -> int:
    return keys.shape[2]


def _key_reads(formula: masks.Formula | masks.Term | None, keys: Axis) -> list[int | masks.SegmentIndex]:
    """Which captured values the keys' side of a mask reads, or numbers of segments, in the order in which the lowered
    predicate does."""
    match formula:
        case masks.Side("key", masks.Captured(index)):
            return [index]
        case masks.Side("key", masks.SegmentIndex(axis) as read) if axis is not keys:
            return [read]
        case (
            masks.Both(left, right)
            | masks.Either(left, right)
            | masks.Compare(_, left, right)
            | masks.Arithmetic(_, left, right)
        ):
            return _key_reads(left, keys) + _key_reads(right, keys)
        case masks.Not(inner):
            return _key_reads(inner, keys)
        case _:
            return []


# -- rows ------------------------------------------------------------------------------------------


def _previous(ctx: DecodeContext, x: Any, position: Any, k: int, first: Any) -> fx.Node:
    """The last k rows are kept, and one more."""
    value = ctx.node.inputs[0]
    axis = value.type.rows
    assert axis is not None
    # One slot more than is read: a sequence that pauses writes its ignored row there.
    cache = ctx.cache("rows", (), k + 1, sizes(value.type.static_axes), ctx.cache_type(value))
    offsets = None if ctx.form == "step" and axis is ctx.plan.axis else ctx.offsets(axis)
    return ctx.plain(
        caches.previous_extend, x, position, k, first, cache, ctx.row_example(axis), ctx.lengths_of(axis), offsets
    )


# -- cuts ------------------------------------------------------------------------------------------


def _capped(ctx: DecodeContext, ends: Any, row_example: Any, at_most: int) -> fx.Node:
    attrs: Any = ctx.node.attrs
    return ctx.plain(open_cuts.capped_open, ends, at_most, ctx.open_rows(attrs.cut, attrs.along), row_example)


def _spread(ctx: DecodeContext, p: Any, number: Any) -> fx.Node:
    attrs, value = ctx.node.attrs, ctx.node.inputs[0]
    assert isinstance(attrs, SpreadAttrs)
    made = ctx.open[attrs.cut]
    last = ctx.state("last", sizes(value.type.static_axes), ctx.cache_type(value))
    return ctx.every_call(
        made.along,
        open_cuts.spread_open,
        p,
        number,
        last,
        ctx.row_example(made.along),
        ctx.lengths_of(made.along),
        ctx.offsets(made.along),
        made.offsets,
    )


STATEFUL: dict[Callable[..., Any], Callable[..., fx.Node | None]] = {
    attention.attend_packed: _attend,
    shifts.previous_rows: _previous,
    cuts.capped: _capped,
    cuts.spread: _spread,
}
