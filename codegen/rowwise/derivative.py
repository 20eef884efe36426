"""The gradient of a row program, as a row program: reverse mode over its values.

It reads what the forward read and the gradients of the results, computes the forward's values again (they cost less
than the memory they would take), and gives a gradient for each operand that has one:

    an operand with rows              one row for each row
    an operand without rows           the sum over all rows, added up in a fixed order
    a table that rows are read from   the gradient of what was read, row by row, for the scatter family to add up
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

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
)


@dataclass(frozen=True)
class Gathered:
    """A table's gradient arrives row by row: result `rows` of the derivative `[rows, .., entries]` holds it. Operand
    `index` of the forward says which row of the table each is for, or result `index_result` where that was computed."""

    place: int
    rows: int
    index: int | None
    index_result: int | None


@dataclass(frozen=True)
class Derivative:
    """`program` takes the forward's operands, then a gradient for each real result of it (`wanted`, in order).

    `owners[i]` is the operand whose gradient result i is, None for an index; `gathered` lists what has still to be
    scattered.
    """

    program: RowProgram
    wanted: tuple[int, ...]
    owners: tuple[int | None, ...]
    gathered: tuple[Gathered, ...]


def derive(program: RowProgram, operands: int, asked: Collection[int]) -> Derivative:
    """`operands`: how many operands the fused call has. `asked`: those whose gradient is wanted."""
    wanted = tuple(place for place, result in enumerate(program.results) if result.dtype.is_floating_point)
    gradients = _Gradients()
    sources: list[Source] = []
    for number, place in enumerate(wanted):
        result = program.results[place]
        entries = 1
        for size in result.dims:
            entries *= size
        source = Source(operands + number, f"d_{result.name}", result.by_row, entries, result.dtype)
        sources.append(source)
        for store in program.stores:
            if store.place == place:
                axes = frozenset(entry for entry in store.layout if isinstance(entry, Axis))
                loaded = Load(axes, source.by_row, Kind.REAL, store.value.origin, source, store.layout)
                gradients.add(store.value, loaded)
    for value in reversed(program.values):
        gradient = gradients.of(value)
        if gradient is not None:
            _pass_on(value, gradient, gradients)
    stores, results, owners, gathered = _stores(program, gradients, asked)
    read = _sources_read(stores)
    kept = tuple(source for source in (*program.sources, *sources) if source in read)
    backward = RowProgram(f"{program.name}_backward", kept, tuple(results), tuple(stores))
    return Derivative(backward, wanted, tuple(owners), tuple(gathered))


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


def _stores(
    program: RowProgram, gradients: _Gradients, asked: Collection[int]
) -> tuple[list[Store], list[Result], list[int | None], list[Gathered]]:
    stores: list[Store] = []
    results: list[Result] = []
    owners: list[int | None] = []
    gathered: list[Gathered] = []
    loads = [value for value in program.values if isinstance(value, Load) and value.kind is Kind.REAL]
    for source in program.sources:
        if source.place not in asked or not source.dtype.is_floating_point:
            continue
        reads = [load for load in loads if load.source == source]
        if source.is_table:
            for index in dict.fromkeys(load.index for load in reads):
                group = {load: gradients.of(load) for load in reads if load.index is index}
                if index is not None and any(gradient is not None for gradient in group.values()):
                    own = tuple(axis for axis in program.axes if axis in index.axes)
                    place = len(results)
                    results.append(Result(f"d_{source.name}", (*(a.size for a in own), source.entries), source.dtype))
                    owners.append(source.place)
                    stores += _pieces(place, group, own, True)
                    gathered.append(_gathered(source, place, index, own, results, stores))
                    owners += [None] * (len(results) - len(owners))
            continue
        found = {load: gradients.of(load) for load in reads}
        if any(gradient is not None for gradient in found.values()):
            place = len(results)
            results.append(Result(f"d_{source.name}", (source.entries,), source.dtype, source.by_row))
            owners.append(source.place)
            stores += _pieces(place, found, (), source.by_row)
    return stores, results, owners, gathered


def _gathered(
    source: Source, place: int, index: Val, own: tuple[Axis, ...], results: list[Result], stores: list[Store]
) -> Gathered:
    if isinstance(index, Load) and index.index is None and index.layout == own:
        operand = index.source
        if operand is not None and operand.by_row:
            return Gathered(source.place, place, operand.place, None)
    results.append(Result(f"index_of_{source.name}", tuple(axis.size for axis in own), torch.int64))
    stores.append(Store(len(results) - 1, index, own))
    return Gathered(source.place, place, None, len(results) - 1)


def _pieces(place: int, found: dict[Load, Val | None], own: tuple[Axis, ...], by_row: bool) -> list[Store]:
    """One store for each stretch of the operand; what is read twice gets the sum, what nobody needs gets 0."""
    by_layout: dict[Layout, Val] = {}
    for load, gradient in found.items():
        value = gradient if gradient is not None else constant(0.0)
        known = by_layout.get(load.layout)
        by_layout[load.layout] = value if known is None else make(f.ADD, known, value, origin=load.origin)
    for layout in _missing(by_layout):
        by_layout[layout] = constant(0.0)
    return [Store(place, value, (*own, *layout), sum_rows=not by_row) for layout, value in by_layout.items()]


def _missing(layouts: Iterable[Layout]) -> list[Layout]:
    """Parts of written-out axes that the forward never read."""
    known = list(layouts)
    if not known:
        return []
    first = known[0]
    wanted: list[Layout] = [()]
    for entry in first:
        choices = [entry] if isinstance(entry, Axis) else [Part(i, entry.size) for i in range(entry.size)]
        wanted = [(*layout, choice) for layout in wanted for choice in choices]
    return [layout for layout in wanted if layout not in known]


def _sources_read(stores: Iterable[Store]) -> set[Source]:
    program = RowProgram("", (), (), tuple(stores))
    return {value.source for value in program.values if isinstance(value, Load) and value.source is not None}
