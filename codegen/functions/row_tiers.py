"""Tables that lie in slow memory, of which the rows that are read most are kept in fast memory.

What keeps them is attached to the table. It gives the rows that are asked for, each once, on the device that asks, and
where each of them is; whatever reads rows then reads those (passes/row_tiers.py).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

ATTRIBUTE = "row_tier"  # of a table


class RowTier(Protocol):
    def __call__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The different rows among `index [...]` of a table `[entries, *rest]`, `[rows, *rest]`, and which of them each
        is, int64 in the shape of the index."""
        ...


def row_tier(table: Tensor) -> RowTier | None:
    return getattr(table, ATTRIBUTE, None)
