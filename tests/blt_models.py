"""Tiny BLT models of transformers, and the same models in Weft."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.runtime.model import Model, load
from weft.runtime.transfer import import_checkpoint

SPEC = Path(__file__).parent.parent / "specs/blt.weft"


def text(words: bytes) -> list[int]:
    """The mark that begins a text, then its bytes."""
    return [1, *(byte + 4 for byte in words)]


def noise(length: int, seed: int = 0) -> list[int]:
    chosen = random.Random(seed)
    return [1, *(chosen.randrange(4, 260) for _ in range(length - 1))]


def published(
    slots: int = 2,
    dim: int = 64,
    encoder_layers: int = 1,
    window: int = 8,
    threshold: float = 4.96,
    grams: tuple[int, ...] = (3, 4, 5),
) -> Any:
    """`BltForCausalLM` as transformers makes it, small."""
    from transformers import BltConfig, BltForCausalLM

    local = {
        "vocab_size": 260, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 256, "cross_attn_k": slots, "hidden_size_global": dim,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    make_config: Any = BltConfig
    config = make_config(
        vocab_size=260, patch_in_forward=True, patching_mode="entropy", patch_size=4, patching_threshold=threshold,
        cross_attn_k=slots, local_attention_window_len=window, encoder_hash_byte_group_size=list(grams),
        encoder_hash_byte_group_vocab=101, encoder_hash_byte_group_nb_functions=2, max_position_embeddings=256,
        hidden_size_global=dim,
        patcher_config={
            "vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": 256, "sliding_window": window, "rope_parameters": rope,
        },
        encoder_config={**local, "num_hidden_layers": encoder_layers, "cross_attn_all_layers": False},
        decoder_config={**local, "num_hidden_layers": 2, "cross_attn_all_layers": True},
        global_config={
            "hidden_size": dim, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
            "max_position_embeddings": 256,
        },
    )  # fmt: skip
    return BltForCausalLM(config).eval()


@torch.no_grad()
def fill_by_formula(model: Any) -> None:
    """The weights of the golden case: no random numbers."""
    for r, (_, weight) in enumerate(sorted(model.state_dict().items())):
        i = torch.arange(weight.numel(), dtype=torch.float64)
        value = torch.sin(1.3 * r + 0.7 * i + 0.001 * i * i).reshape(weight.shape)
        weight.copy_(0.3 * value if weight.dim() == 2 else 1 + 0.1 * value)


@torch.no_grad()
def fill_at_random(model: Any, seed: int = 0) -> None:
    """Gains away from 1, so that a norm left out shows."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        gain = weight.dim() == 1
        weight.copy_(0.5 + torch.rand_like(weight) if gain else torch.randn_like(weight) * weight.shape[1] ** -0.5)


def set_threshold(model: Any, threshold: float) -> None:
    model.config.patching_threshold = model.model.config.patching_threshold = threshold


@torch.no_grad()
def entropies(model: Any, ids: list[int]) -> Tensor:
    return model.model.patcher(torch.tensor([ids]), patch_size=4, threshold=0.0)[0][0]


@torch.no_grad()
def logits(model: Any, ids: list[int], lengths: list[int] | None = None) -> Tensor:
    given = {} if lengths is None else {"patch_lengths": torch.tensor([lengths])}
    return model(input_ids=torch.tensor([ids]), use_cache=False, **given).logits[0]


def imported(model: Any, folder: Path, dtype: torch.dtype = torch.float32, **overrides: object) -> Model:
    """The same model in Weft."""
    model.save_pretrained(folder / "published")
    found = import_checkpoint(SPEC, folder / "published", folder / "weft", None, overrides)
    made = load(found.checkpoint, dtype=dtype)
    assert isinstance(made, Model)
    return made


def tiny(dtype: torch.dtype = torch.float64, seed: int = 0, **overrides: object) -> Model:
    """specs/blt.weft at its tiny size with weights that spread the entropies."""
    made = load(SPEC, "tiny", {"threshold": 5.05, **overrides}, dtype=dtype)
    assert isinstance(made, Model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, weight in made.by_path():
            gain = weight.dim() == 1
            weight.copy_(
                1 + 0.2 * torch.randn_like(weight) if gain else torch.randn_like(weight) * weight.shape[-1] ** -0.5
            )
    return made


def patch_lengths(ends: Tensor) -> list[int]:
    """Bytes of each patch, counted over the bytes and the one to come, which is in the last."""
    stops = [*(ends.nonzero()[:, 0] + 1).tolist(), len(ends) + 1]
    return [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
