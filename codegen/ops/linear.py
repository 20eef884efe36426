"""`linear(x, A -> B)`: a matrix times every row; `dot` and `outer`: products by name.

`linear` contracts the axes A and adds B. `dot(a, b, over=D)` contracts D and joins all other axes by name, `outer`
joins all.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import AxisTwice
from ...dsl.errors.operators import WeightAxes
from ...dsl.opdef import Accepts, AxisMapping, Cost, Inferred, OpCall, OpDef, Param
from ...dsl.program import Distribution, Node, Value
from ...dsl.record import record
from ...dsl.value_type import Real, ValueType, ordered_first
from ..lazy import functional, torch
from ..lowering import LowerContext
from .joining import (
    Joint,
    NoAttrs,
    axis_names,
    join,
    operands,
    want_axes,
    want_real,
    want_static,
    want_weight_level,
    want_whole,
)
from .operands import cost_per_entry, entries, has_leading, matrix, own, result_type, row_by_row, sizes, traffic

ZEROS = Distribution("zeros")


def scaled_normal(fan_in: int) -> Distribution:
    """How a matrix starts when the spec does not say: a cut normal of standard deviation fan_in ^ -0.5."""
    return Distribution("trunc_normal", (("std", max(fan_in, 1) ** -0.5), ("cut", 3.0), ("mean", 0.0)))


@record
class LinearAttrs:
    contracted: tuple[Axis, ...]
    added: tuple[Axis, ...]
    has_bias: bool


def check_given_weight(call: OpCall, operator: str, weight: Value, axes: tuple[Axis, ...]) -> None:
    """A weight handed in has exactly these axes, in any order, and lives at the weights."""
    want_real(call, operator, weight=weight)
    want_weight_level(call, operator, "weight", weight)
    if sorted(axis_names(weight.type.axes)) != sorted(axis_names(axes)) or set(weight.type.axes) != set(axes):
        raise call.fail(WeightAxes(call.at("weight"), operator, axis_names(weight.type.axes), axis_names(axes)))


def check_added(call: OpCall, operator: str, kept: tuple[Axis, ...], added: tuple[Axis, ...], value_name: str) -> None:
    for index, axis in enumerate(added):
        if axis in kept or axis in added[:index]:
            raise call.fail(AxisTwice(call.at("axes"), operator, axis.name, call.at(value_name)))


def _infer_linear(
    call: OpCall, x: Value, axes: AxisMapping, bias: bool, weight: Value | None, init: Distribution | None
) -> Inferred:
    want_real(call, "linear", x=x)
    want_whole(call, "linear", x=x)
    want_static(call, "linear", call.at("axes"), (*axes.left, *axes.right))
    want_axes(call, "linear", "x", x, call.at("axes"), axes.left)
    kept = tuple(axis for axis in x.type.axes if axis not in axes.left)
    check_added(call, "linear", kept, axes.right, "x")
    if weight is None:
        fan_in = math.prod(sizes(axes.left))
        weight = call.weight(
            "weight", (*axes.right, *axes.left), init or scaled_normal(fan_in), outputs=len(axes.right)
        )
    else:
        check_given_weight(call, "linear", weight, (*axes.right, *axes.left))
    inputs = (x, weight)
    if bias:
        inputs += (call.weight("bias", axes.right, ZEROS),)
    type = ValueType(Real(), (*kept, *axes.right), x.type.per_example)
    return Inferred(LinearAttrs(axes.left, axes.right, bias), inputs, (type,))


def _lower_linear(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, LinearAttrs)
    x, weight = node.inputs[:2]
    kept = tuple(axis for axis in x.type.static_axes if axis not in attrs.contracted)
    read = own(ctx, x, (*kept, *attrs.contracted))
    if len(attrs.contracted) != 1:
        # Several contracted axes are one long one to the matrix; with none every entry is a column of one.
        lead = len(kept) + has_leading(x.type)
        read = ctx.call(torch.flatten, read, lead) if attrs.contracted else ctx.call(torch.unsqueeze, read, -1)
    operands_read = [read, matrix(ctx, weight, attrs.added, attrs.contracted)]
    if attrs.has_bias:
        bias = own(ctx, node.inputs[2], attrs.added)
        if len(attrs.added) != 1:
            bias = ctx.call(torch.reshape, bias, (math.prod(sizes(attrs.added)),))
        operands_read.append(bias)
    result = ctx.call(functional.linear, *operands_read)
    if len(attrs.added) > 1:
        result = ctx.call(torch.unflatten, result, -1, sizes(attrs.added))
    elif not attrs.added:
        result = ctx.call(torch.squeeze, result, -1)
    ctx.define(node.outputs[0], result)


def _cost_linear(node: Node, rows: Mapping[Axis, int]) -> Cost:
    attrs = node.attrs
    assert isinstance(attrs, LinearAttrs)
    return Cost(2 * entries(node.inputs[0].type, rows) * math.prod(sizes(attrs.added)), traffic(node, rows))


@record
class DotAttrs:
    contracted: tuple[Axis, ...]


def _infer_dot(call: OpCall, a: Value, b: Value, over: tuple[Axis, ...]) -> Inferred:
    want_real(call, "dot", a=a, b=b)
    want_whole(call, "dot", a=a, b=b)
    want_static(call, "dot", call.at("over"), over)
    want_axes(call, "dot", "a", a, call.at("over"), over)
    want_axes(call, "dot", "b", b, call.at("over"), over)
    joint = join(call, "dot", operands(call, a=a, b=b), contained=False)
    kept = ordered_first(tuple(axis for axis in joint.axes if axis not in over))
    return Inferred(DotAttrs(over), (a, b), (Joint(kept, joint.per_example, False).type(Real()),))


def _lower_dot(ctx: LowerContext, node: Node) -> None:
    attrs, place = node.attrs, result_type(node)
    assert isinstance(attrs, DotAttrs)
    letters = {axis: chr(ord("a") + i) for i, axis in enumerate(dict.fromkeys((*place.static_axes, *attrs.contracted)))}
    terms, reads = [], []
    for value in node.inputs:
        axes = value.type.static_axes
        # A value of the weights has no rows to match; any other is brought to the rows of the result.
        leading = has_leading(value.type)
        reads.append(ctx.aligned(value, axes, place.rows if leading else None, leading and place.per_example))
        terms.append(("z" if leading else "") + "".join(letters[axis] for axis in axes))
    result = ("z" if has_leading(place) else "") + "".join(letters[axis] for axis in place.static_axes)
    ctx.define(node.outputs[0], ctx.call(torch.einsum, f"{terms[0]},{terms[1]}->{result}", *reads))


def _cost_dot(node: Node, rows: Mapping[Axis, int]) -> Cost:
    assert isinstance(node.attrs, DotAttrs)
    return Cost(2 * entries(result_type(node), rows) * math.prod(sizes(node.attrs.contracted)), traffic(node, rows))


def _infer_outer(call: OpCall, a: Value, b: Value) -> Inferred:
    want_real(call, "outer", a=a, b=b)
    return Inferred(NoAttrs(), (a, b), (join(call, "outer", operands(call, a=a, b=b), contained=False).type(Real()),))


LINEAR = OpDef(
    name="linear",
    params=(
        Param("x", Accepts.VALUE),
        Param("axes", Accepts.MAPPING),
        Param("bias", Accepts.FLAG, False),
        Param("weight", Accepts.VALUE, None),
        Param("init", Accepts.INIT, None),
    ),
    infer=_infer_linear,
    frontier=frontier.row_wise,
    lower=_lower_linear,
    doc=(
        "`linear(x, A -> B, bias=false, weight=, init=)`: a weight times every row. Contracts the static axes A and "
        "adds B; the other axes stay. `dim -> dim` is legal. A given weight is matched by the names of its axes, so "
        "one {vocab, dim} table serves `embed` and the head."
    ),
    cost=_cost_linear,
    multiplies=True,
    samples=(
        "x: real[seq, dim] => linear(x, dim -> ffn)",
        "x: real[seq, dim] => linear(x, dim -> (heads, head_dim), bias=true)",
        "x: real[seq, heads, head_dim] => linear(x, (heads, head_dim) -> dim)",
        "x: real[seq, heads, dim] => linear(x, dim -> dim)",
        "x: real[seq, heads, dim] => linear(x, heads -> ffn)",
        "x: real[dim] => linear(x, dim -> ffn, bias=true)",
    ),
)
DOT = OpDef(
    name="dot",
    params=(Param("a", Accepts.VALUE), Param("b", Accepts.VALUE), Param("over", Accepts.AXES)),
    infer=_infer_dot,
    frontier=frontier.row_wise,
    lower=_lower_dot,
    doc=(
        "`dot(a, b, over=D)`: the sum of products over the static axes D. All other axes are joined by name; neither "
        "operand needs to contain the other."
    ),
    cost=_cost_dot,
    multiplies=True,
    samples=(
        "x: real[seq, heads, dim], y: real[seq, dim, ffn] => dot(x, y, over=dim)",
        "x: real[seq, dim], y: real[dim] => dot(x, y, over=dim)",
        "x: real[seq, heads, dim], y: real[seq, heads, dim] => dot(x, y, over=(heads, dim))",
    ),
)
OUTER = OpDef(
    name="outer",
    params=(Param("a", Accepts.VALUE), Param("b", Accepts.VALUE)),
    infer=_infer_outer,
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: operator.mul),
    doc="`outer(a, b)`: the product of every pair of entries: axes of both, joined by name.",
    cost=cost_per_entry(1),
    samples=(
        "x: real[seq, heads], y: real[seq, dim] => outer(x, y)",
        "x: real[heads], y: real[seq, dim] => outer(x, y)",
    ),
)

LINEAR_OPS = (LINEAR, DOT, OUTER)
