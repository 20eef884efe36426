"""Attention of segments to their own rows: each segment has a few queries and a few keys.

A program takes one segment and a block of heads: all of its queries see all of its keys, so rows are read once, and
what the gradients of both sides need is at hand. Products are sums in registers: tiles of a matrix unit would be nearly
empty. Letters: N rows, P segments, S queries of a segment, H heads, T rows held at a time, D and V entries of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .scatter_kernels import rounded


@triton.jit
def attend_runs(
    q_ptr,
    k_ptr,
    v_ptr,
    bounds_ptr,
    out_ptr,
    stride_qp,
    stride_qs,
    stride_qh,
    stride_kn,
    stride_kh,
    stride_vn,
    stride_vh,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """`out [P, S, H, V]`: the softmax over the rows of a segment of SCALE * q . k, times v. 0 without rows."""
    real = tl.float64 if IS_DOUBLE else tl.float32
    run = tl.program_id(0)
    offs_s, offs_t = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_d, offs_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    mask_d = (offs_h < HEADS)[:, None] & (offs_d < WIDTH)[None, :]
    mask_v = (offs_h < HEADS)[:, None] & (offs_v < V_WIDTH)[None, :]
    mask_s = (offs_s < QUERIES)[:, None, None]
    first = tl.load(bounds_ptr + run)
    end = tl.load(bounds_ptr + run + 1)

    at = offs_s[:, None, None] * stride_qs + offs_h[None, :, None] * stride_qh + offs_d[None, None, :]
    q = tl.load(q_ptr + run.to(tl.int64) * stride_qp + at, mask=mask_s & mask_d[None], other=0.0).to(real)
    at_k = offs_h[:, None] * stride_kh + offs_d[None, :]
    at_v = offs_h[:, None] * stride_vh + offs_v[None, :]
    top = tl.full((BLOCK_S, BLOCK_H), float("-inf"), real)
    total = tl.zeros((BLOCK_S, BLOCK_H), real)
    acc = tl.zeros((BLOCK_S, BLOCK_H, BLOCK_V), real)
    for start in range(first, end, BLOCK_T):
        row = start + offs_t
        is_there = row < end
        rows = row.to(tl.int64)[:, None, None]
        mask = is_there[:, None, None]
        k = tl.load(k_ptr + rows * stride_kn + at_k[None], mask=mask & mask_d[None], other=0.0).to(real)
        v = tl.load(v_ptr + rows * stride_vn + at_v[None], mask=mask & mask_v[None], other=0.0).to(real)
        score = tl.sum(q[None] * k[:, None], 3) * SCALE
        score = tl.where(mask, score, float("-inf"))
        here = tl.maximum(top, tl.max(score, 0))
        weight = tl.exp(score - here[None])
        share = tl.exp(top - here)
        total = total * share + tl.sum(weight, 0)
        acc = acc * share[:, :, None] + tl.sum(weight[:, :, :, None] * v[:, None], 0)
        top = here
    acc = acc / tl.where(end > first, total, 1.0)[:, :, None]
    at = (offs_s[:, None, None] * HEADS + offs_h[None, :, None]) * V_WIDTH + offs_v[None, None, :]
    out = out_ptr + run.to(tl.int64) * (QUERIES * HEADS * V_WIDTH) + at
    tl.store(out, rounded(acc, out_ptr.dtype.element_ty), mask=mask_s & mask_v[None])


@triton.jit
def attend_runs_backward(
    q_ptr,
    k_ptr,
    v_ptr,
    do_ptr,
    bounds_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    stride_qp,
    stride_qs,
    stride_qh,
    stride_kn,
    stride_kh,
    stride_vn,
    stride_vh,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """`dq [P, S, H, D]`, `dk [N, H, D]`, `dv [N, H, V]` from `do [P, S, H, V]`. The softmax is computed again."""
    real = tl.float64 if IS_DOUBLE else tl.float32
    run = tl.program_id(0)
    offs_s, offs_t = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_T)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    offs_d, offs_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    mask_d = (offs_h < HEADS)[:, None] & (offs_d < WIDTH)[None, :]
    mask_v = (offs_h < HEADS)[:, None] & (offs_v < V_WIDTH)[None, :]
    mask_s = (offs_s < QUERIES)[:, None, None]
    first = tl.load(bounds_ptr + run)
    end = tl.load(bounds_ptr + run + 1)

    at = offs_s[:, None, None] * stride_qs + offs_h[None, :, None] * stride_qh + offs_d[None, None, :]
    q = tl.load(q_ptr + run.to(tl.int64) * stride_qp + at, mask=mask_s & mask_d[None], other=0.0).to(real)
    at = (offs_s[:, None, None] * HEADS + offs_h[None, :, None]) * V_WIDTH + offs_v[None, None, :]
    do_run = do_ptr + run.to(tl.int64) * (QUERIES * HEADS * V_WIDTH)
    do = tl.load(do_run + at, mask=mask_s & mask_v[None], other=0.0).to(real)
    at_k = offs_h[:, None] * stride_kh + offs_d[None, :]
    at_v = offs_h[:, None] * stride_vh + offs_v[None, :]
    to_k = offs_h[:, None] * WIDTH + offs_d[None, :]
    to_v = offs_h[:, None] * V_WIDTH + offs_v[None, :]
    dq = tl.zeros((BLOCK_S, BLOCK_H, BLOCK_D), real)
    if end - first <= BLOCK_T:
        # As nearly all segments are: read once.
        row = first + offs_t
        rows = row.to(tl.int64)[:, None, None]
        mask = (row < end)[:, None, None]
        k = tl.load(k_ptr + rows * stride_kn + at_k[None], mask=mask & mask_d[None], other=0.0).to(real)
        v = tl.load(v_ptr + rows * stride_vn + at_v[None], mask=mask & mask_v[None], other=0.0).to(real)
        score = tl.where(mask, tl.sum(q[None] * k[:, None], 3) * SCALE, float("-inf"))
        top = tl.where(end > first, tl.max(score, 0), 0.0)
        weight = tl.exp(score - top[None])
        weight = weight / tl.where(end > first, tl.sum(weight, 0), 1.0)[None]
        dp = tl.sum(do[None] * v[:, None], 3)
        slope = weight * (dp - tl.sum(weight * dp, 0)[None]) * SCALE
        dv = tl.sum(weight[:, :, :, None] * do[None], 1)
        dk = tl.sum(slope[:, :, :, None] * q[None], 1)
        dq = tl.sum(slope[:, :, :, None] * k[:, None], 0)
        to = dk_ptr + rows * (HEADS * WIDTH) + to_k[None]
        tl.store(to, rounded(dk, dk_ptr.dtype.element_ty), mask=mask & mask_d[None])
        to = dv_ptr + rows * (HEADS * V_WIDTH) + to_v[None]
        tl.store(to, rounded(dv, dv_ptr.dtype.element_ty), mask=mask & mask_v[None])
    else:
        top = tl.full((BLOCK_S, BLOCK_H), float("-inf"), real)
        total = tl.zeros((BLOCK_S, BLOCK_H), real)
        delta = tl.zeros((BLOCK_S, BLOCK_H), real)
        for start in range(first, end, BLOCK_T):
            row = start + offs_t
            rows = row.to(tl.int64)[:, None, None]
            mask = (row < end)[:, None, None]
            k = tl.load(k_ptr + rows * stride_kn + at_k[None], mask=mask & mask_d[None], other=0.0).to(real)
            v = tl.load(v_ptr + rows * stride_vn + at_v[None], mask=mask & mask_v[None], other=0.0).to(real)
            score = tl.where(mask, tl.sum(q[None] * k[:, None], 3) * SCALE, float("-inf"))
            here = tl.maximum(top, tl.max(score, 0))
            weight = tl.exp(score - here[None])
            share = tl.exp(top - here)
            total = total * share + tl.sum(weight, 0)
            delta = delta * share + tl.sum(weight * tl.sum(do[None] * v[:, None], 3), 0)
            top = here
        delta = delta / total
        for start in range(first, end, BLOCK_T):
            row = start + offs_t
            rows = row.to(tl.int64)[:, None, None]
            mask = (row < end)[:, None, None]
            k = tl.load(k_ptr + rows * stride_kn + at_k[None], mask=mask & mask_d[None], other=0.0).to(real)
            v = tl.load(v_ptr + rows * stride_vn + at_v[None], mask=mask & mask_v[None], other=0.0).to(real)
            score = tl.where(mask, tl.sum(q[None] * k[:, None], 3) * SCALE, float("-inf"))
            weight = tl.exp(score - top[None]) / total[None]
            slope = weight * (tl.sum(do[None] * v[:, None], 3) - delta[None]) * SCALE
            dv = tl.sum(weight[:, :, :, None] * do[None], 1)
            dk = tl.sum(slope[:, :, :, None] * q[None], 1)
            dq += tl.sum(slope[:, :, :, None] * k[:, None], 0)
            to = dk_ptr + rows * (HEADS * WIDTH) + to_k[None]
            tl.store(to, rounded(dk, dk_ptr.dtype.element_ty), mask=mask & mask_d[None])
            to = dv_ptr + rows * (HEADS * V_WIDTH) + to_v[None]
            tl.store(to, rounded(dv, dv_ptr.dtype.element_ty), mask=mask & mask_v[None])
    at = (offs_s[:, None, None] * HEADS + offs_h[None, :, None]) * WIDTH + offs_d[None, None, :]
    to = dq_ptr + run.to(tl.int64) * (QUERIES * HEADS * WIDTH) + at
    tl.store(to, rounded(dq, dq_ptr.dtype.element_ty), mask=mask_s & mask_d[None])
