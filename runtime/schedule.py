"""The learning rate over a run, as a factor of each group's peak.

    warm-up    rises linearly from 0 to 1 over `warmup`
    cosine     final + (1 - final) * (1 + cos(pi * p)) / 2      p: how much of the rest is done, 0 .. 1
    linear     1 + (final - 1) * p
    constant   1

Times are steps or tokens, counted up to and including the step being taken: the first of 100 warm-up steps runs at 1
%, the hundredth at the peak, the last step of the run at the final fraction. After the end the final fraction stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .optimiser import Moment

KINDS = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Schedule:
    """`warmup` and `total` in one unit: steps, or tokens."""

    kind: str
    warmup: float
    total: float
    final: float = 0.1

    def moment(self, done: float) -> Moment:
        """Where a run is when `done` steps or tokens are reached."""
        return Moment(self.factor(done), min(done / self.total, 1.0) if self.total > 0 else 1.0)

    def factor(self, done: float) -> float:
        """What to multiply the peak learning rate by when `done` steps or tokens are reached."""
        if done < self.warmup:
            return done / self.warmup
        if self.kind == "constant":
            return 1.0
        rest = self.total - self.warmup
        progress = min((done - self.warmup) / rest, 1.0) if rest > 0 else 1.0
        if self.kind == "linear":
            return 1.0 + (self.final - 1.0) * progress
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * progress)) / 2
