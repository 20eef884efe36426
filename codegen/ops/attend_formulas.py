"""What `attend` is told about pairs of rows: masks and formulas of scores, checked and written into the graph."""

from __future__ import annotations

import math
from typing import Any

from ...dsl import masks
from ...dsl.axes import Axis, Cut, Selected
from ...dsl.errors.axes import SidewaysLevels, WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.masks import (
    Arithmetic,
    Both,
    Captured,
    Compare,
    Either,
    Formula,
    Literal,
    Mask,
    Not,
    Position,
    SegmentIndex,
    Side,
    Term,
)
from ...dsl.opdef import OpCall
from ...dsl.program import Value
from ...dsl.record import record
from ...dsl.source import Span
from ..lazy import torch
from ..lowering import LowerContext
from .joining import want_whole
from .operands import sizes
from .score import Score

# -- checks
# ---------------------------------------------------------------------------------------------------------------------


def check_mask(call: OpCall, mask: Mask, along: Axis, query_rows: Axis | None) -> None:
    want_whole(call, "attend", **{f"mask.{number}": value for number, value in enumerate(mask.captures)})
    at = mask.span or call.at("mask")
    for side, index in masks.captured_sides(mask.formula):
        _check_side(call, side, mask.captures[index], along, query_rows, at)
    for value in mask.captures:
        if value.type.static_axes:
            raise call.fail(
                WrongAxisKind(
                    call.at("mask"),
                    "a mask",
                    value.type.static_axes[0].name,
                    "one value per row",
                    "a static axis of it",
                )
            )
        if along.is_static:
            raise call.fail(NotBuiltYet(call.at("mask"), "a mask that reads values, along a static axis,"))


def check_score(call: OpCall, score: Score, along: Axis, query_rows: Axis | None) -> None:
    want_whole(call, "attend", **{f"score.{number}": value for number, value in enumerate(score.captures)})
    at = call.at("score")
    if along.is_static and sides_of(score.formula):
        raise call.fail(NotBuiltYet(at, "a score that reads values, along a static axis,"))
    for side, index in sides_of(score.formula):
        _check_side(call, side, score.captures[index], along, query_rows, at)


def sides_of(formula: Any) -> list[tuple[str, int]]:
    """Which captured value a formula of a score reads on which side, in the order written."""
    match formula:
        case ("query" | "key" as side, int() as index):
            return [(side, index)]
        case (str(), *parts):
            return [read for part in parts for read in sides_of(part)]
        case _:
            return []


def reads_positions(formula: Any) -> bool:
    """Of a formula of a score, with values or with tensors in it."""
    match formula:
        case ("query" | "key", read):
            return isinstance(read, str)
        case (str(), *parts):
            return any(reads_positions(part) for part in parts)
        case _:
            return False


def _check_side(call: OpCall, side: str, value: Value, along: Axis, query_rows: Axis | None, at: Span) -> None:
    """A value lies along the side's axis, or along an owner of it."""
    rows, own = value.type.rows, along if side == "key" else query_rows
    if along.is_ordered and rows is not None and rows is not own and (own is None or rows not in own.ancestors):
        place = "per example" if own is None else own.name
        raise call.fail(SidewaysLevels(at, f"{side}({value.name})", place, rows.name, at, at))


@record
class _Predicates:
    """Writes a mask as nested tuples (functions/masks.py), with captured values read at the rows of either side."""

    ctx: LowerContext
    captures: tuple[Value, ...]
    queries: Axis | None
    keys: Axis

    def formula(self, formula: Formula) -> tuple[Any, ...]:
        match formula:
            case Both(left, right):
                return ("and", self.formula(left), self.formula(right))
            case Either(left, right):
                return ("or", self.formula(left), self.formula(right))
            case Not(inner):
                return ("not", self.formula(inner))
            case Compare(operator, left, right):
                compared = (operator, self.term(left), self.term(right))
                # A row in a gap is in the segment of no other row.
                for side in (left, right) if operator == "==" else ():
                    if isinstance(side, Side) and isinstance(side.read, SegmentIndex):
                        inside = self._inside(side.side, side.read)
                        compared = compared if inside is None else ("and", compared, inside)
                return compared

    def _inside(self, side: str, read: SegmentIndex) -> tuple[Any, ...] | None:
        if self._rows(side) is read.axis or self._selection(side, read.axis) is not None:
            return None
        inside = self.ctx.segment_inside(read.axis)
        return None if inside is None else ("==", (side, inside), ("number", True))

    def _selection(self, side: str, cut: Axis) -> Axis | None:
        """The selection that was cut, where a side runs along what it was selected from."""
        selection = cut.kind.parent if isinstance(cut.kind, Cut) else cut
        is_whole = isinstance(selection.kind, Selected) and self._rows(side) is selection.kind.parent
        return selection if is_whole else None

    def _rows(self, side: str) -> Axis | None:
        return self.queries if side == "query" else self.keys

    def term(self, term: Term) -> tuple[Any, ...]:
        match term:
            case Literal(value):
                return ("number", value)
            case Side(side, Position()):
                return (side, "position")
            case Side(side, Captured(index)):
                rows = self._rows(side)
                return (side, self.ctx.aligned(self.captures[index], (), rows, rows is None))
            case Side(side, SegmentIndex(axis, which)):
                if self._selection(side, axis) is not None:
                    # Rows that were not selected are in no segment: no row has the number of a row of the other side.
                    return (side, self.ctx.segment_index_on_whole(axis, -1 if side == "query" else -2))
                # The row number of a side that runs along the cut is the index of its own row.
                rows = self._rows(side)
                assert rows is not None
                return (side, "position" if rows is axis else self.ctx.index_at(rows, axis, which))
            case Arithmetic("abs", left, _):
                return ("abs", self.term(left))
            case Arithmetic(_, left, None):
                return ("neg", self.term(left))
            case Arithmetic(operator, left, right) if right is not None:
                return (operator, self.term(left), self.term(right))
            case _:
                raise AssertionError(term)


# -- lowering
# ---------------------------------------------------------------------------------------------------------------------


def mask_arguments(
    ctx: LowerContext, formula: Formula | None, captures: tuple[Value, ...], queries: Axis | None, keys: Axis
) -> dict[str, Any]:
    """`low`, `high` and `predicate` of a mask's formula, as far as they say something."""
    band = masks.distance(formula)
    arguments: dict[str, Any] = {"low": band.low, "high": band.high}
    if not masks.is_exactly_distance(formula):
        assert formula is not None
        arguments["predicate"] = _Predicates(ctx, captures, queries, keys).formula(formula)
    return {name: value for name, value in arguments.items() if value is not None}


def score_argument(ctx: LowerContext, score: Score, heads: tuple[Axis, ...], queries: Axis | None, keys: Axis) -> Any:
    """The formula with tensors in it: of each row of a side, `[rows]` or `[rows, all heads]`; of a table `[entries]` or
    `[all heads, entries]`."""

    def of_rows(value: Value, rows: Axis | None) -> Any:
        axes = heads if value.type.static_axes else ()
        # Written out for all heads, so that a gradient comes back for each.
        read = ctx.full(value, axes, rows, rows is None)
        return ctx.call(torch.reshape, read, (-1, math.prod(sizes(axes)))) if len(axes) > 1 else read

    def of_table(table: Value, indexed: tuple[Axis, ...]) -> Any:
        axes = heads if set(table.type.axes) - set(indexed) else ()
        read = ctx.full(table, (*axes, *indexed), None)
        lead = (math.prod(sizes(axes)),) if axes else ()
        if (len(axes), len(indexed)) in ((0, 1), (1, 1)):
            return read
        return ctx.call(torch.reshape, read, (*lead, math.prod(sizes(indexed))))

    def written(formula: Any) -> Any:
        match formula:
            case ("query" | "key" as side, int() as index):
                return (side, of_rows(score.captures[index], keys if side == "key" else queries))
            case ("entry", int() as index, at):
                return ("entry", of_table(score.captures[index], score.indexed[index]), written(at))
            case (str() as name, *parts) if name != "number":
                return (name, *(written(part) for part in parts))
            case _:
                return formula

    return written(score.formula)
