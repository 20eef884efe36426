"""The LowerContext of a decoder: new rows only, segments that close among them, and caches of what later rows read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Axis, Selected
from ..dsl.frontier_elements import is_unbroken
from ..dsl.program import Node, Value
from ..dsl.selections import TakeAttrs
from ..dsl.value_type import Flag, Int, Real, ValueType
from .decode_plan import DECODE_ARGUMENTS, CacheSpec, DecodePlan, DecodeTypes
from .decode_stages import runs_every_call
from .facts import FACT, Fact
from .functions import caches, open_cuts, selections
from .graph_context import PER_EXAMPLE, GraphContext, NotLowered
from .lower import whole_result
from .ops.cut import SegmentAttrs
from .ops.nested import RowsAttrs
from .origin import Origin
from .selection_plans import group_of

Stateful = Callable[..., fx.Node | None]


@dataclass(frozen=True)
class OpenCut:
    """A cut while its axis grows; see functions/open_cuts.py. `lengths`: segments that closed before this call."""

    along: Axis
    ends: fx.Node
    offsets: fx.Node
    lengths: fx.Node
    open_before: fx.Node
    closing: fx.Node
    at_most: int | None


def _comes_with_owner(node: Node) -> bool:
    """Whether a node makes rows of what owns them, or says which segments they are: all are in one call."""
    return _is_shown(node) or (isinstance(node.attrs, RowsAttrs) and node.attrs.shown is not None)


def _is_shown(node: Node) -> bool:
    return isinstance(node.attrs, SegmentAttrs) and is_unbroken(node.attrs.cut)


class DecodeContext(GraphContext):
    """Lowers the per-row part of a program for new rows only. `form` is "extend", "last" (results of each last row)
    or "step". `stateful` gives the functions that read other rows their stateful forms."""

    def __init__(
        self, plan: DecodePlan, types: DecodeTypes, form: str, stateful: Mapping[Callable[..., Any], Stateful]
    ) -> None:
        super().__init__(plan.row_inputs, (plan.axis, *plan.with_rows), types.working, types.stored)
        self.plan, self.types, self.form, self._stateful = plan, types, form, stateful
        self.specs: list[CacheSpec] = []
        self.open: dict[Axis, OpenCut] = {}
        self._shared_caches: dict[tuple[object, ...], fx.Node] = {}
        self._open_before: dict[Axis, tuple[fx.Node, fx.Node]] = {}
        self._in_tail = False
        self.met_stateful = False
        self._tail_values = {value for node in plan.tail for value in node.outputs}
        # Flags of segments that come whole: who reads them reads no rows of other calls.
        self._whole_segments = {value for node in plan.rows if _is_shown(node) for value in node.outputs}
        self._row_values = {value for node in plan.rows for value in node.outputs} | set(plan.row_inputs)
        # An input may lie along rows that nothing in the program takes.
        for axis, tag in plan.program.selected.items():
            if tag in plan.row_inputs:
                self.choose(axis, tag)
        for value in plan.carried:
            self._values[value] = self.argument(f"once_{value.name}", Origin(value.span, value.type, value=value))
            if value.type.rows is not None:
                self._rows_of.setdefault(value.type.rows, self._values[value])
        for value, equal in plan.same.items():
            self._values[value] = self._values[equal]
        for axis in plan.other_axes:
            self._offsets[axis] = self.argument(f"{axis.name}_offsets", Origin(axis.span, PER_EXAMPLE))
        counted = Origin(plan.axis.span, PER_EXAMPLE)
        self.lengths, self.columns, self.is_even = (self.argument(name, counted) for name in DECODE_ARGUMENTS)
        self._per_example = self.lengths
        if form == "step":
            # Rows and examples are the same here, and a step's lengths are the positions of its rows.
            self.lengths.meta[FACT] = Fact(plan.axis.name, (), torch.int64)

    @property
    def is_single(self) -> bool:
        """Every sequence has exactly one row here, so rows and examples are the same thing."""
        return self.form == "step" or self._in_tail

    # -- lowering ----------------------------------------------------------------------------------

    def lower(self, node: Node, rule: Callable[[Any, Node], Any]) -> None:
        self._refuse_selections(node)
        self._in_tail = self.form == "last" and node in self.plan.tail
        self.met_stateful = False
        super().lower(node, rule)
        self._in_tail = False
        if _comes_with_owner(node):
            return
        reads_rows = any(value in self._row_values for value in node.inputs)
        if reads_rows and not node.op.is_row_wise(node) and not self.met_stateful:
            raise NotLowered(f"decoding through `{node.op.name}`, which reads other rows", node)

    def _refuse_selections(self, node: Node) -> None:
        """A selection has the new rows that are chosen, and what owns rows those that are given; those before, and
        their number, are not kept."""
        for value in (*node.inputs, *node.outputs):
            rows = value.type.rows
            if group_of(value.type) is not None:
                raise NotLowered("decoding through a `match` on a tag per example", node)
            if rows is None or value in self._whole_segments or _comes_with_owner(node):
                continue
            if not isinstance(rows.kind, Selected) and rows not in self.plan.with_rows:
                continue
            is_of_arm = isinstance(rows.kind, Selected) and rows.kind.by is not None
            counts = not is_of_arm and value in node.outputs and not isinstance(node.attrs, TakeAttrs)
            if not node.op.is_row_wise(node) or (counts and all(v.type.rows is not rows for v in node.inputs)):
                raise NotLowered(f"decoding through `{node.op.name}`, which reads or counts rows of {rows.name}", node)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        stateful = self._stateful.get(function)
        if stateful is not None:
            made = stateful(self, *args, **kwargs)
            if made is not None:
                self.met_stateful = True
                return made
        return super().call(function, *args, **kwargs)

    def plain(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call that is already in its stateful form."""
        return super().call(function, *args)

    def result(self, value: Value) -> Any:
        self.under(Origin(value.span, value.type))
        self._in_tail = self.form == "last"
        try:
            return whole_result(self, value)
        finally:
            self._in_tail = False

    # -- rows --------------------------------------------------------------------------------------

    def lengths_of(self, axis: Axis) -> fx.Node:
        """int64 [batch]: how many rows of an axis that grows each sequence had before this call."""
        return self.lengths if axis is self.plan.axis else self.open[axis].lengths

    def offsets(self, axis: Axis) -> fx.Node:
        return self.open[axis].offsets if axis in self.open else super().offsets(axis)

    def row_example(self, axis: Axis) -> fx.Node:
        if axis in self.open:
            cut = self.open[axis]
            rows = self.row_example(cut.along)
            make = lambda: self.plain(torch.index_select, rows, 0, cut.closing)  # noqa: E731
            return self.planned(("row_example", axis), axis, ValueType(Int(), (axis,)), make)
        if axis is not self.plan.axis or not self.is_single:
            return super().row_example(axis)
        return self._once(
            ("every_example",), lambda: self._plan(lambda _: self.plain(caches.every_example, self.lengths), axis)
        )

    def position(self, axis: Axis) -> fx.Node:
        if axis in self.open:
            # Whether there is such a row is decided by the segment, which keeps the count.
            self.met_stateful = True
        if axis is not self.plan.axis:
            return super().position(axis)
        if self.form == "step":
            return self.lengths
        everywhere = self._once(("position", axis), lambda: self._plan(self._make_position, axis))
        return self._last_of(everywhere, axis) if self._in_tail else everywhere

    def _make_position(self, axis: Axis) -> fx.Node:
        if axis in self.open:
            cut = self.open[axis]
            return self.plain(caches.positions, cut.offsets, self.row_example(axis), cut.lengths)
        if axis is not self.plan.axis:
            return super()._make_position(axis)
        rows = GraphContext.row_example(self, axis)
        return self.plain(caches.positions, self.offsets(axis), rows, self.lengths)

    def _value(self, value: Value) -> Any:
        node = super()._value(value)
        if self._in_tail and value in self._row_values and value not in self._tail_values:
            return self._last_of(node, value.type.rows or self.plan.axis)
        return node

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        # What is made in the tail has other rows than what is made outside it.
        return super()._once((*key, "tail") if self._in_tail and key[0] != "weight" else key, make)

    def _last_of(self, node: Any, axis: Axis) -> fx.Node:
        which = self._last_rows(axis)
        return self._once(("last", node), lambda: self.plain(torch.index_select, node, 0, which))

    def _last_rows(self, axis: Axis) -> fx.Node:
        """int64: the last row of each sequence; of a selection, those that are rows of it, counted among all of it."""

        def make(_: object) -> fx.Node:
            if not isinstance(axis.kind, Selected):
                return self.plain(caches.last_rows, self._offsets[self.plan.axis])
            above, chosen = self._last_rows(axis.kind.parent), self.chosen_rows(axis)
            self._in_tail = False
            everywhere = self.chosen_rows(axis)
            self._in_tail = True
            return self.plain(selections.places_of, everywhere, self.plain(selections.take, above, chosen))

        return self._once(("last_rows", axis), lambda: self._plan(make, axis))

    def _descend(self, value: Value, node: Any, rows: Axis | None, per_example: bool) -> Any:
        if self.is_single and value.type.rows is None and rows is self.plan.axis:
            return node
        return super()._descend(value, node, rows, per_example)

    # -- cuts --------------------------------------------------------------------------------------

    def open_rows(self, cut: Axis, along: Axis) -> fx.Node:
        """int64 [batch]: rows of the open segment before this call."""
        if cut not in self._open_before:
            state = self.state("open", (), torch.int64)
            before = self.every_call(along, open_cuts.open_rows, state, self.lengths_of(along))
            self._open_before[cut] = state, before
        return self._open_before[cut][1]

    def cut(self, cut: Axis, along: Axis, ends: Any, inside: Any) -> None:
        if is_unbroken(cut):
            super().cut(cut, along, ends, inside)
            return
        if inside is not None:
            raise NotLowered(f"decoding with gaps between the segments of {cut.name}", self._node)
        self.met_stateful = True
        plan = lambda name, axis, make: self.planned((name, cut), cut, ValueType(Int(), axis), make)  # noqa: E731
        lengths, offsets = self.lengths_of(along), self.offsets(along)
        open_before = self.open_rows(cut, along)
        cut_offsets = plan("closed offsets", (), lambda: self.plain(open_cuts.closed_offsets, ends, offsets))
        count = self.state("segments", (), torch.int64)
        before = self.every_call(along, open_cuts.segments_before, count, cut_offsets, lengths, offsets)
        self.every_call(along, open_cuts.keep_open_rows, self._open_before[cut][0], ends, open_before, lengths, offsets)
        closing = plan("closing", (along,), lambda: self.plain(open_cuts.closing, ends))
        assert self._node is not None
        at_most = getattr(self._node.attrs, "at_most", None)
        self.open[cut] = OpenCut(along, ends, cut_offsets, before, open_before, closing, at_most)

    def segment_of(self, cut: Axis, which: str) -> fx.Node:
        """Counted among the segments that close now; see `open_cuts.closed_among_new`."""
        if is_unbroken(cut):
            return super().segment_of(cut, which)
        if which == "own":
            raise NotLowered(f"decoding through what reads the open segment of {cut.name}", self._node)
        made = self.open[cut]
        place = made.ends, self.row_example(made.along), self.offsets(made.along), made.offsets
        make = lambda: self.plain(open_cuts.closed_among_new, *place, which == "closed")  # noqa: E731
        return self.planned(("segment", cut, which), cut, ValueType(Int(), (made.along,)), make)

    def segment_index(self, cut: Axis, which: str) -> fx.Node:
        self.met_stateful = True
        if is_unbroken(cut):
            return self._place_of_segment(cut)
        made = self.open[cut]
        place = made.ends, self.row_example(made.along), made.offsets, made.lengths
        make = lambda: self.plain(open_cuts.index_open, *place, which == "closed")  # noqa: E731
        return self.planned(("index", cut, which), cut, ValueType(Int(), (made.along,)), make)

    def _place_of_segment(self, cut: Axis) -> fx.Node:
        """Where the segment of each row begins on the whole axis: masks compare it with that of earlier calls."""
        along = self._cuts[cut].along
        place = self.position(along.whole), self.chosen_rows(along), self.per_segment(cut), self.segment_of(cut, "own")
        make = lambda: self.plain(selections.place_of_segment, *place)  # noqa: E731
        return self.planned(("place", cut), cut, ValueType(Int(), (along,)), make)

    def segment_inside(self, cut: Axis) -> fx.Node | None:
        return None

    def per_segment(self, cut: Axis) -> fx.Node:
        if is_unbroken(cut):
            return super().per_segment(cut)
        return self.open[cut].closing

    def segment_values(self, cut: Axis, value: Value, node: Any, shape: tuple[int, ...]) -> Any:
        """All rows of the segments that close; those of open ones are cached."""
        self.met_stateful = True
        made = self.open[cut]
        cache = self.cache("open_rows", (), made.at_most, shape, self.cache_type(value))
        return self.every_call(
            made.along, open_cuts.closing_values, node, cache, made.ends, self.offsets(made.along), made.open_before,
            gives_segments=True,
        )  # fmt: skip

    def segment_first(self, cut: Axis, value: Value, node: Any) -> Any:
        self.met_stateful = True
        made = self.open[cut]
        shape = tuple(axis.size for axis in value.type.static_axes if axis.size is not None)
        state = self.state("first", shape, self.cache_type(value))
        place = made.ends, made.open_before, self.row_example(made.along)
        return self.every_call(
            made.along, open_cuts.hold_first, node, state, *place, self.lengths_of(made.along), self.offsets(made.along)
        )

    def segment_bounds(self, cut: Axis) -> fx.Node:
        made = self.open[cut]
        place = made.ends, self.offsets(made.along), made.open_before, self.row_example(made.along)
        make = lambda: self.plain(open_cuts.closing_bounds, *place)  # noqa: E731
        return self.planned(("bounds", cut), cut, ValueType(Int(), (cut,)), make)

    def segment_numbers(self, cut: Axis) -> fx.Node:
        bounds = self.segment_bounds(cut)
        make = lambda: self.plain(open_cuts.segment_numbers, bounds)  # noqa: E731
        return self.planned(("numbers", cut), cut, ValueType(Int(), (cut,)), make)

    def groups_by(self, cut: Axis, queries: Axis | None, keys: Axis) -> bool:
        # Only segments that close have all their rows.
        return queries is cut and keys is self.open[cut].along

    # -- caches ------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        assert self._node is not None
        return self._node

    def cache(
        self, what: str, before: tuple[int, ...], slots: int | None, after: tuple[int, ...], dtype: torch.dtype
    ) -> fx.Node:
        """A further cache of the run, as an argument of the graph."""
        return self._new_cache(CacheSpec(f"cache_{len(self.specs)}_{what}", before, slots, after, dtype, self._place()))

    def shared_cache(self, key: tuple[object, ...], what: str, dtype: torch.dtype) -> fx.Node:
        """A cache with one entry per row that all who ask with one key write the same to."""
        if key not in self._shared_caches:
            self._shared_caches[key] = self.cache(what, (), None, (), dtype)
        return self._shared_caches[key]

    def state(self, what: str, after: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        """What was so after the last row: `[batch, 2, *after]`; see functions/open_cuts.py."""
        name = f"cache_{len(self.specs)}_{what}"
        return self._new_cache(CacheSpec(name, (), 2, after, dtype, self._place(), is_state=True))

    def _new_cache(self, spec: CacheSpec) -> fx.Node:
        self.specs.append(spec)
        return self.argument(spec.name, replace(self._origin, value=None))

    def _place(self) -> str:
        return str(self.node.span)

    def every_call(
        self, along: Axis, function: Callable[..., Any], *args: Any, gives_segments: bool = False
    ) -> fx.Node:
        """A call that runs also when no segment closes, if the rows it works on come with every call."""
        return runs_every_call(self.plain(function, *args), along is self.plan.axis, gives_segments)

    def cache_type(self, value: Value) -> torch.dtype:
        match value.type.kind:
            case Real():
                return self.real_type()
            case Flag():
                return torch.bool
            case _:
                return torch.int64

    def real_type(self) -> torch.dtype:
        """The type in which the node's reals are computed."""
        return self._wanted_type()
