"""Behind every pass a graph still means the same, and every call knows its line of the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils.checkpoint import checkpoint

from tests.fused_models import assert_equal, gradients
from tests.small_models import checked
from weft.codegen.lower import signature
from weft.codegen.origin import origin
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, Pass, optimise
from weft.codegen.score.load import connect
from weft.runtime.model import Model, load
from weft.runtime.packed import pack

ROOT = Path(__file__).resolve().parent.parent
PASSES = {"gpu": GPU_PASSES, "cpu": CPU_PASSES}
CALLS = ("call_function", "call_method", "call_module")
# Two towers, one of which is frozen: its first rows need no gradient.
TOWERS = """
size dim = 12
size ffn = 20
size vocab = 19
axis heads = 2
axis width = 6
enum modality: text, image
axis seq

block layer(x: real[seq, dim], kind: modality[seq]) -> real[seq, dim]:
    routed by kind:
        h = rms_norm(x) as norm
        q = linear(h, dim -> (heads, width)) |> rope(along=seq) as q
        k = linear(h, dim -> (heads, width)) |> rope(along=seq) as k
        v = linear(h, dim -> (heads, width)) as v
    mixed = attend(q, k, v, over=width, along=seq, mask=causal)
    routed by kind:
        x = x + linear(mixed, (heads, width) -> dim) as out
        x = x + swiglu(rms_norm(x) as ffn_norm, ffn) as ffn
    return x

model towers(tokens: id[seq] in vocab, kind: modality[seq]) -> real[seq, vocab]:
    x = layer(embed(tokens, vocab -> dim) as embed, kind) as layer
    return rms_norm(x) as norm |> linear(dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab, kind: modality[seq]):
    loss words = cross_entropy(towers(tokens, kind), next(tokens)) only kind == text

freeze embed
freeze ** where kind == text
init **.weight = normal(0.3)
"""
SIZES: dict[str, dict[str, int]] = {
    "olmo2.weft": {"layers": 1, "dim": 32, "kv_heads": 2, "ffn": 40, "vocab": 40},
    "memory_layers.weft": {"layers": 1, "memories": 1, "stride": 1, "half": 5, "dim": 32, "ffn": 40, "vocab": 40},
}
Inputs = dict[str, Any]


def small(name: str, passes: tuple[Pass, ...] = ()) -> tuple[Model, Inputs]:
    """A model and examples of odd lengths, one of a single row."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> list[Tensor]:
        return [torch.randint(high, (count,), generator=generator) for count in (5, 1, 4)]

    if name in SIZES:
        built = load(ROOT / "specs" / name, "tiny", SIZES[name], torch.float64, passes=passes)
        assert isinstance(built, Model)
        return built, {"tokens": draw(40)}
    return Model(checked(TOWERS), torch.float64, seed=0, passes=passes), {"tokens": draw(19), "kind": draw(2)}


class Watched:
    """What `optimise` shows: each graph that a pass has changed is asked where its calls come from, and run."""

    def __init__(self, built: Model, inputs: Inputs) -> None:
        self.reference = built.reference(built.objective())
        shape = signature(self.reference)
        self.arguments = pack(shape, (), inputs, torch.float64).arguments(shape)
        self.want = gradients(self.reference, self.arguments)
        self.last = self._text(self.reference)
        self.changed: list[str] = []

    def __call__(self, made: Pass, module: fx.GraphModule) -> None:
        for node in module.graph.nodes:
            assert node.op not in CALLS or origin(node).span is not None, f"{made.name}: {node.format_node()}"
        if (text := self._text(module)) == self.last:
            return
        self.last = text
        self.changed.append(made.name)
        module.recompile()
        (results, found), (expected, wanted) = gradients(module, self.arguments), self.want
        for number, (one, two) in enumerate(zip(results, expected, strict=True)):
            assert_equal(one, two, f"{made.name}: result {number}", 1e-10)
        for name, two in wanted.items():
            assert_equal(found.get(name), two, f"{made.name}: gradient of {name}", 1e-9)

    def _text(self, module: fx.GraphModule) -> list[object]:
        return [(node.target, str(node.args), str(node.kwargs)) for node in module.graph.nodes]


# What each model is here for: passes that change its graph, or nothing would be compared behind them.
CHANGING = {
    ("olmo2.weft", "gpu"): {"attention", "streamed-logits", "joined-linears", "fuse-rows", "tables"},
    ("olmo2.weft", "cpu"): {"rotary", "rms-norms", "residuals", "bands", "joined-linears", "gates", "linears"},
    ("memory_layers.weft", "gpu"): {"rows", "bags", "selections", "bag-weights", "fuse-rows", "saved-values"},
    ("memory_layers.weft", "cpu"): {"rows", "selections", "activations", "streamed-logits"},
    ("towers", "gpu"): {"dead-gradients", "grouped-linears", "fuse-rows", "grouped-epilogues"},
    ("towers", "cpu"): {"dead-gradients", "rotary", "rms-norms", "bands"},
}


@pytest.mark.parametrize(("name", "device"), CHANGING)
def test_every_pass_keeps_what_a_graph_means(name: str, device: str) -> None:
    """Losses and gradients in float64 against the unfused graph."""
    connect()
    watched = Watched(*small(name))
    optimise(watched.reference, PASSES[device], watched)
    assert set(watched.changed) >= CHANGING[name, device]


@pytest.mark.parametrize("name", SIZES)
def test_a_recomputed_model_has_the_same_gradients(name: str) -> None:
    """The whole loss, with kernels: what the forward leaves for the backward is left again."""
    built, inputs = small(name, GPU_PASSES)

    def total() -> Tensor:
        return torch.stack([value / count for value, count in built.loss(**inputs).values()]).sum()

    weights = dict(built.named_parameters())
    want = torch.autograd.grad(total(), list(weights.values()))
    recomputed = checkpoint(total, use_reentrant=False)
    assert isinstance(recomputed, Tensor)
    found = torch.autograd.grad(recomputed, list(weights.values()))
    assert len(want) >= 10
    for path, one, two in zip(weights, found, want, strict=True):
        assert two.any(), path
        assert_equal(one, two, path, 0)
