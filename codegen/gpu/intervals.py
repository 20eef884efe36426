"""Masks as intervals: which packed rows [low, high) a row sees, as two int32 per row, made on the device.

    causal, examples of 2 and 3 rows:      row    0  1  2  3  4
                                           low    0  0  2  2  2
                                           high   1  2  3  4  5

For queries the rows are keys, for keys they are queries. A row that sees nothing has [0, 0). Nothing here waits for
the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """`low`, `high` int32 [rows]."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Intervals:
    """Keys of each query and queries of each key.

    is_exact: a query is in a key's bounds only if the key is in the query's.
    is_band: they say no more than examples and a band of distances.
    """

    queries: Bounds
    keys: Bounds
    is_exact: bool = True
    is_band: bool = False


def row_examples(offsets: Tensor, rows: int) -> Tensor:
    """int64 [rows]: the example of each packed row; the number of examples for a row behind the last."""
    return torch.searchsorted(offsets, _numbers(rows, offsets).to(offsets.dtype), right=True) - 1


def row_positions(offsets: Tensor, rows: int) -> Tensor:
    """int32 [rows]: the number of each row in its example."""
    return _numbers(rows, offsets) - offsets.to(torch.int32)[row_examples(offsets, rows)]


def band_intervals(
    q_offsets: Tensor,
    k_offsets: Tensor,
    q_rows: int,
    k_rows: int,
    low: int | None = None,
    high: int | None = None,
    q_position: Tensor | None = None,
) -> Intervals:
    """Rows of the same example with low <= key's number - query's position <= high (None: unbounded).

    `q_position [q_rows]` is the row's number in its example unless given. Then the bounds of keys are those of the
    example: nothing says that the positions of queries rise.
    """
    queries = _band(q_offsets, k_offsets, q_rows, low, high, q_position)
    if q_position is None:
        keys = _band(k_offsets, q_offsets, k_rows, _negated(high), _negated(low), None)
    else:
        keys = _band(k_offsets, q_offsets, k_rows, None, None, None)
    return Intervals(queries, keys, q_position is None or (low is None and high is None), is_band=True)


def seen_rows(
    q_offsets: Tensor, k_offsets: Tensor, q: Tensor, k: Tensor, low: int | None = None, high: int | None = None
) -> Intervals:
    """As `band_intervals`, for the rows of two packed tensors."""
    return band_intervals(q_offsets, k_offsets, q.shape[0], k.shape[0], low, high)


def run_intervals(q_ids: Tensor, k_ids: Tensor, q_offsets: Tensor, k_offsets: Tensor) -> Intervals:
    """Rows of the same example with equal ids, where equal ids of an example stand in one run and both sides rise in
    the same order: ids of segments, int [rows]. Negative ids are gaps, which see nothing and are not seen."""
    return Intervals(_runs(q_ids, k_ids, q_offsets, k_offsets), _runs(k_ids, q_ids, k_offsets, q_offsets))


def both(a: Intervals, b: Intervals) -> Intervals:
    """Rows seen by both. Always intervals."""
    return Intervals(_intersection(a.queries, b.queries), _intersection(a.keys, b.keys), a.is_exact and b.is_exact)


def either(a: Intervals, b: Intervals) -> Intervals:
    """Rows seen by one or the other, where in every row the two overlap, touch, or one is empty (both hold the row
    itself, say): causal or same(picture)."""
    return Intervals(_union(a.queries, b.queries), _union(a.keys, b.keys), a.is_exact and b.is_exact)


def _numbers(rows: int, like: Tensor) -> Tensor:
    return torch.arange(rows, device=like.device, dtype=torch.int32)


def _negated(bound: int | None) -> int | None:
    return None if bound is None else -bound


def _band(own: Tensor, other: Tensor, rows: int, low: int | None, high: int | None, position: Tensor | None) -> Bounds:
    example = row_examples(own, rows)
    # One more example, empty, for rows behind the last.
    begins = torch.cat([other, other[-1:]]).to(torch.int32)
    first, last = begins[example], begins[example + 1]
    if low is not None or high is not None:
        if position is None:
            position = _numbers(rows, own) - own.to(torch.int32)[example]
        center = first + position.to(torch.int32)
        end = last
        if high is not None:
            last = torch.minimum(last, center + (high + 1))
        if low is not None:
            first = torch.minimum(torch.maximum(first, center + low), end)
    return _tidy(first, last)


def _runs(own: Tensor, other: Tensor, own_offsets: Tensor, other_offsets: Tensor) -> Bounds:
    """By search among keys that rise over the packed rows: example first, then id."""
    if not own.numel() or not other.numel():
        return Bounds(*(torch.zeros(own.shape[0], dtype=torch.int32, device=own.device) for _ in range(2)))
    width = torch.maximum(own.max(), other.max()).to(torch.int64) + 2
    wanted = own.to(torch.int64) + 1 + row_examples(own_offsets, own.shape[0]) * width
    keys = other.to(torch.int64) + 1 + row_examples(other_offsets, other.shape[0]) * width
    # A gap counts as part of the run before it, so that keys rise; a run's end is put before the gap again below.
    keys = torch.cummax(keys, 0).values
    ends = torch.cummax(torch.where(other >= 0, _numbers(other.shape[0], other) + 1, 0), 0).values
    first = torch.searchsorted(keys, wanted)
    after = torch.searchsorted(keys, wanted, right=True)
    last = torch.minimum(after, torch.cat([ends.new_zeros(1), ends])[after])
    return _tidy(first, torch.where(own >= 0, last, 0))


def _intersection(a: Bounds, b: Bounds) -> Bounds:
    return _tidy(torch.maximum(a.low, b.low), torch.minimum(a.high, b.high))


def _union(a: Bounds, b: Bounds) -> Bounds:
    a_empty, b_empty = a.high <= a.low, b.high <= b.low
    low = torch.where(a_empty, b.low, torch.where(b_empty, a.low, torch.minimum(a.low, b.low)))
    return _tidy(low, torch.maximum(a.high, b.high))


def _tidy(low: Tensor, high: Tensor) -> Bounds:
    is_empty = high <= low
    return Bounds(
        torch.where(is_empty, 0, low).to(torch.int32).contiguous(),
        torch.where(is_empty, 0, high).to(torch.int32).contiguous(),
    )
