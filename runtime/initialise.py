"""Fills the weights of a model as their `init` says; how one weight starts is codegen/functions/start.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..codegen.functions.start import DISTRIBUTIONS, start
from ..dsl.program import Weight
from .errors import LoadFault


def initialise(tensors: Mapping[str, Tensor], weights: Iterable[Weight], seed: int = 0) -> None:
    """Fills `tensors` (by path, in place). Copies come last; tensors on the meta device are left alone."""
    copies: list[Weight] = []
    for weight in weights:
        tensor = tensors[weight.path]
        if weight.init.source is not None:
            copies.append(weight)
            continue
        if weight.init.kind not in DISTRIBUTIONS:
            raise LoadFault(f"{weight.path} starts as {weight.init.kind}, which is no known distribution")
        if not tensor.is_meta:
            first = start(weight.path, weight.stored_shape, weight.init.kind, dict(weight.init.numbers), seed)
            with torch.no_grad():
                tensor.copy_(first)
    for weight in in_copy_order(copies):
        source, tensor = tensors.get(weight.init.source or ""), tensors[weight.path]
        if source is None:
            raise LoadFault(f"{weight.path} starts as a copy of {weight.init.source}, and there is no such weight")
        if source.shape != tensor.shape:
            raise LoadFault(
                f"{weight.path} {list(tensor.shape)} starts as a copy of {weight.init.source} {list(source.shape)}"
            )
        if not tensor.is_meta:
            with torch.no_grad():
                tensor.copy_(source)


def in_copy_order(copies: Iterable[Weight]) -> list[Weight]:
    """A copy of a copy comes after it."""
    left = {weight.path: weight for weight in copies}
    ordered: list[Weight] = []
    while left:
        ready = [weight for weight in left.values() if weight.init.source not in left]
        if not ready:
            raise LoadFault(f"{next(iter(left))} starts as a copy of itself")
        for weight in ready:
            ordered.append(left.pop(weight.path))
    return ordered
