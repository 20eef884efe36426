"""specs/memory_layers.weft: the table of checks of memory_layers.md 9."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.counted_memory import allocated
from tests.memory_models import SPEC, alone, weights_of
from weft.codegen.cpu import selection
from weft.codegen.functions import gathers
from weft.codegen.ops import OPS
from weft.codegen.pipeline import CPU_PASSES, optimise
from weft.dsl.check import Checked, check, read_source
from weft.runtime.checkpoint import OPTIMISER, WEIGHTS, read_training
from weft.runtime.model import Model, load
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.run_config import make_config
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.table_usage import bags_of
from weft.runtime.train import train

ROOT = Path(__file__).resolve().parent.parent


@cache
def checked(size: str, **choices: object) -> Checked:
    return check(read_source(SPEC), OPS, size, choices).value()


def tiny(choices: dict[str, object] | None = None) -> Model:
    model = load(SPEC, "tiny", choices, torch.float64)
    assert isinstance(model, Model)
    return model


def batch(*lengths: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    ids = torch.randint(260, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


# --- 11: sizes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Total:
    """Billions as the sheet (2.8) and the manual print them: of matrices, without norms' gains and biases."""

    size: str
    matrices: str
    layers: tuple[int, ...]
    values: int
    width: int = 2048


TOTALS = (
    Total("1m", "3.368026", (3, 11, 19), 1024**2),
    Total("4m", "9.823060", (3, 11, 19), 2048**2),
    Total("16m", "35.618030", (3, 11, 19), 4096**2),
    Total("64m", "138.747576", (3, 11, 19), 8192**2),
    Total("vanilla", "3.377463", (11,), 1024**2),
    Total("peer", "3.645637", (11,), 768**2),
    Total("373m", "1.440481", (4, 12, 20), 1024**2, 1024),
    Total("8b", "76.522979", (8, 16, 24), 4096**2, 4096),
)


@pytest.mark.parametrize("total", TOTALS, ids=lambda total: total.size)
def test_published_totals(total: Total) -> None:
    weights = checked(total.size).weights
    small = {path for path in weights if path.endswith((".gain", ".bias"))}
    assert f"{sum(prod(w.shape) for path, w in weights.items() if path not in small) / 1e9:.6f}" == total.matrices
    assert sum(prod(weights[path].shape) for path in small) == sum(
        prod(w.shape) for w in weights.values() if len(w.shape) == 1
    ) + sum(prod(w.shape) for path, w in weights.items() if path.endswith("query.bias"))
    found = tuple(int(path.split(".")[1]) for path in weights if path.endswith(".keys"))
    assert found == total.layers
    assert weights["values"].shape == (total.values, total.width)


def test_the_manual_prints_these_totals() -> None:
    """Every size of the spec but the one for trying things, and nothing else."""
    section = (ROOT / "docs" / "manual.md").read_text("utf-8").split("weft train specs/memory_layers.weft")[1]
    printed: dict[str, str] = {}
    for names, numbers in re.findall(r"^\| (`.*`) \| .* \| ([\d., ]+) B \|$", section.split("\n## ")[0], re.MULTILINE):
        printed |= dict(zip(re.findall(r"`(\w+)`", names), numbers.split(", "), strict=True))
    assert printed == {total.size: total.matrices for total in TOTALS}
    assert {"tiny", *printed} == set(re.findall(r"^size (\w+):", SPEC.read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("total", [total for total in TOTALS if total.size in ("373m", "64m")], ids=lambda x: x.size)
def test_a_built_model_has_so_many(total: Total) -> None:
    """On the meta device, all of its 1.4 and 139 billion weights, with gains and biases; none twice."""
    model = load(SPEC, total.size, device="meta")
    assert isinstance(model, Model)
    large = [w for path, w in model.by_path() if not path.endswith((".gain", ".bias"))]
    assert f"{sum(w.numel() for w in large) / 1e9:.6f}" == total.matrices
    every = list(model.parameters())
    assert sum(w.numel() for w in every) == sum(prod(w.shape) for w in checked(total.size).weights.values())
    assert sum(w.shape == (total.values, total.width) for w in every) == 1
    assert all(w.device.type == "meta" for w in every)


def test_the_three_biases() -> None:
    weights = checked("1m").weights
    assert [path for path in weights if path.endswith(".bias")] == [
        f"layer.{layer}.memory.{name}.bias" for layer in (3, 11, 19) for name in ("query", "gate", "out")
    ]
    assert not [path for path in checked("vanilla").weights if "gate.weight" in path and "memory" in path]


@pytest.mark.parametrize(
    ("choices", "layers"),
    [
        ({}, (4, 12, 20)),
        ({"stride": 4}, (8, 12, 16)),
        ({"memories": 1}, (12,)),
        ({"memories": 6, "stride": 3}, (3, 6, 9, 12, 15, 18)),
        ({"placed": (5, 8, 11, 14, 17, 21)}, (5, 8, 11, 14, 17, 21)),
    ],
    ids=str,
)
def test_placement(choices: dict[str, object], layers: tuple[int, ...]) -> None:
    """24 layers (2.7): {L/2 - s, L/2, L/2 + s}, counted from 0, or a list."""
    weights = checked("373m", **choices).weights
    assert tuple(int(path.split(".")[1]) for path in weights if path.endswith(".keys")) == layers
    assert sum(path.endswith("swiglu.up.linear.weight") for path in weights) == 24 - len(layers)


# --- 1, 2: the selection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 32, 77, 256])
@pytest.mark.parametrize("k", [1, 8, 32])
@pytest.mark.parametrize("levels", [None, 3], ids=["distinct", "ties"])
def test_selection_is_exact(n: int, k: int, levels: int | None) -> None:
    """Against all n x n sums, ties to the lowest slot."""
    generator = torch.Generator().manual_seed(n * k)
    first, second = torch.randn(2, 7, 3, n, generator=generator, dtype=torch.float64)
    if levels is not None:
        first, second = first.mul(levels).round(), second.mul(levels).round()
    k = min(k, n)
    sums = (first[..., :, None] + second[..., None, :]).flatten(-2)
    order = torch.sort(sums, descending=True, stable=True)
    for function in (gathers.top_pairs, selection.top_pairs):
        score, slot = function(first, second, k)
        assert torch.equal(score, order.values[..., :k])
        assert torch.equal(slot, order.indices[..., :k])


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_partial_sorts(levels: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(5, 6, 90, generator=generator)
    scores = scores if levels is None else scores.mul(levels).round()
    scores[0, 0, 7] = torch.inf
    for k in (1, 17, 90):
        for one, other in zip(selection.top(scores, k), gathers.top(scores, k), strict=True):
            assert torch.equal(one, other)
    wide = scores.double().requires_grad_()
    if levels is None:
        assert torch.autograd.gradcheck(lambda x: selection.top(x[:2, 1:3], 5)[0], (wide,))
        assert torch.autograd.gradcheck(lambda x: selection.top_pairs(x[:2, 1], x[:2, 2], 5)[0], (wide,))
    torch.library.opcheck(selection.places_of_top, (scores, 5))
    torch.library.opcheck(selection.places_of_pairs, (scores[0], scores[1], 5))


# --- the layer against a plain one -----------------------------------------------------------------------------------


def plain_memory(model: Model, layer: int, x: Tensor) -> Tensor:
    """Section 2 in a few lines of torch, every score formed."""
    weights = {path.split(".", 2)[2]: w for path, w in weights_of(model).items() if path.startswith(f"layer.{layer}.")}
    keys, table = weights["memory.keys"], weights_of(model)["values"]
    heads, _, _, c = keys.shape
    q = (x @ weights["memory.query.weight"].reshape(-1, x.shape[1]).T).reshape(-1, heads, 2, c)
    q = q + weights["memory.query.bias"].reshape(heads, 2, c)
    sides = torch.einsum("thsc,hsnc->thsn", q, keys)
    sums = (sides[:, :, 0, :, None] + sides[:, :, 1, None, :]).flatten(2)
    score, slot = sums.topk(4, -1)
    y = (table[slot] * score.softmax(-1)[..., None]).sum((1, 2))
    gate = x @ weights["memory.gate.weight"].T + weights["memory.gate.bias"]
    return (y * gate * torch.sigmoid(gate)) @ weights["memory.out.weight"].T + weights["memory.out.bias"]


def test_a_memory_layer_is_the_published_formula() -> None:
    model = tiny()
    with torch.no_grad():
        for path, weight in weights_of(model).items():
            if path.endswith(".bias"):  # zeros at the start
                weight.normal_()
    one = alone()
    with torch.no_grad():
        for path, weight in weights_of(one).items():
            name = path if path == "values" else path.replace("layer_1", "layer.1.memory")
            weight.copy_(weights_of(model)[name])
    x = torch.randn(9, 64, dtype=torch.float64)
    found = one((x, torch.tensor([0, 4, 9], dtype=torch.int32)))
    torch.testing.assert_close(found.values, plain_memory(model, 1, x))


# --- 7, 15: sharing, repeating ---------------------------------------------------------------------------------------


def losses_and_gradients(model: Model, passes) -> tuple[Tensor, dict[str, Tensor]]:
    graph = optimise(model.reference(model.objective()), passes)
    loss = torch.stack([x.double() for x in graph(*batch(30, 1, 17))[::2]]).sum()
    model.zero_grad()
    loss.backward()
    return loss.detach(), {path: w.grad.clone() for path, w in weights_of(model).items() if w.grad is not None}


def test_three_layers_read_one_table() -> None:
    """One parameter; its gradient is the sum of those of three copies that each layer reads alone."""
    model = tiny()
    assert [path for path in weights_of(model) if "values" in path] == ["values"]
    _, gradients = losses_and_gradients(model, CPU_PASSES)
    text = SPEC.read_text("utf-8")
    apart = text.replace("shared values: real[slot, width] = normal(width^-0.5)\n", "").replace(
        "    y = bag(values,", "    param values: real[slot, width] = normal(width^-0.5)\n    y = bag(values,"
    )
    apart = re.sub("    values: (.*), lazy=true", r"    **.values: \1", apart)
    apart = re.sub("    readers: .*\n", "", apart)
    spec = check(type(read_source(SPEC))("apart.weft", apart), OPS, "tiny").value()
    three = Model(spec, torch.float64, torch.device("cpu"))
    with torch.no_grad():
        for path, weight in weights_of(three).items():
            weight.copy_(weights_of(model)["values" if path.endswith("values") else path])
    _, separate = losses_and_gradients(three, CPU_PASSES)
    parts = [gradient for path, gradient in separate.items() if path.endswith("values")]
    assert len(parts) == 3
    want = torch.stack(parts).sum(0)
    # An optimiser that takes the gradient by rows adds all readers' terms at once, a row's in their order.
    optimiser = WeightOptimiser(make_groups(model.checked.optimiser, weights_of(model)), weights_of(model))
    assert "values" not in losses_and_gradients(model, CPU_PASSES)[1]
    by_one = torch.stack(parts).any(-1).sum(0) == 1
    assert by_one.sum() > 20
    for found in (gradients["values"], optimiser.lazy["values"].dense_gradient()):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-14)
        assert torch.equal(found[by_one], want[by_one]), "rows that one layer reads, to the last bit"


def test_a_trained_table_is_kept_once(tmp_path: Path) -> None:
    """In a run's weights, in its optimiser and in what is loaded from it: three readers, one entry, one state."""
    (tmp_path / "text.txt").write_text("over and under\n" * 40)
    settings = {
        "spec": str(SPEC), "size": "tiny", "overrides": {"dim": 32, "ffn": 48}, "data": [str(tmp_path / "text.txt")],
        "max_length": 32, "tokens_per_step": 64, "steps": 2, "eval_every": 0, "threads": 1, "tensorboard": "off",
        "out": str(tmp_path / "run"),
    }  # fmt: skip
    train(make_config({}, settings))
    checkpoint = latest_checkpoint(tmp_path / "run")
    saved, kept = (load_file(checkpoint / name) for name in (WEIGHTS, OPTIMISER))

    def of_the_table(tensors: Mapping[str, Tensor | None]) -> list[str]:
        return sorted(path for path, x in tensors.items() if x is not None and x.shape == (16 * 16, 32))

    assert sum(path.endswith(".keys") for path in saved) == 3
    assert of_the_table(saved) == ["values"]
    assert of_the_table(kept) == ["moments/first/values", "moments/second/values"]
    assert all(kept[path].count_nonzero() > 0 for path in of_the_table(kept))
    model = load(checkpoint)
    assert isinstance(model, Model)
    assert of_the_table(model.state_dict()) == ["values"]
    weights = weights_of(model)
    optimiser = WeightOptimiser(make_groups(model.checked.optimiser, weights), weights)
    optimiser.load_state(read_training(checkpoint).optimiser)
    assert of_the_table({path: first for path, (first, _) in optimiser.state().moments.items()}) == ["values"]
    assert list(optimiser.lazy) == ["values"]
    torch.testing.assert_close(weights["values"].detach(), saved["values"], rtol=0, atol=0)


@pytest.mark.parametrize("choices", [{}, {"gated": False}, {"experts": True, "gated": False}], ids=str)
def test_fast_is_plain(choices: dict[str, object]) -> None:
    model = tiny(choices)
    loss, gradients = losses_and_gradients(model, ())
    fast, found = losses_and_gradients(model, CPU_PASSES)
    torch.testing.assert_close(fast, loss)
    assert found.keys() == gradients.keys() == weights_of(model).keys()
    for path, gradient in gradients.items():
        torch.testing.assert_close(found[path], gradient, rtol=1e-9, atol=1e-12)
    again, repeated = losses_and_gradients(model, CPU_PASSES)
    assert torch.equal(again, fast)
    assert all(torch.equal(repeated[path], gradient) for path, gradient in found.items())


@pytest.mark.parametrize(
    "choices",
    [
        {"query_norm": "rms", "key_norm": "rms", "score_scale": 0.125},
        {"query_norm": "unit", "key_norm": "unit"},
        {"token_gate": True},
        {"gated": False, "width": 32},
        {"memories": 1, "placed": (2,)},
    ],
    ids=str,
)
def test_variants_learn(choices: dict[str, object]) -> None:
    model = tiny(choices)
    _, gradients = losses_and_gradients(model, CPU_PASSES)
    assert gradients.keys() == weights_of(model).keys()
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients.values())


# --- 12: how it starts -----------------------------------------------------------------------------------------------


def test_start() -> None:
    """rms(y) of what is read is sqrt(h / (k v)), as weights are almost equal (2.9)."""
    model = tiny({"half": 64, "lookups": 4, "top": 32, "key": 256, "width": 512})
    table = weights_of(model)["values"].detach()
    assert table.std() == pytest.approx(512**-0.5, rel=0.01)
    keys = weights_of(model)["layer.1.memory.keys"].detach()
    assert keys.abs().max() <= 256**-0.5
    assert keys.std() == pytest.approx(256**-0.5 / 3**0.5, rel=0.02)
    query = weights_of(model)["layer.1.memory.query.weight"].detach()
    bound = (6 / (64 + 4 * 256)) ** 0.5
    assert query.abs().max() <= bound
    assert query.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    program = model.objective()
    bags = bags_of(program)
    assert len(bags) == 3
    read = replace(program, outputs=tuple((f"bag {i}", bag.outputs[0]) for i, bag in enumerate(bags)), losses=())
    for y in model.run(read, batch(400)).values():
        assert y.values.shape == (400, 512)
        assert y.values.detach().square().mean().sqrt() == pytest.approx((4 / (32 * 512)) ** 0.5, rel=0.02)


# --- 13, 14: learning, memory ----------------------------------------------------------------------------------------


def test_the_table_alone_learns_and_is_needed() -> None:
    """Only `values` is trained, on the second of two random ids after the first."""
    torch.manual_seed(0)
    model = load(SPEC, "tiny", {"layers": 1, "memories": 1, "gated": False, "half": 32}, torch.float32, seed=3)
    assert isinstance(model, Model)
    pairs = torch.randperm(260)[:120]
    target = torch.randint(260, (120,))
    tokens = torch.stack([pairs, target], 1).flatten()
    offsets = torch.arange(0, 241, 2, dtype=torch.int32)
    weights = weights_of(model)
    groups = make_groups(model.checked.optimiser, weights, [path for path in weights if path != "values"], lr=1e-2)
    optimiser = WeightOptimiser(groups, weights)
    losses = []
    for step in range(60):
        optimiser.zero_grad()
        (total, count), = model.loss(None, (tokens, offsets), seed=0, step=step, example_ids=None,
                                     working=None).values()  # fmt: skip
        (total / count).backward()
        losses.append(float((total / count).detach()))
        optimiser.step(Moment(), optimiser.gradient_norms())
    optimiser.bring_up()
    assert all(later < earlier for earlier, later in zip(losses[::10], losses[10::10], strict=False))
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        weights["values"].zero_()
        (total, count), = model.loss(None, (tokens, offsets), seed=0, step=0, example_ids=None,
                                     working=None).values()  # fmt: skip
    assert float(total / count) > 0.9 * losses[0]


@pytest.mark.parametrize("choices", [{}, {"experts": True, "gated": False}], ids=str)
def test_what_is_read_is_never_stored(choices: dict[str, object]) -> None:
    """No tensor of rows x lookups x top x width, nor one with a score for every slot, in a whole training step."""
    sizes = {"layers": 1, "memories": 1, "dim": 256, "heads": 2, "half": 64, "lookups": 2, "top": 32, "key": 16}
    model = load(SPEC, "tiny", {**sizes, **choices}, torch.float32)
    assert isinstance(model, Model)
    weights = weights_of(model)
    optimiser = WeightOptimiser(make_groups(model.checked.optimiser, weights), weights)
    rows = 96
    with allocated() as memory:
        for step in range(2):
            optimiser.zero_grad()
            losses = model.loss(None, batch(rows), seed=0, step=step, example_ids=None, working=None)
            torch.stack([total / count for total, count in losses.values()]).sum().backward()
            optimiser.step(Moment(), optimiser.gradient_norms())
    # The dense gradients of tables and moments would be as large, were they not left out: 4096 x 256.
    assert memory.largest < min(rows * 64 * 256, rows * 2 * 64 * 64 * 4) * 4 / 2
