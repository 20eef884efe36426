"""Turns of loops that a backward computes again: gradients, what is kept, and what may run only once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import lmfusion_models, small_models
from tests.commands import says, weft
from tests.fused_models import assert_equal
from weft.codegen.bags.op import BagOp
from weft.codegen.cpu import few_scores, selection
from weft.codegen.functions import row_tables
from weft.codegen.passes.recomputation import READERS, SELECTIONS
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES
from weft.codegen.recompute import Turn
from weft.runtime.lazy_rows import LazyRows
from weft.runtime.model import Model, load
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups

ROOT = Path(__file__).resolve().parent.parent
TEXTS = small_models.tokens((40, 23, 1), 260)
DOCUMENTS = [lmfusion_models.document(4, "p", 2, "p", seed=1), lmfusion_models.document(5, seed=3)]

# Draws, a selection whose scores and indices are read, and two values that leave a turn, in loops within one.
LOOPS = """
size vocab = 19
size dim = 8
size half = 3
axis seq

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim)
    y = x
    for layer in 0 .. 3:
        x = dropout(tanh(linear(x, dim -> dim)), 0.3)
        for part in 0 .. 2:
            best = topk(linear(y, dim -> dim), over=dim, k=half)
            y = y * sigmoid(x)
            x = tanh(x + sum(best.score, over=half) * real(sum(int(best.index), over=half)))
        x = x + 0.1 * normal(like=x)
    return linear(x + y, dim -> vocab) as head

objective next_token(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), next(tokens))

init **.weight = normal(0.3)
"""


@dataclass(frozen=True)
class Step:
    """`kept`: bytes that the forward saved for the backward, weights aside."""

    losses: dict[str, tuple[Tensor, Tensor]]
    gradients: dict[str, Tensor | None]
    kept: int


def step(model: Model, inputs: Mapping[str, Any], **settings: Any) -> Step:
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x  # held, or another would lie where it was
        return x

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model.loss(None, seed=3, step=5, **inputs, **settings)
    # Asked for now, as the first call moves weights.
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    size = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)
    kept.clear()
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    found = {path: None if one.grad is None else one.grad.clone() for path, one in model.by_path()}
    return Step(losses, found, size)


def assert_same(got: Step, want: Step) -> None:
    for name, (total, count) in want.losses.items():
        assert torch.equal(got.losses[name][0], total), name
        assert torch.equal(got.losses[name][1], count), name
    for path, gradient in want.gradients.items():
        assert_equal(got.gradients[path], gradient, path, 1e-12)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in want.gradients.values())


def turns(model: Model) -> list[Turn]:
    """Of the objective's graph. What may run only once is in none of them."""
    found = [part for part in model.graph(model.objective()).modules() if isinstance(part, Turn)]
    for turn in found:
        for node in turn.body.graph.nodes:
            assert node.target not in SELECTIONS, node
            assert node.target not in READERS or node.op != "call_function", node
            assert not isinstance(node.target, BagOp), node
    return found


SMALL = {"layers": 3, "stride": 1, "memories": 2}


def spec(name: str, passes: Any = None, **choices: object) -> Callable[[], Model]:
    def made() -> Model:
        model = load(ROOT / "specs" / f"{name}.weft", "tiny", choices, torch.float64, passes=passes)
        assert isinstance(model, Model)
        return model

    return made


MODELS: dict[str, tuple[Callable[[], Model], Mapping[str, Any], float]] = {
    "olmo2": (spec("olmo2", layers=3), {"tokens": TEXTS}, 0.1),
    "memory layers": (spec("memory_layers", **SMALL), {"tokens": TEXTS}, 0.3),
    "few of many scores": (spec("memory_layers", half=32, **SMALL), {"tokens": TEXTS}, 0.3),
    "PEER": (spec("memory_layers", experts=True, gated=False, **SMALL), {"tokens": TEXTS}, 0.3),
    "lmfusion": (partial(lmfusion_models.model, layers=2), lmfusion_models.of_objective(DOCUMENTS), 0.2),
    "draws, two streams": (
        lambda: small_models.model(LOOPS, passes=CPU_PASSES), {"tokens": small_models.tokens((9, 4))}, 0.9
    ),
    "kernels": (
        spec("memory_layers", GPU_PASSES, dim=32, ffn=48, lookups=1, **SMALL | {"layers": 2}),
        {"tokens": small_models.tokens((3, 1), 260)},
        0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "inputs", "share"), MODELS.values(), ids=MODELS.keys())
def test_gradients_are_the_same_and_little_is_kept(
    make: Callable[[], Model], inputs: Mapping[str, Any], share: float
) -> None:
    plain, again = make(), make()
    again.recompute()
    want, got = step(plain, inputs), step(again, inputs)
    assert_same(got, want)
    assert turns(again)
    assert not turns(plain)
    assert got.kept < share * want.kept, f"{got.kept} of {want.kept} bytes"


def test_each_layer_keeps_what_enters_it() -> None:
    """And no more: a row of the model's width."""
    sizes = []
    for layers in (1, 3):
        model = spec("olmo2", layers=layers)()
        model.recompute()
        assert len(turns(model)) == layers
        sizes.append(step(model, {"tokens": TEXTS}).kept)
    rows = sum(map(len, TEXTS))
    assert sizes[1] - sizes[0] == 2 * rows * 128 * 8


def test_converted_weights_are_not_kept() -> None:
    """Sixteen-bit copies of float32 weights would be as many as there are weights."""
    plain, again = (spec("olmo2", layers=2)().float() for _ in range(2))
    again.recompute()
    inputs = {"tokens": small_models.tokens((3,), 260)}
    want, got = (step(one, inputs, working=torch.bfloat16) for one in (plain, again))
    assert_same(got, want)
    in_layers = sum(one.numel() for path, one in again.by_path() if path.startswith("layer."))
    assert want.kept > 2 * in_layers > 4 * got.kept


def test_within_stages() -> None:
    """As of several ranks, where weights are at hand as a whole in a stage alone."""
    plain, again = (spec("memory_layers", **SMALL)() for _ in range(2))
    again.recompute()
    again.run_in_stages({f"layer.{i}": again.get_submodule(f"layer.{i}") for i in range(3)})  # type: ignore[misc]
    want, got = (step(one, {"tokens": TEXTS}) for one in (plain, again))
    assert_same(got, want)
    assert len(turns(again)) >= 3
    assert got.kept < 0.3 * want.kept


def test_a_model_without_loops_stays_as_it_is() -> None:
    plain, again = (small_models.model(small_models.DECODER, passes=CPU_PASSES) for _ in range(2))
    again.recompute()
    inputs = {"tokens": small_models.tokens((9, 4))}
    want, got = step(plain, inputs), step(again, inputs)
    assert_same(got, want)
    assert not turns(again)
    assert got.kept == want.kept


def test_without_gradients_it_is_the_graph() -> None:
    plain, again = (spec("olmo2", layers=1)() for _ in range(2))
    again.recompute()
    with torch.no_grad():
        for one, two in zip(plain(TEXTS), again(TEXTS), strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("lazy", "choices"),
    [(True, {}), (False, {"half": 32}), (True, {"half": 32, "experts": True, "gated": False})],
    ids=["lazy", "dense, few of many scores", "lazy, PEER"],
)
def test_what_may_run_once_runs_once(monkeypatch: pytest.MonkeyPatch, lazy: bool, choices: dict[str, object]) -> None:
    """Selections, reads of tables, and what an optimiser of rows is told, in two steps of training."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, kind: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any) -> Any:
            counts[kind] += 1
            return function(*args)

        monkeypatch.setattr(owner, name, counted)

    for owner in (selection, few_scores):
        count(owner, "largest_pairs", "selections")
    for name in ("sum_rows", "multiply_rows"):
        count(row_tables, name, "reads")
    for name in ("before_reading", "add_gradient"):
        count(LazyRows, name, name)

    def trained(recomputes: bool) -> tuple[dict[str, Tensor], list[Counter[str]]]:
        counts.clear()
        model, seen = spec("memory_layers", **SMALL, **choices)(), []
        if recomputes:
            model.recompute()
        weights = dict(model.by_path())
        rules = model.checked.optimiser if lazy else None
        optimiser = WeightOptimiser(make_groups(rules, weights, lr=1e-2), weights)
        for number in range(2):
            optimiser.zero_grad()
            losses = model.loss(None, TEXTS, seed=0, step=number)
            seen.append(counts.copy())
            torch.stack([total / count for total, count in losses.values()]).sum().backward()
            seen.append(counts.copy())
            optimiser.step(Moment(), optimiser.gradient_norms())
        optimiser.bring_up()
        return {path: weight.detach().clone() for path, weight in weights.items()}, seen

    (want, of_plain), (got, seen) = trained(False), trained(True)
    assert seen == of_plain
    assert seen[0]["selections"] == 2
    assert seen[0]["reads"] == (4 if "experts" in choices else 2)
    assert seen[0]["selections"] == seen[1]["selections"]
    assert seen[0]["reads"] == seen[1]["reads"]
    assert seen[1]["before_reading"] == seen[1]["add_gradient"] == (seen[0]["reads"] if lazy else 0)
    for path, weight in want.items():
        assert_equal(got[path], weight, path, 1e-12)


def test_a_run_of_the_command(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the {number}th thread of the weft\n" for number in range(60)))
    common = [
        "train", str(ROOT / "specs" / "memory_layers.weft"), "--size", "tiny", "--set", "layers=3", "--set", "dim=32",
        "--set", "stride=1", "--set", "memories=2", "--data", str(text), "--max-length", "32",
        "--tokens-per-step", "128", "--threads", "1", "--eval-every", "0", "--lr", "1e-3", "--schedule", "constant",
    ]  # fmt: skip

    def run(out: str, steps: str, *more: str) -> Any:
        return weft(*common, "--steps", steps, "--out", str(tmp_path / out), *more)

    def losses(out: str) -> list[float]:
        lines = (tmp_path / out / "metrics.jsonl").read_text().splitlines()
        return [line["total"] for line in map(json.loads, lines) if line["kind"] == "train"]

    assert run("plain", "4").returncode == 0
    assert run("again", "3", "--recompute").returncode == 0
    assert json.loads((tmp_path / "again" / "run.json").read_text())["recompute"] is True
    says(run("again", "4", "--resume"), 1, "recompute: true -> false")
    went_on = run("again", "4", "--resume", "--recompute")
    assert went_on.returncode == 0, went_on.stderr
    assert len(losses("plain")) == 4
    assert losses("again") == losses("plain")
