"""What random draws depend on besides their place in the spec, as the last arguments of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputFault


@dataclass(frozen=True)
class Draws:
    """What random draws depend on besides the place in the spec: run seed, step, and the id of each example (0, 1, ..
    if None)."""

    seed: int = 0
    step: int = 0
    example_ids: Sequence[int] | Tensor | None = None


def draw_arguments(draws: Draws, size: int | None, device: torch.device) -> list[Tensor]:
    """The last arguments of a graph that draws: seed, step, example ids, all int64."""
    ids = range(size or 0) if draws.example_ids is None else draws.example_ids
    if size is not None and len(ids) != size:
        raise InputFault(f"{len(ids)} example ids were given for {size} examples")
    listed = ids if isinstance(ids, Tensor) else torch.tensor(list(ids), dtype=torch.int64)
    scalars = [torch.tensor(number, dtype=torch.int64, device=device) for number in (draws.seed, draws.step)]
    return [*scalars, listed.to(device=device, dtype=torch.int64)]
