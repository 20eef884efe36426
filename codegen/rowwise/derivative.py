"""The gradient of a row program, as a row program: reverse mode over its values.

It reads what the forward read and the gradients of the results, computes the forward's values again (saved.py then
chooses those that are better read), and gives a gradient for each operand that has one:

    an operand with rows              one row for each row
    an operand without rows           the sum over all rows, added up in a fixed order
    a table that rows are read from   the gradient of what was read, row by row, for the scatter family to add up
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch

from . import functions as f
from .functions import Function
from .making import constant, make, reduce
from .row_program import (
    Axis,
    Constant,
    How,
    Kind,
    Layout,
    Load,
    Map,
    Part,
    Reduce,
    Result,
    RowProgram,
    Source,
    Store,
    Val,
    Window,
    at_row,
    axes_of,
)


@dataclass(frozen=True)
class Gathered:
    """The gradient of table `place` arrives row by row: result `rows` of the derivative `[rows, .., entries]` holds it.
    Operand `index` of the forward says which row of the table each is for, or result `index_result` where that was
    computed. `in_runs`: equal indices lie side by side, and -1 is none. `is_summed`: the result is the
    sum for each row of the table already."""

    place: int
    rows: int
    index: int | None
    index_result: int | None
    in_runs: bool = False
    is_summed: bool = False


@dataclass(frozen=True)
class Derivative:
    """`program` takes the forward's operands, a gradient for each real result of it (`wanted`, in order), and the
    results of the forward that are `saved`.

    `owners` are pairs of an operand and a result that is its gradient: equal gradients are one result. `gathered`
    lists what has still to be scattered. An operand that is there more than once has the sum. `passed` are pairs of an
    operand and a number of `wanted`: its gradient is what arrives there, as a residual's is, and no result.
    """

    program: RowProgram
    wanted: tuple[int, ...]
    owners: tuple[tuple[int, int], ...]
    gathered: tuple[Gathered, ...]
    passed: tuple[tuple[int, int], ...] = ()
    saved: tuple[int, ...] = ()

    @property
    def wiring(self) -> object:
        """All but the program."""
        return self.wanted, self.owners, self.gathered, self.passed, self.saved


def derive(program: RowProgram, operands: int, asked: Collection[int], passes: bool = True) -> Derivative:
    """`operands`: how many operands the fused call has. `asked`: those whose gradient is wanted. `passes`: a gradient
    that arrives may be an operand's as it is; else all are results."""
    wanted = tuple(place for place, result in enumerate(program.results) if result.dtype.is_floating_point)
    gradients = _Gradients()
    sources: list[Source] = []
    for number, place in enumerate(wanted):
        result = program.results[place]
        source = Source(operands + number, f"d_{result.name}", result.by_row, result.dims, result.dtype)
        sources.append(source)
        for store in program.stores:
            if store.place == place:
                axes = frozenset(axes_of(store.layout))
                where = store.value.origin
                loaded = Load(axes, source.by_row, Kind.REAL, where, source, store.layout, is_gradient=True)
                gradients.add(store.value, loaded)
    for value in reversed(program.values):
        gradient = gradients.of(value)
        if gradient is not None:
            _pass_on(value, gradient, gradients)
    made = _Made(program, gradients, sources if passes else [])
    made.store(asked)
    if not made.results:
        # What only passes gradients on is a kernel all the same: an operator has results of its own.
        made = _Made(program, gradients, [])
        made.store(asked)
    read = _sources_read(made.stores)
    kept = tuple(source for source in (*program.sources, *sources) if source in read)
    backward = RowProgram(f"{program.name}_backward", kept, tuple(made.results), tuple(made.stores))
    return Derivative(backward, wanted, tuple(made.owners), tuple(made.gathered), tuple(made.passed))


class _Gradients:
    """Sums of what reaches each value."""

    def __init__(self) -> None:
        self._of: dict[Val, Val] = {}

    def add(self, value: Val, gradient: Val) -> None:
        if value.kind is not Kind.REAL or isinstance(value, Constant):
            return
        # What the value is the same along, its gradient is the sum over. Rows are summed at the end.
        gradient = reduce(How.SUM, gradient, gradient.axes - value.axes, value.origin)
        known = self._of.get(value)
        self._of[value] = gradient if known is None else make(f.ADD, known, gradient, origin=value.origin)

    def of(self, value: Val) -> Val | None:
        return self._of.get(value)


def _pass_on(value: Val, gradient: Val, gradients: _Gradients) -> None:
    def made(function: Function, *operands: Val | float) -> Val:
        return make(function, *operands, origin=value.origin)

    match value:
        case Map():
            assert value.function is not None
            if value.function.gradient is None:
                return
            for operand, part in zip(
                value.args, value.function.gradient(made, value.args, value, gradient), strict=False
            ):
                if part is not None and operand.kind is Kind.REAL:
                    gradients.add(operand, reduce(How.SUM, part, value.axes - operand.axes, value.origin))
        case Reduce():
            assert value.arg is not None
            if value.how is How.SUM:
                # The same for every entry that was added, so it need not have the axes that were summed over.
                gradients.add(value.arg, gradient)
            else:
                # Equal extremes share the gradient, as in torch.
                same = made(f.TO_REAL, made(f.EQUAL, value.arg, value))
                count = reduce(How.SUM, same, value.over, value.origin)
                gradients.add(value.arg, made(f.MUL, gradient, made(f.DIV, same, count)))


class _Made:
    """The results of a derivative while they are put together."""

    def __init__(self, program: RowProgram, gradients: _Gradients, given: list[Source]) -> None:
        self.program, self.gradients, self.given = program, gradients, given
        self.stores: list[Store] = []
        self.results: list[Result] = []
        self.owners: list[tuple[int, int]] = []
        self.gathered: list[Gathered] = []
        self.passed: list[tuple[int, int]] = []
        self.known: dict[object, int] = {}

    def store(self, asked: Collection[int]) -> None:
        loads = [value for value in self.program.values if isinstance(value, Load) and value.kind is Kind.REAL]
        for source in self.program.sources:
            if source.place not in asked or not source.dtype.is_floating_point:
                continue
            reads = [load for load in loads if load.source == source]
            for index, in_runs in dict.fromkeys((load.index, load.in_runs) for load in reads):
                found = {
                    load: self.gradients.of(load) for load in reads if (load.index, load.in_runs) == (index, in_runs)
                }
                if index is None and source.by_row:
                    # What a row was read for by another is the gradient there, so that one is computed here.
                    found = {load: value and at_row(value, -load.shift) for load, value in found.items()}
                if all(gradient is None for gradient in found.values()):
                    continue
                if index is None:
                    pieces = _pieces(found, ())
                    arriving = self.arriving(source, pieces)
                    if arriving is not None:
                        self.passed.append((source.place, arriving))
                        continue
                    place = self.result(source, source.dims, pieces, source.by_row)
                    self.owners.append((source.place, place))
                else:
                    own = tuple(axis for axis in self.program.axes if axis in index.axes)
                    dims = (*(axis.size for axis in own), source.entries)
                    place = self.result(source, dims, _pieces(found, own), True)
                    self.gathered.append(replace(self.scattered(source, place, index, own), in_runs=in_runs))

    def arriving(self, source: Source, pieces: dict[Layout, Val]) -> int | None:
        """Which of the given gradients the pieces are, entry by entry."""
        given = {
            value.source if isinstance(value, Load) and value.layout == layout and not value.shift else None
            for layout, value in pieces.items()
        }
        only = next(iter(given)) if len(given) == 1 else None
        if only not in self.given or not source.by_row or (only.dims, only.dtype) != (source.dims, source.dtype):
            return None
        return self.given.index(only)

    def result(self, source: Source, dims: tuple[int, ...], pieces: dict[Layout, Val], by_row: bool) -> int:
        """The place of a result of these pieces. A residual passes one gradient to both sides: it is written once."""
        key = (dims, source.dtype, by_row, frozenset(pieces.items()))
        if key not in self.known:
            place = self.known[key] = len(self.results)
            self.results.append(Result(f"d_{source.name}", dims, source.dtype, by_row))
            self.stores += [Store(place, value, layout, sum_rows=not by_row) for layout, value in pieces.items()]
        return self.known[key]

    def scattered(self, source: Source, rows: int, index: Val, own: tuple[Axis, ...]) -> Gathered:
        if isinstance(index, Load) and index.index is None and index.layout == own and not index.shift:
            operand = index.source
            if operand is not None and operand.by_row:
                return Gathered(source.place, rows, operand.place, None)
        if index not in self.known:
            place = self.known[index] = len(self.results)
            dims = tuple(axis.size for axis in own)
            self.results.append(Result(f"index_of_{source.name}", dims, torch.int64))
            self.stores.append(Store(place, index, own))
        return Gathered(source.place, rows, None, self.known[index])


def _pieces(found: dict[Load, Val | None], own: tuple[Axis, ...]) -> dict[Layout, Val]:
    """A value for each stretch of the operand; what is read twice gets the sum, what nobody needs gets 0."""
    by_layout: dict[Layout, Val] = {}
    for load, gradient in found.items():
        value = gradient if gradient is not None else constant(0.0)
        known = by_layout.get(load.layout)
        by_layout[load.layout] = value if known is None else make(f.ADD, known, value, origin=load.origin)
    for layout in _missing(by_layout):
        by_layout[layout] = constant(0.0)
    return {(*own, *layout): value for layout, value in by_layout.items()}


def _missing(layouts: Iterable[Layout]) -> list[Layout]:
    """Parts of axes that are written out or put together, and that the forward never read."""
    known = list(layouts)
    if not known:
        return []
    first = known[0]
    wanted: list[Layout] = [()]
    for entry in first:
        match entry:
            case Axis():
                choices = [entry]
            case Part():
                choices = [Part(i, entry.size) for i in range(entry.size)]
            case Window():
                choices = [Window(i, entry.parts) for i in range(len(entry.parts))]
        wanted = [(*layout, choice) for layout in wanted for choice in choices]
    return [layout for layout in wanted if layout not in known]


def _sources_read(stores: Iterable[Store]) -> set[Source]:
    program = RowProgram("", (), (), tuple(stores))
    return {value.source for value in program.values if isinstance(value, Load) and value.source is not None}
