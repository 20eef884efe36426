"""Reading the row k before or after, inside an example. `position [rows]` is a row's number in its example."""

from __future__ import annotations

import torch
from torch import Tensor


def previous_rows(x: Tensor, position: Tensor, k: int, first: Tensor | int | float | bool) -> Tensor:
    """`x [rows, ...]` k rows earlier; the first k rows of an example read `first`."""
    shifted = torch.roll(x, k, 0)
    # A flag beside the number 0 would become one.
    first = first if isinstance(first, Tensor) else torch.full((), first, dtype=x.dtype, device=x.device)
    return torch.where(_broad(position >= k, x), shifted, first)


def next_rows(x: Tensor, there: Tensor, k: int) -> Tensor:
    """`x [rows, ...]` k rows later (earlier for a negative k); 0 where the example has no such row, as `there [rows]`
    says."""
    shifted = torch.roll(x, -k, 0)
    return torch.where(_broad(there, x), shifted, torch.zeros((), dtype=x.dtype, device=x.device))


def has_next(row_example: Tensor, offsets: Tensor, position: Tensor, k: int) -> Tensor:
    """Flags `[rows]`: the example has a row k later (earlier for a negative k)."""
    lengths = (offsets[1:] - offsets[:-1]).to(torch.int64)
    return (position + k < lengths[row_example]) & (position + k >= 0)


def shifted_flags(present: Tensor, k: int, inside: Tensor) -> Tensor:
    """Whether the row k later (earlier for a negative k) is inside the example and itself present."""
    return inside & torch.roll(present, -k, 0)


def _broad(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(flags.shape + (1,) * (like.dim() - 1))


def lengths(offsets: Tensor) -> Tensor:
    """Rows of each example: int64 `[batch]`."""
    return (offsets[1:] - offsets[:-1]).to(torch.int64)
