"""Routed specs on the GPU path: kernels in Triton's interpreter, `weft verify`, artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.small_models import checked, model
from tests.test_routing import TOWERS, batch, weights_of
from tests.test_selected_inputs import HYBRID
from tests.test_selected_inputs import batch as fusion_batch
from weft.codegen.artifact import compile_to
from weft.codegen.gpu.fused import Fused
from weft.codegen.gpu.grouped import Grouped
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, Pass
from weft.runtime.model import Model, load
from weft.runtime.verify import Part, verify


def run(built: Model, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor | None]]:
    xs, kinds, pictures = batch()
    found = torch.cat(built([x.to(dtype) for x in xs], kinds, pictures))
    found.to(torch.float64).sin().sum().backward()
    return found.detach(), {path: weight.grad for path, weight in weights_of(built).items()}


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)], ids=["float32", "bfloat16"])
def test_kernels_agree_with_float64(dtype: torch.dtype, near: float) -> None:
    built, exact = model(TOWERS, dtype, passes=GPU_PASSES), model(TOWERS)
    with torch.no_grad():
        for path, weight in weights_of(exact).items():
            weight.copy_(weights_of(built)[path])
    found, gradients = run(built, dtype)
    expected, wanted = run(exact, torch.float64)
    scale = expected.abs().max()
    assert (found.to(torch.float64) - expected).abs().max() < near * scale
    for path, gradient in gradients.items():
        want = wanted[path]
        assert gradient is not None
        assert want is not None
        assert (gradient.to(torch.float64) - want).abs().max() < 2 * near * want.abs().max(), path


def test_rows_fuse_within_an_arm() -> None:
    """Norms, gates and residuals of a tower are kernels; takes and joins stay between them."""
    built = model(TOWERS, torch.float32, passes=GPU_PASSES)
    nodes = list(built.graph(built.program).graph.nodes)
    names = [getattr(node.target, "__name__", "") for node in nodes]
    # Two layers: q, k and v of each, and the result.
    assert names.count("join") == 7
    assert not {"rsqrt", "sigmoid", "sin", "silu"} & set(names)
    fused = [node.name for node in nodes if isinstance(node.target, Fused)]
    # Of each tower and layer two norms, and of the first layer the turns of q and k, with the angles.
    assert len(fused) == 2 * (2 * 2 + 1)
    # Gates, and the turns of the second layer, are made where their linears are, of both towers.
    made = [node.target.epilogue for node in nodes if isinstance(node.target, Grouped)]
    assert [one.parts for one in made if one is not None] == [1, 2, 1]


# What a group makes passes rows that are in no group, and comes back by another group with a part on each side.
AROUND = """
size dim = 8

enum tone: low, high, flat

axis seq
axis lows = seq where kind == low
axis highs = seq where kind == high
axis flats = seq where kind == flat

model m(x: real[seq, dim], kind: tone[seq]) -> real[seq, dim]:
    param first: real[dim] = ones
    h = x * first
    flat_rows = take(x, seq -> flats) * real(position(flats) + 1) * 0.2
    y = join((take(x, seq -> highs), take(x, seq -> lows), flat_rows), (highs, lows, flats) -> seq)
    low_rows = take(h, seq -> lows)
    flat_rows = take(h, seq -> flats)
    flat_rows = flat_rows + previous(flat_rows)
    z = join((flat_rows, take(h, seq -> highs), low_rows), (flats, highs, lows) -> seq)
    y = linear(y, dim -> dim) as down
    routed by kind:
        w = 1.0 * y
    return w / (h^2 + 1.46) - z
"""


@pytest.mark.parametrize("text", [TOWERS, HYBRID, AROUND], ids=["towers", "words and pictures", "around"])
def test_verify(text: str) -> None:
    parts = [part for part in verify(checked(text), torch.float32, True) if isinstance(part, Part)]
    assert len(parts) > (3 if text is AROUND else 20)
    assert {"gradient"} < {part.kind for part in parts}
    assert not [part.name for part in parts if not part.is_ok]


@pytest.mark.parametrize("passes", [CPU_PASSES, GPU_PASSES], ids=["cpu", "gpu"])
def test_an_artifact_runs_routed_rows(passes: tuple[Pass, ...], tmp_path: Path) -> None:
    spec = checked(HYBRID)
    target = "cpu" if passes is CPU_PASSES else "cuda:90"
    compile_to(spec, tmp_path / "made", torch.float64, passes, target=target)
    built = Model(spec, torch.float64, seed=3)
    opened: Any = load(tmp_path / "made", dtype=torch.float64)
    opened.load_state_dict(built.state_dict())
    given = fusion_batch()
    found, expected = opened(**given), built(**given)
    for name in expected:
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert "lark" not in (tmp_path / "made" / "model.py").read_text()
