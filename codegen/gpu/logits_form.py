"""What is asked of every row of a formula of `x weight^T + bias`, and the numbers that a scan along the row carries.

partition   log of the sum of the exponentials            mean    the logits weighted by their softmax
top         the largest                                    ties    how many are as large
place       the first of them                              pick_i  the logit at the row's i-th id
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property

from .formula import Formula, folded, from_tuple

WHOLE_NUMBERS = ("ties", "place")


@dataclass(frozen=True)
class LogitsForm:
    """`picks`: how many ids a row has. `gradients`: of "x", "weight", "bias", those that are asked for. `change`: the
    formula of formula.py that makes a logit of an output of the linear, as the text of nested tuples over ("score",);
    None where they are the same."""

    partition: bool = True
    mean: bool = False
    top: bool = False
    place: bool = False
    picks: int = 0
    has_bias: bool = False
    gradients: tuple[str, ...] = ("x", "weight")
    change: str | None = None

    def __post_init__(self) -> None:
        if not (self.partition or self.top or self.place):
            raise ValueError("nothing is asked of the whole row")
        if self.mean and not self.partition:
            raise ValueError("the mean needs the partition")

    @cached_property
    def formula(self) -> Formula | None:
        return None if self.change is None else folded(from_tuple(ast.literal_eval(self.change)))

    @property
    def pick_names(self) -> tuple[str, ...]:
        return tuple(f"pick_{number}" for number in range(self.picks))

    @property
    def results(self) -> tuple[str, ...]:
        """In the order of the operator's results. Ties are there because the gradient of `top` is shared by them."""
        asked = {
            "partition": self.partition, "mean": self.mean, "top": self.top, "ties": self.top, "place": self.place,
        }  # fmt: skip
        return (*(name for name, is_asked in asked.items() if is_asked), *self.pick_names)

    @property
    def differentiable(self) -> tuple[str, ...]:
        return tuple(name for name in self.results if name not in WHOLE_NUMBERS)

    @property
    def kept(self) -> tuple[str, ...]:
        """Results that the gradients are computed from."""
        return tuple(name for name in self.results if name in ("partition", "mean", "top", "ties"))

    @property
    def states(self) -> tuple[str, ...]:
        """What a scan carries; those of two parts of a row can be merged."""
        asked = {
            "top": True, "total": self.partition, "weighted": self.mean, "ties": self.top, "place": self.place,
        }  # fmt: skip
        return (*(name for name, is_asked in asked.items() if is_asked), *self.pick_names)
