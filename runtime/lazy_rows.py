"""AdamW on a table of which a step reads a few rows: the numbers of dense AdamW, the work of the rows.

Dense AdamW moves every row at every step: where a gradient is zero the moments shrink, what is left of the first
still moves the row, and decay goes on. Here a row is left alone until it is read again, and the steps it missed are
made up for at once (memory_layers.md 7.2, 9 check 9). With x the root of a row's second moment and s the step of its
last update, the steps s + 1 .. t move an entry with first moment m by

    m * sum over j of  r_j / (x * a_j + eps)        r_j = lr_j * D(j, t) * beta1^(j - s) / (1 - beta1^j)
                                                    a_j = sqrt(beta2^(j - s) / (1 - beta2^j))

where D(j, t) is the decay of the steps after j. The sum depends on the entry through x alone: it is the sum of
p / (x + eps * u) over points u = 1 / a_j with masses p = r_j / a_j. Where x is large against eps a few points do for
all of them, those of Gauss' quadrature, which is exact in the first moments of the masses: three, or one where eps
hardly matters. The rest, entries whose gradients are about as small as eps, are summed term by term.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..codegen.functions import row_tables
from .errors import RuntimeFault

STRETCH = 512  # rows that are worked on at a time: they and their moments stay in a cache
POINTS = 3
# Up to which eps * u / x, with the root mean square of u, one point and three are right to seven digits.
ONE_POINT, FEW_POINTS = 1e-4, 1e-2
FORGOTTEN = 1e-14  # the part of a first move that no longer counts


@dataclass(frozen=True)
class RowSettings:
    betas: tuple[float, float]
    eps: float
    decay: float


class LazyRows:
    """Attached to a table as `row_tables.StepRows`. Counts steps as AdamW does: `updates` have been made."""

    def __init__(self, table: Tensor, settings: RowSettings) -> None:
        self.table = table.detach().reshape(table.shape[0], -1)
        if settings.betas[1] <= 0:
            raise RuntimeFault("a lazy table needs a second beta above 0: its moment must last until rows are read")
        self.settings = settings
        self.updates = 0
        self.first = torch.zeros_like(self.table)
        self.second = torch.zeros_like(self.table)
        # The number of the last update that a row's values know of.
        self.known = torch.zeros(table.shape[0], dtype=torch.int32, device=table.device)
        self._rates: list[float] = []  # of every update since `_since`
        self._since = 0
        self._kept_decay: list[float] = [0.0]  # log of what decay has left, after each update since `_since`
        self._factors: list[tuple[Tensor, Tensor | None, Tensor]] = []
        self._scale = 1.0
        self._sums: row_tables.RowSums | None = None

    def load(self, first: Tensor, second: Tensor, updates: int) -> None:
        """Goes on from moments of dense AdamW after so many updates."""
        self.first.copy_(first.reshape(self.first.shape))
        self.second.copy_(second.reshape(self.second.shape))
        self.updates = self._since = updates
        self._rates, self._kept_decay = [], [0.0]
        self.known.fill_(updates)
        self.forget_gradient()

    # ---- in a step ----------------------------------------------------------------------------------

    def before_reading(self, index: Tensor) -> None:
        if self.updates > self._since:
            with torch.no_grad():
                rows = torch.unique(index)
                self._bring_up(rows[self.known[rows] < self.updates])

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
            self._sums = row_tables.RowSums(self._factors)
        for rows, sums in self._sums.stretches(STRETCH):
            yield rows, sums if self._scale == 1.0 else sums.mul_(self._scale)

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> None:
        """One update at rate `lr`, with `clip` times the gradient. Rows without one are made up for later."""
        beta1, beta2 = self.settings.betas
        self._note(lr)
        last = self.updates - 1
        for rows, gradient in self._gradient():
            # Read by something that did not say so, such as a lookup outside of any step.
            self._bring_up(rows[self.known[rows] < last], last)
            if clip != 1.0:
                gradient.mul_(clip)
            values, first, second = (part[rows] for part in (self.table, self.first, self.second))
            values.mul_(1 - lr * self.settings.decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = second.sqrt().div_(math.sqrt(1 - beta2**self.updates)).add_(self.settings.eps)
            values.addcdiv_(first, spread, value=-lr / (1 - beta1**self.updates))
            self._store(rows, values, first, second)
            self.known[rows] = self.updates
        self.forget_gradient()

    def _note(self, lr: float) -> None:
        self.updates += 1
        self._rates.append(lr)
        left = 1 - lr * self.settings.decay
        self._kept_decay.append(self._kept_decay[-1] + (math.log(left) if left > 0 else -math.inf))

    # ---- the steps that rows missed -----------------------------------------------------------------

    @torch.no_grad()
    def bring_up_all(self) -> None:
        """Every row as dense AdamW would have it now."""
        for begin in range(0, self.table.shape[0], 1 << 16):
            known = self.known[begin : begin + (1 << 16)]
            self._bring_up(begin + torch.nonzero(known < self.updates).squeeze(1))
        self._rates, self._kept_decay, self._since = [], [0.0], self.updates

    def _bring_up(self, rows: Tensor, until: int | None = None) -> None:
        until = self.updates if until is None else until
        for part in rows.split(STRETCH):
            if len(part):
                self._make_up(part, until)

    def _make_up(self, rows: Tensor, until: int) -> None:
        beta1, beta2 = self.settings.betas
        since, place = torch.unique(self.known[rows], return_inverse=True)
        missed = (until - since).to(torch.float64)
        terms = self._terms(since, until)
        values, first, second = (part[rows] for part in (self.table, self.first, self.second))
        x = second.sqrt()
        eps = self.settings.eps
        least = eps * _spread(*terms)  # of x, for it to be large
        smallest = float(torch.where(first != 0, x, math.inf).amin())

        def of_rows(numbers: Tensor) -> Tensor:
            return numbers.to(values.device, values.dtype)[place][:, None]

        points, masses = _quadrature(*terms, 1 if least <= ONE_POINT * smallest else POINTS)
        moved = torch.zeros_like(values)
        for k in range(points.shape[1]):
            moved.add_(first * of_rows(masses[:, k]) / (x + of_rows(eps * points[:, k])))
        if least > FEW_POINTS * smallest:
            small = torch.nonzero((x * FEW_POINTS < least) & (first != 0), as_tuple=True)
            moved[small] = first[small] * _summed(x[small], place[small[0]], *terms, eps)
        values.mul_(of_rows(torch.exp(self._decay_between(since, until)))).sub_(moved)
        first.mul_(of_rows(beta1**missed))
        second.mul_(of_rows(beta2**missed))
        self._store(rows, values, first, second)
        self.known[rows] = until

    def _store(self, rows: Tensor, values: Tensor, first: Tensor, second: Tensor) -> None:
        for part, new in ((self.table, values), (self.first, first), (self.second, second)):
            part.index_copy_(0, rows, new)

    def _decay_between(self, since: Tensor, until: int) -> Tensor:
        kept = torch.tensor(self._kept_decay, dtype=torch.float64)
        return kept[until - self._since] - kept[since.cpu().long() - self._since]

    def _terms(self, since: Tensor, until: int) -> tuple[Tensor, Tensor]:
        """Points 1 / a_j and masses r_j / a_j of the updates that rows known at `since [n]` missed: `[n, updates]`,
        0 where there is none. Those at which nothing is left of the first moment are left out."""
        beta1, beta2 = self.settings.betas
        since = since.cpu().to(torch.int64)
        longest = min(int(until - since.min()), _terms_that_count(beta1, beta2, self.settings.eps))
        after = torch.arange(1, longest + 1, dtype=torch.int64)
        number = (since[:, None] + after).clamp(max=until)
        is_missed = since[:, None] + after <= until
        rates = torch.tensor(self._rates, dtype=torch.float64)[number - self._since - 1]
        kept = torch.tensor(self._kept_decay, dtype=torch.float64)
        decay = torch.exp(kept[until - self._since] - kept[number - self._since])
        j, gone = number.to(torch.float64), after.to(torch.float64)
        r = rates * decay * beta1**gone / (1 - beta1**j)
        u = torch.sqrt((1 - beta2**j) / beta2**gone)
        return u, torch.where(is_missed, r * u, 0.0)


def _terms_that_count(beta1: float, beta2: float, eps: float) -> int:
    """How many steps a row keeps moving after its last gradient, by what moves it or by what divides by eps."""
    if beta1 == 0:
        return 1
    by_eps = math.log(FORGOTTEN * max(eps, 1e-300)) / math.log(beta1)
    both = beta1 / math.sqrt(beta2) if beta2 > 0 else math.inf
    return math.ceil(min(by_eps, math.log(FORGOTTEN) / math.log(both)) if both < 1 else by_eps)


def _spread(u: Tensor, p: Tensor) -> float:
    """The root mean square of the points, where it is largest."""
    return float(((p * u * u).sum(1) / p.sum(1).clamp(min=1e-300)).max().sqrt())


def _summed(x: Tensor, place: Tensor, u: Tensor, p: Tensor, eps: float) -> Tensor:
    """The sum of p / (x + eps * u) over the terms `[place]` of each entry `x [entries]`."""
    u, p = u.to(x.device), p.to(x.device)
    parts = zip(x.split(1 << 12), place.split(1 << 12), strict=True)
    return torch.cat([(p[at] / (part[:, None].double() + eps * u[at])).sum(1) for part, at in parts]).to(x.dtype)


def _quadrature(u: Tensor, p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Gauss' points and masses for masses `p [n, terms]` at points `u`: `[n, count]`, by Lanczos' recurrence."""
    total = p.sum(1)
    safe = total.clamp(min=1e-300)
    if count == 1:
        return torch.where(total > 0, (p * u).sum(1) / safe, 1.0)[:, None], total[:, None]
    weight = p / safe[:, None]
    before, now = torch.zeros_like(u), torch.ones_like(u)
    alphas, betas = [], []
    beta = torch.zeros_like(total)
    for _ in range(count):
        alpha = (weight * u * now * now).sum(1)
        following = (u - alpha[:, None]) * now - beta.sqrt()[:, None] * before
        alphas.append(alpha)
        beta = (weight * following * following).sum(1)
        # With fewer terms than points the rest have no mass.
        exhausted = beta <= 1e-24 * alpha * alpha
        beta = torch.where(exhausted, 0.0, beta)
        betas.append(beta)
        scale = torch.where(exhausted, 0.0, beta.clamp(min=1e-300).rsqrt())
        before, now = now, following * scale[:, None]
    matrix = torch.diag_embed(torch.stack(alphas, 1))
    beside = torch.stack(betas[:-1], 1).sqrt()
    matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    found = torch.linalg.eigh(matrix)
    masses = total[:, None] * found.eigenvectors[:, 0, :].square()
    # A point without mass may lie anywhere but at 0, where an entry that was never moved would be divided by 0.
    return torch.where(masses > 0, found.eigenvalues, 1.0), masses
