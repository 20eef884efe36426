"""Tables that stay in their file, or in the memory of the CPU, with the rows that are read most in fast memory: that of
the model's device, or plain memory where this is the CPU.

Reads of a memory layer are uneven, so that a few per cent of the rows serve most of them (memory_layers.md 7.9). What
is read is the same either way. A row is chosen by how often it was read, old reads counting less and less; that is
decided for many reads at once, and a decision moves no more rows than a part of the reads since the one before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codegen.functions.row_tiers import ATTRIBUTE, row_tier
from ..dsl.program import Program, Weight

SMALLEST = 1 << 20  # bytes of a table that is worth it
# Reads between two decisions at least, how many of them there are to one row that moves, and what is left of a count.
PERIOD, READS_PER_MOVE, KEPT = 4096, 8, 0.9


@dataclass(frozen=True)
class HotReads:
    """How often rows were read since the table was opened, and how often they were in fast memory."""

    entries: int
    rows: int  # in fast memory, at most
    bytes: int  # that these take
    reads: int
    hits: int

    @property
    def rate(self) -> float:
        return self.hits / self.reads if self.reads else 0.0

    def __str__(self) -> str:
        kept = f"{self.rows:,} of {self.entries:,} rows in fast memory ({self.bytes / 2**20:,.1f} MiB)"
        return f"{kept} served {self.rate:.1%} of {self.reads:,} reads"

    def to_json(self) -> dict[str, object]:
        return {
            "entries": self.entries, "rows": self.rows, "bytes": self.bytes, "reads": self.reads, "hits": self.hits,
            "rate": self.rate,
        }  # fmt: skip


class HotRows:
    """`share` of the rows of `table [entries, *rest]`, which lies where the CPU can read it, are kept on `device`.
    Attached to the table as `row_tiers.RowTier`."""

    def __init__(self, table: Tensor, share: float, device: torch.device) -> None:
        self._table = table.detach().flatten(1) if table.dim() > 1 else table.detach()[:, None]
        self._rest, entries = table.shape[1:], table.shape[0]
        self.count = max(1, math.ceil(share * entries))
        self._fast = torch.empty((self.count, self._table.shape[1]), dtype=table.dtype, device=device)
        self._held = torch.zeros(self.count, dtype=torch.int64, device=device)  # rows of the table; first `_filled`
        self._filled = 0
        self._slot = torch.full((entries,), -1, dtype=torch.int32, device=device)
        self._reads = torch.zeros(entries, device=device)
        self._since = 0
        self._all, self._hits = 0, torch.zeros((), dtype=torch.int64, device=device)

    @property
    def __name__(self) -> str:
        return "hot_rows"

    @torch.no_grad()
    def __call__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        wanted, place, times = torch.unique(index, return_inverse=True, return_counts=True)
        slot = self._slot[wanted].long()
        rows = self._fast.index_select(0, slot.clamp(min=0))
        missing = torch.nonzero(slot < 0).squeeze(1)
        if len(missing):
            fetched = self._fetched(wanted[missing])
            rows.index_copy_(0, missing, fetched)
            self._fill(wanted[missing], fetched)
        self._count(index.numel(), wanted, times, slot >= 0)
        return rows.reshape(len(wanted), *self._rest), place.reshape(index.shape)

    def reads(self) -> HotReads:
        size = self._fast.numel() * self._fast.element_size()
        return HotReads(len(self._slot), self.count, size, self._all, int(self._hits))

    def _fetched(self, ids: Tensor) -> Tensor:
        """Rows of the table, on the device: gathered by the CPU, and copied at once. A device copies from memory that
        stays where it is without waiting for it."""
        is_elsewhere = self._fast.device.type == "cuda"
        host = torch.empty((len(ids), self._table.shape[1]), dtype=self._table.dtype, pin_memory=is_elsewhere)
        torch.index_select(self._table, 0, ids.cpu(), out=host)
        return host.to(self._fast.device, non_blocking=True)

    def _fill(self, ids: Tensor, rows: Tensor) -> None:
        """While there is room, whatever is read stays."""
        taken = min(len(ids), self.count - self._filled)
        if taken:
            slots = torch.arange(self._filled, self._filled + taken, device=ids.device)
            self._put(slots, ids[:taken], rows[:taken])
            self._filled += taken

    def _put(self, slots: Tensor, ids: Tensor, rows: Tensor) -> None:
        self._fast.index_copy_(0, slots, rows)
        self._held[slots] = ids
        self._slot[ids] = slots.to(torch.int32)

    def _count(self, number: int, wanted: Tensor, times: Tensor, is_hot: Tensor) -> None:
        """Of `number` reads, `times` of each of the rows `wanted`."""
        self._all += number
        self._hits += times[is_hot].sum()
        self._reads.index_add_(0, wanted, times.to(self._reads.dtype))
        self._since += number
        if self._since >= max(PERIOD, self.count) and self._filled == self.count:
            self._decide()

    def _decide(self) -> None:
        """Rows that were read more often take the places of those that were read least; of rows alike the old stay."""
        score = self._reads.clone()
        score[self._held] += 0.5
        best = torch.topk(score, self.count).indices  # most reads first
        coming = best[self._slot[best] < 0][: self._since // READS_PER_MOVE]
        if len(coming):
            going = torch.sort(score[self._held]).indices[: len(coming)]
            self._slot[self._held[going]] = -1
            self._put(going, coming, self._fetched(coming))
        self._reads.mul_(KEPT)
        self._since = 0


def hot_tables(programs: Iterable[Program], sizes: Mapping[str, int]) -> set[str]:
    """The paths of large tables of which programs read rows, and nothing but rows; `sizes` in bytes, by path."""
    found: set[str] = set()
    whole: set[str] = set()
    for program in programs:
        for node in program.nodes:
            for place, value in enumerate(node.inputs):
                if isinstance(value, Weight):
                    (found if place == node.op.table else whole).add(value.path)
    return {path for path in found - whole if sizes[path] >= SMALLEST}


def keep_hot(table: Tensor, share: float, device: torch.device) -> None:
    """From now on whatever reads rows of the table asks for them, and it has no gradient."""
    setattr(table.requires_grad_(False), ATTRIBUTE, HotRows(table, share, device))


def hot_rows(table: Tensor) -> HotRows | None:
    found = row_tier(table)
    return found if isinstance(found, HotRows) else None
