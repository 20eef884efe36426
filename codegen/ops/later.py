"""Operators that the language has and this version types but does not lower: scans, convolutions.

The type and causality rules are whole; a spec that uses one is told so (E901) once its types are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import AxisTwice, NotAlong, WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, AxisMapping, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Real, ordered_first
from ..lowering import LowerContext
from .joining import axis_names, level_words, want_axes, want_real, want_whole


def not_built(rule: Callable[..., Inferred], what: str) -> Callable[..., Inferred]:
    """The type rule (kept as `__wrapped__`), after which the call is refused."""

    @wraps(rule)
    def infer(call: OpCall, *args: object, **kwargs: object) -> Inferred:
        rule(call, *args, **kwargs)
        raise call.fail(NotBuiltYet(call.span, what))

    return infer


def _lower(ctx: LowerContext, node: Node) -> None:
    raise AssertionError(f"{node.op.name} passed its type rule")


@record
class ScanAttrs:
    along: Axis


def _infer_scan(call: OpCall, step: object, x: Value, along: Axis | None) -> Inferred:
    want_whole(call, "scan", x=x)
    rows = x.type.rows if along is None else along
    if rows is None or rows is not x.type.rows:
        name = along.name if along is not None else "an ordered axis"
        raise call.fail(NotAlong(call.at("along"), "scan", name, level_words(x.type), call.at("x")))
    return Inferred(ScanAttrs(rows), (x,), (x.type,))


def _frontier_scan(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, ScanAttrs)
    return frontier.scan(given[0], node.attrs.along)


@record
class ConvAttrs:
    source: Axis
    target: Axis
    contracted: tuple[Axis, ...]
    added: tuple[Axis, ...]
    size: int
    stride: int
    pad: str


def _infer_conv(
    call: OpCall, x: Value, places: AxisMapping, axes: AxisMapping, size: int, stride: int, pad: str
) -> Inferred:
    want_real(call, "conv", x=x)
    want_whole(call, "conv", x=x)
    if len(places.left) != 1 or len(places.right) != 1:
        names = " and ".join(axis_names((*places.left, *places.right)))
        raise call.fail(WrongAxisKind(call.at("places"), "conv", names, "one axis on each side", "a list"))
    for name, number in (("size", size), ("stride", stride)):
        if number < 1:
            raise call.fail(BadNumber(call.at(name), "conv", name, str(number), "at least 1"))
    source, target = places.left[0], places.right[0]
    want_axes(call, "conv", "x", x, call.at("places"), (source,))
    want_axes(call, "conv", "x", x, call.at("axes"), axes.left)
    if target.length != source.length.ceil_divided(stride) and not (target is source and stride == 1):
        raise call.fail(
            NotACut(call.at("places"), "conv", source.name, target.name, f"the axis scaled by the stride {stride} of")
        )
    kept = tuple(target if axis is source else axis for axis in x.type.axes if axis not in axes.left)
    for axis in axes.right:
        if axis in kept:
            raise call.fail(AxisTwice(call.at("axes"), "conv", axis.name, call.at("x")))
    type = replace(x.type, kind=Real(), axes=ordered_first((*kept, *axes.right)))
    return Inferred(ConvAttrs(source, target, axes.left, axes.right, size, stride, pad), (x,), (type,))


def _frontier_conv(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    assert isinstance(attrs, ConvAttrs)
    reach = 0 if attrs.pad == "causal" else attrs.size // 2
    if attrs.stride == 1:
        return frontier.conv(given[0], attrs.source, reach)
    return frontier.reduce_over_axis(given[0], attrs.source, keep=True)


X, AXES = Param("x", Accepts.VALUE), Param("axes", Accepts.MAPPING)
SCAN = OpDef(
    name="scan",
    params=(Param("step", Accepts.BLOCK), X, Param("along", Accepts.AXIS, None)),
    infer=not_built(_infer_scan, "`scan`"),
    frontier=_frontier_scan,
    lower=_lower,
    row_wise=False,
    doc="`scan(f, x)`: f applied to the result so far and each row, in order. Axes are kept.",
)
CONV = OpDef(
    name="conv",
    params=(
        X,
        Param("places", Accepts.MAPPING),
        AXES,
        Param("size", Accepts.INTEGER),
        Param("stride", Accepts.INTEGER, 1),
        Param("pad", Accepts.CHOICE, "same", ("same", "causal")),
    ),
    infer=not_built(_infer_conv, "`conv`"),
    frontier=_frontier_conv,
    lower=_lower,
    row_wise=False,
    doc=(
        "`conv(x, G -> H, A -> B, size=3, stride=1, pad=same)`: a convolution over places G that contracts A and "
        "adds B. H is G, or G scaled by the stride."
    ),
)

LATER = (SCAN, CONV)
