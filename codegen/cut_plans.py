"""Plans of cuts in a graph under construction: which segment a row is in, where segments begin, their offsets.

Each is made once, when something first asks for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Axis
from ..dsl.value_type import Flag, Int, ValueType
from .functions import cuts


@dataclass(frozen=True)
class CutFlags:
    """What a `segment` made: flags at the rows of `along`. `inside` None: every row is in a segment."""

    along: Axis
    ends: Any
    inside: Any


class CutPlans(ABC):
    """The part of a LowerContext that knows cuts; see `lowering.LowerContext` for what each method promises."""

    _cuts: dict[Axis, CutFlags]

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node: ...

    @abstractmethod
    def row_example(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def offsets(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def planned(self, key: tuple[object, ...], axis: Axis, type: ValueType, make: Callable[[], Any]) -> Any:
        """What `make` makes, the first time that `key` is asked for, as a plan of `axis`."""

    def cut(self, cut: Axis, along: Axis, ends: Any, inside: Any) -> None:
        self._cuts[cut] = CutFlags(along, ends, inside)

    def segment_of(self, cut: Axis, which: str) -> fx.Node:
        flags, first = self._cuts[cut], self._first(cut)

        def make() -> fx.Node:
            if which == "own":
                return self.call(cuts.own, first, flags.inside)
            place = (first, flags.inside, self.row_example(flags.along), self.offsets(cut))
            return self.call(cuts.before, *place) if which == "before" else self.call(cuts.closed, flags.ends, *place)

        return self.planned(("segment", cut, which), cut, ValueType(Int(), (flags.along,)), make)

    def segment_index(self, cut: Axis, which: str) -> fx.Node:
        flags = self._cuts[cut]

        def make() -> fx.Node:
            place = self.row_example(flags.along), self.offsets(cut)
            if which == "own" and flags.inside is not None:
                return self.call(cuts.index_or_next, self._first(cut), flags.inside, *place)
            return self.call(cuts.index, self.segment_of(cut, which), *place)

        return self.planned(("index", cut, which), cut, ValueType(Int(), (flags.along,)), make)

    def segment_row(self, cut: Axis, which: str) -> fx.Node:
        flags = self._cuts[cut]

        def make() -> fx.Node:
            if which == "first":
                return self.call(cuts.begins, self._first(cut))
            stops = self.call(cuts.stops, self._first(cut), flags.inside, self.row_example(flags.along))
            return self.call(torch.sub, stops, 1)

        return self.planned(("segment row", cut, which), cut, ValueType(Int(), (cut,)), make)

    def segment_inside(self, cut: Axis) -> fx.Node | None:
        return self._cuts[cut].inside

    def segment_rows(self, cut: Axis) -> tuple[fx.Node | None, fx.Node, fx.Node]:
        flags, number = self._cuts[cut], self.segment_of(cut, "own")
        per_row, per_segment = ValueType(Int(), (flags.along,)), ValueType(Int(), (cut,))
        begins = self.segment_row(cut, "first")
        if flags.inside is None:
            make = lambda: self.call(cuts.bounds, begins, number)  # noqa: E731
            return None, number, self.planned(("bounds", cut), cut, per_segment, make)
        rows = self.planned(("rows", cut), cut, per_row, lambda: self.call(cuts.rows_inside, flags.inside))
        packed = self.planned(
            ("packed", cut), cut, per_row, lambda: self.call(torch.index_select, number, 0, rows)
        )
        inside = self.planned(("bounds", cut), cut, per_segment, lambda: self.call(cuts.bounds_inside, begins, rows))
        return rows, packed, inside

    def cut_offsets(self, cut: Axis) -> fx.Node:
        """int32 [batch + 1]: where the segments of each example begin."""
        flags = self._cuts[cut]
        make = lambda: self.call(cuts.cut_offsets, self._first(cut), self.offsets(flags.along))  # noqa: E731
        return self.planned(("offsets", cut), cut, ValueType(Int(), per_example=True), make)

    def _first(self, cut: Axis) -> fx.Node:
        flags = self._cuts[cut]
        make = lambda: self.call(cuts.first_rows, flags.ends, flags.inside, self.row_example(flags.along))  # noqa: E731
        return self.planned(("first", cut), cut, ValueType(Flag(), (flags.along,)), make)
