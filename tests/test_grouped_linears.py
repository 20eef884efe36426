"""Which linears of a routing become one call, and what that computes: specs on the GPU path against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import lmfusion_models
from tests.grouped_models import KERNEL_PASSES, grouped
from tests.lmfusion_models import document
from tests.small_models import checked, model
from weft.codegen.gpu.grouped_form import GroupedForm
from weft.codegen.grouped.epilogue import Parts
from weft.codegen.grouped.op import GroupedOp
from weft.codegen.lower import empty_weights, lower
from weft.codegen.pipeline import GPU_PASSES, Pass, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.dsl.program import Program
from weft.runtime.model import Model

# Gates of a formula of their own, with a bias, a residual and a scale that each tower has for itself.
FORMULAS = """
size dim = 12
size wide = 20
enum modality: text, image, sound
axis seq

block tower(x: real[seq, dim], z: real[seq, wide], kind: modality[seq]) -> real[seq, dim]:
    routed by kind:
        a = linear(x, dim -> wide, bias=true) as a
        b = linear(x, dim -> wide, bias=true) as b
        param scale: real[wide] = normal(1)
        y = z + tanh(a) * sigmoid(b) - a * scale
        x = x + linear(y, wide -> dim) as back
    return x

model towers(x: real[seq, dim], z: real[seq, wide], kind: modality[seq]) -> real[seq, dim]:
    return tower(x, z, kind)

init **.weight = normal(0.4)
init **.bias = normal(0.4)
"""
# Heads of ten entries, which no tile divides; a turn of halves in the arms, of neighbours outside of them.
TURNS = """
size dim = 12
axis heads = 4
axis groups = 2
axis width = 10
enum modality: text, image, sound
axis seq

block layer(x: real[seq, dim], kind: modality[seq]) -> real[seq, dim]:
    routed by kind:
        q = linear(x, dim -> (heads, width)) as q
        k = linear(x, dim -> (groups, width)) as k
        v = linear(x, dim -> (groups, width)) as v
    q = TURN(q, along=seq)
    k = TURN(k, along=seq)
    mixed = attend(q, k, v, over=width, along=seq, group=heads -> groups, mask=causal)
    routed by kind:
        y = linear(mixed, (heads, width) -> dim) as out
    return x + y

model towers(x: real[seq, dim], kind: modality[seq]) -> real[seq, dim]:
    for i in 0 .. 2:
        x = layer(x, kind) as layer
    return x

init **.out.weight = normal(0.2)
"""
ROTATIONS = {
    "halves": TURNS.replace("TURN", "rope"),
    "neighbours": TURNS.replace("TURN", "rope_interleaved"),
    "within arms": TURNS.replace("    q = TURN", "        q = rope").replace("    k = TURN", "        k = rope"),
    "of queries alone": TURNS.replace("    q = TURN", "        q = rope")
    .replace("    k = TURN(k, along=seq)\n", "")
    .replace("(heads, width)) as q", "(heads, width), bias=true) as q"),
}
UNEQUAL = """
size dim = 8
size few = 16
size many = 24
enum modality: text, image
axis seq

model towers(x: real[seq, dim], kind: modality[seq]) -> real[seq, dim]:
    match kind:
        text:
            y = linear(linear(x, dim -> few) as up, few -> dim) as down
        image:
            y = linear(linear(x, dim -> many) as up, many -> dim) as down
    return y
"""
KINDS = ((0, 1, 1, 2, 0, 1, 1), (0, 0, 0), (1, 2), (2,))


def graph(text: str, passes: tuple[Pass, ...] = GPU_PASSES) -> torch.fx.GraphModule:
    return graph_of(checked(text).model, passes)


def graph_of(program: Program, passes: tuple[Pass, ...] = GPU_PASSES) -> torch.fx.GraphModule:
    return optimise(lower(program, empty_weights(program.weights, torch.float32, "meta"), torch.float32), passes)


def test_unequal_towers_stay_as_they_are() -> None:
    """Their last linears have one shape, and no more: 16 entries come in, or 24."""
    assert not grouped(graph(UNEQUAL))


def test_lmfusion() -> None:
    """Of a layer: q, k and v are written where their rows stand, the result of attention is read there, and gates are
    made before they are stored."""
    spec = lmfusion_models.checked(lmfusion_models.spec_text(), (("layers", 1),))
    made = graph_of(spec.model)
    assert [op.form for op in grouped(made)] == [
        GroupedForm(2, 64, (64, 16, 16), scatters=True),
        GroupedForm(2, 64, (64,), gathers=True),
        GroupedForm(2, 64, (160, 160)),
        GroupedForm(2, 160, (64,)),
    ]
    qkv, out, gates, down = grouped(made)
    # What moves rows is ours, what does not is left to the matrix library until it is measured.
    assert [len(op.ours) for op in (qkv, out, gates, down)] == [3, 3, 0, 0]
    assert gates.epilogue is not None
    assert gates.epilogue.pieces == (0, 1)
    names = {getattr(node.target, "__name__", "") for node in made.graph.nodes}
    assert "join" not in names


def test_a_residual_is_added_once() -> None:
    """By the norm that reads the sum, which hands it on: all layers have the kernels of one."""
    texts = []
    for layers in (3, 4):
        made = graph_of(lmfusion_models.checked(lmfusion_models.spec_text(), (("layers", layers),)).model)
        norms = [node for node in made.graph.nodes if isinstance(node.target, FusedOp) and "rms_norm" in node.name]
        assert len(norms) == 2 * (2 * layers + 1)
        assert all(len(node.args) <= 3 for node in norms)
        texts.append(len({node.target for node in norms}))
    assert texts[0] == texts[1]


def run(built: Model, given: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Results, and gradients of what is trained."""
    found = built(**given)
    parts = [one for result in (found.values() if isinstance(found, dict) else [found]) for one in result]
    torch.stack([part.to(torch.float64).sin().sum() for part in parts]).sum().backward()
    return [part.detach() for part in parts], {path: weight.grad for path, weight in built.by_path()}


def agree(built: Model, exact: Model, given: Any, limit: float) -> None:
    with torch.no_grad():
        for (path, weight), (other, one) in zip(exact.by_path(), built.by_path(), strict=True):
            assert path == other
            weight.copy_(one)
    (found, gradients), (expected, wanted) = run(built, given(built)), run(exact, given(exact))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert not one.numel() or (one.to(torch.float64) - other).abs().max() <= limit * other.abs().max()
    # A bias of keys has no gradient but for rounding, which is of the size of what was added up.
    largest = max(float(want.abs().max()) for want in wanted.values() if want is not None)
    for path, want in wanted.items():
        gradient = gradients[path]
        assert (gradient is None) == (want is None), path
        if gradient is not None and want is not None:
            scale = max(float(want.abs().max()), 1e-3 * largest)
            assert (gradient.to(torch.float64) - want).abs().max() <= 2 * limit * scale, path


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)], ids=str)
def test_epilogues_are_any_formula(dtype: torch.dtype, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(len(kind), 32, generator=generator, dtype=torch.float64) for kind in KINDS]

    def given(built: Model) -> dict[str, Any]:
        working = next(weight.dtype for _, weight in built.by_path())
        x, z = [one[:, :12].to(dtype).to(working) for one in rows], [one[:, 12:].to(dtype).to(working) for one in rows]
        return {"x": x, "z": z, "kind": [torch.tensor(kind) for kind in KINDS]}

    built = model(FORMULAS, dtype, passes=KERNEL_PASSES)
    ops: list[GroupedOp] = grouped(graph(FORMULAS))
    assert any(op.epilogue is not None and len(op.epilogue.others) >= 1 for op in ops), [op.name for op in ops]
    agree(built, model(FORMULAS), given, limit)


def test_lmfusion_agrees_with_float64() -> None:
    """Logits, noise and every gradient; the text tower is frozen and has none."""
    documents = lmfusion_models.batch([document(4, "p", 2), document(3, seed=1), document("p", 1, seed=2)])

    def given(built: Model) -> dict[str, Any]:
        working = next(weight.dtype for _, weight in built.by_path())
        return documents | {"latent": [one.to(working) for one in documents["latent"]]}

    built = lmfusion_models.model(dtype=torch.float32, passes=KERNEL_PASSES, layers=1)
    agree(built, lmfusion_models.model(layers=1), given, 1e-4)


@pytest.mark.parametrize("name", ROTATIONS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)], ids=str)
def test_rotations_are_made_before_queries_and_keys_are_stored(dtype: torch.dtype, limit: float, name: str) -> None:
    """Of the second layer; in the first the angles are found, which is the other kernel's work."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(len(kind), 12, generator=generator, dtype=torch.float64).to(dtype) for kind in KINDS]

    def given(built: Model) -> dict[str, Any]:
        working = next(weight.dtype for _, weight in built.by_path())
        return {"x": [x.to(working) for x in rows], "kind": [torch.tensor(kind) for kind in KINDS]}

    ops = [op for op in grouped(graph(ROTATIONS[name])) if op.epilogue is not None]
    outputs = (40,) if name == "of queries alone" else (40, 20, 20)
    parts = Parts(2, 1 if name == "neighbours" else 5)
    assert [(op.form.outputs, op.epilogue and op.epilogue.parts) for op in ops] == [(outputs, parts)]
    assert ops[0].form.scatters == (name in ("halves", "neighbours"))
    agree(model(ROTATIONS[name], dtype, passes=KERNEL_PASSES), model(ROTATIONS[name]), given, limit)


ONE_RESULT = """
size dim = 1
size ffn = 1
enum tone: low, high, flat
axis seq
axis lows = seq where kind == low
axis highs = seq where kind == high
axis flats = seq where kind == flat
shared mix: real[dim, ffn] = normal(0.5)

model m(x: real[seq, dim], kind: tone[seq]):
    match kind:
        low, high, flat:
            y = linear(x, dim -> dim) as arm
    y = y - rsqrt(mix^2 + 1.4)
    z = join((take(y, seq -> lows), take(y, seq -> highs), take(y, seq -> flats)), (lows, highs, flats) -> seq)
    routed by kind:
        w = z
    return w
"""


def test_a_view_of_one_result_is_no_part_of_several() -> None:
    made = graph(ONE_RESULT)
    assert all(op.form.results == 1 and op.epilogue is None for op in grouped(made))
    assert grouped(made)


WIDENED = """
size dim = 3
size wide = 4
enum tone: low, high
axis seq

model m(x: real[seq, dim], kind: tone[seq]) -> real[seq, wide, dim]:
    param most: real[wide, dim] = normal(1)
    routed by kind:
        y = linear(x, dim -> dim)
    return where(most < y, y, 0.5)
"""


def test_a_wider_view_of_one_result_has_its_gradient() -> None:
    def given(built: Model) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        working = next(weight.dtype for _, weight in built.by_path())
        x = [torch.randn(len(kind), 3, generator=generator).to(working) for kind in KINDS[:2]]
        return {"x": x, "kind": [torch.tensor(kind) % 2 for kind in KINDS[:2]]}

    assert any(op.form.results == 1 for op in grouped(graph(WIDENED)))
    agree(model(WIDENED, torch.float32, passes=KERNEL_PASSES), model(WIDENED), given, 2e-5)
