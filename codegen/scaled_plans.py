"""Plans of scaled axes and of windows in a graph under construction. Each is made once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import fx

from ..dsl.axes import Axis, Scaled
from ..dsl.value_type import Int, ValueType
from .functions import windows


class ScaledPlans(ABC):
    """The part of a LowerContext that knows scaled axes; see `lowering.LowerContext` for what each method promises."""

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node: ...

    @abstractmethod
    def offsets(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def row_example(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def position(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def planned(self, key: tuple[object, ...], axis: Axis, type: ValueType, make: Callable[[], Any]) -> Any: ...

    def scaled_offsets(self, axis: Axis) -> fx.Node:
        parent, by = _scale(axis)
        make = lambda: self.call(windows.scaled_offsets, self.offsets(parent), by)  # noqa: E731
        return self.planned(("offsets", axis), axis, ValueType(Int(), per_example=True), make)

    def scaled_row(self, axis: Axis, which: str) -> fx.Node:
        parent, by = _scale(axis)
        place = self.row_example(parent), self.position(parent), self.offsets(axis)
        make = lambda: self.call(windows.scaled_row, *place, by, which)  # noqa: E731
        return self.planned(("scaled row", axis, which), axis, ValueType(Int(), (parent,)), make)

    def scaled_bounds(self, axis: Axis) -> fx.Node:
        parent, by = _scale(axis)
        place = self.offsets(parent), self.row_example(axis), self.position(axis)
        make = lambda: self.call(windows.scaled_bounds, *place, by)  # noqa: E731
        return self.planned(("scaled bounds", axis), axis, ValueType(Int(), (axis,)), make)

    def windows(self, source: Axis, target: Axis, size: int, stride: int, before: int) -> fx.Node:
        place = self.offsets(source), self.row_example(target), self.position(target)
        make = lambda: self.call(windows.windows, *place, size, stride, before)  # noqa: E731
        key = ("windows", source, target, size, stride, before)
        return self.planned(key, target, ValueType(Int(), (target,)), make)


def _scale(axis: Axis) -> tuple[Axis, int]:
    assert isinstance(axis.kind, Scaled)
    return axis.kind.parent, axis.kind.divisor
