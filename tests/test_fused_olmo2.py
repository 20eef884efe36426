"""OLMo 2 with generated kernels: how many there are, and logits and gradients against float64."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.fused_models import assert_equal, gradients
from weft.codegen.gpu.attention import attend
from weft.codegen.origin import origin
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.runtime.generate import generate
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model, load

LAYERS = 2
# Examples of odd lengths, one of a single row.
OFFSETS = torch.tensor([0, 13, 14, 33], dtype=torch.int32)


def olmo2(root, dtype: torch.dtype) -> Model:
    model = load(root / "specs" / "olmo2.weft", "tiny", {"layers": LAYERS}, dtype)
    assert isinstance(model, Model)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(260, (33,), generator=torch.Generator().manual_seed(0))


def test_kernels_of_a_layer(root) -> None:
    model = olmo2(root, torch.bfloat16)
    graph = optimise(model.reference(model.objective()), GPU_PASSES)
    calls: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for node in graph.graph.nodes:
        frames = [frame for frame in origin(node).scope if frame.name == "layer"]
        if isinstance(node.target, FusedOp) and frames:
            calls[node.target.name] += 1
        elif node.target is attend:
            calls["attend"] += 1
        elif frames and node.op == "call_function":
            left[getattr(node.target, "__name__", "")] += 1
    # The angles are shared by all layers; the last residual is one kernel with the final norm, which is in no layer.
    assert calls == Counter(
        rope_turn=1, rms_norm_turn=LAYERS, attend=LAYERS, rms_norm=LAYERS, silu_swiglu=LAYERS, rms_norm_2=LAYERS - 1
    )
    # Besides matrix products only other names for what is there: of each layer, the parts of q, k and v, of a gate and
    # its partner, and of two turns. Once for all, which keys a row sees, and the rates of the angles, of no row.
    assert left == Counter(
        joined_linears=2 * LAYERS, linear=2 * LAYERS, unflatten=LAYERS, flatten=LAYERS, getitem=7 * LAYERS + 2,
        seen_rows=1, arange=1, beside=1, real=1, mul=1, truediv=1, pow=1,
    )  # fmt: skip


def run(root, dtype: torch.dtype, fused: bool, like: Model) -> tuple[list[torch.Tensor], dict]:
    model = olmo2(root, dtype)
    with torch.no_grad():
        for (_, one), (_, two) in zip(model.by_path(), like.by_path(), strict=True):
            one.copy_(two)
    graph = model.reference(model.objective())
    if fused:
        graph = optimise(graph, GPU_PASSES)
        attach_kernels(graph)
    return gradients(graph, [tokens(), OFFSETS])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_losses_and_gradients(root, dtype: torch.dtype, limit: float) -> None:
    like = olmo2(root, torch.float32)
    want, want_gradients = run(root, torch.float64, False, like)
    got, got_gradients = run(root, dtype, True, like)
    for number, (one, two) in enumerate(zip(got, want, strict=True)):
        assert_equal(one.double(), two.double(), f"result {number}", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 4 * limit)


def test_bfloat16_is_no_worse_than_unfused(root) -> None:
    """Matrix products round alike; what is fused rounds less often."""
    like = olmo2(root, torch.bfloat16)
    _, exact = run(root, torch.float64, False, like)
    _, unfused = run(root, torch.bfloat16, False, like)
    _, fused = run(root, torch.bfloat16, True, like)
    for name, want in exact.items():
        ours, theirs = ((found[name].double() - want).norm().item() for found in (fused, unfused))
        assert ours <= 1.5 * theirs + 1e-3 * want.norm().item(), f"{name}: {ours:.3g}, unfused {theirs:.3g}"


def test_loaded_with_kernels_it_generates_the_same(root) -> None:
    """The model's own calls and its derived decoder, prompts of unequal length."""
    plain = olmo2(root, torch.float32)
    model = load(root / "specs" / "olmo2.weft", "tiny", {"layers": LAYERS}, passes=GPU_PASSES)
    assert isinstance(model, Model)
    model.load_state_dict(plain.state_dict())
    prompts = [[1, 2, 3], [5], [7, 8, 9, 10, 11]]
    for one, two in zip(model(prompts), plain(prompts), strict=True):
        assert_equal(one, two, "logits", 1e-5)
    assert generate(model, prompts, 5) == generate(plain, prompts, 5)
