"""`rename`, `flatten`, `unflatten`: other names for the same entries."""

from __future__ import annotations

import math
from dataclasses import replace

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import AxisTwice, LengthMismatch, WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.frontier import Frontier
from ...dsl.length import Length
from ...dsl.opdef import Accepts, AxisMapping, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ..lazy import torch
from ..lowering import LowerContext
from .joining import axis_names, want_axes, want_static
from .nested import RowsAttrs, frontier_rows, infer_rows, is_rows, lower_rows
from .operands import cost_per_entry, has_leading, own, presence, result_type, sizes


@record
class MappingAttrs:
    left: tuple[Axis, ...]
    right: tuple[Axis, ...]


def _length(axes: tuple[Axis, ...]) -> Length:
    return math.prod((axis.length for axis in axes), start=Length.number(1))


def _said(length: Length, axes: tuple[Axis, ...]) -> str:
    """`dim / 2 = 4`: a length as a formula, and the number it is at these sizes."""
    formula = str(length)
    if not all(axis.is_static for axis in axes):
        return formula
    number = str(math.prod(sizes(axes)))
    return number if formula in (number, *axis_names(axes)) else f"{formula} = {number}"


def _check_lengths(call: OpCall, operator: str, axes: AxisMapping, checked: bool) -> None:
    """Both sides have one length: as formulas, or with `checked` for the sizes in use."""
    left, right = _length(axes.left), _length(axes.right)
    is_static = all(axis.is_static for axis in (*axes.left, *axes.right))
    same_number = is_static and math.prod(sizes(axes.left)) == math.prod(sizes(axes.right))
    if call.equal(left, right) or (checked and same_number):
        return
    repair = None
    if same_number:
        repair = "they are equal at these sizes only; " + (
            "to rely on that, write `checked`" if operator == "rename" else "declare one as the product of the others"
        )
    elif checked and not is_static:
        raise call.fail(NotBuiltYet(call.at("axes"), f"`{operator}` of ordered axes with `checked`"))
    raise call.fail(
        LengthMismatch(
            call.at("axes"),
            operator,
            axis_names(axes.left),
            _said(left, axes.left),
            axis_names(axes.right),
            _said(right, axes.right),
            repair,
        )
    )


def _replaced(call: OpCall, operator: str, x: Value, axes: AxisMapping) -> tuple[Axis, ...]:
    """x's axes with the right side where the left one was."""
    want_axes(call, operator, "x", x, call.at("axes"), axes.left)
    kept = tuple(axis for axis in x.type.axes if axis not in axes.left)
    for axis in axes.right:
        if axis in kept:
            raise call.fail(AxisTwice(call.at("axes"), operator, axis.name, call.at("x")))
    place = min(x.type.axes.index(axis) for axis in axes.left)
    before = sum(axis not in axes.left for axis in x.type.axes[:place])
    return (*kept[:before], *axes.right, *kept[before:])


def _infer_rename(call: OpCall, x: Value, axes: AxisMapping, mode: str | None) -> Inferred:
    if len(axes.left) != len(axes.right):
        names = " and ".join(axis_names(axes.right))
        raise call.fail(
            WrongAxisKind(call.at("axes"), "rename", names, "as many axes as on the left", "another number")
        )
    renamed = dict(zip(axes.left, axes.right, strict=True))
    for old, new in renamed.items():
        if old.is_static != new.is_static:
            kinds = ("a static axis", "ordered") if old.is_static else ("an ordered axis", "static")
            raise call.fail(WrongAxisKind(call.at("axes"), "rename", new.name, *kinds))
        _check_lengths(call, "rename", AxisMapping((old,), (new,)), mode == "checked")
    _replaced(call, "rename", x, axes)
    type = x.type.with_axes(tuple(renamed.get(axis, axis) for axis in x.type.axes))
    return Inferred(MappingAttrs(axes.left, axes.right), (x,), (type,))


def _lower_rename(ctx: LowerContext, node: Node) -> None:
    ctx.define(node.outputs[0], own(ctx, node.inputs[0]), presence(ctx, node))


def _frontier_rename(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, MappingAttrs)
    result = given[0]
    for old, new in zip(node.attrs.left, node.attrs.right, strict=True):
        result = frontier.rename(result, old, new)
    return result


def _infer_flatten(call: OpCall, x: Value, axes: AxisMapping) -> Inferred:
    if any(axis.is_ordered for axis in (*axes.left, *axes.right)):
        return infer_rows(call, "flatten", x, axes)
    if len(axes.right) != 1:
        names = " and ".join(axis_names(axes.right))
        raise call.fail(WrongAxisKind(call.at("axes"), "flatten", names, "one axis on the right", "several"))
    _check_lengths(call, "flatten", axes, False)
    return Inferred(
        MappingAttrs(axes.left, axes.right), (x,), (replace(x.type, axes=_replaced(call, "flatten", x, axes)),)
    )


def _infer_unflatten(call: OpCall, x: Value, axes: AxisMapping) -> Inferred:
    if any(axis.is_ordered for axis in (*axes.left, *axes.right)):
        return infer_rows(call, "unflatten", x, axes)
    want_static(call, "unflatten", call.at("axes"), (*axes.left, *axes.right))
    if len(axes.left) != 1:
        names = " and ".join(axis_names(axes.left))
        raise call.fail(WrongAxisKind(call.at("axes"), "unflatten", names, "one axis on the left", "several"))
    _check_lengths(call, "unflatten", axes, False)
    return Inferred(
        MappingAttrs(axes.left, axes.right), (x,), (replace(x.type, axes=_replaced(call, "unflatten", x, axes)),)
    )


def _lower_regroup(ctx: LowerContext, node: Node) -> None:
    attrs, x, place = node.attrs, node.inputs[0], result_type(node)
    if isinstance(attrs, RowsAttrs):
        lower_rows(ctx, node, attrs)
        return
    assert isinstance(attrs, MappingAttrs)
    # The result's order with the left side written out in place of the right one.
    start = place.static_axes.index(attrs.right[0])
    order = (*place.static_axes[:start], *attrs.left, *place.static_axes[start + len(attrs.right) :])
    read = own(ctx, x, order)
    dim = start + has_leading(x.type)
    if len(attrs.right) == 1:
        result = ctx.call(torch.flatten, read, dim, dim + len(attrs.left) - 1)
    else:
        result = ctx.call(torch.unflatten, read, dim, sizes(attrs.right))
    ctx.define(node.outputs[0], result, presence(ctx, node))


def _frontier_regroup(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    return frontier_rows(node.attrs, given[0]) if isinstance(node.attrs, RowsAttrs) else given[0]


X, AXES = Param("x", Accepts.VALUE), Param("axes", Accepts.MAPPING)
RENAME = OpDef(
    name="rename",
    params=(X, AXES, Param("mode", Accepts.CHOICE, None, ("checked",))),
    infer=_infer_rename,
    frontier=_frontier_rename,
    lower=_lower_rename,
    cost=cost_per_entry(0),
    doc=(
        "`rename(x, a -> b)`: another name for an axis of the same length. Where the lengths are equal for the sizes "
        "in use only, write `rename(x, a -> b, checked)`."
    ),
    samples=(
        "x: real[seq, dim] => rename(x, dim -> dim_again)",
        "x: real[seq, heads, dim] => rename(x, heads -> four, checked)",
    ),
)
FLATTEN = OpDef(
    name="flatten",
    params=(X, AXES),
    infer=_infer_flatten,
    frontier=_frontier_regroup,
    lower=_lower_regroup,
    row_wise_when=lambda node: not is_rows(node),
    cost=cost_per_entry(0),
    doc=(
        "`flatten(x, (A, B) -> C)`: several axes as one whose length is their product; the first is the slowest. An "
        "ordered A owns the rows of C then, which is declared `axis C in A`."
    ),
    samples=(
        "x: real[seq, heads, ffn, head_dim] => flatten(x, (heads, head_dim) -> width)",
        "x: real[other, dim, two] => flatten(x, (other, two) -> part)",
        "x: real[other, two, cell, dim] => sum(flatten(x, (other, two, cell) -> part), over=part)",
    ),
)
UNFLATTEN = OpDef(
    name="unflatten",
    params=(X, AXES),
    infer=_infer_unflatten,
    frontier=_frontier_regroup,
    lower=_lower_regroup,
    row_wise_when=lambda node: not is_rows(node),
    cost=cost_per_entry(0),
    doc="`unflatten(x, C -> (A, B))`: one axis as several whose product is its length; the first is the slowest.",
    samples=(
        "x: real[seq, width, ffn] => unflatten(x, width -> (heads, head_dim))",
        "x: real[other, three, dim]; y = flatten(x, (other, three) -> part) => unflatten(y, part -> (other, three))",
    ),
)

RESHAPES = (RENAME, FLATTEN, UNFLATTEN)
