"""Stateful forms of the functions that read other rows, for the graphs of decoding: attention, and rows before.

A form makes the caches it needs and answers with a call of functions/caches.py; None where the function can be called
as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from ..dsl import masks
from ..dsl.program import Node, Value
from ..dsl.value_type import Flag, Real
from .functions import attention, caches, shifts
from .graph_context import NotLowered
from .ops.attend import AttendAttrs
from .ops.attend_formulas import sides_of
from .ops.operands import sizes

if TYPE_CHECKING:
    from .decode import DecodeContext


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
) -> fx.Node | None:
    """Keys along the decoded axis: cached. Keys made once are read as they are, by new rows only."""
    axis, attrs = ctx.plan.axis, ctx.node.attrs
    assert isinstance(attrs, AttendAttrs)
    offsets = ctx.offsets(axis)
    if k_offsets is not offsets:
        return _attend_once(ctx, q, k, v, q_offsets, k_offsets, scale, low, high, predicate, bias, score)
    if attrs.query_rows is not axis:
        raise NotLowered("decoding through an `attend` whose queries are not the new rows", ctx.node)
    groups, width = math.prod(sizes(attrs.heads.of_keys)), math.prod(sizes(attrs.over))
    value_width, dtype = math.prod(sizes(attrs.value_axes)), ctx.types.attended
    if predicate is None and bias is None and score is None and high is not None and high <= 0:
        # A query reads back to position + low, so older rows are never read again.
        slots = None if low is None else max(1 - low, 1)
        keys = ctx.cache("keys", (groups,), slots, (width,), dtype)
        values = ctx.cache("values", (groups,), slots, (value_width,), dtype)
        if ctx.form != "step":
            return ctx.plain(caches.attend_extend, q, k, v, keys, values, offsets, ctx.lengths, scale, low, high)
        mask = _band_mask(ctx, low, high, keys, slots, dtype)
        return ctx.plain(
            caches.attend_step, q, k, v, keys, values, ctx.lengths, mask, ctx.columns, ctx.is_even, scale, high
        )
    keys = ctx.cache("keys", (), None, (groups, width), dtype)
    values = ctx.cache("values", (), None, (groups, value_width), dtype)
    captured = []
    if bias is not None:
        heads = attrs.heads.of_queries if ctx.node.inputs[3].type.static_axes else ()
        captured.append(ctx.cache("bias", (), None, (math.prod(sizes(heads)),), dtype))
    for value in _read_at_keys(ctx.node, attrs):
        # What a score reads is written out for all heads; a mask reads one value per row.
        shape = (math.prod(sizes(attrs.heads.of_queries)),) if value.type.static_axes else ()
        captured.append(ctx.cache("captured", (), None, shape, _cache_type(ctx, value)))
    position = ctx.position(axis)
    return ctx.plain(
        caches.attend_general,
        q,
        k,
        v,
        keys,
        values,
        position,
        offsets,
        ctx.lengths,
        scale,
        low,
        high,
        predicate,
        bias,
        tuple(captured),
        score,
        # Of one row per sequence, where the host knows how many slots are in use.
        ctx.columns if ctx.form == "step" else None,
    )


def _attend_once(ctx: DecodeContext, *operands: Any) -> fx.Node:
    """Keys of another axis, complete since the beginning: only the queries' positions must be told."""
    return ctx.plain(attention.attend_packed, *operands, ctx.position(ctx.plan.axis))


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


def _read_at_keys(node: Node, attrs: AttendAttrs) -> list[Value]:
    """Captured values that keys have, in the order in which the mask and then the score read them."""
    mask, score = attrs.mask_captures(node.inputs), attrs.score_captures(node.inputs)
    formula = None if masks.is_exactly_distance(attrs.mask.formula) else attrs.mask.formula
    found = [mask[index] for index in _key_reads(formula)]
    sides = [] if attrs.score is None else sides_of(attrs.score.formula)
    return found + [score[index] for side, index in sides if side == "key"]


def _key_reads(formula: masks.Formula | masks.Term | None) -> list[int]:
    """Which captured values the keys' side of a mask reads, in the order in which the lowered predicate does."""
    match formula:
        case masks.Side("key", masks.Captured(index)):
            return [index]
        case (
            masks.Both(left, right)
            | masks.Either(left, right)
            | masks.Compare(_, left, right)
            | masks.Arithmetic(_, left, right)
        ):
            return _key_reads(left) + _key_reads(right)
        case masks.Not(inner):
            return _key_reads(inner)
        case _:
            return []


def _cache_type(ctx: DecodeContext, value: Value) -> torch.dtype:
    match value.type.kind:
        case Real():
            return ctx.real_type()
        case Flag():
            return torch.bool
        case _:
            return torch.int64


def _previous(ctx: DecodeContext, x: Any, position: Any, k: int, first: Any) -> fx.Node:
    """The last k rows are kept, and one more."""
    value = ctx.node.inputs[0]
    # One slot more than is read: a sequence that pauses writes its ignored row there.
    cache = ctx.cache("rows", (), k + 1, sizes(value.type.static_axes), _cache_type(ctx, value))
    offsets = None if ctx.form == "step" else ctx.offsets(ctx.plan.axis)
    return ctx.plain(
        caches.previous_extend, x, position, k, first, cache, ctx.row_example(ctx.plan.axis), ctx.lengths, offsets
    )


STATEFUL: dict[Callable[..., Any], Callable[..., fx.Node | None]] = {
    attention.attend_packed: _attend,
    shifts.previous_rows: _previous,
}
