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
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import RuntimeFault
from .rows_behind import DecayLog, RowsBehind, RowSettings

POINTS = 3
# Up to which eps * u / x, with the root mean square of u, one point and three are right to the digits of a type.
SINGLE, DOUBLE = (1e-3, 1e-2), (1e-6, 1e-3)
MANY_SMALL = 0.02  # the part of entries from which three points cost less than terms for the small ones
FORGOTTEN = 1e-14  # the part of a first move that no longer counts


class LazyRows(RowsBehind):
    """Attached to a table as `row_tables.StepRows`. Counts steps as AdamW does: `updates` have been made."""

    def __init__(self, table: Tensor, settings: RowSettings) -> None:
        if settings.betas[1] <= 0:
            raise RuntimeFault("a lazy table needs a second beta above 0: its moment must last until rows are read")
        super().__init__(table, settings)
        self.first = torch.zeros_like(self.table)
        self.second = torch.zeros_like(self.table)
        self._history = _History(settings)
        self._points = DOUBLE if table.dtype == torch.float64 else SINGLE

    def load(self, first: Tensor, second: Tensor, updates: int) -> None:
        """Goes on from moments of dense AdamW after so many updates."""
        self.first.copy_(first.reshape(self.first.shape))
        self.second.copy_(second.reshape(self.second.shape))
        self.updates = updates
        self._history = _History(self.settings, updates)
        self.known.fill_(updates)
        self.known_moments.fill_(updates)
        self.forget_gradient()

    # ---- in a step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> None:
        """One update at rate `lr`, with `clip` times the gradient. Rows without one are made up for later."""
        beta1, beta2 = self.settings.betas
        last, self.updates = self.updates, self.updates + 1
        self._history.note(lr)
        # By the root of what the second moment lacks at first, for all entries at once.
        lacks = math.sqrt(1 - beta2**self.updates)
        rate, eps = lr * lacks / (1 - beta1**self.updates), self.settings.eps * lacks
        for rows, gradient in self._gradient():
            # Read by something that did not say so, such as a lookup outside of any step.
            self._bring_up(rows[self.known[rows] < last], last)
            if clip != 1.0:
                gradient.mul_(clip)
            values, first, second = (part.index_select(0, rows) for part in (self.table, self.first, self.second))
            missed = (self.updates - self.known_moments[rows])[:, None].to(values.dtype)
            first.mul_(beta1**missed).add_(gradient, alpha=1 - beta1)
            second.mul_(beta2**missed).addcmul_(gradient, gradient, value=1 - beta2)
            values.mul_(1 - lr * self.settings.decay)
            values.addcdiv_(first, torch.sqrt(second, out=gradient).add_(eps), value=-rate)
            for part, changed in ((self.table, values), (self.first, first), (self.second, second)):
                part.index_copy_(0, rows, changed)
            self.known[rows] = self.updates
            self.known_moments[rows] = self.updates
        self.forget_gradient()

    # ---- the steps that rows missed -----------------------------------------------------------------

    @torch.no_grad()
    def bring_up_all(self) -> None:
        """Every row as dense AdamW would have it now, its moments too."""
        beta1, beta2 = self.settings.betas
        self._bring_up_values()
        missed = (self.updates - self.known_moments)[:, None].to(self.table.dtype)
        self.first.mul_(beta1**missed)
        self.second.mul_(beta2**missed)
        self.known_moments.fill_(self.updates)
        self._history = _History(self.settings, self.updates)

    def _bring_up(self, rows: Tensor, until: int) -> None:
        if not len(rows):
            return
        moments = self.known_moments[rows].long()
        known, order = (moments << 32 | self.known[rows].long()).sort()  # rows that missed the same steps lie together
        kinds, place = torch.unique_consecutive(known, return_inverse=True)
        missed = self._history.missed(kinds & 0xFFFFFFFF, kinds >> 32, until)
        rows = rows[order]
        self.known[rows] = until
        # Those that never had a gradient stand in front.
        still = int((moments == 0).sum())
        if self.settings.decay:
            self._shrink(rows[:still], missed.decay.to(place.device)[place[:still]])
        if still == len(rows):
            return
        for part, at in zip(rows[still:].split(self._stretch), place[still:].split(self._stretch), strict=True):
            low, high = int(at[0]), int(at[-1]) + 1
            self._make_up(part, at - low, missed.of(low, high))

    def _make_up(self, rows: Tensor, place: Tensor, missed: _Missed) -> None:
        values, first, x = (part.index_select(0, rows) for part in (self.table, self.first, self.second))
        x, eps = x.sqrt_(), self.settings.eps
        spread = eps * missed.spread

        def of_rows(numbers: Tensor) -> Tensor:
            return numbers.to(values.device, values.dtype)[place][:, None]

        if self.settings.decay:
            values.mul_(of_rows(missed.decay))
        if float(x.min()) * self._points[0] >= spread:
            points, masses = missed.quadrature(1)
        else:
            points, masses = self._leave_small(values, first, x, place, missed, spread)
        for k in range(points.shape[1]):
            is_last = k + 1 == points.shape[1]  # what was read is not needed afterwards
            moved = (first if is_last else first.clone()).mul_(of_rows(masses[:, k]))
            divisor = x.add_(of_rows(eps * points[:, k])) if is_last else x + of_rows(eps * points[:, k])
            values.addcdiv_(moved, divisor, value=-1)
        self.table.index_copy_(0, rows, values)

    def _leave_small(
        self, values: Tensor, first: Tensor, x: Tensor, place: Tensor, missed: _Missed, spread: float
    ) -> tuple[Tensor, Tensor]:
        """Moves entries by term that a few points are not right for, and leaves them no moment; the points for all
        others."""
        one, few = self._points
        is_small = x * one < spread
        small = torch.nonzero(is_small & (first != 0), as_tuple=True)
        count = 1
        if len(small[0]) > MANY_SMALL * x.numel():
            count, is_small = POINTS, x * few < spread
            small = torch.nonzero(is_small & (first != 0), as_tuple=True)
        if len(small[0]):
            values[small] -= first[small] * missed.summed(x[small], place[small[0]], self.settings.eps)
            first.masked_fill_(is_small, 0.0)
        return missed.quadrature(count)


class _History:
    """The rates of all updates since one, from which every update that a row missed can be told."""

    def __init__(self, settings: RowSettings, since: int = 0) -> None:
        self.settings = settings
        self.rates: list[float] = []
        self.decay = DecayLog(settings.decay, since)

    def note(self, lr: float) -> None:
        self.rates.append(lr)
        self.decay.note(lr)

    def missed(self, known: Tensor, moments: Tensor, until: int) -> _Missed:
        """What rows missed whose values know update `known [n]` and whose moments `moments [n]`. Steps after which
        nothing is left of the first moment are left out."""
        beta1, beta2 = self.settings.betas
        known, moments = known.cpu(), moments.cpu()
        longest = min(int((until - known).max()), _terms_that_count(beta1, beta2, self.settings.eps))
        number = (known[:, None] + torch.arange(1, longest + 1)).clamp(max=until)
        is_missed = known[:, None] + torch.arange(1, longest + 1) <= until
        rates = torch.tensor(self.rates, dtype=torch.float64)[number - self.decay.since - 1]
        j, gone = number.double(), (number - moments[:, None]).double()
        decay = self.decay.left(number, until)
        u = torch.sqrt((1 - beta2**j) / beta2**gone)
        p = torch.where(is_missed, rates * decay * beta1**gone / (1 - beta1**j) * u, 0.0)
        return _Missed(u, p, self.decay.left(known, until))


@dataclass(frozen=True)
class _Missed:
    """Points 1 / a_j and masses r_j / a_j of the steps that each kind of rows missed, `[kinds, steps]` (0 where there
    is none), and what decay leaves of their values, `[kinds]`."""

    u: Tensor
    p: Tensor
    decay: Tensor

    def of(self, low: int, high: int) -> _Missed:
        return _Missed(self.u[low:high], self.p[low:high], self.decay[low:high])

    @property
    def spread(self) -> float:
        """The root mean square of the points, where it is largest."""
        total = self.p.sum(1).clamp(min=1e-300)
        return float(((self.p * self.u * self.u).sum(1) / total).max().sqrt())

    def quadrature(self, count: int) -> tuple[Tensor, Tensor]:
        return _quadrature(self.u, self.p, count)

    def summed(self, x: Tensor, place: Tensor, eps: float) -> Tensor:
        """The sum of p / (x + eps * u) over the steps of each entry `x [entries]`, of kind `place`."""
        u, p = self.u.to(x.device), self.p.to(x.device)
        parts = zip(x.split(1 << 12), place.split(1 << 12), strict=True)
        return torch.cat([(p[at] / (part[:, None].double() + eps * u[at])).sum(1) for part, at in parts]).to(x.dtype)


def _terms_that_count(beta1: float, beta2: float, eps: float) -> int:
    """How many steps a row keeps moving after its last gradient, by what moves it or by what divides by eps."""
    if beta1 == 0:
        return 1
    by_eps = math.log(FORGOTTEN * max(eps, 1e-300)) / math.log(beta1)
    both = beta1 / math.sqrt(beta2) if beta2 > 0 else math.inf
    return math.ceil(min(by_eps, math.log(FORGOTTEN) / math.log(both)) if both < 1 else by_eps)


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
