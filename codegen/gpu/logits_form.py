"""What is asked of every row of `x weight^T + bias`, and the numbers that a scan along the row carries.

partition   log of the sum of the exponentials            mean    the logits weighted by their softmax
top         the largest                                    ties    how many are as large
place       the first of them                              pick_i  the logit at the row's i-th id
"""

from __future__ import annotations

from dataclasses import dataclass

WHOLE_NUMBERS = ("ties", "place")


@dataclass(frozen=True)
class LogitsForm:
    """`picks`: how many ids a row has. `gradients`: of "x", "weight", "bias", those that are asked for."""

    partition: bool = True
    mean: bool = False
    top: bool = False
    place: bool = False
    picks: int = 0
    has_bias: bool = False
    gradients: tuple[str, ...] = ("x", "weight")

    def __post_init__(self) -> None:
        if not (self.partition or self.top or self.place):
            raise ValueError("nothing is asked of the whole row")
        if self.mean and not self.partition:
            raise ValueError("the mean needs the partition")

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
