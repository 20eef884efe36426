"""Which block of the logits is in memory at a time.

Products of a block with the weights and with the rows add up to the two gradients. Cut along the vocabulary, the
gradient of a block's weights is one product and that of x a running sum; cut along the rows, the other way round. The
sum that is smaller is the one to run, so the longer side is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# Entries of a block: at least what keeps a matrix product busy, at most 1.5 GiB in float32 with its gradient in 16
# bits. Between them as many as x has: the block is then no more than what every layer keeps for each row.
LEAST_ENTRIES = 1 << 24
MOST_ENTRIES = 1 << 28
# Sides are multiples of it, so that every block starts at an aligned address.
STEP = 128
# A side shorter than this makes a product wait for memory.
SHORTEST = 1024


@dataclass(frozen=True)
class Blocks:
    """`rows x columns` entries at a time of `[all_rows, all_columns]`."""

    all_rows: int
    all_columns: int
    rows: int
    columns: int

    @property
    def row_starts(self) -> range:
        return range(0, self.all_rows, self.rows)

    @property
    def column_starts(self) -> range:
        return range(0, self.all_columns, self.columns)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each block, row by row."""
        for row in self.row_starts:
            for column in self.column_starts:
                yield (
                    slice(row, min(row + self.rows, self.all_rows)),
                    slice(column, min(column + self.columns, self.all_columns)),
                )


def blocks(rows: int, columns: int, width: int, entries: int | None = None) -> Blocks:
    """Blocks of the logits `[rows, columns]` of x `[rows, width]`. `entries` of a block; None: by the size of x."""
    room = max(min(rows * width, MOST_ENTRIES), LEAST_ENTRIES) if entries is None else entries
    short, long = sorted((max(rows, 1), max(columns, 1)))
    step = _down(room // short)
    if step < SHORTEST and entries is None:
        # A side of all would leave slivers of the other: both are cut.
        step = SHORTEST
        short = min(short, _down(room // step))
    step = min(step, long)
    by_columns = rows <= columns
    return Blocks(rows, columns, *((short, step) if by_columns else (step, short)))


def _down(number: int) -> int:
    return max(STEP, number // STEP * STEP)
