"""Attention as the language defines it, in plain torch: exact, any float type, any mask. The reference for every
faster form.

    y[query, head] = sum over keys r allowed by the mask of softmax_r(score(scale * q . k[r]) + bias[r]) * v[r]

A row without an allowed key gives 0, with zero gradient. Query head h reads key head h // (heads / key heads).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .masks import Predicate, Rows, allowed
from .packing import position, row_example
from .precision import narrow, widen
from .scores import Formula, scored

# Scores held at once; more queries than fit are taken in turns.
_SCORES = 1 << 24
_TRACED_SCORES = 1 << 28


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    low: int | None = None,
    high: int | None = None,
    predicate: Predicate | None = None,
    bias: Tensor | None = None,
    score: Formula | None = None,
    q_position: Tensor | None = None,
    k_position: Tensor | None = None,
) -> Tensor:
    """Queries and keys of the same example: `q [query rows, heads, D]`, `k [key rows, key heads, D]`, `v [key rows,
    key heads, Dv]` to `[query rows, heads, Dv]`.

    `low <= key position - query position <= high` bounds what a query sees (None: unbounded); `predicate` (see
    masks.py) says what the band does not. `score` (see scores.py) is applied to the scores, then `bias [key rows,
    heads or 1]` is added. Positions are row numbers in the example unless given.
    """
    if _is_one_graph(q, k):
        bounds = low, high, predicate
        return _all_at_once(q, k, v, q_offsets, k_offsets, scale, bounds, bias, score, q_position, k_position)
    q_bounds, k_bounds = q_offsets.tolist(), k_offsets.tolist()
    pieces = []
    for example in range(len(q_bounds) - 1):
        keys = (k_bounds[example], k_bounds[example + 1])
        queries = (q_bounds[example], q_bounds[example + 1])
        step = max(1, _SCORES // max(1, q.shape[1] * (keys[1] - keys[0])))
        for start in range(*queries, step):
            rows = Rows(
                _positions(q_position, start, min(start + step, queries[1]), queries[0], q),
                start,
                min(start + step, queries[1]),
            )
            seen = Rows(_positions(k_position, *keys, keys[0], k), *keys)
            flags = keys_allowed(rows, seen, low, high, predicate)
            local = None if bias is None else bias[keys[0] : keys[1]].T[:, None]
            change = None if score is None else partial(scored, score, query=rows, key=seen)
            pieces.append(
                _attend(
                    q[rows.start : rows.stop], k[keys[0] : keys[1]], v[keys[0] : keys[1]], scale, flags, local, change
                )
            )
    if not pieces:
        return q.new_zeros(0, q.shape[1], v.shape[-1]) + 0 * (q.sum() + k.sum() + v.sum())
    return torch.cat(pieces)


def _is_one_graph(q: Tensor, k: Tensor) -> bool:
    """A graph cannot loop over examples whose number and lengths it does not know. Exporting has no other way; where
    the scores would be too many, compiling breaks the graph here and loops."""
    if torch.compiler.is_exporting():
        return True
    return torch.compiler.is_compiling() and q.shape[0] * q.shape[1] * k.shape[0] <= _TRACED_SCORES


def _all_at_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    bounds: tuple[int | None, int | None, Predicate | None],
    bias: Tensor | None,
    score: Formula | None,
    q_position: Tensor | None,
    k_position: Tensor | None,
) -> Tensor:
    """As `attend_packed`, with the scores of all queries and all keys, those of other examples among them."""
    q_example, k_example = row_example(q_offsets, q), row_example(k_offsets, k)
    rows = Rows(position(q_offsets, q_example) if q_position is None else q_position, 0, q.shape[0])
    seen = Rows(position(k_offsets, k_example) if k_position is None else k_position, 0, k.shape[0])
    flags = q_example[:, None] == k_example
    within = keys_allowed(rows, seen, *bounds)
    flags = flags if within is None else flags & within
    local = None if bias is None else bias.T[:, None]
    change = None if score is None else partial(scored, score, query=rows, key=seen)
    return _attend(q, k, v, scale, flags, local, change)


def one_each(offsets: Tensor) -> Tensor:
    """Offsets of queries when every example is one query."""
    return torch.arange(len(offsets), device=offsets.device, dtype=offsets.dtype)


def attend_static(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    low: int | None = None,
    high: int | None = None,
    predicate: Predicate | None = None,
    bias: Tensor | None = None,
    score: Formula | None = None,
) -> Tensor:
    """Attention along a static axis, row by row: `q [rows, queries, heads, D]`, `k [rows, keys, key heads, D]`,
    `v [rows, keys, key heads, Dv]` to `[rows, queries, heads, Dv]`.

    `bias [rows, keys, heads or 1]`. Keys may have 1 row for all.
    """
    rows = Rows(torch.arange(q.shape[1], device=q.device), 0, q.shape[1])
    keys = Rows(torch.arange(k.shape[1], device=k.device), 0, k.shape[1])
    flags = keys_allowed(rows, keys, low, high, predicate)
    local = None if bias is None else bias.movedim(-1, 1)[:, :, None]
    change = None if score is None else partial(scored, score, query=rows, key=keys)
    return _attend(q, k, v, scale, flags, local, change)


def _positions(given: Tensor | None, start: int, stop: int, first: int, like: Tensor) -> Tensor:
    if given is not None:
        return given[start:stop]
    return torch.arange(start - first, stop - first, device=like.device)


def keys_allowed(
    query: Rows, key: Rows, low: int | None, high: int | None, predicate: Predicate | None
) -> Tensor | None:
    """Which keys `[queries, keys]` are allowed; None: all."""
    flags = None if predicate is None else allowed(predicate, query, key)
    if low is not None or high is not None:
        distance = key.numbers[None, :] - query.numbers[:, None]
        if low is not None:
            flags = distance >= low if flags is None else flags & (distance >= low)
        if high is not None:
            flags = distance <= high if flags is None else flags & (distance <= high)
    return flags


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    flags: Tensor | None,
    bias: Tensor | None,
    change: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """`q [..., Q, H, D]`, `k [..., K, G, D]`, `v [..., K, G, Dv]`, `flags [Q, K]`, `bias [..., H or 1, 1, K]`: `[...,
    Q, H, Dv]`."""
    group = q.shape[-2] // k.shape[-2]
    # Scores in at least float32, rounded once, after the values are weighed.
    q_HQD, k_HKD, v_HKD = (widen(x).transpose(-3, -2) for x in (q, k, v))
    if group > 1:
        k_HKD, v_HKD = k_HKD.repeat_interleave(group, -3), v_HKD.repeat_interleave(group, -3)
    scores = scale * (q_HQD @ k_HKD.transpose(-2, -1))
    if change is not None:
        scores = change(scores)
    if bias is not None:
        scores = scores + bias
    if scores.shape[-1] == 0:
        return narrow((scores @ v_HKD).transpose(-3, -2), q)
    if flags is None:
        weights = torch.softmax(scores, -1)
    else:
        # A row without keys would be softmax of -inf alone: nan. It is computed on zeros and then dropped.
        some = flags.any(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(~(flags | ~some), float("-inf")), -1).masked_fill(~some, 0)
    return narrow((weights @ v_HKD).transpose(-3, -2), q)
