"""The largest scores of rows against keys, and the largest sums of two of them: scores are never stored.

A score and its index are one int64: the score's bits, in an order that whole numbers have, above the index with its
bits turned. So the larger number is the larger score, and of equal scores the one with the lower index.
"""

# Constants are plain numbers where a kernel is compiled, and steps over them are written out.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
NONE = tl.constexpr(-(2**63))
LAST = tl.constexpr(2**31 - 1)


@triton.jit
def packed(score, index):
    """Both in one; a score that is no number is the largest, as torch sorts it."""
    score = tl.where(score == 0.0, 0.0, score)  # -0 is no less
    bits = tl.where(score != score, 0x7FC00000, score.to(tl.int32, bitcast=True))
    ordered = tl.where(bits < 0, bits ^ LAST, bits)
    return (ordered.to(tl.int64) << 32) | (index ^ LAST).to(tl.int64)


@triton.jit
def score_of(number):
    ordered = (number >> 32).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ LAST, ordered).to(tl.float32, bitcast=True)


@triton.jit
def index_of(number):
    return (number & LAST).to(tl.int32) ^ LAST


@triton.jit
def compared(x, LENGTH: tl.constexpr, STRIDE: tl.constexpr, ORDER: tl.constexpr):
    """`x [lists, entries]`: entries STRIDE apart in order within stretches of LENGTH. ORDER: ascending (0), descending
    (1), or every second stretch descending (2)."""
    lists: tl.constexpr = x.shape[0]
    entries: tl.constexpr = x.shape[1]
    pairs: tl.constexpr = lists * entries // (2 * STRIDE)
    y = tl.reshape(x, (pairs, 2, STRIDE))
    other = tl.sum(y, 1, keep_dims=True) - y
    takes_larger = tl.arange(0, 2)[None, :, None]
    if ORDER == 1:
        takes_larger = takes_larger ^ 1
    if ORDER == 2:
        takes_larger = takes_larger ^ (tl.arange(0, pairs) * (2 * STRIDE) // LENGTH & 1)[:, None, None]
    y = tl.where(takes_larger == 1, tl.maximum(y, other), tl.minimum(y, other))
    return tl.reshape(y, (lists, entries))


@triton.jit
def in_order(x, LOG_K: tl.constexpr, ORDER: tl.constexpr):
    """Stretches of 2^LOG_K that rise and then fall, or are such a list turned, sorted."""
    for step in tl.static_range(LOG_K):
        x = compared(x, 1 << LOG_K, 1 << (LOG_K - 1 - step), ORDER)
    return x


@triton.jit
def halved(x, LENGTH: tl.constexpr):
    """The larger of what two neighbouring stretches have at each place."""
    lists: tl.constexpr = x.shape[0]
    entries: tl.constexpr = x.shape[1] // 2
    pairs = tl.reshape(x, (lists * entries // LENGTH, 2, LENGTH))
    return tl.reshape(tl.max(pairs, 1), (lists, entries))


@triton.jit
def largest(x, LOG_N: tl.constexpr, LOG_K: tl.constexpr, ORDER: tl.constexpr):
    """The 2^LOG_K largest of each list `x [lists, 2^LOG_N]`, ascending (0) or descending (1).

    Stretches of so many are sorted, every second one descending. Of two such neighbours the larger at each place are
    the largest of both.
    """
    for log in tl.static_range(1, LOG_K):
        x = in_order(x, log, 2)
    for _ in tl.static_range(LOG_N - LOG_K):
        x = halved(in_order(x, LOG_K, 2), 1 << LOG_K)
    return in_order(x, LOG_K, ORDER)


@triton.jit
def merged(best, more, LOG_N: tl.constexpr, LOG_K: tl.constexpr):
    """The largest of `best [lists, 2^LOG_K]` and `more [lists, 2^LOG_N]`, ascending as `best` is."""
    return in_order(tl.maximum(best, largest(more, LOG_N, LOG_K, 1)), LOG_K, 0)


@triton.jit(do_not_specialize=["rows"])
def top_scores(
    x_ptr,
    keys_ptr,
    scores_ptr,
    index_ptr,
    rows,
    GROUPS: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP: tl.constexpr,
    LOG_K: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LOG_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`scores, index [rows, GROUPS, TOP]`: the largest of `x [rows, GROUPS, WIDTH]` times `keys [GROUPS, COUNT, WIDTH]`
    of the same group, times SCALE, largest first. 2^LOG_K is at least TOP."""
    BLOCK_N: tl.constexpr = 1 << LOG_N
    K: tl.constexpr = 1 << LOG_K
    tiles = tl.cdiv(rows, BLOCK_M)
    group = tl.program_id(0) // tiles
    offs_m = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < rows
    line = offs_m.to(tl.int64) * GROUPS + group
    key_at = keys_ptr + tl.cast(group, tl.int64) * COUNT * WIDTH
    best = tl.full((BLOCK_M, K), NONE, tl.int64)
    for start_n in range(0, COUNT, BLOCK_N):
        offs_n = start_n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < COUNT
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start_d in range(0, WIDTH, BLOCK_D):
            mask_d = start_d + offs_d < WIDTH
            x_at = x_ptr + line[:, None] * WIDTH + (start_d + offs_d)[None, :]
            x = tl.load(x_at, mask=mask_m[:, None] & mask_d[None, :], other=0.0)
            k_at = key_at + offs_n[None, :] * WIDTH + (start_d + offs_d)[:, None]
            k = tl.load(k_at, mask=mask_d[:, None] & mask_n[None, :], other=0.0)
            if INTERPRETED:
                # The interpreter multiplies the bits of bfloat16; products of 16-bit numbers are exact in float32.
                x, k = x.to(tl.float32), k.to(tl.float32)
            acc = tl.dot(x, k, acc, input_precision=PRECISION)
        found = tl.where(mask_n[None, :], packed(acc * SCALE, offs_n[None, :]), NONE)
        best = merged(best, found, LOG_N, LOG_K)
    place = K - 1 - tl.arange(0, K)
    at = line[:, None] * TOP + place[None, :]
    mask = mask_m[:, None] & (place < TOP)[None, :]
    tl.store(scores_ptr + at, score_of(best), mask=mask)
    tl.store(index_ptr + at, index_of(best), mask=mask)


@triton.jit(do_not_specialize=["lines"])
def top_pairs(
    side_scores_ptr,
    side_index_ptr,
    first_ptr,
    second_ptr,
    scores_ptr,
    slot_ptr,
    lines,
    COUNT: tl.constexpr,
    SIDE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    TOP: tl.constexpr,
    LOG_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
    LOG_C: tl.constexpr,
    LOG_S: tl.constexpr,
):
    """`scores, slot [lines, TOP]`: the largest sums of a score of each side, `side_scores, side_index [lines, 2, SIDE]`
    with the largest first, and `slot`, the first's index * COUNT + the second's.

    The places `first, second [CANDIDATES]` are enough where no other sum is as large as the last one that is taken:
    each of the others has as many candidates that are no smaller. Else all pairs are looked at.
    """
    K: tl.constexpr = 1 << LOG_K
    offs_l = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_c = tl.arange(0, 1 << LOG_C)
    mask_l = offs_l < lines
    mask_c = offs_c < CANDIDATES
    mask = mask_l[:, None] & mask_c[None, :]
    side_at = offs_l.to(tl.int64)[:, None] * (2 * SIDE)
    first = side_at + tl.load(first_ptr + offs_c, mask=mask_c, other=0)[None, :]
    second = side_at + SIDE + tl.load(second_ptr + offs_c, mask=mask_c, other=0)[None, :]
    sums = tl.load(side_scores_ptr + first, mask=mask, other=0.0) + tl.load(
        side_scores_ptr + second, mask=mask, other=0.0
    )
    slot = tl.load(side_index_ptr + first, mask=mask, other=0) * COUNT + tl.load(
        side_index_ptr + second, mask=mask, other=0
    )
    found = tl.where(mask, packed(sums, slot), NONE)
    best = largest(found, LOG_C, LOG_K, 0)
    place = K - 1 - tl.arange(0, K)
    least = tl.sum(tl.where((place == TOP - 1)[None, :], best, 0), 1) >> 32
    no_less = tl.sum((mask & ((found >> 32) >= least[:, None])).to(tl.int32), 1)
    if tl.max(tl.where(mask_l, no_less, 0), 0) > TOP:
        offs_s = tl.arange(0, 1 << LOG_S)
        mask_s = mask_l[:, None] & (offs_s < SIDE)[None, :]
        row_at = side_at + SIDE + offs_s[None, :]
        row_scores = tl.load(side_scores_ptr + row_at, mask=mask_s, other=0.0)
        row_index = tl.load(side_index_ptr + row_at, mask=mask_s, other=0)
        best = tl.full((BLOCK_L, K), NONE, tl.int64)
        for column in range(SIDE):
            score = tl.load(side_scores_ptr + side_at + column, mask=mask_l[:, None], other=0.0)
            index = tl.load(side_index_ptr + side_at + column, mask=mask_l[:, None], other=0)
            more = tl.where(mask_s, packed(score + row_scores, index * COUNT + row_index), NONE)
            best = merged(best, more, LOG_S, LOG_K)
    at = offs_l.to(tl.int64)[:, None] * TOP + place[None, :]
    mask_k = mask_l[:, None] & (place < TOP)[None, :]
    tl.store(scores_ptr + at, score_of(best), mask=mask_k)
    tl.store(slot_ptr + at, index_of(best).to(tl.int64), mask=mask_k)
