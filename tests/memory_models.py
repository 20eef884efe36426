"""A memory layer of specs/memory_layers.weft by itself, for tests, and its parts by their paths."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.model import Model

SPEC = Path(__file__).resolve().parent.parent / "specs" / "memory_layers.weft"
# A model of a layer, whose weights begin with its name.
LAYER = """model alone(x: real[seq, dim]) -> real[seq, dim]:
    return memory(x) as layer_1
"""


def with_blocks(model: str) -> Source:
    """The spec's sizes, options and blocks, and another model of them."""
    return Source(SPEC.name, SPEC.read_text("utf-8").split("model memory_layers")[0] + model)


def alone(choices: dict[str, object] | None = None, model: str = LAYER, dtype: torch.dtype = torch.float64) -> Model:
    checked = check(with_blocks(model), OPS, "tiny", choices or {}).value()
    return Model(checked, dtype, torch.device("cpu"))


def weights_of(model: Model) -> dict[str, torch.nn.Parameter]:
    return dict(model.by_path())


def fill(model: Model, seed: int) -> None:
    """Weights of ordinary size, biases as well, which are zeros at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in weights_of(model).items():
            scale = 1.0 if path.endswith((".bias", ".keys", "values")) else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * scale)


def ends(*lengths: int) -> Tensor:
    """Offsets of examples of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
