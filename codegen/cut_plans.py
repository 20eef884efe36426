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
from ..dsl.program import Value
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
    def _any_row(self, axis: Axis) -> fx.Node | None: ...

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

    def segment_inside(self, cut: Axis) -> fx.Node | None:
        # Every row of a nested axis has an owner.
        return self._cuts[cut].inside if cut in self._cuts else None

    def per_segment(self, cut: Axis) -> fx.Node:
        """int64 [P]: the row that each segment begins with. Of an owner of rows, any tensor of its length."""
        if cut not in self._cuts:
            rows = self._any_row(cut)
            assert rows is not None
            return rows
        make = lambda: self.call(cuts.begins, self._first(cut))  # noqa: E731
        return self.planned(("begins", cut), cut, ValueType(Int(), (cut,)), make)

    def segment_values(self, cut: Axis, value: Value, node: Any, shape: tuple[int, ...]) -> Any:
        rows = self._rows_inside(cut) if cut in self._cuts else None
        return node if rows is None else self.call(torch.index_select, node, 0, rows)

    def segment_first(self, cut: Axis, value: Value, node: Any) -> Any:
        begins = self.call(torch.index_select, self.per_segment(cut), 0, self.segment_of(cut, "own"))
        return self.call(torch.index_select, node, 0, begins)

    def segment_bounds(self, cut: Axis) -> fx.Node:
        begins, rows = self.per_segment(cut), self._rows_inside(cut)

        def make() -> fx.Node:
            if rows is None:
                return self.call(cuts.bounds, begins, self.segment_of(cut, "own"))
            return self.call(cuts.bounds_inside, begins, rows)

        return self.planned(("bounds", cut), cut, ValueType(Int(), (cut,)), make)

    def segment_numbers(self, cut: Axis) -> fx.Node:
        rows, number = self._rows_inside(cut), self.segment_of(cut, "own")
        if rows is None:
            return number
        make = lambda: self.call(torch.index_select, number, 0, rows)  # noqa: E731
        return self.planned(("numbers", cut), cut, ValueType(Int(), (self._cuts[cut].along,)), make)

    def groups_by(self, cut: Axis, queries: Axis | None, keys: Axis) -> bool:
        """Whether `attend` may take the segments of a cut for examples."""
        return self.segment_inside(cut) is None

    def _rows_inside(self, cut: Axis) -> fx.Node | None:
        flags = self._cuts[cut]
        if flags.inside is None:
            return None
        make = lambda: self.call(cuts.rows_inside, flags.inside)  # noqa: E731
        return self.planned(("rows", cut), cut, ValueType(Int(), (flags.along,)), make)

    def cut_offsets(self, cut: Axis) -> fx.Node:
        """int32 [batch + 1]: where the segments of each example begin."""
        flags = self._cuts[cut]
        make = lambda: self.call(cuts.cut_offsets, self._first(cut), self.offsets(flags.along))  # noqa: E731
        return self.planned(("offsets", cut), cut, ValueType(Int(), per_example=True), make)

    def _first(self, cut: Axis) -> fx.Node:
        flags = self._cuts[cut]
        make = lambda: self.call(cuts.first_rows, flags.ends, flags.inside, self.row_example(flags.along))  # noqa: E731
        return self.planned(("first", cut), cut, ValueType(Flag(), (flags.along,)), make)
