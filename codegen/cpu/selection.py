"""The largest scores on a CPU: torch's partial sort, where no two scores are equal.

Ties go to the lowest index, which a partial sort does not promise; rows with equal scores at the places that matter
are sorted whole. For pairs a + b of sorted sides only those with (r + 1)(s + 1) <= k + 1 can be among the k + 1 best,
as each pair is beaten by all in front of it in both (memory_layers.md 2.4): 123 of 1,089 for k = 32.
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import Tensor

from ..functions import gathers

LIBRARY = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{LIBRARY}::places_of_top", mutates_args=())
def places_of_top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of the last dimension, largest first, ties to the lowest: int64 `[..., count]`."""
    return largest(scores, count)[1]


@places_of_top.register_fake
def _(scores: Tensor, count: int) -> Tensor:
    return scores.new_empty((*scores.shape[:-1], count), dtype=torch.int64)


@torch.library.custom_op(f"{LIBRARY}::places_of_pairs", mutates_args=())
def places_of_pairs(first: Tensor, second: Tensor, count: int) -> Tensor:
    """`i * entries + j` of the `count` largest sums `first[..., i] + second[..., j]`: int64 `[..., count]`."""
    return largest_pairs(first, second, count)[1]


@places_of_pairs.register_fake
def _(first: Tensor, second: Tensor, count: int) -> Tensor:
    return first.new_empty((*first.shape[:-1], count), dtype=torch.int64)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `gathers.top`, without a gradient."""
    values, place = _largest(scores, min(count + 1, scores.shape[-1]))
    tied = _has_equal(values)
    values, place = values[..., :count].contiguous(), place[..., :count].contiguous()
    if tied.any():
        values[tied], place[tied] = gathers.top(scores[tied], count)
    return values, place


def largest_pairs(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest sums `first[..., i] + second[..., j]` and `i * entries + j`, without a gradient."""
    entries = second.shape[-1]
    (values_i, i), (values_j, j) = (_largest(side, min(count + 1, side.shape[-1])) for side in (first, second))
    rows, columns = _staircase(values_i.shape[-1], values_j.shape[-1], count + 1)
    sums = values_i.index_select(-1, rows).add_(values_j.index_select(-1, columns))
    values, best = sums.topk(min(count + 1, sums.shape[-1]), -1)
    best = best[..., :count]
    slot = i.gather(-1, rows[best]).mul_(entries).add_(j.gather(-1, columns[best]))
    tied = _has_equal(values)
    values = values[..., :count]
    if tied.any():
        values[tied], slot[tied] = gathers.top_pairs(first[tied], second[tied], count)
    return values, slot


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest and where they stand, as torch's topk has them: of a long row in two steps. The largest lie
    in the `count` blocks with the largest maxima, because outside of those nothing exceeds any of these maxima."""
    entries = scores.shape[-1]
    blocks = entries // _IN_BLOCK
    if entries % _IN_BLOCK or blocks < _LONG * count:
        found = scores.topk(count, -1)
        return found.values, found.indices
    # A block's entries stand far apart, so that maxima are taken of whole vectors.
    maxima = scores.unflatten(-1, (_IN_BLOCK, blocks)).amax(-2)
    best = maxima.topk(count, -1, sorted=False).indices
    place = (best[..., None] + blocks * torch.arange(_IN_BLOCK, device=scores.device)).flatten(-2)
    found = scores.gather(-1, place).topk(count, -1)
    return found.values, place.gather(-1, found.indices)


_IN_BLOCK = 4
_LONG = 4  # from so many times as many blocks as are wanted, two steps are faster


def _has_equal(values: Tensor) -> Tensor:
    """Rows of sorted values in which two neighbours are equal, or one is no number."""
    return ((values[..., 1:] == values[..., :-1]) | values[..., 1:].isnan()).any(-1) | values[..., 0].isnan()


@lru_cache(maxsize=64)
def _staircase(rows: int, columns: int, count: int) -> tuple[Tensor, Tensor]:
    r, s = torch.arange(rows)[:, None], torch.arange(columns)
    found = torch.nonzero((r + 1) * (s + 1) <= count)
    return found[:, 0].contiguous(), found[:, 1].contiguous()


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `gathers.top`."""
    index = places_of_top(scores.detach(), count)
    return torch.gather(scores, -1, index), index


def top_pairs(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `gathers.top_pairs`."""
    slot = places_of_pairs(first.detach(), second.detach(), count)
    entries = second.shape[-1]
    i, j = torch.div(slot, entries, rounding_mode="floor"), slot % entries
    return torch.gather(first, -1, i) + torch.gather(second, -1, j), slot
