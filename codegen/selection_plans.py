"""Plans of selections in a graph under construction: which rows have a tag, their offsets, the way back.

Each is made once for a tag and the axis it chooses from, whoever asks: all layers of a model share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Axis, Cut, Group, Selected
from ..dsl.program import Value
from ..dsl.value_type import Flag, Int, Tag, ValueType
from .functions import packing, selections


@dataclass(frozen=True)
class _Chosen:
    """Rows of `source` whose tag is one of `members`, or all rows of the examples of `group`."""

    source: Axis
    tag: Value
    members: tuple[int, ...]
    group: Group | None


def group_of(type: ValueType) -> Group | None:
    """The examples that a value has entries for; None: all of the call."""
    axis = type.rows
    if axis is None:
        return type.group
    while isinstance(axis.kind, Selected | Cut):
        if isinstance(axis.kind, Selected) and axis.kind.group is not None:
            return axis.kind.group
        axis = axis.kind.parent
    return None


class SelectionPlans(ABC):
    """The part of a LowerContext that knows selections; see `lowering.LowerContext` for what each method promises."""

    _chosen: dict[Axis, _Chosen]

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node: ...

    @abstractmethod
    def aligned(self, value: Value, axes: tuple[Axis, ...], rows: Axis | None, per_example: bool = False) -> Any: ...

    @abstractmethod
    def row_example(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def position(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def offsets(self, axis: Axis) -> fx.Node: ...

    @abstractmethod
    def under_plan(self, key: tuple[object, ...], span: Any, type: ValueType, make: Callable[[], Any]) -> Any:
        """What `make` makes, the first time that `key` is asked for, as a plan that belongs to no expression."""

    def chosen(
        self, target: Axis | None, source: Axis | None, tag: Value, members: tuple[int, ...], group: Group | None
    ) -> fx.Node:
        if source is None or target is None:
            assert group is not None
            return self._examples(group)
        made = self._chosen.setdefault(target, _Chosen(source, tag, members, group))
        return self._rows(made, target)

    def choose(self, axis: Axis, tag: Value) -> None:
        """Says which tag the rows of a selection are chosen by."""
        kind = axis.kind
        assert isinstance(kind, Selected)
        assert isinstance(tag.type.kind, Tag)
        names = tag.type.kind.enum.members
        members = tuple(names.index(name) for name in kind.members)
        self._chosen[axis] = _Chosen(kind.parent, tag, members, kind.group)

    def joined_order(self, whole: Axis | None, rows: tuple[fx.Node, ...]) -> fx.Node:
        type = ValueType(Int(), (), True) if whole is None else ValueType(Int(), (whole,))
        make = lambda: self.call(selections.order_of, rows)  # noqa: E731
        return self.under_plan(("order", *rows), None if whole is None else whole.span, type, make)

    def selects(self, axis: Axis) -> bool:
        """Whether rows of the axis are chosen by a tag that is known."""
        return axis in self._chosen or (isinstance(axis.kind, Selected) and axis.kind.by is not None)

    def selected_offsets(self, axis: Axis) -> fx.Node:
        made = self._of(axis)
        per_example = ValueType(Int(), (), True, group=made.group)

        def make() -> fx.Node:
            offsets = self.offsets(made.source)
            if made.group is not None:
                return self.call(selections.offsets_of_examples, offsets, self._examples(made.group))
            return self.call(selections.offsets_of, self._flags(made), offsets)

        key = ("chosen offsets", made.source, made.group or (made.tag, made.members))
        return self.under_plan(key, axis.span, per_example, make)

    def selected_row_example(self, axis: Axis) -> fx.Node:
        made = self._of(axis)
        rows = self._rows(made, axis)
        if made.group is not None:
            return self.call(packing.row_example, self.offsets(axis), rows)
        return self.call(selections.take, self.row_example(made.source), rows)

    def selected_position(self, axis: Axis) -> fx.Node | None:
        """Of an arm's axis: the rows' numbers on the whole axis. None: rows are counted along the axis itself."""
        kind = axis.kind
        if not isinstance(kind, Selected) or kind.by is None or kind.group is not None:
            return None
        made = self._of(axis)
        return self.call(selections.take, self.position(made.source), self._rows(made, axis))

    def chosen_rows(self, axis: Axis) -> fx.Node:
        """int64: which rows of its source a selected axis has."""
        return self._rows(self._of(axis), axis)

    # -- parts -------------------------------------------------------------------------------------

    def _of(self, axis: Axis) -> _Chosen:
        if axis not in self._chosen:
            kind = axis.kind
            assert isinstance(kind, Selected)
            assert kind.by is not None
            self.choose(axis, kind.by)
        return self._chosen[axis]

    def _examples(self, group: Group) -> fx.Node:
        """int64: the examples of a group."""
        type = ValueType(Int(), (), True, group=group)
        return self.under_plan(
            ("examples", group), group.span, type, lambda: self.call(selections.rows_of, self._example_flags(group))
        )

    def _example_flags(self, group: Group) -> fx.Node:
        type = ValueType(Flag(), (), True, group=group.parent)
        make = lambda: self.call(selections.has_tag, self.aligned(group.by, (), None, True), group.members)  # noqa: E731
        return self.under_plan(("example flags", group), group.span, type, make)

    def _rows(self, made: _Chosen, target: Axis) -> fx.Node:
        key = ("chosen", made.source, made.group or (made.tag, made.members))
        make = lambda: self.call(selections.rows_of, self._flags(made))  # noqa: E731
        return self.under_plan(key, target.span, ValueType(Int(), (target,)), make)

    def _flags(self, made: _Chosen) -> fx.Node:
        """bool [rows of the source]."""
        source = made.source

        def make() -> fx.Node:
            if made.group is None:
                return self.call(selections.has_tag, self.aligned(made.tag, (), source), made.members)
            return self.call(torch.index_select, self._example_flags(made.group), 0, self.row_example(source))

        key = ("chosen flags", source, made.group or (made.tag, made.members))
        return self.under_plan(key, source.span, ValueType(Flag(), (source,)), make)
