"""A product of two matrices in tiles, for any strides: a linear forward, and both of its gradients."""

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


@triton.jit
def product(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    stride_am,
    stride_ak,
    stride_bk,
    stride_bn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """c [rows, columns] = a [rows, depth] b [depth, columns]; c lies row by row.

    One program: a tile of c. Programs go through GROUP_M tiles of rows before the next tile of columns, so that those
    that run together share their operands in the cache.
    """
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(columns, BLOCK_N)
    group = tl.program_id(0) // (GROUP_M * tiles_n)
    first_m = group * GROUP_M
    height = tl.minimum(tiles_m - first_m, GROUP_M)
    inside = tl.program_id(0) % (GROUP_M * tiles_n)
    offs_m = (first_m + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = (inside // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    mask_m = offs_m < rows
    mask_n = offs_n < columns
    a_at = a_ptr + offs_m[:, None].to(tl.int64) * stride_am + offs_k[None, :] * stride_ak
    b_at = b_ptr + offs_k[:, None] * stride_bk + offs_n[None, :].to(tl.int64) * stride_bn
    a_step = tl.cast(stride_ak, tl.int64) * BLOCK_K
    b_step = tl.cast(stride_bk, tl.int64) * BLOCK_K
    real = tl.float64 if c_ptr.dtype.element_ty == tl.float64 else tl.float32
    acc = tl.zeros((BLOCK_M, BLOCK_N), real)
    for start in range(0, depth, BLOCK_K):
        mask_k = start + offs_k < depth
        a = tl.load(a_at, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        b = tl.load(b_at, mask=mask_k[:, None] & mask_n[None, :], other=0.0)
        if INTERPRETED:
            # The interpreter multiplies the bits of bfloat16; products of 16-bit numbers are exact in float32.
            a, b = a.to(real), b.to(real)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=real)
        a_at += a_step
        b_at += b_step
    at = c_ptr + offs_m[:, None].to(tl.int64) * columns + offs_n[None, :]
    tl.store(at, rounded(acc, c_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])
