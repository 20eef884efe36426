"""Convolutions, pools and nearest neighbours over static places: a grid, or an axis with one side.

Places lie packed in one dimension, row by row of the grid: `x [..., P, C]` with P the product of `sides`. Results are
contiguous: a generated kernel reads the entries of a row side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Sides = tuple[int, ...]


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, sides: Sides, target: Sides, stride: int, before: int
) -> Tensor:
    """`x [..., P, C]` to `[..., Q, O]` with `weight [O, C, *kernel]`. The first window begins `before` places outside,
    in zeros; Q is the product of `target`."""
    lead, kernel = x.shape[:-2], weight.shape[2:]
    # Channels stay last in memory; the libraries read that as it is.
    pictures = x.reshape(math.prod(lead), *sides, x.shape[-1]).movedim(-1, 1)
    after = [(out - 1) * stride + size - before - side for out, size, side in zip(target, kernel, sides, strict=True)]
    is_even = all(
        (side + 2 * before - size) // stride + 1 == out for out, size, side in zip(target, kernel, sides, strict=True)
    )
    if not is_even:
        pictures = functional.pad(pictures, [pad for end in reversed(after) for pad in (before, end)])
    convolve = functional.conv2d if len(sides) == 2 else functional.conv1d
    result = convolve(pictures, weight, bias, stride, before if is_even else 0)
    return result.movedim(1, -1).reshape(*lead, math.prod(target), weight.shape[0]).contiguous()


def pool(x: Tensor, dim: int, sides: Sides, by: str, scale: int) -> Tensor:
    """The places of dimension `dim` in squares of `scale` on each side, and of each square one value. Squares at the
    far edges may be smaller."""
    target = tuple(-(-side // scale) for side in sides)
    dim = dim % x.dim()
    whole = x.reshape(*x.shape[:dim], *sides, *x.shape[dim + 1 :])
    if by in ("first", "last"):
        for number, side in enumerate(sides):
            at = torch.arange(0, side, scale, device=x.device)
            at = at if by == "first" else (at + scale - 1).clamp(max=side - 1)
            whole = whole.index_select(dim + number, at)
        return whole.reshape(*x.shape[:dim], math.prod(target), *x.shape[dim + 1 :])
    missing = [out * scale - side for out, side in zip(target, sides, strict=True)]
    if any(missing):
        behind = [0, 0] * (x.dim() - 1 - dim)
        edge = [pad for end in reversed(missing) for pad in (0, end)]
        whole = functional.pad(whole, behind + edge, value=-math.inf if by == "max" else 0.0)
    split = whole.reshape(*x.shape[:dim], *(part for out in target for part in (out, scale)), *x.shape[dim + 1 :])
    inner = tuple(dim + 2 * number + 1 for number in range(len(sides)))
    found = split.amax(inner) if by == "max" else split.sum(inner)
    if by == "mean":
        found = found / _counts(sides, target, scale, found, dim)
    return found.reshape(*x.shape[:dim], math.prod(target), *x.shape[dim + 1 :]).contiguous()


def _counts(sides: Sides, target: Sides, scale: int, like: Tensor, dim: int) -> Tensor | float:
    """How many places each square has."""
    if all(side == out * scale for side, out in zip(sides, target, strict=True)):
        return float(scale ** len(sides))
    counts = torch.ones((), dtype=like.dtype, device=like.device)
    for side, out in zip(sides, target, strict=True):
        begins = torch.arange(out, device=like.device) * scale
        counts = counts[..., None] * (side - begins).clamp(max=scale)
    return counts.reshape(*counts.shape, *(1,) * (like.dim() - dim - len(sides)))


def spread(x: Tensor, dim: int, sides: Sides, target: Sides, scale: int) -> Tensor:
    """Each place of `target` reads the place of `sides` that lies over it."""
    dim = dim % x.dim()
    wide = x.reshape(*x.shape[:dim], *(part for side in sides for part in (side, 1)), *x.shape[dim + 1 :])
    sizes: Sequence[int] = [part for side in sides for part in (side, scale)]
    wide = wide.expand(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
    wide = wide.reshape(*x.shape[:dim], *(side * scale for side in sides), *x.shape[dim + 1 :])
    for number, out in enumerate(target):
        wide = wide.narrow(dim + number, 0, out)
    return wide.reshape(*x.shape[:dim], math.prod(target), *x.shape[dim + 1 :]).contiguous()
