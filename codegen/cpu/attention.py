"""Attention over documents packed end to end, and over key/value caches while decoding, on a CPU.

A packed batch has no padding: rows offsets[d] to offsets[d+1] are document d. Torch's fused CPU attention wants
rectangles, so a plan cuts the rows into pieces: documents of equal length that follow each other become one batch,
a long document under a window becomes blocks of queries with the keys they can reach. Heads stay strided views of the
projection; results and gradients are written to their rows, so nothing is padded, concatenated or expanded.

Letters in shapes: N query rows, M key rows, H query heads, G key/value heads (H a multiple of G), K head width,
B sequences, S cache columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(eq=False)
class Allowed:
    """Which keys each query of a piece sees: bool [queries, keys]."""

    flags: Tensor
    additive: Tensor | None = None

    def mask(self, dtype: torch.dtype) -> Tensor:
        """0 where a key is seen, -inf elsewhere."""
        if self.additive is None or self.additive.dtype != dtype:
            self.additive = torch.where(self.flags, 0.0, -math.inf).to(dtype)
        return self.additive


@dataclass(frozen=True)
class Piece:
    """`documents` rectangles that follow each other: queries each, keys each, and which keys a query may see.

    mask is None (every key), "causal" (as many keys as queries, no later key), (shift, window): query i sees keys
    j with i + shift - window < j <= i + shift; or what each query sees.
    """

    query: int
    queries: int
    key: int
    keys: int
    documents: int
    mask: tuple[int, int] | Allowed | str | None


@dataclass(frozen=True)
class Plan:
    """Pieces over rows; whether two pieces read the same key; the order rows are first brought into, if another."""

    pieces: tuple[Piece, ...]
    shares_keys: bool
    query_order: Tensor | None = None
    key_order: Tensor | None = None


def plan_documents(
    offsets: Sequence[int] | Tensor,
    key_offsets: Sequence[int] | Tensor | None = None,
    causal: bool = True,
    window: int | None = None,
) -> Plan:
    """Cut documents into pieces. Make it once per batch: all layers with the same mask share it.

    key_offsets: where each document's keys lie, when there are more keys than queries (a cached prefix); queries are
    the last rows of their document. window w: a query sees the last w keys, its own included.
    """
    if window is not None and (not causal or window < 1):
        raise ValueError(f"a window of {window} keys needs causal attention and at least one key")
    queries = tuple(offsets.tolist() if isinstance(offsets, Tensor) else offsets)
    if key_offsets is None:
        return _plan(queries, queries, causal, window)
    keys = tuple(key_offsets.tolist() if isinstance(key_offsets, Tensor) else key_offsets)
    return _plan(queries, keys, causal, window)


@lru_cache(maxsize=64)
def _plan(q: tuple[int, ...], k: tuple[int, ...], causal: bool, window: int | None) -> Plan:
    documents = [(q[i], q[i + 1] - q[i], k[i], k[i + 1] - k[i]) for i in range(len(q) - 1) if q[i + 1] > q[i]]
    for _, queries, _, keys in documents:
        if causal and keys < queries:
            raise ValueError(f"a document has {queries} queries but only {keys} keys")
    # The fused kernel ends the process where there are no keys; such queries get zeros.
    documents = [document for document in documents if document[3]]
    shares_keys = window is not None and any(d[3] > window for d in documents)
    shapes = [(d[1], d[3]) for d in documents]
    runs = 1 + sum(a != b for a, b in pairwise(shapes))
    # Each piece costs a call in both directions. Many short documents in mixed order are worth sorting by length.
    if runs >= 16 and runs > 2 * len(set(shapes)):
        ordered = sorted(documents, key=lambda d: (d[1], d[3]))
        query_order = torch.cat([torch.arange(d[0], d[0] + d[1]) for d in ordered])
        key_order = torch.cat([torch.arange(d[2], d[2] + d[3]) for d in ordered])
        if len(query_order) == q[-1] and len(key_order) == k[-1]:
            moved, at_query, at_key = [], 0, 0
            for _, queries, _, keys in ordered:
                moved.append((at_query, queries, at_key, keys))
                at_query, at_key = at_query + queries, at_key + keys
            return Plan(tuple(_pieces(moved, causal, window)), shares_keys, query_order, key_order)
    return Plan(tuple(_pieces(documents, causal, window)), shares_keys)


def _pieces(documents: list[tuple[int, int, int, int]], causal: bool, window: int | None):
    i = 0
    while i < len(documents):
        query, queries, key, keys = documents[i]
        if window is not None and keys > window:
            yield from _window_blocks(query, queries, key, keys, window)
            i += 1
            continue
        n = 1
        while i + n < len(documents) and documents[i + n] == (query + n * queries, queries, key + n * keys, keys):
            n += 1
        mask: tuple[int, int] | str | None = None
        if causal and queries > 1:
            mask = "causal" if queries == keys else (keys - queries, keys)
        yield Piece(query, queries, key, keys, n, mask)
        i += n


def _window_blocks(query: int, queries: int, key: int, keys: int, window: int):
    block = max(64, window)
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        shift = keys - queries
        first, last = max(0, start + shift - window + 1), stop + shift
        mask = (start + shift - first, window)
        simple = mask[0] == 0 and last - first == stop - start <= window
        yield Piece(query + start, stop - start, key + first, last - first, 1, "causal" if simple else mask)


@lru_cache(maxsize=64)
def _band(queries: int, keys: int, shift: int, window: int, dtype: torch.dtype) -> Tensor:
    distance = torch.arange(queries)[:, None] + shift - torch.arange(keys)
    return torch.where((distance >= 0) & (distance < window), 0.0, -math.inf).to(dtype)


def _rectangle(x: Tensor, start: int, rows: int, documents: int) -> Tensor:
    """Rows of x [N, H, K] as [documents, H, rows, K], a view."""
    part = x[start : start + rows * documents]
    return part.view(documents, rows, *x.shape[1:]).transpose(1, 2)


def _views(piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _rectangle(q, piece.query, piece.queries, piece.documents),
        _rectangle(k, piece.key, piece.keys, piece.documents),
        _rectangle(v, piece.key, piece.keys, piece.documents),
    )


def _mask_arguments(piece: Piece, dtype: torch.dtype) -> tuple[bool, Tensor | None]:
    if isinstance(piece.mask, Allowed):
        return False, piece.mask.mask(dtype)
    if isinstance(piece.mask, tuple):
        return False, _band(piece.queries, piece.keys, *piece.mask, dtype)
    return piece.mask == "causal", None


def _rows_like(x: Tensor, written: int) -> Tensor:
    """A buffer of x's shape; zeros unless `written` rows, which are all of them, will be overwritten."""
    return (torch.empty if written == x.shape[0] else torch.zeros)(x.shape, dtype=x.dtype)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, plan, scale):
        order, key_order = plan.query_order, plan.key_order
        if order is not None:
            q, k, v = q[order], k[key_order], v[key_order]
        out = _rows_like(q, sum(p.queries * p.documents for p in plan.pieces))
        sums = []
        for piece in plan.pieces:
            q_p, k_p, v_p = _views(piece, q, k, v)
            causal, mask = _mask_arguments(piece, q.dtype)
            out_p, sums_p = _forward(q_p, k_p, v_p, 0.0, causal, attn_mask=mask, scale=scale)
            _rectangle(out, piece.query, piece.queries, piece.documents).copy_(out_p)
            sums.append(sums_p)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.plan, ctx.scale = plan, scale
        if order is None:
            return out
        return torch.empty_like(out).index_copy_(0, order, out)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, *sums = ctx.saved_tensors
        plan, (h, g) = ctx.plan, (q.shape[1], k.shape[1])
        order, key_order = plan.query_order, plan.key_order
        dout = _dense(dout)
        if order is not None:
            dout = dout[order]
        # Blocks of a window share keys: their gradients are added. Otherwise each row is written once, if it is at all.
        dq = _rows_like(q, sum(p.queries * p.documents for p in plan.pieces))
        key_rows = sum(p.keys * p.documents for p in plan.pieces)
        dk, dv = _rows_like(k, 0 if plan.shares_keys else key_rows), _rows_like(v, 0 if plan.shares_keys else key_rows)
        for piece, sums_p in zip(plan.pieces, sums, strict=True):
            q_p, k_p, v_p = _views(piece, q, k, v)
            out_p = _rectangle(out, piece.query, piece.queries, piece.documents)
            dout_p = _rectangle(dout, piece.query, piece.queries, piece.documents)
            causal, mask = _mask_arguments(piece, q.dtype)
            if h != g:
                # The fused backward wants equal head counts; the repeated heads are added up afterwards.
                k_p, v_p = (x.repeat_interleave(h // g, 1) for x in (k_p, v_p))
            arguments = (dout_p, q_p, k_p, v_p, out_p, sums_p, 0.0, causal)
            dq_p, dk_p, dv_p = _backward(*arguments, attn_mask=mask, scale=ctx.scale)
            if h != g:
                dk_p, dv_p = (x.unflatten(1, (g, h // g)).sum(2) for x in (dk_p, dv_p))
            _rectangle(dq, piece.query, piece.queries, piece.documents).copy_(dq_p)
            for grad, part in ((dk, dk_p), (dv, dv_p)):
                rows = _rectangle(grad, piece.key, piece.keys, piece.documents)
                _ = rows.add_(part) if plan.shares_keys else rows.copy_(part)
        if order is not None:
            dq = torch.empty_like(dq).index_copy_(0, order, dq)
            dk, dv = (torch.empty_like(x).index_copy_(0, key_order, x) for x in (dk, dv))
        return dq, dk, dv, None, None


def _dense(x: Tensor) -> Tensor:
    """The fused kernel reads the entries of a head side by side, whatever their stride says."""
    return x if x.stride(-1) == 1 else x.contiguous()


def packed_attention(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v inside each document of the plan.

    q [N, H, K], k and v [M, G, K], any strides -> [N, H, K]. scale defaults to 1 / sqrt(K).
    """
    if not plan.pieces:
        # Nothing is read, and what made the operands has a gradient all the same: zero.
        nothing = sum((x[:0].sum() for x in (q, k, v)), start=q.new_zeros(()))
        return nothing.expand((*q.shape[:-1], v.shape[-1]))
    q, k, v = _dense(q), _dense(k), _dense(v)
    if q.shape[-1] == v.shape[-1]:
        return _PackedAttention.apply(q, k, v, plan, scale)
    width = max(q.shape[-1], v.shape[-1])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    # Zeros neither change a score nor reach the columns that are kept.
    q, k, wide_v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return _PackedAttention.apply(q, k, wide_v, plan, scale)[..., : v.shape[-1]]


def left_pad_mask(starts: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, columns] to add to scores: -inf before column starts[b] of sequence b, 0 from there on.

    Sequences of unequal length share their last column: the newest token of each is always in the same column, so that
    one slice assignment fills the cache for all of them and the mask is made once for a whole generation.
    """
    return torch.where(torch.arange(columns) < starts[:, None], -math.inf, 0.0).to(dtype)[:, None, None]


def decode_attention(
    q: Tensor, keys: Tensor, values: Tensor, columns: int, mask: Tensor | None = None, scale: float | None = None,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """One new token per sequence against columns `first` to `columns` of static caches.

    q [B, H, K], keys and values [B, G, S, K] with K and S dense; mask [B, 1, 1, S] from `left_pad_mask`, or None when
    every sequence began at column 0. The result is [B, H, K]. A window is `first = columns - window`.

    Caches may be float32 under bfloat16 weights: torch's fused bfloat16 attention is 3 to 6 times slower than float32
    for a single query on a CPU, so the wider cache costs memory and saves time.
    """
    b, h, width = q.shape
    g = keys.shape[1]
    # Heads that share a key head become query rows of one problem: no cache is expanded.
    grouped = q.view(b, g, h // g, width)
    if keys.dtype != q.dtype:
        grouped = grouped.to(keys.dtype)
    k, v = keys[:, :, first:columns], values[:, :, first:columns]
    m = None if mask is None else mask[..., first:columns]
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=m, scale=scale)
    return out.reshape(b, h, width).to(q.dtype)
