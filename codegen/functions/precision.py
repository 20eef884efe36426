"""Which type numbers are computed in: statistics and reductions in at least float32, results rounded back."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """A real tensor in at least float32; float64 stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def narrow(result: Tensor, x: Tensor) -> Tensor:
    """`result`, computed from `widen(x)`, in the type of x."""
    return result.to(x.dtype)


def real(x: Tensor, dtype: torch.dtype, precise: bool = False) -> Tensor:
    """Ints and flags as reals of the working type, or of at least float32."""
    return x.to(torch.promote_types(dtype, torch.float32) if precise else dtype)


def number(value: int | float | bool, dtype: torch.dtype | None = None) -> Tensor:
    """A written number as a tensor without axes."""
    return torch.tensor(value, dtype=dtype)
