"""Random numbers as a function of a counter: no state, so packing, ranks, resuming and recomputation change nothing.

`key` is int64 `[rows]` (or `[batch]`, or a scalar): see `packing.draw_key`. `sizes` are static axes: every entry
draws its own number. Numbers of a lower precision are the same draws with fewer bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .packing import mix

Sizes = tuple[int, ...]

_BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def uniform(key: Tensor, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Reals in [0, 1): `[*key, *sizes]`."""
    return _unit(_counters(key, sizes, 0), dtype)


def uniform_between(low: Tensor | float, high: Tensor | float, key: Tensor, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Reals from `low` up to `high`, which broadcast against `[*key, *sizes]`."""
    return low + (high - low) * uniform(key, sizes, dtype)


def normal(key: Tensor, sizes: Sizes, dtype: torch.dtype) -> Tensor:
    """Reals of mean 0 and variance 1 (Box and Muller): `[*key, *sizes]`."""
    radius = torch.sqrt(-2 * torch.log1p(-_unit(_counters(key, sizes, 0), torch.float64)))
    angle = 2 * math.pi * _unit(_counters(key, sizes, 1), torch.float64)
    return (radius * torch.cos(angle)).to(dtype)


def uniform_int(low: Tensor | int, high: Tensor | int, key: Tensor, sizes: Sizes) -> Tensor:
    """Ints from `low` to `high - 1`: `[*key, *sizes]`."""
    span = high - low
    number = torch.floor(_unit(_counters(key, sizes, 0), torch.float64) * span).to(torch.int64)
    return low + number


def bernoulli(p: Tensor | float, key: Tensor, sizes: Sizes) -> Tensor:
    """Flags, true with probability `p`: `[*key, *sizes]`."""
    return _unit(_counters(key, sizes, 0), torch.float64) < p


def _counters(key: Tensor, sizes: Sizes, stream: int) -> Tensor:
    """A counter for each entry. A draw that needs two numbers takes them from two streams."""
    elements = torch.arange(math.prod(sizes), device=key.device).reshape(sizes)
    return mix(mix(key.reshape(key.shape + (1,) * len(sizes)), elements), stream)


def _unit(counter: Tensor, dtype: torch.dtype) -> Tensor:
    """The first bits of a counter as a real in [0, 1), as many as the type holds."""
    bits = _BITS[dtype]
    # An arithmetic shift keeps the sign: the mask clears what it smeared.
    number = (counter >> (64 - bits)) & ((1 << bits) - 1)
    return number.to(dtype) * 2.0**-bits
