"""Cuts: `segment`, and what groups rows by one: `pool`, `spread`, `index` (SEMANTICS 4).

A cut is born in a `segment` statement. What it made (where segments end, and with gaps which rows are in one) is among
the inputs of every operator that groups rows by the cut, because which rows those are is data (SEMANTICS 6).
"""

from __future__ import annotations

import operator
from typing import Any

from ...dsl import frontier
from ...dsl.axes import Axis, Cut, Selected
from ...dsl.errors.axes import KindMismatch
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.frontier import Frontier, Segments
from ...dsl.opdef import Accepts, AxisMapping, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Flag, Id, Int, Tag, ValueType
from ..functions_lazy import cuts, segments
from ..lazy import torch
from ..lowering import LowerContext
from .axis_pairs import moved, one_pair, want_along
from .grid_parts import GridAttrs, infer_pool, infer_spread, is_between_grids, lower_grid
from .joining import Operand, join, kind_words, want_flag, want_real, want_whole
from .nested import OwnedAttrs, frontier_owned, lower_owned
from .nested import infer_pool as infer_owned_pool
from .nested import infer_spread as infer_owned_spread
from .operands import cost_per_entry, own, sizes
from .scaled import ScaledAttrs, frontier_scaled, is_scaled_pair, lower_scaled
from .scaled import infer_pool as infer_scaled_pool
from .scaled import infer_spread as infer_scaled_spread
from .selection import members_of_axis


def read_cut(call: OpCall, axis: Axis) -> tuple[Value, ...]:
    """What an operator reads when it groups rows by an axis, or counts the rows of it: of a cut, what made it."""
    made = call.segmented(axis)
    return () if made is None else made.values


def seen_cut(cut: Axis, along: Axis, made: tuple[Frontier, ...]) -> Segments:
    """A cut as a source sees it. `made`: the frontiers of what `read_cut` gave."""
    return frontier.segments(cut, made[0] if made else None, along, gaps=len(made) > 1)


# -- segment ---------------------------------------------------------------------------------------


@record
class SegmentAttrs:
    """`at_most` rows in a segment; None: any number. `by` says that ids are given, and segments are their runs. `each`:
    how many rows every segment has, where they are those of an owner's row."""

    cut: Axis
    along: Axis
    at_most: int | None = None
    by: bool = False
    each: int | None = None


def _parent(cut: Axis) -> Axis:
    assert isinstance(cut.kind, Cut | Selected)
    return cut.kind.parent


def _infer_segment(call: OpCall, ends: Value, cut: Axis, at_most: int | None) -> Inferred:
    want_flag(call, "segment", ends=ends)
    want_whole(call, "segment", ends=ends)
    along = _parent(cut)
    _want_one_per_row(call, "ends", ends, along)
    if at_most is not None and at_most < 1:
        raise call.fail(BadNumber(call.at("at_most"), "segment", "at most", str(at_most), "at least 1"))
    return Inferred(SegmentAttrs(cut, along, at_most), (ends,), (ValueType(Flag(), (along,)),))


def _infer_segment_by(call: OpCall, x: Value, cut: Axis) -> Inferred:
    want_whole(call, "segment", x=x)
    kind, along = x.type.kind, _parent(cut)
    if not isinstance(kind, Id | Int | Tag):
        raise call.fail(KindMismatch(call.at("x"), "segment", kind_words(x), "an id, a tag or an int"))
    _want_one_per_row(call, "x", x, along)
    flag = ValueType(Flag(), (along,))
    has_gaps = isinstance(kind, Id) and kind.or_none
    return Inferred(SegmentAttrs(cut, along, by=True), (x,), (flag, flag) if has_gaps else (flag,))


def _want_one_per_row(call: OpCall, name: str, x: Value, along: Axis) -> None:
    joint = join(call, "segment", (Operand(x, call.at(name)),))
    rows = joint.rows
    if any(axis.is_static for axis in joint.axes):
        raise call.fail(
            KindMismatch(call.at(name), "segment", f"`{x.type}`", f"one {kind_words(x).split()[-1]} per row")
        )
    if rows is not None and rows is not along and rows not in along.ancestors:
        want_along(call, "segment", x, along, name)


def _lower_segment(ctx: LowerContext, node: Node) -> None:
    attrs, (given,) = node.attrs, node.inputs
    assert isinstance(attrs, SegmentAttrs)
    rows = ctx.row_example(attrs.along)
    x: Any = ctx.full(given, (), attrs.along)
    if not attrs.by:
        if attrs.at_most is not None:
            x = ctx.call(cuts.capped, x, rows, attrs.at_most)
        ctx.define(node.outputs[0], x)
        ctx.cut(attrs.cut, attrs.along, x, None)
        return
    none = given.type.kind.axis.size if isinstance(given.type.kind, Id) and len(node.outputs) > 1 else None
    ends = ctx.call(cuts.ends_of_runs, x, none, rows)
    inside = None if none is None else ctx.call(operator.ne, x, none)
    for value, made in zip(node.outputs, (ends, inside), strict=False):
        ctx.define(value, made)
    ctx.cut(attrs.cut, attrs.along, ends, inside)


def _frontier_segment(node: Node, given: tuple[Frontier, ...]) -> tuple[Frontier, ...]:
    assert isinstance(node.attrs, SegmentAttrs)
    rule = frontier.segment_by_value if node.attrs.by else frontier.segment_by_flags
    return (rule(given[0]), *given[: len(node.outputs) - 1])


SEGMENT = OpDef(
    name="segment",
    params=(
        Param("ends", Accepts.VALUE),
        Param("cut", Accepts.AXIS),
        Param("at_most", Accepts.INTEGER, None),
    ),
    infer=_infer_segment,
    frontier=_frontier_segment,
    lower=_lower_segment,
    row_wise=False,
    cost=cost_per_entry(2),
    doc=(
        "`segment seq into patch ends where f, at most 16`: a statement that cuts an axis into segments. A flag at a "
        "row says that a segment ends after it; `at most` also ends one after so many rows. An example's last segment "
        "is open unless its last flag is true."
    ),
    samples=(
        "x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f => x * real(index(patch))",
        "x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f, at most 2 => x * real(index(patch))",
    ),
)
SEGMENT_BY = OpDef(
    name="segment_by",
    params=(Param("x", Accepts.VALUE), Param("cut", Accepts.AXIS)),
    infer=_infer_segment_by,
    frontier=_frontier_segment,
    lower=_lower_segment,
    row_wise=False,
    cost=cost_per_entry(2),
    doc=(
        "`segment seq into line by x`: a statement that cuts an axis where an id changes. Rows of id `none` are in no "
        "segment."
    ),
    samples=(
        "x: real[seq, dim], i: id[seq] in vocab; segment seq into patch by i => x * real(index(patch))",
        "x: real[seq, dim], i: id[seq] in vocab or none; segment seq into patch by i => x * real(index(patch, closed))",
    ),
)


def _infer_segment_each(call: OpCall, cut: Axis, each: int) -> Inferred:
    along = _parent(cut)
    return Inferred(SegmentAttrs(cut, along, each=each), (call.selected(along),), (ValueType(Flag(), (along,)),))


def _lower_segment_each(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, SegmentAttrs)
    along, tag = attrs.along, node.inputs[0]
    chosen = ctx.chosen(along, _parent(along), tag, members_of_axis(tag, along), None)
    ends = ctx.call(cuts.ends_of_each, chosen, ctx.row_example(along), ctx.offsets(along), attrs.each, attrs.cut.name)
    ctx.define(node.outputs[0], ends)
    ctx.cut(attrs.cut, along, ends, None)


SEGMENT_EACH = OpDef(
    name="segment_each",
    params=(Param("cut", Accepts.AXIS), Param("each", Accepts.INTEGER)),
    infer=_infer_segment_each,
    frontier=lambda node, given: frontier.NONE,
    lower=_lower_segment_each,
    row_wise=False,
    cost=cost_per_entry(1),
    doc=(
        "What `flatten(z, (picture, spot) -> place)` makes of a selected axis: segments of so many rows, which are "
        "neighbours on the whole axis too. A mask reads them as `same(picture)`."
    ),
    samples=(),
)


# -- pool and spread between other axes than a cut and its rows ------------------------------------


def _lowers_elsewhere(ctx: LowerContext, node: Node) -> bool:
    """Lowers what is between grids, scaled axes, or an axis and its owner; false for a cut."""
    match node.attrs:
        case GridAttrs() as attrs:
            lower_grid(ctx, node, attrs)
        case OwnedAttrs() as attrs:
            lower_owned(ctx, node, attrs)
        case ScaledAttrs() as attrs:
            lower_scaled(ctx, node, attrs)
        case _:
            return False
    return True


def _frontier_elsewhere(node: Node, read: Frontier) -> Frontier | None:
    """Of what `_lowers_elsewhere` lowers; None for a cut."""
    match node.attrs:
        case GridAttrs():
            return read
        case OwnedAttrs() as attrs:
            return frontier_owned(attrs, read)
        case ScaledAttrs() as attrs:
            return frontier_scaled(attrs, read)
        case _:
            return None


# -- pool ------------------------------------------------------------------------------------------


@record
class PoolAttrs:
    source: Axis
    cut: Axis
    by: str


def _infer_pool(call: OpCall, x: Value, axes: AxisMapping, by: str) -> Inferred:
    want_real(call, "pool", x=x)
    want_whole(call, "pool", x=x)
    source, cut = one_pair(call, "pool", axes)
    if source.is_static:
        return infer_pool(call, x, source, cut, by)
    want_along(call, "pool", x, source)
    if source.parent is cut:
        return infer_owned_pool(call, x, source, cut, by)
    if is_scaled_pair(source, cut):
        return infer_scaled_pool(x, source, cut, by)
    if not (isinstance(cut.kind, Cut) and cut.kind.parent is source):
        raise call.fail(NotACut(call.at("axes"), "pool", source.name, cut.name, "a cut of"))
    return Inferred(PoolAttrs(source, cut, by), (x, *read_cut(call, cut)), (moved(x, source, cut),))


def _lower_pool(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    if _lowers_elsewhere(ctx, node):
        return
    assert isinstance(attrs, PoolAttrs)
    x = node.inputs[0]
    rows = ctx.segment_values(attrs.cut, x, own(ctx, x), sizes(x.type.static_axes))
    bounds = ctx.segment_bounds(attrs.cut)
    if attrs.by in ("first", "last"):
        row = ctx.call(cuts.first_of if attrs.by == "first" else cuts.last_of, bounds)
        ctx.define(node.outputs[0], ctx.call(torch.index_select, rows, 0, row))
        return
    function = {"max": segments.max_rows, "mean": segments.mean_rows, "sum": segments.sum_rows}[attrs.by]
    ctx.define(node.outputs[0], ctx.call(function, rows, ctx.segment_numbers(attrs.cut), bounds))


def _frontier_pool(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    read, *made = given
    elsewhere = _frontier_elsewhere(node, read)
    if elsewhere is not None:
        return elsewhere
    assert isinstance(attrs, PoolAttrs)
    return frontier.pool(read, seen_cut(attrs.cut, attrs.source, tuple(made)), attrs.by)


POOL = OpDef(
    name="pool",
    params=(
        Param("x", Accepts.VALUE),
        Param("axes", Accepts.MAPPING),
        Param("by", Accepts.CHOICE, "mean", ("max", "mean", "sum", "first", "last")),
    ),
    infer=_infer_pool,
    frontier=_frontier_pool,
    lower=_lower_pool,
    row_wise=False,
    row_wise_when=is_between_grids,
    cost=cost_per_entry(1),
    doc=(
        "`pool(x, seq -> patch, by=max)`: one value for each segment of a cut, from its rows; or for each row of an "
        "axis scaled from that of x, from as many rows, of a grid from a square of places; or for each row that owns "
        "rows of the nested axis of x."
    ),
    samples=tuple(
        f"x: real[seq, cell, dim] => pool(x, cell -> half_cell, by={by})"
        for by in ("max", "mean", "sum", "first", "last")
    )
    + tuple(f"x: real[item, dim] => pool(x, item -> other, by={by})" for by in ("max", "mean", "sum", "first", "last"))
    + tuple(
        f"x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f, at most 3; "
        f"p = pool(x, seq -> patch, by={by}) => spread(p, patch -> seq, own)"
        for by in ("max", "mean", "sum", "first", "last")
    ),
)


# -- spread ----------------------------------------------------------------------------------------


@record
class SpreadAttrs:
    cut: Axis
    target: Axis
    which: str


def _infer_spread(call: OpCall, x: Value, axes: AxisMapping, which: str) -> Inferred:
    want_whole(call, "spread", x=x)
    cut, target = one_pair(call, "spread", axes)
    if cut.is_static:
        return infer_spread(call, x, cut, target, which)
    want_along(call, "spread", x, cut)
    if target.parent is cut:
        return infer_owned_spread(call, x, cut, target, which)
    if is_scaled_pair(target, cut):
        return infer_scaled_spread(x, cut, target, which)
    if not (isinstance(cut.kind, Cut) and cut.kind.parent is target):
        raise call.fail(NotACut(call.at("axes"), "spread", target.name, cut.name, "a cut of"))
    return Inferred(SpreadAttrs(cut, target, which), (x, *read_cut(call, cut)), (moved(x, cut, target),))


def _lower_spread(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    if _lowers_elsewhere(ctx, node):
        return
    assert isinstance(attrs, SpreadAttrs)
    number = ctx.segment_of(attrs.cut, attrs.which)
    ctx.define(node.outputs[0], ctx.call(cuts.spread, own(ctx, node.inputs[0]), number))


def _frontier_spread(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    read, *made = given
    elsewhere = _frontier_elsewhere(node, read)
    if elsewhere is not None:
        return elsewhere
    assert isinstance(attrs, SpreadAttrs)
    return frontier.spread(read, seen_cut(attrs.cut, attrs.target, tuple(made)), attrs.which)


SPREAD = OpDef(
    name="spread",
    params=(
        Param("x", Accepts.VALUE),
        Param("axes", Accepts.MAPPING),
        Param("which", Accepts.CHOICE, "own", ("own", "before", "closed")),
    ),
    infer=_infer_spread,
    frontier=_frontier_spread,
    lower=_lower_spread,
    row_wise=False,
    row_wise_when=is_between_grids,
    cost=cost_per_entry(0),
    doc=(
        "`spread(p, patch -> seq, own)`: the value of a row's own segment, of the one `before`, or of the last one "
        "`closed`. Where there is none, 0. The same from an axis to the one that it is scaled from; each place of a "
        "grid reads the square it is in (nearest neighbour). From an axis to one nested in it, each row reads its "
        "owner."
    ),
    samples=(
        "x: real[other, dim], y: real[item, dim] => y + spread(x, other -> item)",
        "x: real[seq, dim]; p = pool(x, seq -> pair, by=sum) => spread(p, pair -> seq, own)",
        "x: real[seq, dim]; p = pool(x, seq -> pair, by=first) => spread(p, pair -> seq, own)",
        (
            "x: real[seq, dim]; p = pool(pool(x, seq -> pair, by=max), pair -> six, by=mean); "
            "y = spread(spread(p, six -> pair, closed), pair -> seq, closed) => y + x"
        ),
        (
            "x: real[seq, dim]; p = pool(x, seq -> pair, by=last) => "
            "spread(p, pair -> seq, before) + 2 * spread(p, pair -> seq, closed)"
        ),
        "x: real[seq, half_cell, dim] => spread(x, half_cell -> cell)",
        "x: real[half_cell, dim] => spread(x, half_cell -> cell)",
        (
            "x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f; p = pool(x, seq -> patch, by=sum); "
            "y = spread(p, patch -> seq, before) => y + 2 * spread(p, patch -> seq, closed)"
        ),
        (
            "x: real[seq, dim], i: id[seq] in vocab or none; segment seq into patch by i; "
            "p = pool(x, seq -> patch, by=mean); y = spread(p, patch -> seq, before) => "
            "y + 2 * spread(p, patch -> seq, closed) - spread(p, patch -> seq)"
        ),
    ),
)


def _lower_hold(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, SpreadAttrs)
    ctx.define(node.outputs[0], ctx.segment_first(attrs.cut, x, own(ctx, x)))


# In no table: decoders are written with it (codegen/own_spreads.py).
HOLD = OpDef(
    name="hold",
    params=(),
    infer=_infer_spread,
    frontier=frontier.row_wise,
    lower=_lower_hold,
    row_wise=False,
    doc="`spread(pool(x, seq -> patch, by=first), patch -> seq)`: x at the first row of a row's segment.",
)


# -- index -----------------------------------------------------------------------------------------


@record
class IndexAttrs:
    axis: Axis
    which: str


def _infer_index(call: OpCall, axis: Axis, which: str) -> Inferred:
    if axis.is_static:
        return Inferred(IndexAttrs(axis, which), (), (ValueType(Id(axis), (axis,)),))
    if not isinstance(axis.kind, Cut):
        raise call.fail(NotACut(call.at("axis"), "index", "an axis", axis.name, "a cut of"))
    return Inferred(IndexAttrs(axis, which), read_cut(call, axis), (ValueType(Int(), (axis.kind.parent,)),))


def _lower_index(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, IndexAttrs)
    axis = attrs.axis
    ctx.define(
        node.outputs[0],
        ctx.call(torch.arange, axis.size) if axis.is_static else ctx.segment_index(axis, attrs.which),
    )


def _frontier_index(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    assert isinstance(attrs, IndexAttrs)
    if not isinstance(attrs.axis.kind, Cut):
        return frontier.NONE
    return frontier.segment_index(seen_cut(attrs.axis, attrs.axis.kind.parent, given), attrs.which)


INDEX = OpDef(
    name="index",
    params=(Param("axis", Accepts.AXIS), Param("which", Accepts.CHOICE, "own", ("own", "closed"))),
    infer=_infer_index,
    frontier=_frontier_index,
    lower=_lower_index,
    row_wise=False,
    row_wise_when=lambda node: isinstance(node.attrs, IndexAttrs) and node.attrs.axis.is_static,
    cost=cost_per_entry(0),
    doc=(
        "`index(A)`: the entries of a static axis as ids in it, along it. Of a cut, which segment of its example a row "
        "is in, counted from 0; with `closed` the last one that has ended, -1 for none."
    ),
    samples=(
        "x: real[seq, dim] => x * real(index(dim))",
        (
            "x: real[seq, dim], f: flag[seq]; segment seq into patch ends where f => "
            "x * real(index(patch)) + real(index(patch, closed))"
        ),
        (
            "x: real[seq, dim], i: id[seq] in vocab or none; segment seq into patch by i => "
            "x * real(index(patch)) + real(index(patch, closed))"
        ),
    ),
)

CUTS = (SEGMENT, SEGMENT_BY, SEGMENT_EACH, POOL, SPREAD, INDEX)
