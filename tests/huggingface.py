"""Tiny random models of the transformers library, saved as folders: independent oracles for imported specs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Taken by every configuration, though its own signature does not name it.
EAGER: dict[str, Any] = {"attn_implementation": "eager"}


def olmo2(
    dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 176,
    vocab: int = 256,
    head_dim: int | None = None,
):
    """Olmo2ForCausalLM with gains away from one (gains of one hide mistakes in what a norm covers)."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    extra: dict[str, Any] = {} if head_dim is None else {"head_dim": head_dim}
    config = Olmo2Config(
        vocab_size=vocab, hidden_size=dim, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, hidden_act="silu", max_position_embeddings=128, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, attention_bias=False, attention_dropout=0.0,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=1, **EAGER, **extra,
    )  # fmt: skip
    return _randomised(Olmo2ForCausalLM, config)


def llama(
    dim: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 176,
    vocab: int = 256,
    head_dim: int | None = None,
):
    """LlamaForCausalLM, likewise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, hidden_act="silu", max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attention_bias=False, attention_dropout=0.0,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=None, eos_token_id=1, **EAGER,
    )  # fmt: skip
    return _randomised(LlamaForCausalLM, config)


def _randomised(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            else:
                weight.mul_(5)  # the default 0.02 makes logits so small that mistakes hide
    return model


def saved(model, folder: Path) -> Path:
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def logits(model, ids: list[int]) -> torch.Tensor:
    """[tokens, vocab] of one sequence, alone."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]
