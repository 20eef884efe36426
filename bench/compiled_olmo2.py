"""specs/olmo2.weft as `bench/cpu.py` runs it: the public interface, nothing prepared by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weft.runtime.generate import generate
from weft.runtime.model import Model, load

SPEC = Path(__file__).resolve().parent.parent / "specs" / "olmo2.weft"


@dataclass(frozen=True)
class Sizes:
    width: int = 384
    layers: int = 8
    heads: int = 6
    hidden: int = 1024
    vocabulary: int = 16384
    theta: float = 5e5
    eps: float = 1e-6


def compiled(sizes: Sizes, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Model:
    """A model of these sizes with the weights of a transformers Olmo2ForCausalLM."""
    overrides = {
        "layers": sizes.layers,
        "dim": sizes.width,
        "heads": sizes.heads,
        "kv_heads": sizes.heads,
        "ffn": sizes.hidden,
        "vocab": sizes.vocabulary,
        "theta": sizes.theta,
        "eps": sizes.eps,
    }
    model = load(SPEC, size="tiny", overrides=overrides, dtype=dtype)
    assert isinstance(model, Model)
    lines = model.checked.weight_maps["huggingface"].tensors
    with torch.no_grad():
        for line in lines:
            (path,) = line.paths
            weight = model[path]
            weight.copy_(state[line.foreign].reshape(weight.shape))
    return model


def loss(model: Model, ids: Tensor, offsets: list[int]) -> Tensor:
    parts = model.loss(None, (ids, torch.tensor(offsets, dtype=torch.int32)))
    return torch.stack([total / count for total, count in parts.values()]).sum()


def logits(model: Model, ids: Tensor, offsets: list[int]) -> Tensor:
    return model((ids, torch.tensor(offsets, dtype=torch.int32)))[0]


def continued(model: Model, prompts: list[Tensor], new_tokens: int) -> Tensor:
    """[B, new_tokens], greedy."""
    found = generate(model, prompts, new_tokens)
    return torch.tensor([continuation.tokens for continuation in found])
