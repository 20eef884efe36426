"""Attention of further rows to the caches of a decoding run, on a CPU, under any mask.

Keys and values are read where they lie. Which keys each row sees is found once for all layers; where a row sees all of
them, as those of a picture behind a text do, torch's fused kernel needs no mask.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from ..functions.attention import keys_allowed
from ..functions.caches import history_offsets, with_history, writes
from ..functions.masks import Predicate, Rows


@writes
def plan_cached(
    offsets: Tensor,
    lengths: Tensor,
    position: Tensor,
    predicate: Predicate | None,
    captured: tuple[Tensor, ...],
    low: int | None = None,
    high: int | None = None,
) -> tuple[Tensor | None, ...]:
    """For each sequence bool `[new rows, all its rows]`; None: all are seen. What keys have of the mask is written to
    `captured`, a cache for every tensor that its keys' side reads. Other arguments as of `caches.attend_to_history`."""
    whole = with_history(predicate, list(captured), offsets, lengths)
    bounds, ends = offsets.tolist(), history_offsets(offsets, lengths).tolist()
    found: list[Tensor | None] = []
    for example in range(len(bounds) - 1):
        queries, keys = slice(*bounds[example : example + 2]), slice(*ends[example : example + 2])
        new = Rows(position[queries], queries.start, queries.stop)
        seen = Rows(torch.arange(keys.stop - keys.start), keys.start, keys.stop)
        flags = keys_allowed(new, seen, low, high, whole)
        found.append(None if flags is None or bool(flags.all()) else flags)
    return tuple(found)


@writes
def attend_cached(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: tuple[Tensor | None, ...] | None,
    offsets: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """`q [N, H, K]`, `k [N, G, K]`, `v [N, G, V]` of the new rows, caches `[B, S, G, K]` and `[B, S, G, V]`, which they
    are written to first: `[N, H, V]`. plan: as of `plan_cached`; None: every row sees all rows of its sequence."""
    bounds, before = offsets.tolist(), lengths.tolist()
    if plan is None and len(set(before)) == 1 and len({stop - start for start, stop in pairwise(bounds)}) == 1:
        return _attend_evenly(q, k, v, keys, values, before[0], scale)
    pieces = []
    for example, length in enumerate(before):
        new = slice(bounds[example], bounds[example + 1])
        upto = length + new.stop - new.start
        keys[example, length:upto] = k[new].to(keys.dtype)
        values[example, length:upto] = v[new].to(values.dtype)
        if new.stop > new.start:
            flags = None if plan is None else plan[example]
            pieces.append(_attend(q[new].to(keys.dtype), keys[example, :upto], values[example, :upto], flags, scale))
    return torch.cat(pieces).to(q.dtype) if pieces else q.new_zeros(0, q.shape[1], v.shape[2])


def _attend_evenly(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, length: int, scale: float) -> Tensor:
    """Sequences of one length that go on by as many rows each, of which all rows are seen: one call for all."""
    batch, grouped = keys.shape[0], q.shape[1] != k.shape[1]
    query, *new = (x.unflatten(0, (batch, -1)).to(keys.dtype) for x in (q, k, v))
    upto = length + query.shape[1]
    for cache, rows in zip((keys, values), new, strict=True):
        cache[:, length:upto] = rows
    query, key, value = (x.transpose(1, 2) for x in (query, keys[:, :upto], values[:, :upto]))
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=grouped)
    return mixed.transpose(1, 2).flatten(0, 1).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, flags: Tensor | None, scale: float) -> Tensor:
    query, key, value = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    mixed = functional.scaled_dot_product_attention(query, key, value, flags, scale=scale, enable_gqa=grouped)
    result = mixed[0].transpose(0, 1)
    # A softmax over nothing is not a number.
    return result if flags is None else torch.where(flags.any(-1)[:, None, None], result, 0)
