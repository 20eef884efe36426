"""Tables of which each rank holds some columns, or some rows.

**Columns.** Every rank is told all ranks' ids and weights, sums its own columns of all the bags, and gets its own bags'
other columns for them: of T lines that read n rows of width W a rank receives 12 T n bytes of ids and weights per
other rank, and 4 T W of sums. This is what Memory Layers at Scale does (memory_layers.md 4).

**Rows.** Every rank asks for the rows it reads, each once, and sums them itself: 4 U W bytes for U different rows.
Better where a line reads one row or columns would be narrow; it holds U rows in memory.

Gradients take the same way back. On a rank its part is a table like any other, whose optimiser updates rows when they
are read, so both are functions of row_tables.py between exchanges.

Letters: G ranks, T lines of this rank, A lines of all ranks, n rows read by a line, W width, C columns here, U rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.functions import row_tables
from .ranks import Ranks


class _Exchange(torch.autograd.Function):
    """`Ranks.exchange`; gradients go back to where the values came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        ctx.ranks, ctx.sent, ctx.received = ranks, sent, received
        return ranks.exchange(x, sent, received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.ranks.exchange(gradients[0], ctx.received, ctx.sent), None, None, None


def _exchange(x: Tensor, ranks: Ranks, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    result: Any = _Exchange.apply(x, ranks, sent, received)
    return result


def chunks(size: int, count: int) -> list[int]:
    """How much of a dimension each rank has, as `torch.chunk` and DTensor cut it."""
    each = -(-size // count)
    return [max(min(each, size - rank * each), 0) for rank in range(count)]


@dataclass(frozen=True, eq=False)
class ColumnShards:
    """`part [entries, own columns...]` of a table of `shape`."""

    part: Tensor
    shape: tuple[int, ...]
    ranks: Ranks

    @property
    def _widths(self) -> list[int]:
        behind = torch.Size(self.shape[2:]).numel()
        return [columns * behind for columns in chunks(self.shape[1], self.ranks.count)]

    def bag(self, index: Tensor, weight: Tensor | None) -> Tensor:
        lines = self._lines(index)
        weights = None if weight is None else self._of_all(weight, lines)
        sums = row_tables.sum_rows(row_tables.flat_table(self.part), self._of_all(index, lines), weights)
        own = lines[self.ranks.number]
        width = self._widths[self.ranks.number]
        sent, received = [width * count for count in lines], [own * columns for columns in self._widths]
        parts = _exchange(sums.reshape(-1), self.ranks, sent, received).split(received)
        return torch.cat([part.view(own, columns) for part, columns in zip(parts, self._widths, strict=True)], 1)

    def products(self, index: Tensor, lines: Tensor) -> Tensor:
        counts = self._lines(index)
        own = counts[self.ranks.number]
        width = self._widths[self.ranks.number]
        sent, received = [own * columns for columns in self._widths], [width * count for count in counts]
        x = torch.cat([part.reshape(-1) for part in lines.split(self._widths, 1)])
        columns = _exchange(x, self.ranks, sent, received).view(-1, width)
        partial = row_tables.multiply_rows(row_tables.flat_table(self.part), self._of_all(index, counts), columns)
        of_ranks = _exchange(partial, self.ranks, counts, [own] * self.ranks.count)
        return of_ranks.view(self.ranks.count, own, index.shape[1]).sum(0)

    def _lines(self, index: Tensor) -> list[int]:
        return self.ranks.counts([len(index)] * self.ranks.count)

    def _of_all(self, x: Tensor, lines: Sequence[int]) -> Tensor:
        """[T, n] to [A, n]."""
        return _exchange(x.repeat(self.ranks.count, 1), self.ranks, [len(x)] * self.ranks.count, lines)


@dataclass(frozen=True, eq=False)
class RowShards:
    """`part [own entries, ...]` of a table of `shape`."""

    part: Tensor
    shape: tuple[int, ...]
    ranks: Ranks

    def bag(self, index: Tensor, weight: Tensor | None) -> Tensor:
        rows, place = self._fetched(index)
        return row_tables.sum_rows(rows, place, weight)

    def products(self, index: Tensor, lines: Tensor) -> Tensor:
        rows, place = self._fetched(index)
        return row_tables.multiply_rows(rows, place, lines)

    def _fetched(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that are read, each once: [U, W], and which of them [T, n]."""
        wanted, place = torch.unique(index, return_inverse=True)
        each = -(-self.shape[0] // self.ranks.count)
        asked = torch.bincount(wanted // each, minlength=self.ranks.count).tolist()
        given = self.ranks.counts(asked)
        own = self.ranks.exchange(wanted % each, asked, given)
        found = row_tables.sum_rows(row_tables.flat_table(self.part), own[:, None], None)
        return _exchange(found, self.ranks, given, asked), place
