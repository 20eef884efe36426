"""How a weight starts: draws in float32 on the CPU from a stream of its own, so that every device and type gets the
same numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Numbers = Mapping[str, float]


def start(path: str, shape: tuple[int, ...], kind: str, numbers: Numbers, seed: int) -> Tensor:
    """The first value of the weight at `path`. Its stream is seeded by the run's seed and the path and by nothing
    else, so that a weight added to a spec changes no other."""
    generator = torch.Generator().manual_seed(stream(seed, path))
    tensor = torch.empty(shape, dtype=torch.float32)
    DISTRIBUTIONS[kind](tensor, numbers, generator)
    return tensor


def stream(seed: int, path: str) -> int:
    """A 63-bit seed for the weight at `path`."""
    digest = hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _zeros(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.zero_()


def _ones(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.fill_(1)


def _constant(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.fill_(numbers["value"])


def _eye(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    """Ones where row and column are equal; a weight that is no matrix counts its last axis as columns."""
    tensor.copy_(torch.eye(math.prod(tensor.shape[:-1]), tensor.shape[-1] if tensor.dim() else 1).reshape(tensor.shape))


def _normal(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.normal_(numbers.get("mean", 0.0), numbers.get("std", 1.0), generator=generator)


def _trunc_normal(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    """Normal, cut at `cut` standard deviations: uniform between the two tail probabilities, through the inverse
    distribution."""
    cut = numbers.get("cut", 2.0)
    inside = math.erf(cut / math.sqrt(2))
    tensor.uniform_(-inside, inside, generator=generator).erfinv_().mul_(math.sqrt(2)).clamp_(-cut, cut)
    tensor.mul_(numbers.get("std", 1.0)).add_(numbers.get("mean", 0.0))


def _uniform(tensor: Tensor, numbers: Numbers, generator: torch.Generator) -> None:
    tensor.uniform_(numbers["low"], numbers["high"], generator=generator)


DISTRIBUTIONS: dict[str, Callable[[Tensor, Numbers, torch.Generator], None]] = {
    "zeros": _zeros,
    "ones": _ones,
    "constant": _constant,
    "eye": _eye,
    "normal": _normal,
    "trunc_normal": _trunc_normal,
    "uniform": _uniform,
}
