"""Between kinds, between two values, and between a value and its gradient: row by row, axes kept."""

from __future__ import annotations

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import KindMismatch
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Constant, Node, Value
from ...dsl.record import record
from ...dsl.value_type import Flag, Id, Int, Real, Tag
from ..functions_lazy import pointwise, precision
from ..lazy import torch
from ..lowering import LowerContext
from .joining import NoAttrs, join, kind_words, operands, same_kind, want_flag, want_int, want_real, want_static
from .operands import cost_per_entry, dtype_of, like, own, presence, result_type, row_by_row

X = Param("x", Accepts.VALUE)


def _infer_real(call: OpCall, x: Value) -> Inferred:
    if isinstance(x.type.kind, Tag):
        raise call.fail(KindMismatch(call.at("x"), "real", kind_words(x), "a number or a flag"))
    return Inferred(NoAttrs(), (x,), (join(call, "real", operands(call, x=x)).type(Real()),))


def _lower_real(ctx: LowerContext, node: Node) -> None:
    x = node.inputs[0]
    read = own(ctx, x)
    if not isinstance(x.type.kind, Real):
        read = ctx.call(precision.real, read, ctx.working_type(), node.precise)
    ctx.define(node.outputs[0], read, presence(ctx, node))


def _infer_int(call: OpCall, x: Value) -> Inferred:
    return Inferred(NoAttrs(), (x,), (join(call, "int", operands(call, x=x)).type(Int()),))


def _lower_int(ctx: LowerContext, node: Node) -> None:
    x = node.inputs[0]
    read = own(ctx, x)
    if isinstance(x.type.kind, Real | Flag):
        read = ctx.call(pointwise.whole, read)
    ctx.define(node.outputs[0], read, presence(ctx, node))


@record
class WrapAttrs:
    size: int


def _infer_wrap(call: OpCall, x: Value, axis: Axis) -> Inferred:
    want_int(call, "wrap", x=x)
    want_static(call, "wrap", call.at("axis"), (axis,))
    assert axis.size is not None
    return Inferred(WrapAttrs(axis.size), (x,), (join(call, "wrap", operands(call, x=x)).type(Id(axis)),))


def _lower_wrap(ctx: LowerContext, node: Node) -> None:
    assert isinstance(node.attrs, WrapAttrs)
    read = own(ctx, node.inputs[0])
    ctx.define(node.outputs[0], ctx.call(torch.remainder, read, node.attrs.size), presence(ctx, node))


def _infer_where(call: OpCall, condition: Value, a: Value, b: Value) -> Inferred:
    want_flag(call, "where", condition=condition)
    kind = same_kind(call, "where", a=a, b=b)
    return Inferred(
        NoAttrs(), (condition, a, b), (join(call, "where", operands(call, condition=condition, a=a, b=b)).type(kind),)
    )


def _lower_where(ctx: LowerContext, node: Node) -> None:
    condition, a, b = node.inputs
    place = result_type(node)
    dtype = ctx.working_type() if isinstance(place.kind, Real) else dtype_of(ctx, a)
    args = [like(ctx, value, place) for value in (condition, a, b)]
    if isinstance(condition, Constant):
        args[0] = ctx.full(condition, (), None)
    ctx.define(node.outputs[0], ctx.call(pointwise.where, *args, dtype), presence(ctx, node))


def _infer_or_missing(call: OpCall, x: Value, value: Value) -> Inferred:
    kind = same_kind(call, "or", x=x, value=value)
    joint = join(call, "or", operands(call, x=x, value=value))
    type = joint.type(kind)
    return Inferred(NoAttrs(), (x, value), (type.__class__(kind, type.axes, type.per_example, value.type.missing),))


def _lower_or_missing(ctx: LowerContext, node: Node) -> None:
    x, value = node.inputs
    place = result_type(node)
    read, fill = like(ctx, x, place), like(ctx, value, place)
    present = ctx.present(x)
    result = read if present is None else ctx.call(pointwise.fill_missing, read, present, fill)
    ctx.define(node.outputs[0], result, ctx.present(value) if place.missing else None)


def _infer_stop(call: OpCall, x: Value) -> Inferred:
    return Inferred(NoAttrs(), (x,), (join(call, "stop_gradient", operands(call, x=x)).type(x.type.kind),))


def _infer_straight(call: OpCall, value: Value, carrier: Value) -> Inferred:
    want_real(call, "straight_through", value=value, carrier=carrier)
    joint = join(call, "straight_through", operands(call, value=value, carrier=carrier))
    return Inferred(NoAttrs(), (value, carrier), (joint.type(Real()),))


REAL = OpDef(
    name="real",
    params=(X,),
    infer=_infer_real,
    frontier=frontier.row_wise,
    lower=_lower_real,
    doc="`real(x)`: an int, an id or a flag (0 or 1) as a real. Axes are kept.",
    cost=cost_per_entry(1),
    counts=True,
    samples=("i: int[seq, dim] => real(i)", "x: real[seq] => real(x > 0)", "i: id[seq] in vocab => real(i)"),
)
INT = OpDef(
    name="int",
    params=(X,),
    infer=_infer_int,
    frontier=frontier.row_wise,
    lower=_lower_int,
    doc="`int(x)`: a real (its fraction dropped), an id, a tag or a flag as an int. Axes are kept.",
    cost=cost_per_entry(1),
    decides=True,
    samples=("x: real[seq, dim] => int(10 * x)", "x: real[seq] => int(x > 0)"),
)
WRAP = OpDef(
    name="wrap",
    params=(X, Param("axis", Accepts.AXIS)),
    infer=_infer_wrap,
    frontier=frontier.row_wise,
    lower=_lower_wrap,
    doc=(
        "`wrap(x, A)`: the remainder of an int by the length of A, as an `id in A`: how a hash becomes a place in a "
        "table."
    ),
    cost=cost_per_entry(1),
    samples=("i: int[seq] => wrap(i * 31 - 7, vocab)",),
)
WHERE = OpDef(
    name="where",
    params=(Param("condition", Accepts.VALUE), Param("a", Accepts.VALUE), Param("b", Accepts.VALUE)),
    infer=_infer_where,
    frontier=frontier.row_wise,
    lower=_lower_where,
    doc=(
        "`where(c, a, b)`: a where the flag c is true, else b; both are computed. One operand's static axes contain "
        "the others'."
    ),
    cost=cost_per_entry(1),
    samples=(
        "x: real[seq, dim], y: real[dim] => where(x > 0, x, y)",
        "x: real[seq] => where(x > 0, 1.0, 0.0)",
        "x: real[seq], y: real[seq, dim] => where(x > 0, y, 0)",
        "i: id[seq] in vocab => where(i == 2, 0, i)",
    ),
)


def _lower_optional(ctx: LowerContext, node: Node) -> None:
    ctx.define(node.outputs[0], own(ctx, node.inputs[0]))


OR_MISSING = OpDef(
    name="or_missing",
    params=(X, Param("value", Accepts.VALUE)),
    infer=_infer_or_missing,
    frontier=frontier.row_wise,
    lower=_lower_or_missing,
    doc="`or(x, value)`: x, and `value` where its row is missing. One operand's static axes contain the other's.",
    cost=cost_per_entry(1),
    samples=("x: real[seq, dim] => or_missing(next(x), 0)",),
)
STOP_GRADIENT = OpDef(
    name="stop_gradient",
    params=(X,),
    infer=_infer_stop,
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: torch.detach),
    doc="`stop_gradient(x)`: x, through which no gradient passes. Axes are kept.",
    cost=cost_per_entry(0),
    samples=("x: real[seq, dim] => stop_gradient(x) * 2",),
)
STRAIGHT_THROUGH = OpDef(
    name="straight_through",
    params=(Param("value", Accepts.VALUE), Param("carrier", Accepts.VALUE)),
    infer=_infer_straight,
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: pointwise.straight_through),
    doc="`straight_through(value, carrier)`: `value` exactly, with the gradient going to `carrier` alone.",
    cost=cost_per_entry(1),
    samples=("x: real[seq, dim] => straight_through(round(x), x)",),
)

OPTIONAL_INPUT = OpDef(
    name="optional_input",
    params=(X,),
    infer=_infer_stop,
    frontier=frontier.row_wise,
    lower=_lower_optional,
    doc=(
        "`input ends: flag[seq] = f`: a statement that declares an input with a default. Where a caller gives it, the "
        "default is not computed; its causal frontier is that of the default either way."
    ),
    cost=cost_per_entry(0),
    samples=("x: real[seq, dim]; input y: real[seq, dim] = 2 * x => x * y",),
)

CONVERSION = (OPTIONAL_INPUT, REAL, INT, WRAP, WHERE, OR_MISSING, STOP_GRADIENT, STRAIGHT_THROUGH)
