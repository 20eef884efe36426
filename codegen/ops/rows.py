"""`position`, `length`: where a row stands."""

from __future__ import annotations

from ...dsl import frontier
from ...dsl.axes import Axis, Cut
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node
from ...dsl.record import record
from ...dsl.value_type import Int, ValueType
from ..functions_lazy import shifts
from ..lazy import torch
from ..lowering import LowerContext
from .cut import read_cut, seen_cut
from .operands import cost_per_entry
from .selection import choose_rows, read_tag


@record
class RowAttrs:
    axis: Axis


def _infer_position(call: OpCall, axis: Axis) -> Inferred:
    # That there is such a segment, or such a row of a selection, is data.
    return Inferred(RowAttrs(axis), (*read_cut(call, axis), *read_tag(call, axis)), (ValueType(Int(), (axis,)),))


def _infer_length(call: OpCall, axis: Axis) -> Inferred:
    # Of a nested axis, one length for each row that owns rows of it.
    owners = () if axis.parent is None else (axis.parent,)
    type = ValueType(Int(), owners, axis.is_ordered and not owners)
    return Inferred(RowAttrs(axis), read_tag(call, axis), (type,))


def _lower_position(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, RowAttrs)
    axis = attrs.axis
    choose_rows(ctx, node, axis)
    ctx.define(node.outputs[0], ctx.position(axis) if axis.is_ordered else ctx.call(torch.arange, axis.size))


def _lower_length(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, RowAttrs)
    axis = attrs.axis
    choose_rows(ctx, node, axis)
    if axis.is_static:
        ctx.define(node.outputs[0], ctx.call(torch.tensor, axis.size))
    else:
        ctx.define(node.outputs[0], ctx.call(shifts.lengths, ctx.edges(axis)))


def _frontier_position(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, RowAttrs)
    axis = node.attrs.axis
    if isinstance(axis.kind, Cut):
        return frontier.row_number(seen_cut(axis, axis.kind.parent, given))
    return frontier.join(*given)


def _frontier_length(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, RowAttrs)
    return frontier.NONE if node.attrs.axis.is_static else frontier.join(frontier.length_of(node.attrs.axis), *given)


AXIS = Param("axis", Accepts.AXIS)
POSITION = OpDef(
    name="position",
    params=(AXIS,),
    infer=_infer_position,
    frontier=_frontier_position,
    lower=_lower_position,
    cost=cost_per_entry(0),
    doc=(
        "`position(seq)`: the number of a row in its example, from 0; of an entry along a static axis too. An int "
        "along the axis."
    ),
    samples=(
        "x: real[seq, dim] => x + real(position(seq))",
        "x: real[seq, dim] => x + real(position(dim))",
        "x: real[item] => x + real(position(item))",
    ),
)
LENGTH = OpDef(
    name="length",
    params=(AXIS,),
    infer=_infer_length,
    frontier=_frontier_length,
    lower=_lower_length,
    cost=cost_per_entry(0),
    doc=(
        "`length(seq)`: how many rows an axis has: an int per example for an ordered axis, per row of its owner for a "
        "nested one, one int for a static one."
    ),
    samples=(
        "x: real[seq, dim] => x / real(length(seq))",
        "x: real[item, dim], y: real[other] => x + y / (1 + real(length(item)))",
    ),
)

ROWS = (POSITION, LENGTH)
