"""How weights start. Each weight draws from its own stream, seeded by the run's seed and its path and by nothing else, so that a
weight added to a spec changes no other. Draws are made in float32 on the CPU: every device and type starts from the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..dsl.program import Weight
from .errors import LoadFault

Numbers = Mapping[str, float]


def initialise(tensors: Mapping[str, Tensor], weights: Iterable[Weight], seed: int = 0) -> None:
    """Fills `tensors` (by path, in place) as their weights say. Copies come last; tensors on the meta device are left alone."""
    copies: list[Weight] = []
    for weight in weights:
        tensor = tensors[weight.path]
        if weight.init.source is not None:
            copies.append(weight)
        elif not tensor.is_meta:
            with torch.no_grad():
                tensor.copy_(start(weight, seed))
    for weight in _in_copy_order(copies):
        source, tensor = tensors.get(weight.init.source or ""), tensors[weight.path]
        if source is None:
            raise LoadFault(f"{weight.path} starts as a copy of {weight.init.source}, and there is no such weight")
        if source.shape != tensor.shape:
            raise LoadFault(f"{weight.path} {list(tensor.shape)} starts as a copy of {weight.init.source} {list(source.shape)}")
        if not tensor.is_meta:
            with torch.no_grad():
                tensor.copy_(source)


def start(weight: Weight, seed: int) -> Tensor:
    """The first value of one weight, float32 in its stored shape."""
    generator = torch.Generator().manual_seed(stream(seed, weight.path))
    draw = _DISTRIBUTIONS.get(weight.init.kind)
    if draw is None:
        raise LoadFault(f"{weight.path} starts as {weight.init.kind}, which is no known distribution")
    tensor = torch.empty(weight.stored_shape, dtype=torch.float32)
    draw(tensor, dict(weight.init.numbers), generator)
    return tensor


def stream(seed: int, path: str) -> int:
    """A 63-bit seed for the weight at `path`."""
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _in_copy_order(copies: list[Weight]) -> list[Weight]:
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


def _zeros(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.zero_()


def _ones(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.fill_(1)


def _constant(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.fill_(numbers["value"])


def _eye(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    if tensor.dim() != 2:
        raise LoadFault(f"eye is for matrices, not for a weight of shape {list(tensor.shape)}")
    tensor.copy_(torch.eye(*tensor.shape))


def _normal(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.normal_(numbers.get("mean", 0.0), numbers.get("std", 1.0), generator=generator)


def _trunc_normal(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    """Normal, cut at `cut` standard deviations: uniform between the two tail probabilities, through the inverse distribution."""
    cut = numbers.get("cut", 2.0)
    tail = math.erf(cut / math.sqrt(2))
    tensor.uniform_(-tail, tail, generator=generator).erfinv_().mul_(math.sqrt(2)).clamp_(-cut, cut)
    tensor.mul_(numbers.get("std", 1.0)).add_(numbers.get("mean", 0.0))


def _uniform(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.uniform_(numbers["low"], numbers["high"], generator=generator)


_DISTRIBUTIONS: dict[str, Callable[[Tensor, Numbers, torch.Generator], None]] = {
    "zeros": _zeros,
    "ones": _ones,
    "constant": _constant,
    "eye": _eye,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "uniform": _uniform,
}
