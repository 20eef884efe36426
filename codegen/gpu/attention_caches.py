"""The stateful attention of decoding graphs by generated kernels: what functions/caches.py does, in the same caches.

    step      new rows go to their slots; the decode kernel reads the caches where they lie, split along the slots
    extend    cached and new keys side by side are a packed batch, which the kernels of training attend to
    general   for masks, biases and formulas that read values of their own: of one row as step, of more as extend

Letters: B sequences, N new rows of all sequences, M keys of all sequences, S slots, H heads, G key heads, D and Dv
entries of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..functions.caches import attend_to_history, every_example, writes
from .attention import attend
from .attention_decode import attend_cached
from .intervals import Intervals, band_intervals

# -- one new row per sequence ----------------------------------------------------------------------


@writes
def attend_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    columns: int,
    scale: float,
    low: int | None,
    high: int,
) -> Tensor:
    """`q [B, H, D]`, `k [B, G, D]`, `v [B, G, Dv]` to `[B, H, Dv]`; the new rows are written to `keys [B, G, S, D]`
    and `values [B, G, S, Dv]` first. position int64 [B]: rows before this one. columns: slots in use afterwards."""
    slot, which = position % keys.shape[2], every_example(position)
    keys[which, :, slot] = k.to(keys.dtype)
    values[which, :, slot] = v.to(values.dtype)
    return attend_cached(q[:, None], keys, values, position, columns, scale, low, high)[:, 0].to(q.dtype)


# -- any number of new rows ------------------------------------------------------------------------


@dataclass(frozen=True)
class ExtendRows:
    """Which rows an extension attends to and where it leaves its own; the same for all layers with one band.

    k_offsets    int32 [B + 1]: of the keys of each sequence, cached ones first; equal to `offsets` without any
    old          sequence and slot [M] of each key, and whether it is a cached one; None without any
    new          [M]: which new row each other key is
    q_position   int32 [N]: the number of each new row among its sequence's keys
    intervals    keys of each query
    kept         [n]: the new rows that a later one may still read, None for all, and their sequence and slot
    """

    k_offsets: Tensor
    old: tuple[Tensor, Tensor, Tensor] | None
    new: Tensor | None
    q_position: Tensor | None
    intervals: Intervals
    kept: Tensor | None
    written: tuple[Tensor, Tensor]

    def beside_cached(self, new: Tensor, cache: Tensor) -> Tensor:
        """`new [N, G, D]` in the type of `cache [B, G, S, D]`, after the cached rows of each sequence: [M, G, D]."""
        new = new.to(cache.dtype)
        if self.old is None or self.new is None:
            return new
        sequence, slot, is_old = self.old
        return torch.where(is_old[:, None, None], cache[sequence, :, slot], new[self.new])

    def write(self, new: Tensor, cache: Tensor) -> None:
        sequence, slot = self.written
        cache[sequence, :, slot] = (new if self.kept is None else new[self.kept]).to(cache.dtype)


def extend_rows(offsets: Tensor, lengths: Tensor, keys: Tensor, low: int | None, high: int) -> ExtendRows:
    """offsets int32 [B + 1]: of the new rows. lengths int64 [B]: rows before them. Of `keys [B, G, S, D]` the slots
    are read only. Waits for the device once, to learn how many rows there are."""
    device, slots = offsets.device, keys.shape[2]
    bounds, before = offsets.tolist(), lengths.tolist()
    counts = [stop - start for start, stop in pairwise(bounds)]
    total = bounds[-1]
    # A sequence without new rows is not asked about anything.
    cached = [min(length, slots) if count else 0 for length, count in zip(before, counts, strict=True)]
    sequence, place = _places(counts, device)
    position = lengths[sequence] + place
    kept = None
    if max(counts, default=0) > slots:
        kept = (place >= torch.tensor(counts, device=device)[sequence] - slots).nonzero()[:, 0]
    written = (sequence, position % slots) if kept is None else (sequence[kept], position[kept] % slots)
    if not any(cached):
        intervals = band_intervals(offsets, offsets, total, total, low, high)
        return ExtendRows(offsets, None, None, None, intervals, kept, written)
    first = torch.tensor(cached, device=device)
    both = [old + new for old, new in zip(cached, counts, strict=True)]
    k_sequence, k_place = _places(both, device)
    k_offsets = functional.pad(torch.tensor(both, dtype=torch.int32).cumsum(0), (1, 0)).to(torch.int32).to(device)
    k_first = first[k_sequence]
    slot = (lengths[k_sequence] - k_first + k_place) % slots
    new = (offsets.to(torch.int64)[k_sequence] + k_place - k_first).clamp(min=0)
    q_position = (first[sequence] + place).to(torch.int32)
    intervals = band_intervals(offsets, k_offsets, total, sum(both), low, high, q_position)
    return ExtendRows(
        k_offsets, (k_sequence, slot, k_place < k_first), new, q_position, intervals, kept, written
    )  # fmt: skip


def _places(counts: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [rows] each: the sequence of every packed row, and its number there."""
    sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    begins = functional.pad(torch.tensor(counts).cumsum(0), (1, 0))[:-1]
    place = torch.arange(len(sequence)) - begins[sequence]
    return sequence.to(device), place.to(device)


@writes
def attend_extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    rows: ExtendRows,
    scale: float,
    low: int | None,
    high: int,
) -> Tensor:
    """`q [N, H, D]`, `k [N, G, D]`, `v [N, G, Dv]` to `[N, H, Dv]`, in the type of the caches meanwhile. Read, then
    written: a short cache would lose rows that the first new rows still see."""
    all_k, all_v = rows.beside_cached(k, keys), rows.beside_cached(v, values)
    found = attend(
        q.to(keys.dtype), all_k, all_v, offsets, rows.k_offsets, scale, low, high,
        q_position=rows.q_position, intervals=rows.intervals,
    )  # fmt: skip
    rows.write(k, keys)
    rows.write(v, values)
    return found.to(q.dtype)


# -- masks, biases and formulas that read values ----------------------------------------------------


@writes
def attend_general(*operands: Any) -> Tensor:
    """As functions/caches.attend_general, whose operands these are. One row per sequence reads the caches in place."""
    *known, columns = operands
    return attend_to_history(attend, *known) if columns is None else _general_step(*operands)


def _general_step(
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
    score: tuple[Any, ...] | None,
    columns: int,
) -> Tensor:
    """Caches `[B, S, G, D]` and `[B, S(, H)]`, of which no row is ever left out: row p lies in slot p."""
    which, left = every_example(position), list(captured)

    def written(rows: Tensor, cache: Tensor) -> Tensor:
        cache[which, position] = rows.to(cache.dtype)
        return cache

    written(k, keys)
    written(v, values)
    score, predicate = one_formula(
        score, predicate, bias, lambda rows: rows[:, None], lambda rows: written(rows, left.pop(0))
    )
    caches = keys.transpose(1, 2), values.transpose(1, 2)
    found = attend_cached(q[:, None], *caches, position, columns, scale, low, causal(high), score, predicate)
    return found[:, 0].to(q.dtype)


def causal(high: int | None) -> int:
    """A row that is yet to come has no slot, so that no bound is none at all."""
    return 0 if high is None else min(high, 0)


def one_formula(
    score: tuple[Any, ...] | None,
    predicate: tuple[Any, ...] | None,
    bias: Any,
    of_query: Callable[[Any], Tensor],
    of_key: Callable[[Any], Tensor],
    of_table: Callable[[Any], Tensor] = lambda table: table,
) -> tuple[tuple[Any, ...] | None, tuple[Any, ...] | None]:
    """Score and mask over what the functions make of the new rows of either side, called in the order in which caches
    were made. A bias is a term of the score here."""

    def beside(e: Any) -> Any:
        match e:
            case ("query" | "key", "position"):
                return e
            case ("query", rows):
                return ("query", of_query(rows))
            case ("key", rows):
                return ("key", of_key(rows))
            case ("entry", table, at):
                return ("entry", of_table(table), beside(at))
            case (str() as name, *parts) if name != "number":
                return (name, *(beside(part) for part in parts))
            case _:
                return e

    shift = None if bias is None else of_key(bias)
    predicate = None if predicate is None else beside(predicate)
    score = None if score is None else beside(score)
    if shift is not None:
        score = ("+", score or ("score",), ("key", shift.squeeze(2) if shift.shape[2] == 1 else shift))
    return score, predicate
