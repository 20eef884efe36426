"""An optimiser of a table's rows that keeps one number for each: the mean square of the row's gradients.

    s <- beta2 * s + (1 - beta2) * mean(g^2)
    w <- w * (1 - lr * decay) - lr * g / (sqrt(s / (1 - beta2^t)) + eps)

AdamW without a first moment, and with a second that the entries of a row share (memory_layers.md 7.2): beside a table
it needs a few bytes for each row, not two more tables, and a step moves a third of the bytes. A step without a gradient
only shrinks s and w, so a row that was left alone is made up for by two multiplications, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .rows_behind import DecayLog, RowsBehind, RowSettings


class RowMoments(RowsBehind):
    """Attached to a table as `row_tables.StepRows`.

    second     [entries], in at least float32
    means      of squares over the whole rows, where this rank has some of their columns: takes and returns the means
               over its own, and is told how many columns that are
    """

    def __init__(self, table: Tensor, settings: RowSettings, means: Callable[[Tensor, int], Tensor] | None = None):
        super().__init__(table, settings)
        wide = torch.promote_types(table.dtype, torch.float32)
        self.second = torch.zeros(table.shape[0], dtype=wide, device=table.device)
        self._decay = DecayLog(settings.decay)
        self._means = means

    def load(self, second: Tensor, updates: int) -> None:
        """Goes on from a moment of each row after so many updates."""
        self.second.copy_(second)
        self.updates = updates
        self._forget_history()
        self.forget_gradient()

    def before_reading(self, index: Tensor) -> None:
        if self.settings.decay:
            super().before_reading(index)

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> None:
        """One update at rate `lr`, with `clip` times the gradient. Rows without one are made up for later."""
        beta = self.settings.betas[1]
        last, self.updates = self.updates, self.updates + 1
        self._decay.note(lr)
        # By the root of what the second moment lacks at first, for all rows at once.
        lacks = math.sqrt(1 - beta**self.updates)
        rate, eps = lr * lacks * clip, self.settings.eps * lacks
        squares = None if self._means is None else self._squares_of_whole_rows(self._means)
        done = 0
        for rows, gradient in self._gradient():
            if self.settings.decay:  # read by something that did not say so
                self._bring_up(rows[self.known[rows] < last], last)
            square = _mean_square(gradient) if squares is None else squares[done : done + len(rows)]
            done += len(rows)
            missed = (self.updates - self.known_moments[rows]).to(self.second.dtype)
            second = self.second[rows].mul_(beta**missed).add_(square, alpha=(1 - beta) * clip * clip)
            self.second[rows] = second
            self.known[rows] = self.updates
            self.known_moments[rows] = self.updates
            scale = (rate / second.sqrt_().add_(eps)).to(gradient.dtype)
            values = self.table.index_select(0, rows)
            if self.settings.decay:
                values.mul_(1 - lr * self.settings.decay)
            self.table.index_copy_(0, rows, values.addcmul_(gradient, scale[:, None], value=-1))
        self.forget_gradient()

    def _squares_of_whole_rows(self, means: Callable[[Tensor, int], Tensor]) -> Tensor:
        """[rows with a gradient]. All ranks read the same rows."""
        own = [_mean_square(gradient) for _, gradient in self._gradient()]
        return means(torch.cat(own) if own else self.second.new_zeros(0), self.table.shape[1])

    @torch.no_grad()
    def bring_up_all(self) -> None:
        """Every row as if each step had moved it, its moment too."""
        self._bring_up_values()
        missed = (self.updates - self.known_moments).to(self.second.dtype)
        self.second.mul_(self.settings.betas[1] ** missed)
        self._forget_history()

    def _forget_history(self) -> None:
        self.known.fill_(self.updates)
        self.known_moments.fill_(self.updates)
        self._decay = DecayLog(self.settings.decay, self.updates)

    @torch.no_grad()
    def _bring_up(self, rows: Tensor, until: int) -> None:
        if len(rows) and self.settings.decay:
            self._shrink(rows, self._decay.left(self.known[rows].long(), until))
            self.known[rows] = until


def _mean_square(gradient: Tensor) -> Tensor:
    """Of each row: `[rows, width]` to `[rows]`, in at least float32."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dim=1, dtype=wide).square_().div_(gradient.shape[1])
