"""The gradient of a table of which a step reads a few rows, as an optimiser of its rows keeps it: in factors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..codegen.functions import row_tables
from ..codegen.gpu import bags

STRETCH = 512  # rows that are worked on at a time: they and their moments stay in a cache


class RowGradient:
    """Attached to a table as the gradient's half of `row_tables.StepRows`: what lookups add, until a step is made."""

    def __init__(self, table: Tensor) -> None:
        self.table = table.detach().reshape(table.shape[0], -1)
        self._factors: list[row_tables.Factors] = []
        self._scale = 1.0
        self._sums: row_tables.RowSums | None = None
        on_cpu = table.device.type == "cpu"
        self._row_sums = row_tables.RowSums if on_cpu else bags.RowSums
        self._stretch = STRETCH if on_cpu else 64 * STRETCH

    def add_gradient(self, index: Tensor, weight: Tensor | None, gradient: Tensor) -> None:
        self._factors.append((index.detach(), None if weight is None else weight.detach(), gradient.detach()))
        self._sums = None

    def forget_gradient(self) -> None:
        self._factors, self._scale, self._sums = [], 1.0, None

    def divide_gradient(self, divisor: float) -> None:
        self._scale /= divisor

    def gradient_norm(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.table.device)
        for _, sums in self._gradient():
            total += sums.square().sum(dtype=torch.float64)
        return total.sqrt().to(self.table.dtype)

    def dense_gradient(self) -> Tensor:
        total = torch.zeros_like(self.table)
        for rows, sums in self._gradient():
            total.index_copy_(0, rows, sums)
        return total

    def _gradient(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows with a gradient, and it, a stretch at a time. All readers' factors are sorted once a step."""
        if not self._factors:
            return
        if self._sums is None:
            self._sums = self._row_sums(self._factors)
        for rows, sums in self._sums.stretches(self._stretch):
            yield rows, sums if self._scale == 1.0 else sums.mul_(self._scale)
