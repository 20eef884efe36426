"""Cuts of sequences that grow: segments close as rows arrive, and an open one is kept until it does.

A segment exists here from the row that ends it. Rows of segments that are still open lie in caches, so a segment that
closes is computed from all its rows, whenever they came. Caches that change at every row keep the state after row p
in slot p % 2: a row that a pausing sequence computes and does not keep writes the other slot.

Letters: B sequences, N new rows, P segments that close among them, M rows of those. lengths [B]: rows a sequence had
before this call; offsets [B + 1]: where its new rows begin; ends [N]: a segment ends after this row; cut_offsets
[B + 1]: where the segments that close begin. open_before [B]: rows of the open segment before this call.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .attention import attend_packed
from .caches import broad, history, history_offsets, with_history, writes


def every_call(function: Any) -> Any:
    """Marks a function that runs at every call, also when no segment closes: then what it is given of them is None."""
    function.runs_every_call = True
    return function


# -- plans -----------------------------------------------------------------------------------------


def closing(ends: Tensor) -> Tensor:
    """int64 [P]: the new rows that end a segment."""
    return ends.nonzero()[:, 0]


def closed_offsets(ends: Tensor, offsets: Tensor) -> Tensor:
    """int32 [B + 1]: where the segments that close in each sequence begin."""
    return functional.pad(torch.cumsum(ends, 0), (1, 0))[offsets.to(torch.int64)].to(torch.int32)


@every_call
@writes
def segments_before(state: Tensor, cut_offsets: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
    """int64 [B]: how many segments had closed. `state` [B, 2] counts on."""
    before = _before(state, lengths)
    _keep(state, before + (cut_offsets[1:] - cut_offsets[:-1]), lengths, offsets)
    return before


@every_call
def open_rows(state: Tensor, lengths: Tensor) -> Tensor:
    """int64 [B]: rows of the open segment before this call."""
    return _before(state, lengths)


@every_call
@writes
def keep_open_rows(state: Tensor, ends: Tensor, open_before: Tensor, lengths: Tensor, offsets: Tensor) -> Tensor:
    """The number of rows of the open segment after this call, kept in `state` [B, 2]."""
    bounds = offsets.to(torch.int64)
    row = torch.arange(len(ends), device=ends.device)
    # Rows after the last end of each sequence.
    last = torch.cummax(torch.where(ends, row, -1), 0).values if len(ends) else row
    stop = functional.pad(last, (1, 0), value=-1)[bounds[1:]] + 1
    has_end = stop > bounds[:-1]
    after = torch.where(has_end, bounds[1:] - stop, open_before + bounds[1:] - bounds[:-1])
    _keep(state, after, lengths, offsets)
    return after


def capped_open(ends: Tensor, at_most: int, open_before: Tensor, row_example: Tensor) -> Tensor:
    """`cuts.capped` where the first segment of a sequence has `open_before` rows already."""
    if len(ends) == 0:
        return ends
    row = torch.arange(len(ends), device=ends.device)
    new = functional.pad(row_example[1:] != row_example[:-1], (1, 0), value=True)
    first = new | functional.pad(ends[:-1], (1, 0), value=True)
    begins = first.nonzero()[:, 0]
    carried = torch.where(new[begins], open_before[row_example[begins]], 0)
    number = torch.cumsum(first, 0) - 1
    return ends | ((row - begins[number] + carried[number]) % at_most == at_most - 1)


def closed_among_new(ends: Tensor, row_example: Tensor, offsets: Tensor, cut_offsets: Tensor, also_own: bool) -> Tensor:
    """int64 [N]: the last new segment that ended before each row, or with `also_own` at it; -1: it ended earlier."""
    count = torch.cumsum(ends, 0)
    number = count - 1 if also_own else count - ends.to(torch.int64) - 1
    return torch.where(number < cut_offsets.to(torch.int64)[row_example], -1, number)


def index_open(
    ends: Tensor, row_example: Tensor, cut_offsets: Tensor, segments_before: Tensor, also_own: bool
) -> Tensor:
    """int64 [N]: how many segments ended before each row of its sequence; with `also_own` the last one that has
    ended."""
    before = torch.cumsum(ends, 0) - (0 if also_own else ends.to(torch.int64))
    count = segments_before[row_example] + before - cut_offsets.to(torch.int64)[row_example]
    return count - 1 if also_own else count


def closing_bounds(ends: Tensor, offsets: Tensor, open_before: Tensor, row_example: Tensor) -> Tensor:
    """int32 [P + 1]: offsets of the segments that close, in all their rows."""
    rows = ends.nonzero()[:, 0]
    example = row_example[rows]
    before = functional.pad(rows[:-1], (min(1, len(rows)), 0), value=-1)
    same = functional.pad(example[1:] == example[:-1], (min(1, len(rows)), 0), value=False)
    begin = torch.where(same, before + 1, offsets.to(torch.int64)[example] - open_before[example])
    return functional.pad(torch.cumsum(rows + 1 - begin, 0), (1, 0)).to(torch.int32)


def segment_numbers(bounds: Tensor) -> Tensor:
    """int64 [M]: the segment of each of the rows."""
    sizes = (bounds[1:] - bounds[:-1]).to(torch.int64)
    return torch.repeat_interleave(torch.arange(len(sizes), device=bounds.device), sizes)


def _before(state: Tensor, lengths: Tensor) -> Tensor:
    """What `state [B, 2, ...]` was after the last row. Before the first it is what a run begins with, 0: a row that
    does not stay writes the other slot."""
    return state[torch.arange(len(lengths), device=state.device), (lengths - 1) % 2]


def _keep(state: Tensor, after: Tensor, lengths: Tensor, offsets: Tensor) -> None:
    new = (offsets[1:] - offsets[:-1]).to(torch.int64)
    which = (new > 0).nonzero()[:, 0]
    state[which, (lengths + new - 1)[which] % 2] = after[which].to(state.dtype)


# -- rows and segments -----------------------------------------------------------------------------


@every_call
@writes
def closing_values(x: Tensor, cache: Tensor, ends: Tensor, offsets: Tensor, open_before: Tensor) -> Tensor:
    """`x [N, ...]` of all rows of the segments that close, `[M, ...]`, with those of earlier calls. Rows of segments
    that stay open are kept in `cache [B, slots, ...]`."""
    bounds, kept, flags = offsets.tolist(), open_before.tolist(), ends.tolist()
    parts = []
    for example, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if start == stop:
            continue
        last = next((row for row in range(stop - 1, start - 1, -1) if flags[row]), None)
        if last is None:
            cache[example, kept[example] : kept[example] + stop - start] = x[start:stop].to(cache.dtype)
            continue
        if kept[example]:
            parts.append(cache[example, : kept[example]].to(x.dtype, copy=True))
        parts.append(x[start : last + 1])
        cache[example, : stop - last - 1] = x[last + 1 : stop].to(cache.dtype)
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else x[:0]


@every_call
@writes
def spread_open(
    p: Tensor | None,
    number: Tensor,
    last: Tensor,
    row_example: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    cut_offsets: Tensor,
) -> Tensor:
    """Values of segments at rows: of those that close now, `p [P, ...]`, where `number [N]` says which, else of the
    last one that closed before, which is kept in `last [B, 2, ...]`."""
    before = _before(last, lengths)
    if p is None or len(p) == 0:
        _keep(last, before, lengths, offsets)
        return before[row_example]
    bounds = cut_offsets.to(torch.int64)
    closed = bounds[1:] > bounds[:-1]
    after = torch.where(broad(closed, p), p[(bounds[1:] - 1).clamp(min=0)].to(last.dtype), before)
    _keep(last, after, lengths, offsets)
    now = p[number.clamp(min=0)]
    return torch.where(broad(number >= 0, p), now, before[row_example].to(p.dtype))


@every_call
@writes
def attend_across(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor | None,
    keys: Tensor,
    values: Tensor,
    q_position: Tensor | None,
    q_offsets: Tensor,
    k_offsets: Tensor,
    k_lengths: Tensor,
    scale: float,
    low: int | None,
    high: int | None,
    predicate: tuple[Any, ...] | None,
    captured: tuple[Tensor, ...],
    score: tuple[Any, ...] | None,
) -> Tensor | None:
    """Queries along one axis, keys along another that grows too: all keys so far are cached, `keys [B, S, G, K]`.
    Either is None when it is of segments and none closes."""
    left = list(captured)
    if k is None or v is None:
        k, v = (cache.new_zeros(0, *cache.shape[2:]) for cache in (keys, values))
    predicate = None if predicate is None else with_history(predicate, left, k_offsets, k_lengths)
    score = None if score is None else with_history(score, left, k_offsets, k_lengths)
    k_all, v_all = history(k, keys, k_offsets, k_lengths), history(v, values, k_offsets, k_lengths)
    if q is None:
        return None
    k_all, v_all = k_all.to(q.dtype), v_all.to(q.dtype)
    all_offsets = history_offsets(k_offsets, k_lengths)
    return attend_packed(
        q, k_all, v_all, q_offsets, all_offsets, scale, low, high, predicate, None, score, q_position=q_position
    )


@every_call
@writes
def hold_first(
    x: Tensor,
    state: Tensor,
    ends: Tensor,
    open_before: Tensor,
    row_example: Tensor,
    lengths: Tensor,
    offsets: Tensor,
) -> Tensor:
    """`x [N, ...]` as it was at the first row of each row's segment; `state` [B, 2, ...] keeps that of the open one."""
    if len(x) == 0:
        return x
    row, begin = torch.arange(len(x), device=x.device), offsets.to(torch.int64)[row_example]
    is_new = row == begin
    first = torch.where(is_new, open_before[row_example] == 0, functional.pad(ends[:-1], (1, 0), value=True))
    last = torch.cummax(torch.where(first, row, -1), 0).values
    before = _before(state, lengths)[row_example].to(x.dtype)
    held = torch.where(broad(last >= begin, x), x[last.clamp(min=0)], before)
    which = (offsets[1:].to(torch.int64) - 1).clamp(min=0)
    _keep(state, held[which], lengths, offsets)
    return held
