"""Caches of a decoding run: rows seen so far, per sequence, in tensors that are made once and written in place.

A cache is `[B, S, *rest]`: row p of a sequence lies in slot p % S, so that a cache shorter than the sequence keeps
the last S rows. Attention keeps keys and values as `[B, G, S, K]`, the order in which they are read.

Letters: B sequences, N new rows of all sequences, S slots, H query heads, G key heads, K head width, M keys of all
sequences. lengths [B]: rows a sequence had before this call. offsets [B + 1]: where its new rows begin. columns:
slots in use after this call, an upper bound that the host knows without asking the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .attention import attend_packed


def writes(function: Any) -> Any:
    """Marks a function that writes to its arguments, for passes that move or join calls."""
    function.writes_to_arguments = True
    return function


# -- plans -----------------------------------------------------------------------------------------


def positions(offsets: Tensor, row_example: Tensor, lengths: Tensor) -> Tensor:
    """int64 [N]: the number of each new row in its sequence."""
    begins = offsets[:-1].to(torch.int64)
    return torch.arange(row_example.shape[0], device=offsets.device) + (lengths - begins)[row_example]


def every_example(lengths: Tensor) -> Tensor:
    """int64 [B]: the sequence of each row when every sequence has one."""
    return torch.arange(lengths.shape[0], device=lengths.device)


def last_rows(offsets: Tensor) -> Tensor:
    """int64 [B]: the last new row of each sequence. A sequence without new rows gets some other row."""
    return (offsets[1:].to(torch.int64) - 1).clamp(min=0)


def band_mask(
    position: Tensor, low: int | None, high: int, slots: int, columns: int, is_even: bool, dtype: torch.dtype
) -> Tensor | None:
    """`[B, 1, 1, columns]` to add to the scores of one new row per sequence; None when it may read every slot in use.

    is_even: all sequences have the same length, so that no slot below `columns` is empty. A slot holds the newest row
    of its number; slots that have not been written hold none.
    """
    columns = min(columns, slots)
    if is_even and high == 0 and (low is None or columns <= 1 - low):
        return None
    slot = torch.arange(columns, device=position.device)
    row = position[:, None] - (position[:, None] - slot) % slots
    seen = (row >= 0) & (row <= position[:, None] + high)
    if low is not None:
        seen &= row >= position[:, None] + low
    return torch.where(seen, 0.0, float("-inf")).to(dtype)[:, None, None]


# Queries of a prompt that are attended for at once, where they need a mask.
QUERIES = 256

# -- attention -------------------------------------------------------------------------------------


@writes
def attend_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    mask: Tensor | None,
    columns: int,
    is_even: bool,
    scale: float,
    high: int,
) -> Tensor:
    """One new row per sequence: `q [B, H, K]`, `k [B, G, K]`, `v [B, G, V]` are written to `keys [B, G, S, K]` and
    `values [B, G, S, V]`, then attended to: `[B, H, V]`."""
    batch, slots = keys.shape[0], keys.shape[2]
    if slots and is_even:
        slot = (columns - 1) % slots  # a slice: far cheaper than an index per sequence
        keys.select(2, slot).copy_(k)
        values.select(2, slot).copy_(v)
    elif slots:
        slot = position % slots
        which = torch.arange(batch, device=q.device)
        keys[which, :, slot] = k.to(keys.dtype)
        values[which, :, slot] = v.to(values.dtype)
    heads, groups = q.shape[1], k.shape[1]
    # Query heads that share a key head are rows of one problem: no cache is expanded.
    grouped = q.unsqueeze(2) if heads == groups else q.reshape(batch, groups, heads // groups, q.shape[2])
    if q.dtype != keys.dtype:
        grouped = grouped.to(keys.dtype)
    columns = min(columns, slots)
    seen = keys.narrow(2, 0, columns), values.narrow(2, 0, columns)
    result = functional.scaled_dot_product_attention(grouped, *seen, attn_mask=mask, scale=scale)
    if high < 0 and mask is not None:
        # The first rows see no key; a softmax over nothing is not a number.
        result = torch.where(torch.isneginf(mask).all(-1, keepdim=True), 0, result)
    result = result.squeeze(2) if heads == groups else result.reshape(batch, heads, v.shape[2])
    return result if q.dtype == keys.dtype else result.to(q.dtype)


@writes
def attend_extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    scale: float,
    low: int | None,
    high: int,
) -> Tensor:
    """Any number of new rows per sequence: `q [N, H, K]`, `k [N, G, K]`, `v [N, G, V]` to `[N, H, V]`. Read, then
    written: a short cache would lose rows that the first new rows still see."""
    bounds, before = offsets.tolist(), lengths.tolist()
    heads, groups, slots = q.shape[1], k.shape[1], keys.shape[2]
    pieces = []
    for example, length in enumerate(before):
        new = slice(bounds[example], bounds[example + 1])
        count = new.stop - new.start
        if not count:
            continue
        kept = min(length, slots)
        fits = length + count <= slots
        if fits:
            # Nothing is lost by writing first, and nothing is copied.
            keys[example][:, length : length + count] = k[new].transpose(0, 1)
            values[example][:, length : length + count] = v[new].transpose(0, 1)
            all_k, all_v = (cache[example][:, : length + count] for cache in (keys, values))
        else:
            slot = torch.arange(length - kept, length, device=q.device) % max(slots, 1)
            all_k = torch.cat([keys[example][:, slot], k[new].transpose(0, 1).to(keys.dtype)], 1)
            all_v = torch.cat([values[example][:, slot], v[new].transpose(0, 1).to(values.dtype)], 1)
        query = q[new].transpose(0, 1).to(keys.dtype)
        parts = []
        # A mask of all pairs would grow with the square of a prompt: queries are taken in turns, keys as far as they
        # see.
        is_causal = not kept and high == 0 and (low is None or count <= 1 - low)
        turn = count if is_causal else QUERIES
        for start in range(0, count, turn):
            stop = min(start + turn, count)
            first = 0 if low is None else max(0, kept + start + low)
            last = max(first, min(kept + count, kept + stop + high))
            mask = None if is_causal else _band(stop - start, kept + start - first, last - first, low, high, q.device)
            part = functional.scaled_dot_product_attention(
                query[None, :, start:stop], all_k[None, :, first:last], all_v[None, :, first:last], mask, 0.0,
                is_causal and count > 1, scale=scale, enable_gqa=heads != groups,
            )[0]  # fmt: skip
            if high < 0 and mask is not None:
                part = torch.where(mask.any(-1, keepdim=True), part, 0)
            parts.append(part)
        result = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        pieces.append(result.transpose(0, 1).to(q.dtype))
        if fits:
            continue
        last = torch.arange(length + max(0, count - slots), length + count, device=q.device)
        keys[example][:, last % max(slots, 1)] = all_k[:, all_k.shape[1] - len(last) :]
        values[example][:, last % max(slots, 1)] = all_v[:, all_v.shape[1] - len(last) :]
    return torch.cat(pieces) if pieces else q.new_zeros(0, heads, v.shape[2])


def _band(queries: int, before: int, keys: int, low: int | None, high: int, device: torch.device) -> Tensor | None:
    """Which of `keys` each query sees, `before` of them in front of the first query; None: all."""
    if queries == 1 and keys <= before + 1 + high and (low is None or before <= -low):
        return None
    distance = torch.arange(keys, device=device) - (torch.arange(queries, device=device) + before)[:, None]
    seen = distance <= high
    return seen if low is None else seen & (distance >= low)


@writes
def attend_general(*operands: Any) -> Tensor:
    """Any mask, score and bias, through the reference. Operands as of `attend_to_history`."""
    return attend_to_history(attend_packed, *operands)


def attend_to_history(
    attend: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    scale: float,
    low: int | None,
    high: int | None,
    predicate: tuple[Any, ...] | None,
    bias: Tensor | None,
    captured: tuple[Tensor, ...],
    score: tuple[Any, ...] | None = None,
    columns: int | None = None,
) -> Tensor:
    """`attend`, a function of packed rows, on all rows so far: caches `[B, S, G, K]` of keys and values and
    `captured`, a cache for every tensor that the keys' side of the bias, the mask or the score reads, in the order
    met. columns: slots in use afterwards, where every sequence has one new row."""
    left = list(captured)
    all_offsets = history_offsets(offsets, lengths)
    bias_cache = left.pop(0) if bias is not None else None
    predicate = None if predicate is None else with_history(predicate, left, offsets, lengths)
    score = None if score is None else with_history(score, left, offsets, lengths)
    return attend(
        q,
        history(k, keys, offsets, lengths),
        history(v, values, offsets, lengths),
        offsets,
        all_offsets,
        scale,
        low,
        high,
        predicate,
        None if bias is None or bias_cache is None else history(bias, bias_cache, offsets, lengths),
        score,
        q_position=position,
    )


def with_history(e: Any, caches: list[Tensor], offsets: Tensor, lengths: Tensor) -> Any:
    """A mask or a score whose key side reads all rows so far."""
    match e:
        case ("key", Tensor() as rows):
            return ("key", history(rows, caches.pop(0), offsets, lengths))
        case ("entry", table, at):
            return ("entry", table, with_history(at, caches, offsets, lengths))
        case (str() as name, *parts) if name not in ("number", "query", "key"):
            return (name, *(with_history(part, caches, offsets, lengths) for part in parts))
        case _:
            return e


# -- rows ------------------------------------------------------------------------------------------


def history_offsets(offsets: Tensor, lengths: Tensor) -> Tensor:
    """Offsets of all rows so far: those before and the new ones."""
    return offsets + functional.pad(torch.cumsum(lengths, 0), (1, 0)).to(offsets.dtype)


@writes
def history(new: Tensor, cache: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
    """Writes new rows `[N, *rest]` to a cache that holds every row, and returns all rows so far, packed `[M,
    *rest]`."""
    bounds, before = offsets.tolist(), lengths.tolist()
    parts = []
    for example, length in enumerate(before):
        count = bounds[example + 1] - bounds[example]
        cache[example, length : length + count] = new[bounds[example] : bounds[example + 1]].to(cache.dtype)
        parts.append(cache[example, : length + count])
    return torch.cat(parts).to(new.dtype)


@writes
def keep_rows(new: Tensor, cache: Tensor, row_example: Tensor, position: Tensor) -> None:
    """Writes new rows `[N, *rest]` to a cache `[B, S, *rest]` that holds every row."""
    cache[row_example, position] = new.to(cache.dtype)


@writes
def previous_extend(
    x: Tensor,
    position: Tensor,
    k: int,
    first: Any,
    cache: Tensor,
    row_example: Tensor,
    lengths: Tensor,
    offsets: Tensor | None,
) -> Tensor:
    """`x [N, ...]` k rows earlier, from the new rows or, before those, from `cache [B, k + 1, ...]`. offsets None:
    one row each."""
    slots = cache.shape[1]
    old = cache[row_example, (position - k) % slots].to(x.dtype)
    new = position - lengths[row_example]
    result = torch.where(broad(new >= k, x), torch.roll(x, k, 0), old) if offsets is not None else old
    first = first if isinstance(first, Tensor) else torch.full((), first, dtype=x.dtype, device=x.device)
    result = torch.where(broad(position >= k, x), result, first)
    if offsets is None:
        cache[row_example, position % slots] = x.to(cache.dtype)
    else:
        counts = (offsets[1:] - offsets[:-1]).to(torch.int64)[row_example]
        last = (new >= counts - slots).nonzero()[:, 0]
        cache[row_example[last], position[last] % slots] = x[last].to(cache.dtype)
    return result


def broad(flags: Tensor, like: Tensor) -> Tensor:
    """Flags of rows, ready to meet `like` [rows, ...]."""
    return flags.reshape(flags.shape + (1,) * (like.dim() - 1))
