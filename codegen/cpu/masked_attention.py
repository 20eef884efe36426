"""Attention under a mask that is an interval of keys per row, on a CPU: pictures in a text, say.

A plan cuts the rows into pieces that torch's fused kernel knows. Rows that see the same keys, as those of a picture do,
are a rectangle without a mask; rows of which each sees one key more than the row before are causal. Short pieces side
by side are one rectangle with a mask of its own. Nothing has an entry for every pair of rows.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ..functions.attention import attend_packed
from ..functions.masks import Predicate
from ..gpu.mask_intervals import Sides, hull
from .attention import Allowed, Piece, Plan, packed_attention

# A piece costs a call in both directions; shorter ones are joined, up to so many rows.
SHORT, JOINED = 48, 256


def plan_mask(offsets: Tensor, predicate: Predicate, low: int | None = None, high: int | None = None) -> Plan | None:
    """Make it once per batch: all layers with the same mask share it. None: the mask is no interval, or a row sees
    nothing."""
    rows = int(offsets[-1])
    if rows == 0:
        return Plan((), False)
    found = hull(predicate, Sides(offsets, offsets, rows, rows), low, high)
    seen = found.intervals.queries
    conditions = (*found.conditions, (seen.high > seen.low).all())
    if not found.is_exact or not all(bool(condition) for condition in conditions):
        return None
    pieces = tuple(_piece(run, seen.low, seen.high) for run in _runs(offsets.tolist(), seen.low, seen.high))
    return Plan(pieces, shares_keys=True)


def _runs(offsets: Sequence[int], low: Tensor, high: Tensor) -> list[tuple[int, int]]:
    """Rows in stretches that one call can take: from, to."""
    number = torch.arange(low.shape[0])
    steps = high - number == 1
    same_low = low[1:] == low[:-1]
    equal = same_low & (high[1:] == high[:-1])
    rising = same_low & steps[1:] & steps[:-1]
    # The last row of a rectangle sees no further than itself, and is none of those that rise after it.
    rising[1:] &= ~equal[:-1]
    breaks = (~(equal | rising)).nonzero()[:, 0] + 1
    bounds = sorted({0, low.shape[0], *breaks.tolist(), *(at for at in offsets if 0 < at < low.shape[0])})
    ends = set(offsets)
    joined: list[tuple[int, int]] = []
    is_short: list[bool] = []
    for start, stop in pairwise(bounds):
        short = stop - start < SHORT
        if short and joined and is_short[-1] and start not in ends and stop - joined[-1][0] <= JOINED:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
            is_short.append(short)
    return joined


def _piece(run: tuple[int, int], low: Tensor, high: Tensor) -> Piece:
    start, stop = run
    lows, highs = low[start:stop], high[start:stop]
    first, last = int(lows.min()), int(highs.max())
    queries, keys = stop - start, last - first
    allowed = None
    if bool((lows > first).any()) or bool((highs < last).any()):
        key = torch.arange(first, last, dtype=low.dtype)
        allowed = Allowed((key >= lows[:, None]) & (key < highs[:, None]))
        if first == start and keys == queries and bool((allowed.flags == _triangle(queries)).all()):
            return Piece(start, queries, first, keys, 1, "causal")
    return Piece(start, queries, first, keys, 1, allowed)


@lru_cache(maxsize=64)
def _triangle(rows: int) -> Tensor:
    return torch.ones(rows, rows, dtype=torch.bool).tril()


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan | None,
    offsets: Tensor,
    scale: float,
    predicate: Predicate,
    low: int | None = None,
    high: int | None = None,
) -> Tensor:
    """As `attend_packed` with queries and keys of one axis."""
    if plan is None:
        return attend_packed(q, k, v, offsets, offsets, scale, low, high, predicate)
    return packed_attention(q, k, v, plan, scale)
