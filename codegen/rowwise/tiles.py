"""How much of a row a program holds: all of it, a block of an axis nothing is reduced over, or a block at a time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from .row_program import Axis, Constant, Iota, Reduce, RowProgram, axes_of

RESIDENT = 16384  # entries of one row that a program may hold of a value
TILE = 4096  # entries that a tile of several rows is filled up to
COLUMNS = 2048  # entries of a block of a row that is cut
FEWEST_LOOPED = 1024  # entries of a block that a row is gone through in, where fewer would pad less
PER_THREAD = 16  # entries a thread should hold of a value
LIVE_PER_THREAD = 80  # entries it should hold of all values that are still to be read
FEWEST_WARPS, MOST_WARPS = 4, 16
MOST_LIVE = 96 * 32 * MOST_WARPS  # entries of all values of a row: beyond it registers are spilled


class Tiles:
    """The blocks of a program's axes. `cut` is the axis that is not held whole, `is_looped`: it is gone through in
    passes, because a reduction runs over it or a result lacks it."""

    def __init__(self, program: RowProgram) -> None:
        self.program = program
        self.axes = program.axes
        self.values = program.values
        # What a value is stored at may have axes that it lacks: the gradient of a mean, entry by entry.
        stored = (frozenset(axes_of(store.layout)) | store.value.axes for store in program.stores)
        self.spans: tuple[frozenset[Axis], ...] = (*(frozenset(value.axes) for value in self.values), *stored)
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
        return max(self.axes, key=lambda axis: axis.size) if entries > RESIDENT or self.live > MOST_LIVE else None

    def _is_reduced(self, axis: Axis) -> bool:
        return any(isinstance(value, Reduce) and axis in value.over for value in self.values)

    def _is_free(self, axis: Axis) -> bool:
        return not self._is_reduced(axis) and all(axis in axes_of(store.layout) for store in self.program.stores)

    def block(self, axis: Axis) -> int:
        if axis is not self.cut:
            return power_of_two(axis.size)
        others = max((padded(axes - {axis}) for axes in self.spans if axis in axes), default=1)
        room = RESIDENT // 4 if self.is_looped else COLUMNS
        largest = min(power_of_two(axis.size), max(1, room // others, min(16, RESIDENT // others)))
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
        order = {value: place for place, value in enumerate(self.values)}
        end = dict(order)
        for value, place in order.items():
            for operand in value.operands:
                end[operand] = max(end[operand], place)
        kept = sum(self._held(store.value.axes) for store in self.program.stores if store.sum_rows)
        changes = [0] * (len(order) + 1)
        for value, place in order.items():
            if not isinstance(value, Constant | Iota):
                changes[place] += self._held(value.axes)
                changes[end[value] + 1] -= self._held(value.axes)
        return kept + max(accumulate(changes), default=0)

    def warps(self, rows: int) -> int:
        """Warps of a tile of rows."""
        threads = max(rows * self.held // PER_THREAD, rows * self.live // LIVE_PER_THREAD)
        return max(FEWEST_WARPS, min(MOST_WARPS, power_of_two(threads // 32)))

    @property
    def columns(self) -> int:
        """Programs that share a row."""
        return 1 if self.cut is None or self.is_looped else -(-self.cut.size // self.block(self.cut))


def power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def padded(axes: Iterable[Axis]) -> int:
    total = 1
    for axis in axes:
        total *= power_of_two(axis.size)
    return total
