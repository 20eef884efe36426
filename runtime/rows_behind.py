"""Rows of a table that are left alone until they are read, and then made up for what they missed."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_gradient import RowGradient

_ALL = 1 << 16  # rows that are looked at together where all of them are


@dataclass(frozen=True)
class RowSettings:
    betas: tuple[float, float]
    eps: float
    decay: float


class DecayLog:
    """What decay has left after each update since one."""

    def __init__(self, decay: float, since: int = 0) -> None:
        self.since = since
        self._decay = decay
        self._kept: list[float] = [0.0]  # logarithms

    def note(self, lr: float) -> None:
        left = 1 - lr * self._decay
        self._kept.append(self._kept[-1] + (math.log(left) if left > 0 else -math.inf))

    def left(self, known: Tensor, until: int) -> Tensor:
        """By how much updates `known + 1 .. until` shrink a value: float64, of `known`'s shape."""
        kept = torch.tensor(self._kept, dtype=torch.float64, device=known.device)
        return torch.exp(kept[until - self.since] - kept[known - self.since])


class RowsBehind(RowGradient):
    """`updates` have been made. Of each row it is known how many of them its values have seen, and its moments."""

    def __init__(self, table: Tensor, settings: RowSettings) -> None:
        super().__init__(table)
        self.settings = settings
        self.updates = 0
        self.known = torch.zeros(table.shape[0], dtype=torch.int32, device=table.device)
        self.known_moments = torch.zeros_like(self.known)

    @torch.no_grad()
    def before_reading(self, index: Tensor) -> None:
        rows = torch.unique(index)
        self._bring_up(rows[self.known[rows] < self.updates], self.updates)

    @abstractmethod
    def _bring_up(self, rows: Tensor, until: int) -> None:
        """The values of these rows; moments are left to the next update, which reads and writes them anyway."""

    def _bring_up_values(self) -> None:
        """Of all rows."""
        for begin in range(0, len(self.table), _ALL):
            behind = torch.nonzero(self.known[begin : begin + _ALL] < self.updates).squeeze(1)
            self._bring_up(begin + behind, self.updates)

    def _shrink(self, rows: Tensor, factors: Tensor) -> None:
        factors = factors.to(self.table.device, self.table.dtype)
        for part, factor in zip(rows.split(self._stretch), factors.split(self._stretch), strict=True):
            self.table.index_copy_(0, part, self.table.index_select(0, part).mul_(factor[:, None]))
