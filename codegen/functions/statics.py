"""Reductions over static axes, by dimension, computed in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import narrow, widen

Dims = tuple[int, ...]


def sum_static(x: Tensor, dims: Dims) -> Tensor:
    if not x.is_floating_point():
        return torch.sum(x, dims)
    return narrow(torch.sum(widen(x), dims), x)


def mean_static(x: Tensor, dims: Dims) -> Tensor:
    return narrow(torch.mean(widen(x), dims), x)


def any_static(x: Tensor, dims: Dims) -> Tensor:
    return torch.any(x, dims)


def all_static(x: Tensor, dims: Dims) -> Tensor:
    return torch.all(x, dims)


def max_static(x: Tensor, dims: Dims) -> Tensor:
    return torch.amax(x, dims)


def min_static(x: Tensor, dims: Dims) -> Tensor:
    return torch.amin(x, dims)


def logsumexp_static(x: Tensor, dims: Dims) -> Tensor:
    return narrow(torch.logsumexp(widen(x), dims), x)


def softmax_static(x: Tensor, dims: Dims) -> Tensor:
    """Softmax over the joint entries of trailing dimensions `dims`, shape kept."""
    first, last = min(dims), max(dims)
    flat = torch.flatten(widen(x), first, last) if first < last else widen(x)
    return narrow(torch.softmax(flat, last).reshape(x.shape), x)


def argmax_static(x: Tensor, dim: int) -> Tensor:
    """The first entry that holds the maximum."""
    return torch.max(x, dim).indices
