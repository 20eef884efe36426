"""Forms of the Byte Latent Transformer beside the released one: the paper's, the published checkpoint's own names,
n-grams in any order, lines that the entropy model reads alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tests import blt_models
from tests.blt_models import imported, noise, published, text, tiny
from weft.runtime.errors import RuntimeFault
from weft.runtime.model import load
from weft.runtime.transfer import export_checkpoint, import_checkpoint

ENTROPY = blt_models.SPEC.parent / "entropy_lm.weft"

# -- the paper (systems sheet, 8) ------------------------------------------------------------------


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain


def turned(x: Tensor) -> Tensor:
    """Neighbouring entries [rows, heads, width] by the row's angle."""
    rows, _, width = x.shape
    angle = torch.arange(rows)[:, None] * 5e5 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    a, b = torch.view_as_complex(x.unflatten(-1, (-1, 2))), torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(a * b[:, None]).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """[rows, heads, width]; `allowed` [rows of q, rows of k]. A row that may see nothing gets nothing."""
    score = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    weight = score.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", weight, v).flatten(1)


class Weights:
    """The weights below a path."""

    def __init__(self, all_: dict[str, Tensor], scope: str = "") -> None:
        self.all, self.scope = all_, scope

    def __getitem__(self, name: str) -> Tensor:
        return self.all[self.scope + name].detach()

    def below(self, name: str) -> Weights:
        return Weights(self.all, f"{self.scope}{name}.")

    def heads(self, x: Tensor, name: str, heads: int) -> Tensor:
        return (x @ self[name].T).unflatten(-1, (heads, -1))


def layer(x: Tensor, w: Weights, heads: int = 4) -> Tensor:
    n, rows = norm(x, w["attention_norm.gain"]), torch.arange(len(x))
    q, k, v = (w.heads(n, f"{name}.linear.weight", heads) for name in "qkv")
    x = x + attention(turned(q), turned(k), v, rows[:, None] >= rows) @ w["out.weight"].T
    n = norm(x, w["ffn_norm.gain"])
    gate = functional.silu(n @ w["ffn.gate.linear.weight"].T) * (n @ w["ffn.up.linear.weight"].T)
    return x + gate @ w["ffn.down.linear.weight"].T


def cross(x: Tensor, memory: Tensor, allowed: Tensor, w: Weights) -> Tensor:
    q = w.heads(norm(x, w["norm.gain"]), "q.linear.weight", 4)
    m = norm(memory, w["memory_norm.gain"])
    k, v = (w.heads(m, f"{name}.linear.weight", 4) for name in "kv")
    return attention(q, k, v, allowed) @ w["out.weight"].T


def of_the_paper(all_: dict[str, Tensor], ids: list[int], ends: list[bool], encoder_layers: int) -> Tensor:
    """The paper's equations for one text whose patches end at `ends`, in dense matrices."""
    w, prime, buckets = Weights(all_), 1000000007, 101
    x = w["embed.weight"][ids]
    for n in range(3, 9):
        table = w[f"hash.0.gram.{n}.embed.weight"]
        for i in range(n - 1, len(ids)):
            # The newest byte has power 0. torch's int64 wraps, Python's does not.
            code = sum(ids[i - e] * prime**e for e in range(n))
            wrapped = (code + 2**63) % 2**64 - 2**63
            x[i] += table[wrapped % buckets]
    x = x / 7
    before = [False, *ends[:-1]]
    own = torch.tensor(before).cumsum(0)
    closed = torch.tensor(ends).cumsum(0) - 1
    patches = int(own.max()) + 1
    p = torch.stack([x[own == j].amax(0) for j in range(patches)])
    p = (p @ w["pooled.weight"].T).reshape(2 * patches, -1)
    slot_of = torch.arange(patches).repeat_interleave(2)
    for i in range(encoder_layers):
        p = p + cross(p, x, slot_of[:, None] == own, w.below(f"cross.{i}.own_attend"))
        x = layer(x, w.below(f"encoder.{i}.layer"))
    g = p.reshape(patches, -1)
    for i in range(2):
        g = layer(g, w.below(f"latent.{i}.layer"))
    g = (g @ w["narrowed.weight"].T).reshape(2 * patches, -1)
    for i in range(2):
        x = x + cross(x, g, closed[:, None] == slot_of, w.below(f"decoder.{i}.closed_attend"))
        x = layer(x, w.below(f"decoder.{i}.layer"))
    return norm(x, w["norm.gain"]) @ w["head.weight"].T


def test_the_model_of_the_paper() -> None:
    small = tiny(paper=True, encoder_layers=3)
    for ids in (noise(40), noise(3), [1]):
        given = [torch.tensor(ids)]
        ends = small.values(("ends",), given)["ends"][0].tolist()
        want = of_the_paper(dict(small.by_path()), ids, ends, 3)
        torch.testing.assert_close(small(given)[0], want, rtol=0, atol=1e-9)


def test_the_residual_of_the_paper_is_another_model(tmp_path: Path) -> None:
    """Without n-grams, of which the paper says more."""
    model = published()
    blt_models.fill_at_random(model)
    model.model.encoder_hash_tok_embedding.weight.data.zero_()
    other = imported(model, tmp_path, paper=True)
    ids = noise(30)
    assert (other([torch.tensor(ids)])[0] - blt_models.logits(model, ids)).abs().max() > 0.5


# -- n-grams ---------------------------------------------------------------------------------------


def test_tables_stand_in_the_order_of_the_group_sizes(tmp_path: Path) -> None:
    model = published(grams=(10, 1, 5))
    blt_models.fill_at_random(model)
    ids = noise(30)
    ours = imported(model, tmp_path)
    torch.testing.assert_close(ours([torch.tensor(ids)])[0], blt_models.logits(model, ids), rtol=0, atol=1e-5)


# -- the published checkpoint's own names (9.3) ----------------------------------------------------

META = (
    (r"model\.(local_encoder)\.embed_tokens", r"\1.tok_embeddings"),
    (r"model\.", ""),
    (r"self_attn\.([qkvo])_proj", r"attention.w\1"),
    (r"(cross_attn_layers\.\d+)\.([qkvo])_proj", r"\1.w\2"),
    (r"(cross_attn_layers\.\d+)\.q_norm", r"\1.cross_attn_norm_q"),
    (r"(cross_attn_layers\.\d+)\.k_norm", r"\1.cross_attn_norm_kv"),
    (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.up_proj", "feed_forward.w3"),
    (r"mlp\.down_proj", "feed_forward.w2"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"^lm_head", "local_decoder.output"),
    (r"^patcher\.embed_tokens", "patcher.tok_embeddings"),
    (r"^patcher\.lm_head", "patcher.output"),
)


def as_meta(model: Any, folder: Path) -> tuple[Path, Path]:
    """Two folders of safetensors with Meta's names: the model with a table for each hash, and the entropy model."""
    parts: dict[str, dict[str, Tensor]] = {"blt": {}, "entropy": {}}
    for key, weight in model.state_dict().items():
        name = key
        for pattern, word in META:
            name = re.sub(pattern, word, name)
        if name == "encoder_hash_tok_embedding.weight":
            for i, table in enumerate(weight.chunk(6)):
                parts["blt"][f"encoder_hash_tok_embedding.{i}.weight"] = table.clone()
        else:
            part = "entropy" if name.startswith("patcher.") else "blt"
            parts[part][name.removeprefix("patcher.")] = weight.clone()
    for part, weights in parts.items():
        (folder / part).mkdir()
        save_file(weights, folder / part / "model.safetensors")
    return folder / "blt", folder / "entropy"


SIZES = {
    "dim": 48, "heads": 4, "ffn": 128, "layers": 2, "local": 32, "local_heads": 4, "local_ffn": 64, "functions": 2,
    "reach": 8, "grams": (3, 4, 5), "patcher_dim": 32, "patcher_heads": 4, "patcher_ffn": 64, "patcher_reach": 8,
    "threshold": 4.96,
}  # fmt: skip


def test_names_of_the_published_checkpoint(tmp_path: Path) -> None:
    """Separate tables, the entropy model in a checkpoint of its own; written back with the same bits."""
    model = published(dim=48)
    blt_models.fill_at_random(model)
    blt, entropy = as_meta(model, tmp_path)
    sizes = {"dim": 32, "ffn": 64, "reach": 8}
    import_checkpoint(ENTROPY, entropy, tmp_path / "ours entropy", "tiny", sizes, format="meta")
    parts = {"entropy_lm": str(tmp_path / "ours entropy")}
    import_checkpoint(blt_models.SPEC, blt, tmp_path / "ours", "tiny", SIZES, format="meta", parts=parts)
    ids = noise(40)
    ours: Any = load(tmp_path / "ours")
    torch.testing.assert_close(ours([torch.tensor(ids)])[0], blt_models.logits(model, ids), rtol=0, atol=1e-5)
    for folder, made in ((blt, "ours"), (entropy, "ours entropy")):
        export_checkpoint(tmp_path / made, tmp_path / f"{made} back", "meta")
        back, was = (load_file(one / "model.safetensors") for one in (tmp_path / f"{made} back", folder))
        assert {name: x.tolist() for name, x in back.items()} == {name: x.tolist() for name, x in was.items()}


def test_a_map_that_a_spec_lacks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match="no `weights mata:` block, only of huggingface, meta"):
        import_checkpoint(blt_models.SPEC, tmp_path, tmp_path / "ours", "tiny", format="mata")


# -- rules -----------------------------------------------------------------------------------------


def test_the_rule_is_written_and_read(tmp_path: Path) -> None:
    model = published()
    blt_models.fill_at_random(model)
    imported(model, tmp_path, rule="space")
    export_checkpoint(tmp_path / "weft", tmp_path / "back")
    config = json.loads((tmp_path / "back/config.json").read_text("utf-8"))
    assert config["patching_mode"] == "space"
    import_checkpoint(blt_models.SPEC, tmp_path / "back", tmp_path / "again")
    ids = text(b"Hello, world 42!")
    models: list[Any] = [load(tmp_path / name) for name in ("weft", "again")]
    want, got = (model.values(("ends",), [torch.tensor(ids)])["ends"][0] for model in models)
    assert torch.equal(want, got)


def test_lines_that_the_entropy_model_reads_alone() -> None:
    small = tiny(newline_reset=True)
    line = text(b"one line\nand another")
    (whole,) = small.values(("surprise",), [torch.tensor(line)])["surprise"]
    (alone,) = small.values(("surprise",), [torch.tensor(line[10:])])["surprise"]
    torch.testing.assert_close(whole[10:], alone)
