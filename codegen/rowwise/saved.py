"""What a forward saves for its backward, and what the backward computes again from the forward's operands.

    square = mul(h, h); scale = rsqrt(add(mean(square), eps)); y = h * scale * gain       h, scale are saved, y is not

The backward as derived computes everything again. A value is read instead where that is faster on the roofline:

    a result of the forward      in memory anyway: the sum of a residual and a branch, instead of both
    a statistic of a long row    one number a row, instead of a reduction that all of the row has to wait for
    what tables were read for    one row, instead of one of each table
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch

from ..cost import SEGMENT
from ..targets import DEVICES
from . import functions as f
from .derivative import Derivative
from .row_program import Axis, Constant, Iota, Kind, Load, Map, Reduce, Result, RowProgram, Source, Store, Val

# One device for all targets, so that a spec saves the same everywhere.
DEVICE = DEVICES["h100"]
# What a saved value may add to the bytes of the backward: one number beside a long row.
NEARLY_FREE = 0.01
# Functions whose result jumps. A maximum that was saved need not equal any of the entries that are computed again: a
# compiler may have rounded them otherwise. So reals that a decision depends on are all computed again, or none.
DECISIONS = frozenset(
    (f.EQUAL, f.NOT_EQUAL, f.LESS, f.AT_MOST, f.GREATER, f.AT_LEAST, f.FLOOR, f.CEIL, f.ROUND, f.SIGN, f.TO_INT)
    + (f.MOD, f.FLOORDIV)
)
# Functions of which a rounded operand, exact but for a part of itself, makes something else where it is large.
AMPLIFIERS = frozenset((f.EXP, f.POW, f.SIN, f.COS))


@dataclass(frozen=True)
class Choice:
    """A value that the backward may read. `place`: the result of the forward that holds it, None for none yet."""

    value: Val
    place: int | None
    dtype: torch.dtype

    def bytes(self) -> int:
        """Of one row."""
        return _entries(self.value) * self.dtype.itemsize


@dataclass(frozen=True)
class Cost:
    """Of one row: bytes the backward moves, bytes the forward writes more, and the seconds of both."""

    moved: int
    written: int
    seconds: float


def save_values(program: RowProgram, derivative: Derivative, operands: int) -> tuple[RowProgram, Derivative]:
    """The forward with what it saves as further results, and the backward that reads it after the gradients."""
    choices = _choices(program, derivative.program)
    taken: dict[Val, Choice] = {}
    before = best = _cost(derivative.program, taken)
    while True:
        costs = {value: _cost(derivative.program, taken | {value: choice}) for value, choice in choices.items()}
        costs = {value: cost for value, cost in costs.items() if cost.moved <= before.moved * (1 + NEARLY_FREE)}
        value = min(costs, key=lambda value: costs[value].seconds, default=None)
        if value is None or costs[value].seconds >= best.seconds:
            break
        taken[value], best = choices.pop(value), costs[value]
    if not taken:
        return program, derivative
    return _rewritten(program, derivative, operands, taken)


def _choices(program: RowProgram, backward: RowProgram) -> dict[Val, Choice]:
    """Values with rows that the backward needs: results, and those which something wider or a gradient is made of."""
    forward, needed = set(program.values), backward.values
    readers: dict[Val, list[Val]] = {value: [] for value in needed}
    for value in needed:
        for operand in value.operands:
            readers[operand].append(value)
    real = _real(program)
    found: dict[Val, Choice] = {}
    for value in needed:
        if value not in forward or not value.by_row or isinstance(value, Constant | Iota) or value.kind is Kind.FLAG:
            continue
        if isinstance(value, Load) and value.index is None:
            continue
        if value.kind is Kind.REAL and _reaches(value, readers, DECISIONS):
            continue
        place = _result_of(program, value)
        is_narrow = any(reader.axes - value.axes for reader in readers[value])
        is_exact = place is not None and program.results[place].dtype in (real, torch.int64)
        # A rounded statistic would move all of a row.
        if place is not None and (is_exact or not (is_narrow or _reaches(value, readers, AMPLIFIERS))):
            found[value] = Choice(value, place, program.results[place].dtype)
        elif is_narrow or any(reader not in forward for reader in readers[value]):
            found[value] = Choice(value, None, torch.int64 if value.kind is Kind.INT else real)
    return found


def _result_of(program: RowProgram, value: Val) -> int | None:
    """The result that is this value and nothing else."""
    for store in program.stores:
        result = program.results[store.place]
        is_whole = all(isinstance(entry, Axis) for entry in store.layout) and value.axes == frozenset(store.layout)
        if store.value is value and is_whole and result.by_row and len(store.layout) == len(value.axes):
            return store.place
    return None


def _reaches(value: Val, readers: Mapping[Val, list[Val]], functions: Collection[f.Function]) -> bool:
    """Whether one of these functions depends on it."""
    stack, seen = [value], {value}
    while stack:
        for reader in readers[stack.pop()]:
            if isinstance(reader, Map) and reader.function in functions:
                return True
            if reader not in seen:
                seen.add(reader)
                stack.append(reader)
    return False


def _cost(backward: RowProgram, taken: Mapping[Val, Choice]) -> Cost:
    """Weights are read once for all rows, and gradients written whatever is saved: neither is counted."""
    moved = sum(choice.bytes() for choice in taken.values())
    written = sum(choice.bytes() for choice in taken.values() if choice.place is None)
    read: set[Source] = set()
    operations = waits = 0.0
    for value in _needed(backward, taken.keys()):
        match value:
            case Load() if value.source is not None and value.index is not None:
                # What the rows of a segment read alike is moved once for all of them.
                moved += _entries(value) * value.source.dtype.itemsize // (SEGMENT if value.in_runs else 1)
            case Load() if value.source is not None and value.source.by_row:
                read.add(value.source)
            case Map() if value.function is not None and value.by_row:
                operations += _entries(value) * value.function.cost
            case Reduce() if value.arg is not None and value.by_row:
                waits += _entries(value.arg)
    moved += sum(source.entries * source.dtype.itemsize for source in read)
    rate = DEVICE.vector_rate("fp32")
    # What is added up is waited for; other arithmetic hides behind the memory.
    seconds = max(moved / DEVICE.copy_bandwidth, operations / rate) + waits / rate
    return Cost(moved, written, seconds + written / DEVICE.copy_bandwidth)


def _needed(backward: RowProgram, known: Collection[Val]) -> Iterator[Val]:
    seen: set[Val] = set()
    stack = [store.value for store in backward.stores]
    while stack:
        value = stack.pop()
        if value not in seen and value not in known:
            seen.add(value)
            yield value
            stack += value.operands


def _entries(value: Val) -> int:
    return prod(axis.size for axis in value.axes)


def _real(program: RowProgram) -> torch.dtype:
    """What the kernel computes reals in."""
    types = {tensor.dtype for tensor in (*program.sources, *program.results)}
    return torch.float64 if torch.float64 in types else torch.float32


def _rewritten(
    program: RowProgram, derivative: Derivative, operands: int, taken: Mapping[Val, Choice]
) -> tuple[RowProgram, Derivative]:
    results, stores, saved = list(program.results), list(program.stores), []
    loads: dict[Val, Val] = {}
    first = operands + len(derivative.wanted)
    new_sources = []
    for value, choice in taken.items():
        layout = tuple(axis for axis in program.axes if axis in value.axes)
        if choice.place is None:
            place = len(results)
            results.append(Result(f"saved_{_name(value)}", tuple(a.size for a in layout), choice.dtype, is_saved=True))
            stores.append(Store(place, value, layout))
            name = results[place].name
        else:
            place = choice.place
            layout = next(s.layout for s in program.stores if s.place == place)
            name = results[place].name
        source = Source(first + len(saved), name, True, results[place].dims, results[place].dtype)
        new_sources.append(source)
        loads[value] = Load(value.axes, True, value.kind, value.origin, source, layout)
        saved.append(place)
    backward = _replaced(derivative.program, loads)
    read = {value.source for value in backward.values if isinstance(value, Load)}
    sources = tuple(source for source in (*backward.sources, *new_sources) if source in read)
    forward = RowProgram(program.name, program.sources, tuple(results), tuple(stores))
    return forward, replace(derivative, program=replace(backward, sources=sources), saved=tuple(saved))


def _replaced(backward: RowProgram, loads: Mapping[Val, Val]) -> RowProgram:
    """The same stores, of values made of what is loaded."""
    new: dict[Val, Val] = dict(loads)
    for value in backward.values:
        if value in new:
            continue
        operands = tuple(new[operand] for operand in value.operands)
        new[value] = value if operands == value.operands else value.of(operands)
    stores = tuple(replace(store, value=new[store.value]) for store in backward.stores)
    return replace(backward, stores=stores)


def _name(value: Val) -> str:
    known = value.origin.value
    if isinstance(value, Map) and value.function is not None:
        return known.name if known is not None and known.name.isidentifier() else value.function.name
    if isinstance(value, Reduce):
        return value.how.value
    return value.source.name if isinstance(value, Load) and value.source is not None else "value"
