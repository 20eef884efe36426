"""Segments of packed rows: where they begin and end, which one a row is in, and what is read through them.

Letters: N rows of all examples, B examples, P segments of all examples, in order. Segments lie within examples. A row
that is in no segment (a gap) has the number -1.

    ends    [N]      a segment ends after this row
    inside  [N]      the row is in a segment; None: every row is
    first   [N]      a segment begins with this row
    offsets [B + 1]  where the rows of each example begin; `cut_offsets`: where its segments begin

Numbers are int64, as torch computes them; kernels (codegen/gpu/cut_scans.py) make them int32. Both are read alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def capped(ends: Tensor, row_example: Tensor, at_most: int) -> Tensor:
    """`ends`, and after every `at_most` rows of a segment."""
    row = torch.arange(len(ends), device=ends.device)
    begin = torch.cummax(torch.where(first_rows(ends, None, row_example), row, -1), 0).values
    return ends | ((row - begin) % at_most == at_most - 1)


def ends_of_each(chosen: Tensor, row_example: Tensor, offsets: Tensor, each: int, name: str) -> Tensor:
    """Every `each` rows of an example a segment ends. Its rows are neighbours: `chosen` [N], where they are on the
    whole axis, goes up by one. Raises ValueError where it does not, or the last segment of an example lacks rows."""
    number = torch.arange(len(chosen), device=chosen.device) - offsets.to(torch.int64)[row_example]
    ends = number % each == each - 1
    # As in `packing.want_each`: a device is not waited for.
    if chosen.device.type == "cpu" and not torch.compiler.is_compiling():
        follows = (chosen[1:] == chosen[:-1] + 1) & (row_example[1:] == row_example[:-1])
        wrong = ~(functional.pad(follows, (0, min(1, len(chosen))), value=False) | ends)
        if bool(wrong.any()):
            row = int(chosen[wrong.nonzero()[0]])
            raise ValueError(f"each {name} has {each} rows that follow one another, but row {row} lacks the next")
    return ends


def ends_of_runs(x: Tensor, none: int | None, row_example: Tensor) -> Tensor:
    """Where runs of one id end: the next row of the example has another. Rows of id `none` are in no run. That a run
    ends with its example is not known there: it stays open."""
    ends = functional.pad((x[1:] != x[:-1]) & (row_example[1:] == row_example[:-1]), (0, min(1, len(x))))
    return ends if none is None else ends & (x != none)


def first_rows(ends: Tensor, inside: Tensor | None, row_example: Tensor) -> Tensor:
    """bool [N]: the rows that segments begin with."""
    begins = functional.pad(ends[:-1] | (row_example[1:] != row_example[:-1]), (min(1, len(ends)), 0), value=True)
    if inside is None:
        return begins
    after_gap = functional.pad(~inside[:-1], (min(1, len(ends)), 0), value=True)
    return inside & (begins | after_gap)


def begins(first: Tensor) -> Tensor:
    """int64 [P]: the row that each segment begins with."""
    return first.nonzero()[:, 0]


def first_of(bounds: Tensor) -> Tensor:
    """int64 [P]: the first row of each segment."""
    return bounds[:-1].to(torch.int64)


def last_of(bounds: Tensor) -> Tensor:
    """int64 [P]: the last row of each segment."""
    return bounds[1:].to(torch.int64) - 1


def bounds(begins: Tensor, rows: Tensor) -> Tensor:
    """int32 [P + 1]: where segments begin, and the number of rows. Without gaps, these are offsets of packed rows."""
    return functional.pad(begins, (0, 1), value=rows.shape[0]).to(torch.int32)


def rows_inside(inside: Tensor) -> Tensor:
    """int64 [M]: the rows that are in a segment."""
    return inside.nonzero()[:, 0]


def bounds_inside(begins: Tensor, rows: Tensor) -> Tensor:
    """int32 [P + 1]: as `bounds`, counted in the rows that are in a segment."""
    return functional.pad(torch.searchsorted(rows, begins), (0, 1), value=rows.shape[0]).to(torch.int32)


def cut_offsets(first: Tensor, offsets: Tensor) -> Tensor:
    """int32 [B + 1]: where the segments of each example begin."""
    before = functional.pad(torch.cumsum(first, 0), (1, 0))
    return before[offsets.to(torch.int64)].to(torch.int32)


def own(first: Tensor, inside: Tensor | None) -> Tensor:
    """int64 [N]: the segment of each row."""
    number = torch.cumsum(first, 0) - 1
    return number if inside is None else torch.where(inside, number, -1)


def before(first: Tensor, inside: Tensor | None, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    """int64 [N]: the segment before a row's own; in a gap the last one. -1 where the example has none yet."""
    number = torch.cumsum(first, 0) - (2 if inside is None else torch.where(inside, 2, 1))
    return _within(number, row_example, cut_offsets)


def closed(ends: Tensor, first: Tensor, inside: Tensor | None, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    """int64 [N]: the last segment that ended at or before a row. -1 where the example has none yet."""
    is_open = ~ends if inside is None else ~ends & inside
    return _within(torch.cumsum(first, 0) - 1 - is_open.to(torch.int64), row_example, cut_offsets)


def offsets_among(begins: Tensor, offsets: Tensor) -> Tensor:
    """int32 [B + 1]: where the segments of each example begin, of which `begins [P]` says which row each begins with.
    As `cut_offsets`, where no row is looked at again."""
    return torch.searchsorted(begins, offsets.to(begins.dtype), out_int32=True)


def wide(number: Tensor) -> Tensor:
    """int64 [N]: numbers of segments, to be counted with."""
    return number.to(torch.int64)


def begins_of(bounds: Tensor) -> Tensor:
    """[P]: the first row of each segment, as `bounds [P + 1]` count them."""
    return bounds[:-1]


def index(number: Tensor, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    """int64 [N]: a segment's number within its example; -1 for none."""
    return torch.where(number < 0, -1, number - cut_offsets.to(torch.int64)[row_example])


def index_or_next(first: Tensor, inside: Tensor, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    """int64 [N]: how many segments ended before a row: the number of its own, in a gap that of the one to come."""
    begun = torch.cumsum(first, 0) - cut_offsets.to(torch.int64)[row_example]
    return begun - inside.to(torch.int64)


def index_after(before: Tensor, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    """As `index_or_next`, from the segment before each row's own."""
    return index(before, row_example, cut_offsets) + 1


def _within(number: Tensor, row_example: Tensor, cut_offsets: Tensor) -> Tensor:
    return torch.where(number < cut_offsets.to(torch.int64)[row_example], -1, number)


# -- flags in words ------------------------------------------------------------------------------------


def packed(flags: Tensor) -> Tensor:
    """int32 [words]: flags [N], that of row r in bit r % 32 of word r // 32."""
    whole = functional.pad(flags, (0, -flags.shape[0] % 32)).reshape(-1, 32).to(torch.int32)
    return (whole << torch.arange(32, dtype=torch.int32, device=flags.device)).sum(1, dtype=torch.int32)


def unpacked(words: Tensor, rows: int) -> Tensor:
    """bool [rows]: the flags again."""
    bits = words[:, None] >> torch.arange(32, dtype=torch.int32, device=words.device)
    return (bits & 1).reshape(-1)[:rows] != 0


# -- to segments and back --------------------------------------------------------------------------


def spread(p: Tensor, number: Tensor) -> Tensor:
    """`p [P, ...]` at the segment of each row: `[N, ...]`. A row without a segment reads 0."""
    if p.shape[0] == 0:
        # Keeps the gradient's path, which a new tensor would not have.
        return p.new_zeros(number.shape[0], *p.shape[1:]) + 0 * p.sum().to(p.dtype)
    read = p.index_select(0, number.clamp(min=0))
    there = (number >= 0).reshape(-1, *(1,) * (p.dim() - 1))
    return torch.where(there, read, torch.zeros((), dtype=p.dtype, device=p.device))


def each_alone(begins: Tensor) -> Tensor:
    """int32 [P + 1]: offsets that make every segment an example of its own."""
    return torch.arange(begins.shape[0] + 1, device=begins.device, dtype=torch.int32)
