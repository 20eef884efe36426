"""How much of a row a program holds: all of it, a block of an axis nothing is reduced over, or a block at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .registers import WARP, Registers, most_at_once
from .row_program import Axis, Reduce, RowProgram, axes_of

RESIDENT = 16384  # entries of one row that a program may hold of a value
TILE = 4096  # entries that a tile of several rows is filled up to
COLUMNS = 2048  # entries of a block of a row that is cut
FEWEST_LOOPED = 1024  # entries of a block that a row is gone through in, where fewer would pad less
PER_THREAD = 16  # entries a thread should hold of a value
FEWEST_PER_THREAD = 4  # entries below which more threads would only load fewer bytes each
WARPS = (4, 8, 16)
MOST_WARPS = WARPS[-1]
# Registers a thread should need, so that several programs find room on a processor.
REGISTERS = 80
# What it may need where no tile needs so few: with 16 warps a thread can have 128, and 255 with fewer. A loop holds
# what the estimate does not see, addresses from pass to pass, so that it is not trusted to come near the limit.
MOST_REGISTERS = {4: 160, 8: 160, 16: 116}
MOST_LOOPED = {4: 160, 8: 160, 16: REGISTERS}
MOST_LIVE = 96 * 32 * MOST_WARPS  # entries of all values of a row: beyond it registers are spilled


class Tiles:
    """The blocks of a program's axes. `cut` is the axis that is not held whole, `is_looped`: it is gone through in
    passes, because a reduction runs over it or a result lacks it. With `room`, the longest axis is cut in any case,
    into blocks of at most so many entries of the largest value."""

    def __init__(self, program: RowProgram, room: int | None = None) -> None:
        self.program = program
        self.axes = program.axes
        self.values = program.values
        # What a value is stored at may have axes that it lacks: the gradient of a mean, entry by entry.
        stored = (frozenset(axes_of(store.layout)) | store.value.axes for store in program.stores)
        self.spans: tuple[frozenset[Axis], ...] = (*(frozenset(value.axes) for value in self.values), *stored)
        self.room = room
        self.cut: Axis | None = None
        self.is_looped = False
        self.cut = self._cut()
        self.is_looped = self.cut is not None and not self._is_free(self.cut)

    def _cut(self) -> Axis | None:
        if not self.axes:
            return None
        entries = max(map(padded, self.spans), default=1)
        free = [axis for axis in self.axes if self._is_free(axis)]
        longest = max(free, key=lambda axis: axis.size, default=None)
        if longest is not None and entries > TILE and longest.size > COLUMNS // 2:
            return longest
        if longest is not None and RESIDENT < entries <= RESIDENT * power_of_two(longest.size):
            return longest  # of a group norm each group, which a program holds whole
        is_long = self.room is not None or entries > RESIDENT or self.live > MOST_LIVE
        return max(self.axes, key=lambda axis: axis.size) if is_long else None

    def _is_reduced(self, axis: Axis) -> bool:
        return any(isinstance(value, Reduce) and axis in value.over for value in self.values)

    def _is_free(self, axis: Axis) -> bool:
        return not self._is_reduced(axis) and all(axis in axes_of(store.layout) for store in self.program.stores)

    def block(self, axis: Axis) -> int:
        if axis is not self.cut:
            return power_of_two(axis.size)
        others = max((padded(axes - {axis}) for axes in self.spans if axis in axes), default=1)
        room = min(RESIDENT // 4 if self.is_looped else COLUMNS, self.room or RESIDENT)
        fewest = 1 if self.room else min(16, RESIDENT // others)
        largest = min(power_of_two(axis.size), max(1, room // others, fewest))
        if not self.is_looped:
            return largest
        # The last block may be mostly padding: 5,120 entries are 2 blocks of 4,096, or 5 of 1,024 with none.
        smaller = [largest]
        while smaller[-1] > 1 and smaller[-1] * others > FEWEST_LOOPED:
            smaller.append(smaller[-1] // 2)
        return min(smaller, key=lambda block: -(-axis.size // block) * block)

    def is_masked(self, axis: Axis) -> bool:
        return axis.size % self.block(axis) != 0

    @property
    def held(self) -> int:
        """Entries of one row that a program holds of its largest value."""
        return max(map(self._held, self.spans), default=1)

    def _held(self, axes: Iterable[Axis]) -> int:
        total = 1
        for axis in axes:
            total *= self.block(axis)
        return total

    @property
    def live(self) -> int:
        """Entries of one row that are held at once at most: values that are there and still to be read, and sums."""
        kept = sum(self._held(store.value.axes) for store in self.program.stores if store.sum_rows)
        return kept + most_at_once({value: self._held(value.axes) for value in self.values})

    @property
    def columns(self) -> int:
        """Programs that share a row."""
        return 1 if self.cut is None or self.is_looped else -(-self.cut.size // self.block(self.cut))


@dataclass(frozen=True)
class Tiling:
    """What a program holds, of how many rows, in how many warps."""

    tiles: Tiles
    rows: int
    warps: int


def tiling(program: RowProgram, most_rows: int, block_rows: int | None = None) -> Tiling:
    """The largest tile whose values stay in registers: with more warps, of fewer rows, or of a block of a row at a
    time. `block_rows` instead of the number of rows found; what is held of a row does not depend on it."""
    tiles = Tiles(program)
    found = _in_registers(tiles, most_rows)
    room = RESIDENT // 4
    # A program that takes a run has its sums in registers.
    while found is None and program.runs is None and tiles.axes and room >= FEWEST_LOOPED // 4:
        found = _in_registers(Tiles(program, room), most_rows)
        room //= 2
    found = found or Tiling(tiles, 1, MOST_WARPS)
    if block_rows is None:
        return found
    registers = Registers(found.tiles)
    enough = (warps for warps in WARPS if block_rows * found.tiles.held <= warps * WARP * PER_THREAD)
    fitting = (warps for warps in enough if registers.needed(block_rows, warps) <= REGISTERS)
    return Tiling(found.tiles, block_rows, next(fitting, MOST_WARPS))


def _in_registers(tiles: Tiles, most_rows: int) -> Tiling | None:
    """With as many entries for a thread as its registers have room for."""
    registers = Registers(tiles)
    largest = max(1, min(most_rows, TILE // (2 * tiles.held)))
    found = []
    for warps in WARPS:
        rows = largest
        while rows:
            per_thread = rows * tiles.held / (warps * WARP)
            is_enough = per_thread >= FEWEST_PER_THREAD or (rows, warps) == (largest, WARPS[0])
            if is_enough and (per_thread <= PER_THREAD or warps == MOST_WARPS):
                found.append((per_thread, warps < MOST_WARPS, rows, warps))
            rows //= 2
    found.sort(reverse=True)
    needed = {(rows, warps): registers.needed(rows, warps) for _, _, rows, warps in found}
    usual = [tile for tile in needed if needed[tile] <= REGISTERS]
    limits = MOST_LOOPED if tiles.is_looped else MOST_REGISTERS
    possible = [tile for tile in needed if needed[tile] <= limits[tile[1]]]
    if not possible:
        return None
    rows, warps = usual[0] if usual else min(possible, key=needed.__getitem__)
    return Tiling(tiles, rows, warps)


def power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def padded(axes: Iterable[Axis]) -> int:
    total = 1
    for axis in axes:
        total *= power_of_two(axis.size)
    return total
