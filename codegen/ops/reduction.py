"""Reductions `sum mean max min any all logsumexp`, and `softmax`, `argmax`, `best`.

`over=` names static axes, or one ordered axis and any static ones; it may be left out where x has one static axis. A
reduction removes the axes: over an ordered axis the result belongs to what owns its rows. No rows give 0 (and true
for `all`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import NotAlong, OverNeeded, WrongAxisKind
from ...dsl.errors.operators import BadNumber
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Flag, Id, Kind, Real, ValueType
from ..functions_lazy import segments, statics
from ..lazy import torch
from ..lowering import LowerContext
from .joining import (
    axis_names,
    level_words,
    number_kind,
    want_axes,
    want_flag,
    want_real,
    want_whole,
    without,
)
from .operands import cost_per_entry, has_leading, own, presence, result_type

X = Param("x", Accepts.VALUE)
OVER = Param("over", Accepts.AXES, None)


@record
class OverAttrs:
    """`ordered` is reduced after `static`."""

    static: tuple[Axis, ...]
    ordered: Axis | None


def chosen_axes(call: OpCall, operator: str, x: Value, over: tuple[Axis, ...] | None) -> OverAttrs:
    """The axes to reduce, checked against the operand."""
    if over is None:
        if len(x.type.static_axes) != 1:
            raise call.fail(OverNeeded(call.span, operator, axis_names(x.type.static_axes)))
        over = x.type.static_axes
    over = tuple(dict.fromkeys(over))
    ordered = [axis for axis in over if axis.is_ordered]
    for axis in ordered:
        if axis is not x.type.rows:
            raise call.fail(NotAlong(call.at("over"), operator, axis.name, level_words(x.type), call.at("x")))
    want_axes(call, operator, "x", x, call.at("over"), over)
    return OverAttrs(tuple(axis for axis in over if axis.is_static), ordered[0] if ordered else None)


def _frontier_reduced(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, OverAttrs)
    ordered = node.attrs.ordered
    return given[0] if ordered is None else frontier.reduce_over_axis(given[0], ordered)


def _frontier_kept(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, OverAttrs)
    ordered = node.attrs.ordered
    return given[0] if ordered is None else frontier.reduce_over_axis(given[0], ordered, keep=True)


def is_static_only(node: Node) -> bool:
    return isinstance(node.attrs, OverAttrs) and node.attrs.ordered is None


def _dims(value: ValueType, order: tuple[Axis, ...], over: tuple[Axis, ...]) -> tuple[int, ...]:
    """Where the axes `over` lie in a tensor of axes `order`, counted from the end."""
    return tuple(order.index(axis) - len(order) for axis in over)


def _lower_reduction(static: Callable[[], Any], rows: Callable[[], Any]) -> Callable[[LowerContext, Node], None]:
    def lower(ctx: LowerContext, node: Node) -> None:
        attrs, x = node.attrs, node.inputs[0]
        assert isinstance(attrs, OverAttrs)
        read = own(ctx, x)
        if attrs.static:
            read = ctx.call(static(), read, _dims(x.type, x.type.static_axes, attrs.static))
        if attrs.ordered is not None:
            args = (ctx.owner(attrs.ordered), ctx.edges(attrs.ordered), ctx.present(x))
            read = ctx.call(rows(), read, *args)
        ctx.define(node.outputs[0], read, presence(ctx, node) if result_type(node).missing else None)

    return lower


def _want_number(call: OpCall, name: str, x: Value) -> Kind:
    return number_kind(call, name, x=x)


def _want_only_real(call: OpCall, name: str, x: Value) -> Kind:
    want_real(call, name, x=x)
    return Real()


def _want_only_flag(call: OpCall, name: str, x: Value) -> Kind:
    want_flag(call, name, x=x)
    return Flag()


def _reduction(
    name: str, kind: Callable[[OpCall, str, Value], Kind], static: Callable[[], Any], rows: Callable[[], Any], doc: str,
    *samples: str,
) -> OpDef:  # fmt: skip
    def infer(call: OpCall, x: Value, over: tuple[Axis, ...] | None) -> Inferred:
        result = kind(call, name, x)
        attrs = chosen_axes(call, name, x, over)
        gone = attrs.static if attrs.ordered is None else (*attrs.static, attrs.ordered)
        return Inferred(attrs, (x,), (without(x.type, gone).type(result),))

    return OpDef(
        name=name,
        params=(X, OVER),
        infer=infer,
        frontier=_frontier_reduced,
        lower=_lower_reduction(static, rows),
        doc=(
            f"`{name}(x, over=A)`: {doc} over static axes, or over one ordered axis, which go. Missing rows are left "
            "out. `over` may be left out where x has one static axis."
        ),
        cost=cost_per_entry(1),
        samples=samples,
        row_wise=False,
        row_wise_when=is_static_only,
    )


def _samples(name: str) -> tuple[str, ...]:
    return (
        f"x: real[seq, dim] => {name}(x)",
        f"x: real[seq, heads, dim] => {name}(x, over=(heads, dim))",
        f"x: real[seq, heads, dim] => {name}(x, over=heads)",
        f"x: real[seq, dim] => {name}(x, over=seq)",
        f"x: real[seq, dim] => {name}(x, over=(seq, dim))",
        f"x: real[seq, dim] => {name}(next(x), over=seq)",
        f"x: real[item, dim] => {name}(x, over=(item, dim))",
        f"x: real[item, dim] => x * {name}({name}(x, over=item), over=other)",
        f"x: real[heads, dim] => {name}(x, over=dim)",
    )


SUM = _reduction(
    "sum", _want_number, lambda: statics.sum_static, lambda: segments.sum_rows, "the sum", *_samples("sum")
)
MEAN = _reduction(
    "mean", _want_only_real, lambda: statics.mean_static, lambda: segments.mean_rows, "the mean", *_samples("mean")
)
MAX = _reduction(
    "max", _want_number, lambda: statics.max_static, lambda: segments.max_rows, "the largest entry", *_samples("max")
)
MIN = _reduction(
    "min", _want_number, lambda: statics.min_static, lambda: segments.min_rows, "the smallest entry", *_samples("min")
)
ANY = _reduction(
    "any",
    _want_only_flag,
    lambda: statics.any_static,
    lambda: segments.any_rows,
    "whether a flag is true",
    "x: real[seq, dim] => any(x > 1)",
    "x: real[seq, dim] => any(x > 2, over=seq)",
)
ALL = _reduction(
    "all",
    _want_only_flag,
    lambda: statics.all_static,
    lambda: segments.all_rows,
    "whether all flags are true",
    "x: real[seq, dim] => all(x > -1)",
    "x: real[seq, dim] => all(x > -2, over=seq)",
)
LOGSUMEXP = _reduction(
    "logsumexp",
    _want_only_real,
    lambda: statics.logsumexp_static,
    lambda: segments.logsumexp_rows,
    "the logarithm of the sum of exponentials,",
    *_samples("logsumexp"),
)


def _infer_softmax(call: OpCall, x: Value, over: tuple[Axis, ...] | None) -> Inferred:
    want_real(call, "softmax", x=x)
    attrs = chosen_axes(call, "softmax", x, over)
    if attrs.ordered is not None:
        want_whole(call, "softmax", x=x)
        if attrs.static:
            raise call.fail(
                WrongAxisKind(
                    call.at("over"), "softmax", attrs.ordered.name, "static axes, or one ordered axis alone", "ordered"
                )
            )
    return Inferred(attrs, (x,), (ValueType(Real(), x.type.axes, x.type.per_example, x.type.missing),))


def _lower_softmax(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, OverAttrs)
    axes = x.type.static_axes
    if attrs.ordered is not None:
        result = ctx.call(segments.softmax_rows, own(ctx, x), ctx.owner(attrs.ordered), ctx.edges(attrs.ordered))
    else:
        # Several axes must lie side by side to be one.
        order = axes if len(attrs.static) == 1 else (*(a for a in axes if a not in attrs.static), *attrs.static)
        result = ctx.call(statics.softmax_static, own(ctx, x, order), _dims(x.type, order, attrs.static))
        if order != axes:
            lead = has_leading(x.type)
            back = [order.index(axis) + lead for axis in axes]
            result = ctx.call(torch.permute, result, [0, *back] if lead else back)
    ctx.define(node.outputs[0], result, presence(ctx, node))


def _arg_axes(call: OpCall, operator: str, x: Value, over: tuple[Axis, ...] | None) -> OverAttrs:
    number_kind(call, operator, x=x)
    want_whole(call, operator, x=x)
    attrs = chosen_axes(call, operator, x, over)
    if len(attrs.static) + (attrs.ordered is not None) != 1:
        raise call.fail(
            BadNumber(call.at("over"), operator, "over", "several axes", "one axis, since the result is an id in it")
        )
    return attrs


def _infer_argmax(call: OpCall, x: Value, over: tuple[Axis, ...] | None) -> Inferred:
    attrs = _arg_axes(call, "argmax", x, over)
    axis = attrs.ordered or attrs.static[0]
    return Inferred(attrs, (x,), (without(x.type, (axis,)).type(Id(axis)),))


def _lower_index(ctx: LowerContext, node: Node) -> Any:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, OverAttrs)
    if attrs.ordered is not None:
        return ctx.call(segments.argmax_rows, own(ctx, x), ctx.owner(attrs.ordered), ctx.edges(attrs.ordered))
    return ctx.call(statics.argmax_static, own(ctx, x), _dims(x.type, x.type.static_axes, attrs.static)[0])


def _lower_argmax(ctx: LowerContext, node: Node) -> None:
    ctx.define(node.outputs[0], _lower_index(ctx, node))


def _infer_best(call: OpCall, x: Value, over: tuple[Axis, ...] | None) -> Inferred:
    attrs = _arg_axes(call, "best", x, over)
    axis = attrs.ordered or attrs.static[0]
    place = without(x.type, (axis,))
    return Inferred(attrs, (x,), (place.type(Id(axis)), place.type(x.type.kind)), ("index", "score"))


def _lower_best(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, OverAttrs)
    ctx.define(node.outputs[0], _lower_index(ctx, node))
    read = own(ctx, x)
    if attrs.ordered is not None:
        score = ctx.call(segments.max_rows, read, ctx.owner(attrs.ordered), ctx.edges(attrs.ordered))
    else:
        score = ctx.call(statics.max_static, read, _dims(x.type, x.type.static_axes, attrs.static))
    ctx.define(node.outputs[1], score)


SOFTMAX = OpDef(
    name="softmax",
    params=(X, OVER),
    infer=_infer_softmax,
    frontier=_frontier_kept,
    lower=_lower_softmax,
    doc="`softmax(x, over=A)`: exponentials divided by their sum over static axes or one ordered axis. Axes are kept.",
    cost=cost_per_entry(6),
    row_wise=False,
    row_wise_when=is_static_only,
    samples=(
        "x: real[seq, dim] => softmax(x)",
        "x: real[seq, heads, dim] => softmax(x, over=heads)",
        "x: real[seq, heads, ffn, dim] => softmax(x, over=(heads, dim))",
        "x: real[seq, dim] => softmax(x, over=seq)",
        "x: real[item, dim] => softmax(x, over=item)",
    ),
)
ARGMAX = OpDef(
    name="argmax",
    params=(X, OVER),
    infer=_infer_argmax,
    frontier=_frontier_reduced,
    lower=_lower_argmax,
    doc=(
        "`argmax(x, over=A)`: the first entry of A that holds the largest value, as an `id in A`; the axis goes. No "
        "gradient."
    ),
    cost=cost_per_entry(1),
    row_wise=False,
    row_wise_when=is_static_only,
    decides=True,
    samples=("x: real[seq, heads, dim] => argmax(x, over=heads)", "x: real[seq, dim] => int(argmax(x, over=seq))"),
)
BEST = OpDef(
    name="best",
    params=(X, OVER),
    infer=_infer_best,
    frontier=_frontier_reduced,
    lower=_lower_best,
    doc="`best(x, over=K)`: the first largest entry along K: `.index in K` and `.score`; the axis goes.",
    cost=cost_per_entry(1),
    row_wise=False,
    row_wise_when=is_static_only,
    decides=True,
    samples=("x: real[seq, heads, dim] => best(x, over=dim).score", "x: real[seq, dim] => best(x, over=seq).score"),
)

REDUCTIONS = (SUM, MEAN, MAX, MIN, ANY, ALL, LOGSUMEXP, SOFTMAX, ARGMAX, BEST)
