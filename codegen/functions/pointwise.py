"""Row-by-row functions that torch lacks in the form the language means them. Operands are tensors or numbers."""

from __future__ import annotations

import torch
from torch import Tensor

Operand = Tensor | int | float | bool


def maximum(a: Operand, b: Operand) -> Tensor:
    return _choose(torch.maximum, a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    return _choose(torch.minimum, a, b)


def _choose(function, a: Operand, b: Operand) -> Tensor:
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    return function(_as_tensor(a, like), _as_tensor(b, like))


def _as_tensor(x: Operand, like: Tensor) -> Tensor:
    return x if isinstance(x, Tensor) else torch.full((), x, dtype=like.dtype, device=like.device)


def where(condition: Tensor, a: Operand, b: Operand, dtype: torch.dtype) -> Tensor:
    """`a` where the condition holds, else `b`. `dtype` is the result's when both are numbers."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.where(condition, a, b)
    return torch.where(condition, torch.full((), a, dtype=dtype, device=condition.device), b)


def whole(x: Tensor) -> Tensor:
    """As int64, towards zero."""
    return x.to(torch.int64)


def straight_through(value: Tensor, carrier: Tensor) -> Tensor:
    """`value`, with the gradient going to `carrier`."""
    # The second term is exactly 0 for finite carriers, so the result is value to the last bit.
    return value.detach() + (carrier - carrier.detach())


def fill_missing(x: Tensor, present: Tensor, value: Operand) -> Tensor:
    """`x` [rows, ...] where `present` [rows], else `value`."""
    present = present.reshape(present.shape + (1,) * (x.dim() - 1))
    return torch.where(present, x, value)
