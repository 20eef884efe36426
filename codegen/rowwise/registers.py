"""How many registers a thread of a row program needs: an estimate that decides how much of a row a program holds.

Triton gives the entries of a tile to threads by its shape: 16 bytes side by side to each, then one thread after the
other along the fastest axis, then along slower ones, and over again where threads have run out. What lacks an axis of
its reader lies as the reader does: of `cos [row, pair]` a thread that turns `[row, head, pair]` holds as many entries
as it has rows and pairs, and threads that differ by head hold copies. So dividing entries by threads is not enough.

The estimate is of NVIDIA's warps of 32 threads. AMD's have 64, so that a thread there holds half as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from .row_program import Axis, Constant, Iota, Kind, Load, Map, Part, Reduce, Val, axes_of

if TYPE_CHECKING:
    from .tiles import Tiles

WARP = 32
VECTOR = 16  # bytes that a thread loads at once
POINTER = 2  # registers of an address
# Registers of an entry. Flags are single bits of predicates.
_REGISTERS = {Kind.REAL: 1, Kind.INT: 2, Kind.FLAG: 0}

_Shape = tuple[frozenset[Axis], bool]


class Registers:
    """What a thread of a tile needs, for any number of rows and warps."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.program = tiles, tiles.program
        values = tiles.values
        self.shapes = _shapes_of(values)
        self.vectors = self._vectors()

    def needed(self, rows: int, warps: int) -> int:
        """Registers of a thread: of all values that are still to be read, of sums over rows (in a loop: as they are in
        memory), of addresses and of what a function takes while it is computed."""
        spread = {shape: self._spread(shape, rows, warps * WARP) for shape in set().union(*self.shapes.values())}
        held = {value: self._held(value, spread) for value in self.tiles.values}
        sums = sum(held[store.value] for store in self.program.stores if store.sum_rows)
        tensors = (*self.program.sources, *self.program.results)
        of_row = max((lengths[None] for lengths in spread.values()), default=1)
        addresses = sum(POINTER * (of_row if tensor.by_row else 1) for tensor in tensors)
        scratch = max((held[v] * v.function.scratch for v in held if isinstance(v, Map) and v.function), default=0)
        return most_at_once(held) + sums + addresses + scratch

    def _vectors(self) -> dict[Axis, int]:
        """Entries that a thread takes side by side along an axis, where they lie so in memory."""
        program, found = self.program, dict[Axis, int]()
        moved = [(load.layout, load.source) for load in self.tiles.values if isinstance(load, Load)]
        moved += [(store.layout, program.results[store.place]) for store in program.stores]
        for layout, tensor in moved:
            if layout and tensor is not None and not isinstance(layout[-1], Part):
                (fastest,) = axes_of(layout[-1:])
                found[fastest] = max(found.get(fastest, 1), VECTOR // tensor.dtype.itemsize)
        return found

    def _spread(self, shape: _Shape, rows: int, threads: int) -> dict[Axis | None, int]:
        """Entries that a thread has along each axis of a value of this shape, under None along rows."""
        axes, by_row = shape
        own = [axis for axis in reversed(self.tiles.axes) if axis in axes]
        entries = prod(self.tiles.block(axis) for axis in own) * (rows if by_row else 1)
        vector = min(self.vectors.get(own[0], 1), max(1, entries // threads)) if own else 1
        found: dict[Axis | None, int] = {}
        for axis in own:
            block = self.tiles.block(axis)
            along = min(threads, max(1, block // vector))
            found[axis] = block // along
            threads //= along
            vector = 1
        found[None] = max(1, rows // threads) if by_row else 1
        return found

    def _held(self, value: Val, spread: dict[_Shape, dict[Axis | None, int]]) -> int:
        """Registers of a value in the widest layout that it is read in."""
        entries = (
            prod(spread[shape][axis] for axis in value.axes) * (spread[shape][None] if value.by_row else 1)
            for shape in self.shapes[value]
        )
        return max(entries) * _REGISTERS[value.kind]


def most_at_once(held: Mapping[Val, int]) -> int:
    """The most that is held of values that are there and still to be read. They are in the order of the text."""
    place = {value: number for number, value in enumerate(held)}
    end = dict(place)
    for value in held:
        for operand in value.operands:
            end[operand] = max(end[operand], place[value])
    changes = [0] * (len(held) + 1)
    for value, count in held.items():
        if not isinstance(value, Constant | Iota):
            changes[place[value]] += count
            changes[end[value] + 1] -= count
    return max(accumulate(changes), default=0)


def _shapes_of(values: Iterable[Val]) -> dict[Val, set[_Shape]]:
    """The shapes that each value is computed in: its own, and those of all that it is part of. What a reduction reads
    does not lie as its result does, but the result as what was read."""
    values = tuple(values)
    found: dict[Val, set[_Shape]] = {value: {(value.axes, value.by_row)} for value in values}
    for value in reversed(values):
        for operand in value.operands:
            if isinstance(value, Reduce):
                found[value].add((operand.axes, operand.by_row))
            else:
                found[operand] |= {shape for shape in found[value] if operand.axes <= shape[0]}
    return found
