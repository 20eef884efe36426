"""Kernels over runs of packed rows that lie side by side: segments, and rows that read the same row of another axis.

A program takes one run and a block of its entries, so nothing is added with atomics and sums are in the order of the
rows. Letters in shapes: N rows, P runs, E entries of a row. `bounds` says where runs begin and end, in one of two
forms: `[P + 1]` where they tile the rows (STEP 1), `[P, 2]` where they need not (STEP 2).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .scatter_kernels import rounded


@triton.jit
def pool_runs(
    x_ptr,
    bounds_ptr,
    y_ptr,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    BY: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`y [P, E]`: the max, mean or sum of the rows `x [N, E]` of each run; 0 for a run without rows."""
    real = tl.float64 if IS_DOUBLE else tl.float32
    run = tl.program_id(0)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    first = tl.load(bounds_ptr + run * STEP)
    end = tl.load(bounds_ptr + run * STEP + 1)
    nothing = float("-inf") if BY == "max" else 0.0
    acc = tl.full((BLOCK_E,), nothing, real)
    for start in range(first, end, BLOCK_T):
        offs_t = start + tl.arange(0, BLOCK_T)
        mask = (offs_t < end)[:, None] & mask_e[None, :]
        at = x_ptr + offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :]
        x = tl.load(at, mask=mask, other=nothing).to(real)
        if BY == "max":
            acc = tl.maximum(acc, tl.max(x, 0))
        else:
            acc += tl.sum(x, 0)
    if BY == "mean":
        acc = acc / tl.maximum(end - first, 1).to(real)
    if BY == "max":
        acc = tl.where(end > first, acc, 0.0)
    tl.store(y_ptr + run.to(tl.int64) * WIDTH + offs_e, rounded(acc, y_ptr.dtype.element_ty), mask=mask_e)


@triton.jit
def share_max(
    x_ptr,
    dy_ptr,
    bounds_ptr,
    dx_ptr,
    WIDTH: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`dx [N, E]` of the max of each run of `x [N, E]`, from `dy [P, E]`: rows that hold it share it."""
    real = tl.float64 if IS_DOUBLE else tl.float32
    run = tl.program_id(0)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    first = tl.load(bounds_ptr + run)
    end = tl.load(bounds_ptr + run + 1)
    dy = tl.load(dy_ptr + run.to(tl.int64) * WIDTH + offs_e, mask=mask_e, other=0.0).to(real)
    if end - first <= BLOCK_T:
        # As nearly all segments are: read once.
        offs_t = first + tl.arange(0, BLOCK_T)
        mask = (offs_t < end)[:, None] & mask_e[None, :]
        at = offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=float("-inf")).to(real)
        is_top = (x == tl.max(x, 0)[None, :]) & mask
        share = dy / tl.maximum(tl.sum(is_top.to(real), 0), 1.0)
        dx = tl.where(is_top, share[None, :], 0.0)
        tl.store(dx_ptr + at, rounded(dx, dx_ptr.dtype.element_ty), mask=mask)
    else:
        top = tl.full((BLOCK_E,), float("-inf"), real)
        count = tl.zeros((BLOCK_E,), real)
        for start in range(first, end, BLOCK_T):
            offs_t = start + tl.arange(0, BLOCK_T)
            mask = (offs_t < end)[:, None] & mask_e[None, :]
            at = offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :]
            x = tl.load(x_ptr + at, mask=mask, other=float("-inf")).to(real)
            here = tl.maximum(top, tl.max(x, 0))
            count = tl.where(here == top, count, 0.0) + tl.sum(((x == here[None, :]) & mask).to(real), 0)
            top = here
        share = dy / tl.maximum(count, 1.0)
        for start in range(first, end, BLOCK_T):
            offs_t = start + tl.arange(0, BLOCK_T)
            mask = (offs_t < end)[:, None] & mask_e[None, :]
            at = offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :]
            x = tl.load(x_ptr + at, mask=mask, other=float("-inf")).to(real)
            dx = tl.where(x == top[None, :], share[None, :], 0.0)
            tl.store(dx_ptr + at, rounded(dx, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def spread_runs(
    y_ptr,
    bounds_ptr,
    x_ptr,
    WIDTH: tl.constexpr,
    BY: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`x [N, E]`: `y [P, E]` at every row of its run, divided by the number of rows where BY is "mean". Rows are those
    of runs that tile them."""
    real = tl.float64 if IS_DOUBLE else tl.float32
    run = tl.program_id(0)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    first = tl.load(bounds_ptr + run)
    end = tl.load(bounds_ptr + run + 1)
    y = tl.load(y_ptr + run.to(tl.int64) * WIDTH + offs_e, mask=mask_e, other=0.0).to(real)
    if BY == "mean":
        y = y / tl.maximum(end - first, 1).to(real)
    row = rounded(y, x_ptr.dtype.element_ty)
    for start in range(first, end, BLOCK_T):
        offs_t = start + tl.arange(0, BLOCK_T)
        mask = (offs_t < end)[:, None] & mask_e[None, :]
        at = x_ptr + offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :]
        tl.store(at, tl.broadcast_to(row[None, :], (BLOCK_T, BLOCK_E)), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def read_runs(p_ptr, number_ptr, x_ptr, n_rows, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """`x [N, E]`: row `number [N]` of `p`, 0 where the number is -1."""
    offs_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    offs_e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = (offs_t < n_rows)[:, None] & (offs_e < WIDTH)[None, :]
    number = tl.load(number_ptr + offs_t, mask=offs_t < n_rows, other=-1).to(tl.int64)
    is_there = mask & (number >= 0)[:, None]
    p = tl.load(p_ptr + number[:, None] * WIDTH + offs_e[None, :], mask=is_there, other=0.0)
    tl.store(x_ptr + offs_t.to(tl.int64)[:, None] * WIDTH + offs_e[None, :], p, mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def find_runs(number_ptr, bounds_ptr, n_rows, BLOCK_N: tl.constexpr):
    """`bounds [P, 2]`, which are zero: where the rows `number [N]` of each run begin and end. Rows of a number lie side
    by side; -1 is none."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = offs_n < n_rows
    here = tl.load(number_ptr + offs_n, mask=mask, other=-1)
    before = tl.load(number_ptr + offs_n - 1, mask=mask & (offs_n > 0), other=-1)
    after = tl.load(number_ptr + offs_n + 1, mask=offs_n + 1 < n_rows, other=-1)
    tl.store(bounds_ptr + here * 2, offs_n, mask=mask & (here >= 0) & (here != before))
    tl.store(bounds_ptr + here * 2 + 1, offs_n + 1, mask=mask & (here >= 0) & (here != after))
