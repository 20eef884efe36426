"""Sums of weighted rows of a table, and products with rows of a table: what is read is never stored.

Letters: L lines, N rows that a line reads, E entries of a row. A list lies side by side, `index [L, N]`, `weight
[L, N]`. Sums are in at least float32 and in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .scatter_kernels import rounded


@triton.jit(do_not_specialize=["splits", "per_split"])
def sum_bags(
    table_ptr,
    index_ptr,
    weight_ptr,
    sums_ptr,
    splits,
    per_split,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_WEIGHTED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`sums [L, splits, E]`: of rows `index` of `table [count, E]` times `weight`, `per_split` rows of a line a
    program. Blocks of one row are neighbours, as they are in memory."""
    real = tl.float64 if table_ptr.dtype.element_ty == tl.float64 else tl.float32
    blocks: tl.constexpr = (WIDTH + BLOCK_E - 1) // BLOCK_E
    place = (tl.program_id(0) // blocks).to(tl.int64)
    list_at = place // splits * N
    first = (place % splits).to(tl.int32) * per_split
    end = tl.minimum(first + per_split, N)
    offs_e = tl.program_id(0) % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    acc = tl.zeros((BLOCK_N, BLOCK_E), real)
    for start in range(first, end, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        row = tl.load(index_ptr + list_at + offs_n, mask=mask_n, other=0).to(tl.int64)
        read_at = table_ptr + row[:, None] * WIDTH + offs_e[None, :]
        read = tl.load(read_at, mask=mask_n[:, None] & mask_e[None, :], other=0.0).to(real)
        if IS_WEIGHTED:
            read *= tl.load(weight_ptr + list_at + offs_n, mask=mask_n, other=0.0).to(real)[:, None]
        acc += read
    sums_at = sums_ptr + place * WIDTH + offs_e
    tl.store(sums_at, rounded(tl.sum(acc, 0), sums_ptr.dtype.element_ty), mask=mask_e)


@triton.jit(do_not_specialize=["splits"])
def join_bags(parts_ptr, sums_ptr, splits, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):
    """`sums [L, E]`: of `parts [L, splits, E]`."""
    blocks: tl.constexpr = (WIDTH + BLOCK_E - 1) // BLOCK_E
    line = (tl.program_id(0) // blocks).to(tl.int64)
    offs_e = tl.program_id(0) % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < WIDTH
    acc = tl.zeros((BLOCK_S, BLOCK_E), parts_ptr.dtype.element_ty)
    for start in range(0, splits, BLOCK_S):
        offs_s = start + tl.arange(0, BLOCK_S)
        at = parts_ptr + (line * splits + offs_s)[:, None] * WIDTH + offs_e[None, :]
        acc += tl.load(at, mask=(offs_s < splits)[:, None] & mask_e[None, :], other=0.0)
    tl.store(sums_ptr + line * WIDTH + offs_e, rounded(tl.sum(acc, 0), sums_ptr.dtype.element_ty), mask=mask_e)


@triton.jit
def multiply_bags(
    table_ptr,
    index_ptr,
    x_ptr,
    products_ptr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """`products [L, N]`: of rows `index` of `table [count, E]` and their line's `x [L, E]`."""
    real = tl.float64 if table_ptr.dtype.element_ty == tl.float64 else tl.float32
    chunks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    line = (tl.program_id(0) // chunks).to(tl.int64)
    offs_n = tl.program_id(0) % chunks * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    row = tl.load(index_ptr + line * N + offs_n, mask=mask_n, other=0).to(tl.int64)
    acc = tl.zeros((BLOCK_N, BLOCK_E), real)
    for start in range(0, WIDTH, BLOCK_E):
        offs_e = start + tl.arange(0, BLOCK_E)
        mask_e = offs_e < WIDTH
        x = tl.load(x_ptr + line * WIDTH + offs_e, mask=mask_e, other=0.0).to(real)
        read_at = table_ptr + row[:, None] * WIDTH + offs_e[None, :]
        read = tl.load(read_at, mask=mask_n[:, None] & mask_e[None, :], other=0.0).to(real)
        acc += read * x[None, :]
    at = products_ptr + line * N + offs_n
    tl.store(at, rounded(tl.sum(acc, 1), products_ptr.dtype.element_ty), mask=mask_n)
