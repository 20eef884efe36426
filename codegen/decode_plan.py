"""What a decoder computes when: once per sequence, per row, per segment that closes; and which rows it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..dsl.axes import Axis, Cut
from ..dsl.program import Constant, Node, Program, Value, Weight
from .graph_context import NotLowered
from .lower import live_nodes
from .own_spreads import along_rows

DECODE_ARGUMENTS = ("lengths", "columns", "is_even")


@dataclass(frozen=True)
class CacheSpec:
    """One cache: `[batch, *before, slots, *after]`. `slots` None: as many as the run's capacity. A `state` has as many
    slots whatever the capacity."""

    name: str
    before: tuple[int, ...]
    slots: int | None
    after: tuple[int, ...]
    dtype: torch.dtype
    span: str
    is_state: bool = False

    def shape(self, batch: int, capacity: int) -> tuple[int, ...]:
        # A window longer than the run needs no more slots than the run has rows.
        slots = capacity if self.slots is None else self.slots if self.is_state else min(self.slots, capacity)
        return (batch, *self.before, slots, *self.after)


@dataclass(frozen=True)
class DecodeTypes:
    """What reals are computed in, what weights are stored in, and what keys and values are cached and attended in."""

    working: torch.dtype
    stored: torch.dtype
    attended: torch.dtype


@dataclass(frozen=True)
class DecodePlan:
    """Which values of a program are computed when. `axis` is the decoded one; rows of `with_rows` come with rows of a
    selection of it, which they own: pictures with their places."""

    program: Program
    axis: Axis
    with_rows: tuple[Axis, ...]
    once: tuple[Node, ...]
    rows: tuple[Node, ...]
    carried: tuple[Value, ...]  # made once, read by rows
    same: dict[Value, Value]  # each value made once, and the carried one that equals it
    tail: frozenset[Node]  # rows nobody but the result reads: needed for the last new row only

    @property
    def row_inputs(self) -> tuple[Value, ...]:
        return tuple(value for value in self.program.inputs if _comes(value, self.axis, self.with_rows))

    @property
    def row_outputs(self) -> tuple[tuple[str, Value], ...]:
        """The outputs that a single row has."""
        return tuple((name, value) for name, value in self.program.outputs if _lies_along(value, self.axis))

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The axes of the row inputs, the decoded one first."""
        selected = [value.type.rows for value in self.row_inputs if value.type.rows is not self.axis]
        return (self.axis.name, *dict.fromkeys(axis.name for axis in selected if axis is not None))

    @property
    def once_inputs(self) -> tuple[Value, ...]:
        return tuple(value for value in self.program.inputs if not _comes(value, self.axis, self.with_rows))

    @property
    def cuts(self) -> tuple[Axis, ...]:
        """Axes whose rows are segments of the new rows, or of their segments."""
        axes = (value.type.rows for node in self.rows for value in node.outputs)
        return tuple(dict.fromkeys(axis for axis in axes if axis is not None and isinstance(axis.kind, Cut)))

    @property
    def other_axes(self) -> tuple[Axis, ...]:
        return tuple(
            axis for axis in self.program.ordered_axes if axis.whole is not self.axis and axis not in self.with_rows
        )


def plan_decoding(program: Program) -> DecodePlan:
    """Sorts the program's values into those made once and those made per row. Causality has been checked before."""
    axis = decoded_axis(program)
    with_rows = tuple(owner for owner in program.shown if program.rows_that_come(owner) is axis)
    program = along_rows(program)
    live = live_nodes(program, (value for _, value in program.outputs))
    along: set[Value] = {value for value in program.inputs if _comes(value, axis, with_rows)}
    once, rows = [], []
    for node in live:
        comes = any(_comes(value, axis, with_rows) for value in node.outputs)
        if comes or any(value in along for value in node.inputs):
            rows.append(node)
            along.update(node.outputs)
        else:
            once.append(node)
    read = [value for node in rows for value in node.inputs] + [value for _, value in program.outputs]
    carried = dict.fromkeys(v for v in read if v not in along and not isinstance(v, Constant | Weight))
    same = dict(zip(carried, carried, strict=True))
    tail = _tail(rows, with_rows)
    return DecodePlan(program, axis, with_rows, tuple(once), tuple(rows), tuple(carried), same, tail)


def _comes(value: Value, axis: Axis, with_rows: tuple[Axis, ...]) -> bool:
    """Whether rows of a value come as the decoded axis grows."""
    return _lies_along(value, axis) or value.type.rows in with_rows


def _lies_along(value: Value, axis: Axis) -> bool:
    """Whether a value's rows are rows of an axis, all of them or some."""
    return value.type.rows is not None and value.type.rows.whole is axis


def decoded_axis(program: Program) -> Axis:
    """The axis that grows: the one the outputs lie along, or whose rows they are some of."""
    found = (value.type.rows for _, value in program.outputs)
    axes = dict.fromkeys(None if rows is None else program.rows_that_come(rows) for rows in found)
    axis = next(iter(axes), None)
    rows = (value.type.rows for value in (*program.inputs, *(out for node in program.nodes for out in node.outputs)))
    nested = next((axis for axis in rows if axis is not None and axis.parent is not None), None)
    if nested is not None:
        raise NotLowered(f"decoding {program.name}, which has the nested axis {nested.name}", None)
    if len(axes) != 1 or axis is None:
        raise NotLowered(f"decoding {program.name}, whose outputs do not all lie along one ragged axis", None)
    if not any(value.type.rows is axis for value in program.inputs):
        raise NotLowered(f"decoding {program.name}, which has no input along {axis.name}", None)
    return axis


def _tail(rows: list[Node], with_rows: tuple[Axis, ...]) -> frozenset[Node]:
    """Nodes whose every reader works on the same row and is such a node itself. What owns rows has no last one."""
    tail: set[Node] = set()
    needed_whole: set[Value] = set()
    for node in reversed(rows):
        owns = any(value.type.rows in with_rows for value in node.outputs)
        if node.op.is_row_wise(node) and not owns and not any(value in needed_whole for value in node.outputs):
            tail.add(node)
        else:
            needed_whole.update(node.inputs)
    return frozenset(tail)
