"""`split`, `select`, `stack`, `concat`: entries of small static axes taken apart and put together."""

from __future__ import annotations

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import AxisTwice, LengthMismatch
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import BadNumber
from ...dsl.length import Length
from ...dsl.opdef import Accepts, AxisMapping, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Kind, ValueType, ordered_first
from ..lazy import torch
from ..lowering import LowerContext
from .joining import Operand, axis_names, join, same_kind, want_axes, want_static, want_whole
from .operands import cost_per_entry, own, presence, result_type


@record
class SelectAttrs:
    over: Axis
    index: int


@record
class SplitAttrs:
    over: Axis


def _infer_split(call: OpCall, x: Value, over: Axis) -> Inferred:
    want_static(call, "split", call.at("over"), (over,))
    want_axes(call, "split", "x", x, call.at("over"), (over,))
    size = over.size or 0
    if size > 64:
        raise call.fail(BadNumber(call.at("over"), "split", "over", f"an axis of length {size}", "at most 64 long"))
    type = x.type.with_axes(tuple(axis for axis in x.type.axes if axis is not over))
    return Inferred(SplitAttrs(over), (x,), (type,) * size)


def _lower_split(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, SplitAttrs)
    read, flags = own(ctx, x), presence(ctx, node)
    dim = x.type.static_axes.index(attrs.over) - len(x.type.static_axes)
    for index, value in enumerate(node.outputs):
        ctx.define(value, ctx.call(torch.select, read, dim, index), flags)


def _infer_select(call: OpCall, x: Value, over: Axis, index: int) -> Inferred:
    want_static(call, "select", call.at("over"), (over,))
    want_axes(call, "select", "x", x, call.at("over"), (over,))
    if not 0 <= index < (over.size or 0):
        raise call.fail(
            BadNumber(
                call.at("index"), "select", "index", str(index), f"in 0 .. {over.size}, the length of {over.name}"
            )
        )
    type = x.type.with_axes(tuple(axis for axis in x.type.axes if axis is not over))
    return Inferred(SelectAttrs(over, index), (x,), (type,))


def _lower_select(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, SelectAttrs)
    dim = x.type.static_axes.index(attrs.over) - len(x.type.static_axes)
    ctx.define(node.outputs[0], ctx.call(torch.select, own(ctx, x), dim, attrs.index), presence(ctx, node))


@record
class StackAttrs:
    over: Axis


def _same_kinds(call: OpCall, operator: str, values: tuple[Value, ...]) -> Kind:
    kind = values[0].type.kind
    for other in values[1:]:
        kind = same_kind(call, operator, values=values[0], other=other)
    return kind


def _infer_stack(call: OpCall, values: tuple[Value, ...], over: Axis) -> Inferred:
    want_static(call, "stack", call.at("over"), (over,))
    if len(values) != over.size:
        raise call.fail(
            LengthMismatch(
                call.at("values"), "stack", (over.name,), str(over.size), ("the list of values",), str(len(values))
            )
        )
    kind = _same_kinds(call, "stack", values)
    joint = join(call, "stack", tuple(Operand(value, call.at("values")) for value in values))
    if over in joint.axes:
        raise call.fail(AxisTwice(call.at("over"), "stack", over.name, call.at("values")))
    type = ValueType(kind, ordered_first((*joint.axes, over)), joint.per_example, joint.missing)
    return Inferred(StackAttrs(over), values, (type,))


def _lower_stack(ctx: LowerContext, node: Node) -> None:
    place, attrs = result_type(node), node.attrs
    assert isinstance(attrs, StackAttrs)
    inner = place.static_axes[:-1]
    reads = [ctx.full(value, inner, place.rows, place.per_example) for value in node.inputs]
    ctx.define(node.outputs[0], ctx.call(torch.stack, reads, -1), presence(ctx, node))


@record
class ConcatAttrs:
    parts: tuple[Axis, ...]
    whole: Axis


def _infer_concat(call: OpCall, values: tuple[Value, ...], axes: AxisMapping) -> Inferred:
    want_whole(call, "concat", values=next((value for value in values if value.type.missing), None))
    if any(axis.is_ordered for axis in (*axes.left, *axes.right)):
        raise call.fail(NotBuiltYet(call.span, "`concat` of ordered axes"))
    whole = axes.right[0]
    if len(axes.right) != 1 or len(axes.left) != len(values):
        raise call.fail(
            LengthMismatch(
                call.at("axes"),
                "concat",
                ("the list of axes",),
                str(len(axes.left)),
                ("the list of values",),
                str(len(values)),
            )
        )
    total = sum((axis.length for axis in axes.left), start=Length.number(0))
    if not call.equal(total, whole.length):
        raise call.fail(
            LengthMismatch(
                call.at("axes"), "concat", axis_names(axes.left), str(total), (whole.name,), str(whole.length)
            )
        )
    for value, axis in zip(values, axes.left, strict=True):
        want_axes(call, "concat", "values", value, call.at("axes"), (axis,))
    kind = _same_kinds(call, "concat", values)
    rests = tuple(
        Operand(
            Value(value.name, value.type.with_axes(tuple(a for a in value.type.axes if a is not axis)), value.span),
            call.at("values"),
        )
        for value, axis in zip(values, axes.left, strict=True)
    )
    joint = join(call, "concat", rests)
    if whole in joint.axes:
        raise call.fail(AxisTwice(call.at("axes"), "concat", whole.name, call.at("values")))
    type = ValueType(kind, ordered_first((*joint.axes, whole)), joint.per_example)
    return Inferred(ConcatAttrs(axes.left, whole), values, (type,))


def _lower_concat(ctx: LowerContext, node: Node) -> None:
    attrs, place = node.attrs, result_type(node)
    assert isinstance(attrs, ConcatAttrs)
    inner = place.static_axes[:-1]
    reads = [
        ctx.full(value, (*inner, axis), place.rows, place.per_example)
        for value, axis in zip(node.inputs, attrs.parts, strict=True)
    ]
    ctx.define(node.outputs[0], ctx.call(torch.cat, reads, -1))


X, OVER, VALUES = Param("x", Accepts.VALUE), Param("over", Accepts.AXIS), Param("values", Accepts.VALUES)
SPLIT = OpDef(
    name="split",
    params=(X, OVER),
    infer=_infer_split,
    frontier=frontier.row_wise,
    lower=_lower_split,
    cost=cost_per_entry(0),
    doc="`a, b = split(x, over=A)`: the entries of x along the static axis A, one value each, without the axis.",
    samples=("x: real[seq, two, dim]; a, b = split(x, over=two) => a - 2 * b",),
)
SELECT = OpDef(
    name="select",
    params=(X, OVER, Param("index", Accepts.INTEGER)),
    infer=_infer_select,
    frontier=frontier.row_wise,
    lower=_lower_select,
    cost=cost_per_entry(0),
    doc="`select(x, over=A, index=2)`: one entry of x along the static axis A, which goes.",
    samples=("x: real[seq, heads, dim] => select(x, heads, 2)",),
)
STACK = OpDef(
    name="stack",
    params=(VALUES, OVER),
    infer=_infer_stack,
    frontier=frontier.row_wise,
    lower=_lower_stack,
    cost=cost_per_entry(0),
    doc=(
        "`stack((a, b), over=A)`: values as the entries of a new axis, which must be as long as the list. One "
        "value's static axes contain the others'."
    ),
    samples=(
        "x: real[seq, dim], y: real[seq, dim], z: real[seq] => stack((x, y, z), over=three)",
        "x: real[seq, dim]; param a: real[dim]; s = sum(a, over=dim) => x * sum(stack((s, s^2), over=two), over=two)",
    ),
)
CONCAT = OpDef(
    name="concat",
    params=(VALUES, Param("axes", Accepts.MAPPING)),
    infer=_infer_concat,
    frontier=frontier.row_wise,
    lower=_lower_concat,
    cost=cost_per_entry(0),
    doc=(
        "`concat((x, y), (A, B) -> C)`: x along A, then y along B, as C, whose length is declared as the sum. The "
        "other axes of one value contain the others'."
    ),
    samples=("x: real[seq, dim, ffn], y: real[seq, ffn, heads] => concat((x, y), (dim, heads) -> dim_and_heads)",),
)

PARTS = (SPLIT, SELECT, STACK, CONCAT)
