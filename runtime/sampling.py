"""Choosing the next token from logits. One uniform number per sequence and position, from a counter: what a sequence
draws depends on its seed and its position only, never on its neighbours or on how many rows were computed together.

Letters: B sequences, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..codegen.functions.packing import mix
from .errors import GenerateFault


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 takes the likeliest token. `top_k` keeps that many, `top_p` the fewest that hold that much
    probability."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise GenerateFault(f"the temperature is {self.temperature}, not a number from 0 up")
        if self.top_k is not None and self.top_k < 1:
            raise GenerateFault(f"top_k is {self.top_k}, not at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GenerateFault(f"top_p is {self.top_p}, not above 0 and at most 1")


def sample(logits_BV: Tensor, sampling: Sampling, seeds_B: Tensor, positions_B: Tensor) -> Tensor:
    """The next token of each sequence: int64 [B]. Ties go to the lowest id."""
    if sampling.temperature == 0:
        return torch.max(logits_BV, -1).indices
    # Likeliest first: what is left out is then the end of the row.
    sorted_BV, ids_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        sorted_BV, ids_BV = sorted_BV[:, : sampling.top_k], ids_BV[:, : sampling.top_k]
    # The likeliest is taken off first: divided by a tiny temperature it would be infinite.
    scores_BV = (sorted_BV.double() - sorted_BV[:, :1].double()) / sampling.temperature
    probabilities_BV = torch.softmax(scores_BV, -1)
    below_BV = torch.cumsum(probabilities_BV, -1) - probabilities_BV
    if sampling.top_p is not None:
        # A token stays while those before it hold less than top_p; the first always does.
        probabilities_BV = torch.where(below_BV < sampling.top_p, probabilities_BV, 0)
    cumulative_BV = torch.cumsum(probabilities_BV, -1)
    target_B1 = uniform(seeds_B, positions_B)[:, None] * cumulative_BV[:, -1:]
    kept_B1 = (probabilities_BV > 0).sum(-1, keepdim=True)
    chosen_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True).clamp(max=kept_B1 - 1)
    return torch.gather(ids_BV, -1, chosen_B1)[:, 0]


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """float64 in [0, 1) for each seed and position."""
    bits = mix(mix(seeds, 0), positions)
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53
