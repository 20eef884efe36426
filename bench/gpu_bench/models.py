"""OLMo 2 twice, with the same weights: specs/olmo2.weft, and transformers' Olmo2ForCausalLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weft.codegen.pipeline import GPU_PASSES
from weft.runtime.model import Model, check_file, load

from .context import Context

SPEC = Path(__file__).resolve().parent.parent.parent / "specs" / "olmo2.weft"
IGNORED = -100
TINY = {"layers": 1, "dim": 32, "heads": 2, "kv_heads": 2, "ffn": 48, "vocab": 40}


@dataclass(frozen=True)
class Batch:
    """The same examples packed (ids, offsets) and padded (padded, mask, labels); `mask` None where all are equal."""

    ids: Tensor
    offsets: Tensor
    padded: Tensor
    mask: Tensor | None
    labels: Tensor

    @property
    def rows(self) -> int:
        return len(self.ids)


def preset(context: Context) -> tuple[str, dict[str, int]]:
    return ("tiny", TINY) if context.tiny else ("1b", {})


def theirs(context: Context, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """The transformers model, weights from one seed."""
    from transformers import Olmo2Config, Olmo2ForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    sizes = check_file(SPEC, *preset(context)).sizes
    # Taken by every configuration, though its own signature does not name it.
    more: dict[str, Any] = {"attn_implementation": attention}
    config = Olmo2Config(
        hidden_size=sizes["dim"], num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"], intermediate_size=sizes["ffn"], vocab_size=sizes["vocab"],
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-6, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=None, eos_token_id=None, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(context.device):
        model: Any = Olmo2ForCausalLM(config)
    return model.to(dtype)


def ours(context: Context, dtype: torch.dtype) -> Model:
    """The spec's model with the weights of `theirs`. On a CPU kernels run too, in Triton's interpreter."""
    size, settings = preset(context)
    passes = GPU_PASSES if context.device.type == "cpu" else None
    model = load(SPEC, size, settings, dtype, context.device, passes=passes)
    assert isinstance(model, Model)
    state = theirs(context, dtype).state_dict()
    with torch.no_grad():
        for line in model.checked.weight_maps["huggingface"].tensors:
            (path,) = line.paths
            weight = model[path]
            weight.copy_(state[line.foreign].reshape(weight.shape))
    return model


def batch(context: Context, lengths: list[int]) -> Batch:
    """Random ids, never that of padding."""
    vocabulary = check_file(SPEC, *preset(context)).sizes["vocab"]
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(1, vocabulary, (length,), generator=generator) for length in lengths]
    padded = torch.zeros(len(parts), max(lengths), dtype=torch.long)
    for row, part in enumerate(parts):
        padded[row, : len(part)] = part
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    device = context.device
    equal = len(set(lengths)) == 1
    return Batch(
        torch.cat(parts).to(device), offsets.to(device), padded.to(device), None if equal else mask.to(device),
        padded.masked_fill(mask == 0, IGNORED).to(device),
    )  # fmt: skip
