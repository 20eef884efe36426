"""LMFusion at the size of its sheet's checks (lmfusion.md 9): an HF Llama, our import of it, and documents."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weft.codegen.ops import OPS
from weft.codegen.pipeline import Pass
from weft.dsl.check import Checked, check
from weft.dsl.source import Source
from weft.runtime.model import Model
from weft.runtime.transfer import import_checkpoint

SPEC = Path(__file__).parent.parent / "specs" / "lmfusion.weft"
# Pictures of 6 x 6 are nine rows; the rest is a U-Net that runs in no time.
USE = "use unet(dim = dim, side = side, channels = channels, steps = steps)"
SMALL = USE.replace(")", ", base = 16, blocks = 1, groups = 4, head_size = 8, time_width = 16)")
PLACES, CELLS, CHANNELS = 9, 36, 2
PICTURES = {"side": 6, "channels": 2, "begin": 95, "end": 96}
SIZES = PICTURES | {"dim": 64, "layers": 3, "heads": 8, "kv_heads": 2, "ffn": 160, "vocab": 97, "theta": 5e5}
TEXT, IMAGE = 0, 1


def llama():
    """The sheet's: hidden 64, 3 layers, 8 and 2 heads, ffn 160, vocabulary 97; weights saved in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    eager: dict[str, Any] = {"attn_implementation": "eager"}
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        attention_bias=False, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=None, **eager,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))  # gains of one would hide mistakes
    return model


class _Norm(nn.Module):
    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.weight: Tensor = theirs.weight

    def forward(self, x: Tensor) -> Tensor:
        return x * (x * x).mean(-1, keepdim=True).add(1e-5).rsqrt() * self.weight


class _Angles(nn.Module):
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids[..., None].double() * 5e5 ** (-torch.arange(4, dtype=torch.float64) / 4)
        return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def in_float64(theirs: Any) -> Any:
    """Transformers' norms, softmax and angles are float32 whatever a model's type: the same Llama without that."""
    theirs = copy.deepcopy(theirs).double()
    for layer in theirs.model.layers:
        layer.input_layernorm = _Norm(layer.input_layernorm)
        layer.post_attention_layernorm = _Norm(layer.post_attention_layernorm)
    theirs.model.norm, theirs.model.rotary_emb = _Norm(theirs.model.norm), _Angles()
    theirs.config._attn_implementation = "sdpa"
    return theirs


def in_another_order(theirs: Any, seed: int) -> Any:
    """The same Llama, whose products add up in another order: entries of its rows and of its layers' are shuffled."""
    theirs, generator = copy.deepcopy(theirs), torch.Generator().manual_seed(seed)
    rows = torch.randperm(64, generator=generator)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            makes_rows = weight.dim() == 1 or name.endswith(("o_proj.weight", "down_proj.weight"))
            weight.copy_(weight[rows] if makes_rows else weight[:, rows])
        for layer in theirs.model.layers:
            inner = torch.randperm(160, generator=generator)
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight[inner])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, inner])
    return theirs


def spec_text(*edits: tuple[str, str]) -> str:
    """The spec over a small U-Net. Each edit replaces what is there."""
    text = SPEC.read_text("utf-8")
    for old, new in ((USE, SMALL), *edits):
        assert old in text, old
        text = text.replace(old, new)
    return text


def imported(folder: Path, *edits: tuple[str, str], **overrides: object):
    """The Llama, and the checkpoint folder of LMFusion that starts from it."""
    theirs, spec = llama(), folder / "lmfusion.weft"
    theirs.save_pretrained(folder / "theirs")
    spec.write_text(spec_text(*edits), "utf-8")
    import_checkpoint(spec, folder / "theirs", folder / "ours", "tiny", {**PICTURES, **overrides})
    return theirs, folder / "ours"


def model(
    text: str | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    passes: tuple[Pass, ...] | None = None,
    **overrides: object,
) -> Model:
    """Without a Llama: weights drawn, and the image tower no copy."""
    built = Model(checked(text or spec_text(), tuple(overrides.items())), dtype, seed=seed, passes=passes)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for _, weight in built.by_path():
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
    return built


@cache
def checked(text: str, overrides: tuple[tuple[str, object], ...] = ()) -> Checked:
    return check(Source("lmfusion.weft", text), OPS, "tiny", {**SIZES, **dict(overrides)}).value()


@dataclass(frozen=True)
class Document:
    """One example: tags of its rows, ids of its words, its pictures and how noisy each is."""

    kind: Tensor
    ids: Tensor
    latent: Tensor
    time: Tensor

    @property
    def inputs(self) -> dict[str, list[Tensor]]:
        return batch([self])

    @property
    def picture(self) -> Tensor:
        """int64 [rows]: the number of the picture that a row is of; -1 for words."""
        number = (self.kind == IMAGE).cumsum(0).sub(1).div(PLACES, rounding_mode="floor")
        return torch.where(self.kind == IMAGE, number, -1)

    @property
    def words(self) -> Tensor:
        return (self.kind == TEXT).nonzero()[:, 0]

    @property
    def places(self) -> Tensor:
        return (self.kind == IMAGE).nonzero()[:, 0]


def document(*parts: int | str, seed: int = 0) -> Document:
    """`document(4, "p", 2, "p", "p")`: so many words, a picture, ..."""
    generator = torch.Generator().manual_seed(seed)
    kind = [tag for part in parts for tag in ([IMAGE] * PLACES if part == "p" else [TEXT] * int(part))]
    pictures, words = parts.count("p"), kind.count(TEXT)
    return Document(
        torch.tensor(kind, dtype=torch.int64),
        torch.randint(2, 90, (words,), generator=generator),
        torch.randn(pictures, CELLS, CHANNELS, generator=generator, dtype=torch.float64),
        torch.randint(1, 99, (pictures,), generator=generator),
    )


def batch(documents: Sequence[Document]) -> dict[str, list[Tensor]]:
    return {name: [getattr(one, name) for one in documents] for name in ("kind", "ids", "latent", "time")}


def of_objective(documents: Sequence[Document], cap: int = 100) -> dict[str, Any]:
    given = batch(documents)
    return {name: given[name] for name in ("kind", "ids", "latent")} | {"cap": torch.full((len(documents),), cap)}


def hybrid_mask(one: Document) -> Tensor:
    """bool [rows, rows]: the sheet's four lines, pair by pair."""
    rows = len(one.kind)
    blk, allow = one.picture.tolist(), torch.zeros(rows, rows, dtype=torch.bool)
    for i in range(rows):
        for j in range(rows):
            allow[i, j] = j <= i or (blk[i] >= 0 and blk[i] == blk[j])
    return allow
