"""Operators that go from one ordered axis to another: `pool`, `spread`, `take`, `join`."""

from __future__ import annotations

from ...dsl.axes import Axis
from ...dsl.errors.axes import NotAlong, WrongAxisKind
from ...dsl.opdef import AxisMapping, OpCall
from ...dsl.program import Value
from ...dsl.value_type import ValueType
from .joining import axis_names, level_words


def one_pair(call: OpCall, operator: str, axes: AxisMapping, parameter: str = "axes") -> tuple[Axis, Axis]:
    if len(axes.left) != 1 or len(axes.right) != 1:
        names = " and ".join(axis_names((*axes.left, *axes.right)))
        raise call.fail(WrongAxisKind(call.at(parameter), operator, names, "one axis on each side", "a list"))
    return axes.left[0], axes.right[0]


def want_along(call: OpCall, operator: str, x: Value, axis: Axis, parameter: str = "x") -> None:
    if x.type.rows is not axis:
        raise call.fail(NotAlong(call.at("axes"), operator, axis.name, level_words(x.type), call.at(parameter)))


def moved(x: Value, source: Axis, target: Axis) -> ValueType:
    """x's type along another ordered axis."""
    return x.type.with_axes(tuple(target if axis is source else axis for axis in x.type.axes))
