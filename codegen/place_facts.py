"""Facts about what functions/places.py and functions/windows.py compute."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .fact import Fact, Reader, dimension


def conv(read: Reader) -> Fact | None:
    x, weight, target = read.fact(0), read.fact(1), read.arg(4)
    if x is None or weight is None or len(x.dims) < 2:
        return None
    return replace(x, dims=(*x.dims[:-2], math.prod(target), weight.dims[0]))


def pool(read: Reader) -> Fact | None:
    sides, scale = read.arg(2), read.arg(4)
    return _other_places(read, tuple(-(-side // scale) for side in sides))


def spread(read: Reader) -> Fact | None:
    return _other_places(read, read.arg(3))


def _other_places(read: Reader, target: tuple[int, ...]) -> Fact | None:
    fact = read.fact()
    if fact is None:
        return None
    place = dimension(read.arg(1), fact)
    return replace(fact, dims=(*fact.dims[:place], math.prod(target), *fact.dims[place + 1 :]))


def windows(read: Reader) -> Fact | None:
    position = read.fact(2)
    return None if position is None else Fact(position.level, (read.arg(3),), torch.int64)


def conv_rows(read: Reader) -> Fact | None:
    x, index, weight = read.fact(0), read.fact(1), read.fact(2)
    if x is None or index is None or weight is None:
        return None
    return Fact(index.level, (*x.dims[:-1], weight.dims[0]), x.dtype)
