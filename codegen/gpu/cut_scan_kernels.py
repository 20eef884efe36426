"""Kernels that number the segments of packed rows, from flags that lie 32 to a word.

Every program counts the flags in front of its rows itself: all of them are a thirty-second of a word a row, and lie in
the cache. So programs do not wait for one another, and what comes out is the same on every run.

Letters in shapes: N rows, B examples, P segments, M rows that are in one, W words. `offsets [B + 1]` says where the
rows of each example begin; a segment ends after a row with a flag, and after the last row of an example.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n_rows", "n_examples"])
def scan_cuts(
    ends_ptr,
    inside_ptr,
    offsets_ptr,
    own_ptr,
    closed_ptr,
    before_ptr,
    bounds_ptr,
    rows_ptr,
    counts_ptr,
    n_rows,
    n_examples,
    HAS_GAPS: tl.constexpr,
    CLOSED: tl.constexpr,
    BEFORE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Of `ends [W]` and, with gaps, `inside [W]`: the segment `own [N]` of each row, the last one `closed [N]` at or
    before it, and the one `before [N]` its own; -1 for none. Where segments begin, `bounds [P + 1]`: counted in the
    rows that are in one, `rows [M]`. `counts [2]`: P and M."""
    start = tl.program_id(0) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    is_row = row < n_rows
    example = example_of(row, offsets_ptr, n_examples)
    first = tl.load(offsets_ptr + example)
    is_last = row + 1 == tl.load(offsets_ptr + example + 1)
    ends = flags_at(ends_ptr, row, is_row)
    inside = flags_at(inside_ptr, row, is_row) if HAS_GAPS else is_row

    # Segments that end before the example that these rows begin in, and before these rows.
    of_start, begin = tl.min(example, 0), tl.min(first, 0)
    base = count_flags(ends_ptr, 0, begin, BLOCK_W)
    base += count_open(ends_ptr, inside_ptr, offsets_ptr, of_start, HAS_GAPS, BLOCK_W)
    carried = base + count_flags(ends_ptr, begin, start, BLOCK_W)

    closes = (inside & (ends | is_last)).to(tl.int32)
    number = carried + tl.cumsum(closes, 0) - closes
    tl.store(own_ptr + row, tl.where(inside, number, -1), mask=is_row)
    if CLOSED or BEFORE:
        # The first segment of each row's example.
        at_first = tl.gather(number, tl.maximum(first - start, 0), 0)
        least = tl.where(first < start, base, at_first)
    if CLOSED:
        closed = tl.where(ends, number, number - 1)
        tl.store(closed_ptr + row, tl.where(closed < least, -1, closed), mask=is_row)
    if BEFORE:
        tl.store(before_ptr + row, tl.where(number - 1 < least, -1, number - 1), mask=is_row)

    if HAS_GAPS:
        behind = count_flags(inside_ptr, 0, start, BLOCK_W) + tl.cumsum(inside.to(tl.int32), 0)
        tl.store(rows_ptr + behind - 1, row, mask=inside)
    else:
        behind = row + 1
    tl.store(bounds_ptr + number + 1, behind, mask=closes != 0)
    if start == 0:
        tl.store(bounds_ptr, 0)
    if start + BLOCK_N >= n_rows:
        tl.store(counts_ptr, carried + tl.sum(closes, 0))
        tl.store(counts_ptr + 1, tl.max(tl.where(is_row, behind, 0), 0))


@triton.jit(do_not_specialize=["n_rows", "n_examples", "at_most"])
def cap_cuts(ends_ptr, offsets_ptr, capped_ptr, n_rows, n_examples, at_most, BLOCK_N: tl.constexpr):
    """`capped [W]`: the flags `ends [W]`, and one after every `at_most` rows of a segment."""
    start = tl.program_id(0) * BLOCK_N
    number = tl.arange(0, BLOCK_N)
    row = start + number
    is_row = row < n_rows
    first = tl.load(offsets_ptr + example_of(row, offsets_ptr, n_examples))
    ends = flags_at(ends_ptr, row, is_row)

    # The row that the segment begins with which these rows begin in, searched from here towards its example's first.
    least = tl.min(first, 0)
    begin, stop = least, start
    while (begin == least) & (stop > least):
        earlier = stop - 1 - number
        is_end = flags_at(ends_ptr, earlier, earlier >= least)
        begin = tl.max(tl.where(is_end, earlier + 1, least), 0)
        stop -= BLOCK_N

    is_first = (row == first) | flags_at(ends_ptr, row - 1, is_row & (row > 0))
    begins = tl.associative_scan(tl.where(is_first, row, begin), 0, larger)
    is_full = (row - begins) % at_most == at_most - 1
    bits = ((ends | is_full) & is_row).to(tl.int32)
    words = tl.sum(tl.reshape(bits, (BLOCK_N // 32, 32)) << tl.arange(0, 32)[None, :], 1)
    word = start // 32 + tl.arange(0, BLOCK_N // 32)
    tl.store(capped_ptr + word, words, mask=word * 32 < n_rows)


@triton.jit
def example_of(row, offsets_ptr, n_examples):
    """The example of each row; of rows behind the last, the last example."""
    low = tl.zeros_like(row)
    high = low + n_examples
    width = n_examples
    while width > 1:
        middle = (low + high) // 2
        is_before = tl.load(offsets_ptr + middle) <= row
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
        width = (width + 1) // 2
    return low


@triton.jit
def flags_at(words_ptr, row, mask):
    """The flags of rows; false outside the mask."""
    words = tl.load(words_ptr + row // 32, mask=mask, other=0)
    return ((words >> (row % 32)) & 1) != 0


@triton.jit
def count_flags(words_ptr, low, high, BLOCK_W: tl.constexpr):
    """How many of the rows [low, high) have a flag."""
    count = tl.zeros((BLOCK_W,), tl.int64)
    for at in range(low // 32, (high + 31) // 32, BLOCK_W):
        word = at + tl.arange(0, BLOCK_W)
        bits = tl.load(words_ptr + word, mask=word * 32 < high, other=0).to(tl.int64)
        until = tl.minimum(tl.maximum(high - word * 32, 0), 32).to(tl.int64)
        since = tl.minimum(tl.maximum(low - word * 32, 0), 32).to(tl.int64)
        bits &= (tl.full((BLOCK_W,), 1, tl.int64) << until) - (tl.full((BLOCK_W,), 1, tl.int64) << since)
        # Sums of bits by twos, by fours, by bytes, and of the bytes.
        bits -= (bits >> 1) & 0x55555555
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        count += ((bits * 0x01010101) >> 24) & 0xFF
    return tl.sum(count, 0).to(tl.int32)


@triton.jit
def count_open(ends_ptr, inside_ptr, offsets_ptr, n_examples, HAS_GAPS: tl.constexpr, BLOCK_B: tl.constexpr):
    """How many of the first `n_examples` examples have a last segment that no flag ends."""
    count = tl.zeros((BLOCK_B,), tl.int32)
    for at in range(0, n_examples, BLOCK_B):
        example = at + tl.arange(0, BLOCK_B)
        is_example = example < n_examples
        begin = tl.load(offsets_ptr + example, mask=is_example, other=0)
        end = tl.load(offsets_ptr + example + 1, mask=is_example, other=0)
        has_rows = is_example & (end > begin)
        is_open = has_rows & ~flags_at(ends_ptr, end - 1, has_rows)
        if HAS_GAPS:
            is_open &= flags_at(inside_ptr, end - 1, has_rows)
        count += is_open.to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def larger(one, two):
    return tl.maximum(one, two)
