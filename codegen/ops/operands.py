"""Reading operands and giving results, for the lowerings of the ops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...dsl.axes import Axis
from ...dsl.opdef import Cost
from ...dsl.program import Constant, Node, Value, Weight
from ...dsl.value_type import Real, ValueType
from ..lazy import torch
from ..lowering import LowerContext

if TYPE_CHECKING:
    from torch import fx


def result_type(node: Node) -> ValueType:
    return node.outputs[0].type


def like(ctx: LowerContext, value: Value, place: ValueType) -> Any:
    """An operand ready to meet others in a value of type `place`; a number for a Constant."""
    return ctx.aligned(value, place.static_axes, place.rows, place.per_example)


def own(ctx: LowerContext, value: Value, axes: tuple[Axis, ...] | None = None) -> Any:
    """An operand at its own level with its own static axes, in the order `axes` if one is given."""
    type = value.type
    if isinstance(value, Constant):
        return ctx.full(value, (), None)
    order = type.static_axes if axes is None else axes
    return ctx.aligned(value, order, type.rows, type.per_example)


def dtype_of(ctx: LowerContext, value: Value) -> Any:
    """The torch type of a written number."""
    if isinstance(value.type.kind, Real):
        return ctx.working_type()
    return torch.bool if isinstance(value, Constant) and isinstance(value.number, bool) else torch.int64


def has_leading(type: ValueType) -> bool:
    """Whether a value is stored with a dimension of rows or examples in front of its static axes."""
    return type.rows is not None or type.per_example


def sizes(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.size for axis in axes if axis.size is not None)


def presence(ctx: LowerContext, node: Node) -> fx.Node | None:
    """The flags of a row-by-row result: true where no operand's row is missing."""
    flags = [ctx.present(value) for value in node.inputs if value.type.missing]
    result = None
    for flag in flags:
        if flag is not None:
            result = flag if result is None else ctx.call(torch.logical_and, result, flag)
    return result


def row_by_row(function: Callable[[], Callable[..., Any]]) -> Callable[[LowerContext, Node], None]:
    """The lowering of a row-by-row op: `function()` is called on the operands, aligned to the result."""

    def lower(ctx: LowerContext, node: Node) -> None:
        place = result_type(node)
        args = [like(ctx, value, place) for value in node.inputs]
        if all(isinstance(value, Constant) for value in node.inputs):
            args = [ctx.full(value, (), None) for value in node.inputs]
        ctx.define(node.outputs[0], ctx.call(function(), *args), presence(ctx, node))

    return lower


def reshaped(ctx: LowerContext, x: Any, leading: bool, axes: tuple[int, ...]) -> Any:
    """`x` with its static dimensions regrouped to `axes`; the rows stay."""
    return ctx.call(torch.reshape, x, (-1, *axes) if leading else axes)


def matrix(ctx: LowerContext, weight: Value, outputs: tuple[Axis, ...], inputs: tuple[Axis, ...]) -> Any:
    """A weight as the matrix `[outputs, inputs]`."""
    stored = weight.outputs if isinstance(weight, Weight) else 0
    if stored and weight.type.axes == (*outputs, *inputs) and stored == len(outputs):
        return ctx.read(weight)
    full = ctx.aligned(weight, (*outputs, *inputs), None, False)
    if len(outputs) == 1 and len(inputs) == 1:
        return full
    return ctx.call(torch.reshape, full, (math.prod(sizes(outputs)), math.prod(sizes(inputs))))


def entries(type: ValueType, rows: Mapping[Axis, int]) -> float:
    """How many entries a value has, for costs. A value per example counts one example."""
    lowest = type.rows
    return math.prod(sizes(type.static_axes)) * (1 if lowest is None else rows.get(lowest, 1))


def traffic(node: Node, rows: Mapping[Axis, int]) -> float:
    """Entries read and written once each."""
    return sum(entries(value.type, rows) for value in (*node.inputs, *node.outputs))


def cost_per_entry(flops: float) -> Callable[[Node, Mapping[Axis, int]], Cost]:
    """The cost of an op that does `flops` per entry of its largest operand or result."""

    def cost(node: Node, rows: Mapping[Axis, int]) -> Cost:
        largest = max(entries(value.type, rows) for value in (*node.inputs, *node.outputs))
        return Cost(flops * largest, traffic(node, rows))

    return cost
