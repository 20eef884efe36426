"""Attention of rows to a few keys of their own, and of one row to a few others, on a CPU.

A byte that looks at the two slots of its patch is no matrix product: as one, every head of every row is a product of a
single row, and torch pays a call for each. Here a score is a sum over the entries of a head, key by key, with all rows
and heads in one pass. Keys that rows read from segments are read while they are used and never stored for each row;
what the segments get as gradients are sums over runs of rows (segments.py).

Letters in shapes: N rows, P segments, J keys of a row, H query heads, G key heads (H a multiple of G), D and E widths
of keys and values. Scores, weights and sums are in at least float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..functions.attention import attend_static
from ..functions.precision import narrow, widen
from .derivatives import once_differentiable
from .segments import Runs, spread, without

# Keys that are worth a pass each.
MOST_KEYS = 8
# Fewer rows are left to the matrix product: calls are the cost there, and it has fewer of them.
_FEWEST_ROWS = 32


# -- keys of a row ---------------------------------------------------------------------------------


def few_keys_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, number: Tensor | None = None) -> Tensor:
    """`attend_static(q, spread(k, number), spread(v, number), scale)` for q [N, 1, H, D], k [P, J, H, D], v [P, J, H,
    E] -> [N, 1, H, E]. Without `number [N]` (see segments.py) rows have keys of their own: k [N, J, H, D]."""
    if q.shape[0] < _FEWEST_ROWS or not k.numel() or not v.numel():
        if number is not None:
            k, v = spread(k, number), spread(v, number)
        return attend_static(q, k, v, scale)
    return _FewKeys.apply(q[:, 0], k, v, number, scale)[:, None]


class _FewKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, number, scale):
        wide = widen(q)
        weights = torch.stack([_dots(wide, key) for key in _each(k, number)], 1).mul_(scale).softmax(1)
        if number is not None:
            # What such a row reads is 0, and so is what it adds to the gradient of any key.
            weights.index_fill_(0, without(number), 0)
        out = _weighed(weights.unbind(1), _each(v, number))
        ctx.save_for_backward(q, k, v, weights, number)
        ctx.scale = scale
        return narrow(out, q)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, weights, number = ctx.saved_tensors
        dout = widen(dout)
        slopes = torch.stack([_dots(dout, value) for value in _each(v, number)], 1)
        slopes = slopes.sub_((slopes * weights).sum(1, keepdim=True)).mul_(weights).mul_(ctx.scale)
        dq = _weighed(slopes.unbind(1), _each(k, number))
        runs = None if number is None else Runs(number, k.shape[0])
        dk, dv = (_outer(*factors, runs) for factors in ((slopes, widen(q)), (weights, dout)))
        return narrow(dq, q), narrow(dk, k), narrow(dv, v), None, None


def _each(x: Tensor, number: Tensor | None) -> Iterable[Tensor]:
    """Key after key: [N, H, D] of x [P, J, H, D]."""
    index = None if number is None else number.clamp(min=0)
    for j in range(x.shape[1]):
        yield widen(x[:, j] if index is None else x[:, j].index_select(0, index))


def _weighed(factors: Iterable[Tensor], parts: Iterable[Tensor]) -> Tensor:
    """The sum of factors [N, H] times parts [N, H, D]."""
    first, *others = zip(factors, parts, strict=True)
    total = first[0][..., None] * first[1]
    for factor, part in others:
        total.addcmul_(factor[..., None], part)
    return total


def _outer(factors: Tensor, x: Tensor, runs: Runs | None) -> Tensor:
    """factors [N, J, H] times x [N, H, D], added up within segments: [P, J, H, D]."""
    product = factors[..., None] * x[:, None]
    return product if runs is None else runs.sums(product)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


# -- rows of a segment -----------------------------------------------------------------------------


def own_rows_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """One query for each segment, which sees the rows of it: q [P, H, D], k [N, G, D], v [N, G, E], bounds [P + 1]
    where the rows of segments begin and end -> [P, H, E]. A segment without rows gets 0."""
    if not q.numel() or not k.numel():
        return q.new_zeros(*q.shape[:-1], v.shape[-1]) + 0 * (q.sum() + k.sum() + v.sum())
    segment = torch.arange(q.shape[0])
    number = torch.repeat_interleave(segment, (bounds[1:] - bounds[:-1]).long(), output_size=k.shape[0])
    return _OwnRows.apply(q, k, v, number, scale)


class _OwnRows(torch.autograd.Function):
    """Query heads that share a key head are taken in turns: what is stored for each row is as wide as the keys."""

    @staticmethod
    def forward(ctx, q, k, v, number, scale):
        (segments, heads), groups = q.shape[:2], k.shape[1]
        runs = Runs(number, segments)
        wide = widen(k)
        scores = torch.stack([_dots(query, wide) for query in _turns(q, groups, number)], -1).mul_(scale).flatten(1)
        index = number[:, None].expand_as(scores)
        top = scores.new_full((segments, heads), -torch.inf).scatter_reduce_(0, index, scores, "amax")
        weights = scores.sub_(top.index_select(0, number)).exp_()
        weights = weights.div_(runs.sums(weights).index_select(0, number)).unflatten(1, (groups, -1))
        ctx.save_for_backward(q, k, v, weights, number)
        ctx.scale, ctx.runs = scale, runs
        return narrow(_added(weights, v, runs), q)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, weights, number = ctx.saved_tensors
        groups, runs = k.shape[1], ctx.runs
        wide = widen(v)
        slopes = torch.stack([_dots(part, wide) for part in _turns(dout, groups, number)], -1)
        slopes = slopes.sub_(runs.sums(slopes * weights).index_select(0, number)).mul_(weights).mul_(ctx.scale)
        dk, dv = (
            _weighed(factors.unbind(-1), _turns(x, groups, number)) for factors, x in ((slopes, q), (weights, dout))
        )
        return narrow(_added(slopes, k, runs), q), narrow(dk, k), narrow(dv, v), None, None


def _turns(x: Tensor, groups: int, number: Tensor) -> Iterable[Tensor]:
    """The heads of x [P, H, D] that are first of their groups, at each row [N, G, D], then the second, and so on."""
    for part in widen(x).unflatten(1, (groups, -1)).unbind(2):
        yield part.index_select(0, number)


def _added(factors: Tensor, x: Tensor, runs: Runs) -> Tensor:
    """factors [N, G, H / G] times x [N, G, D], added up within segments: [P, H, D]."""
    parts = [runs.sums(factor[..., None] * widen(x)) for factor in factors.unbind(-1)]
    return torch.stack(parts, 2).flatten(1, 2)
