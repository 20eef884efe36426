"""Sums of the rows that share an id, in the order they stand in.

Rows are taken in the order of their sorted ids, where equal ids are a run. Positions are cut into tiles of one length,
each a program's, so that a long run (a padding row, a frequent byte) is shared by many. A run inside a tile is summed
and stored; of one that crosses into other tiles each keeps its part, and a second kernel adds those up.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """To nearest, ties to even, also where the interpreter cuts bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return nearest.to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit(do_not_specialize=["n_rows"])
def sum_runs(
    ids_ptr,
    order_ptr,
    weight_ptr,
    rows_ptr,
    sums_ptr,
    parts_ptr,
    n_rows,
    WIDTH: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Of TILE positions, each a row that `order` names, times its `weight`: sums of whole runs into `sums [count,
    WIDTH]`, of the others into `parts [tiles, 2, WIDTH]`: first the part of a run that began before the tile, then of
    one that begins in it."""
    tile = tl.program_id(0)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    first = tile * TILE
    end = tl.minimum(first + TILE, n_rows)
    id = tl.load(ids_ptr + first)
    begins_here = id != tl.load(ids_ptr + first - 1, mask=first > 0, other=-1)
    acc = tl.zeros((BLOCK_E,), parts_ptr.dtype.element_ty)
    for position in range(first, end):
        source = tl.load(order_ptr + position).to(tl.int64)
        following = tl.load(ids_ptr + position + 1, mask=position + 1 < n_rows, other=-1)
        row = tl.load(rows_ptr + source * WIDTH + offs_e, mask=mask_e, other=0.0)
        row = row.to(parts_ptr.dtype.element_ty)
        if IS_WEIGHTED:
            row *= tl.load(weight_ptr + position).to(parts_ptr.dtype.element_ty)
        acc += row
        if (following != id) | (position + 1 == end):
            is_whole = begins_here & (following != id)
            sum_at = sums_ptr + id.to(tl.int64) * WIDTH + offs_e
            tl.store(sum_at, rounded(acc, sums_ptr.dtype.element_ty), mask=mask_e & is_whole)
            part_at = parts_ptr + (tile.to(tl.int64) * 2 + begins_here.to(tl.int32)) * WIDTH + offs_e
            tl.store(part_at, acc, mask=mask_e & (is_whole == 0))
            acc = tl.zeros((BLOCK_E,), parts_ptr.dtype.element_ty)
            begins_here = following != id
        id = following


@triton.jit(do_not_specialize=["n_rows"])
def join_parts(
    ids_ptr,
    run_end_ptr,
    parts_ptr,
    sums_ptr,
    n_rows,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The sum of the run that begins in a tile and crosses into the next ones, up to `run_end [tiles]`, the position
    after it."""
    tile = tl.program_id(0)
    first = tile * TILE
    end = tl.minimum(first + TILE, n_rows)
    id = tl.load(ids_ptr + end - 1)
    begins_here = id != tl.load(ids_ptr + first - 1, mask=first > 0, other=-1)
    rest = tl.load(run_end_ptr + tile).to(tl.int32) - end
    if begins_here & (rest > 0):
        offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
        mask_e = offs_e < WIDTH
        acc = tl.load(parts_ptr + (tile.to(tl.int64) * 2 + 1) * WIDTH + offs_e, mask=mask_e, other=0.0)
        for start_t in range(0, tl.cdiv(rest, TILE), BLOCK_T):
            offs_t = start_t + tl.arange(0, BLOCK_T)
            at = (tile + 1 + offs_t).to(tl.int64)[:, None] * 2 * WIDTH + offs_e[None, :]
            mask = (offs_t < tl.cdiv(rest, TILE))[:, None] & mask_e[None, :]
            acc += tl.sum(tl.load(parts_ptr + at, mask=mask, other=0.0), 0)
        sum_at = sums_ptr + id.to(tl.int64) * WIDTH + offs_e
        tl.store(sum_at, rounded(acc, sums_ptr.dtype.element_ty), mask=mask_e)
