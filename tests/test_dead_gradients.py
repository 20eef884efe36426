"""Rows that nothing trainable precedes: no gradient is computed for them, nothing of them is saved, and no other
gradient changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import fused_models, op_samples
from tests.lmfusion_models import Document, document, model, of_objective, spec_text
from tests.small_models import checked
from tests.test_more_modalities import LLAVA, TOWERS
from weft.codegen.lower import lower
from weft.codegen.pipeline import CPU_PASSES, DEAD_GRADIENTS, GPU_PASSES, Pass, optimise
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model

WITHOUT = tuple(one for one in CPU_PASSES if one is not DEAD_GRADIENTS)
CAPTIONS = [document(7, "p", seed=1), document(6, "p", seed=2)]
BATCHES = {
    "captions first": CAPTIONS,
    "captions, and words that end them": [document(7, "p", 2, seed=1), document(6, "p", 2, seed=2)],
    "pictures first": [document(1, "p", 6, seed=1), document("p", 4, seed=2)],
    "several pictures": [document(3, "p", 2, "p", "p", 4, seed=1), document(5, seed=2), document(2, "p", seed=3)],
    "no pictures": [document(4), document(3, seed=1)],
    "no words": [document("p", seed=1)],
}


def gradients(built: Model, documents: Sequence[Document]) -> dict[str, Tensor]:
    """Of both losses, as sums; and the losses themselves."""
    losses = built.loss(**of_objective(documents))
    total = torch.stack([value for value, _ in losses.values()]).sum()
    total.backward()
    found = {path: weight.grad for path, weight in built.by_path() if weight.grad is not None}
    for weight in built.parameters():
        weight.grad = None
    counted = {name: torch.stack([value.detach(), count.to(value.dtype)]) for name, (value, count) in losses.items()}
    return {**found, **counted}


@pytest.mark.parametrize("passes", [(DEAD_GRADIENTS,), CPU_PASSES], ids=["alone", "cpu"])
@pytest.mark.parametrize("name", BATCHES)
def test_no_gradient_changes(name: str, passes: tuple[Pass, ...]) -> None:
    found = gradients(model(passes=passes), BATCHES[name])
    expected = gradients(model(passes=()), BATCHES[name])
    assert found.keys() == expected.keys()
    for path, wanted in expected.items():
        torch.testing.assert_close(found[path], wanted, rtol=1e-9, atol=1e-12)


def test_what_somebody_trains_after_all_has_its_gradient() -> None:
    """Also where the graph was made while it was frozen still."""
    built, plain = model(passes=CPU_PASSES), model(passes=())
    gradients(built, CAPTIONS)
    for one in (built, plain):
        dict(one.by_path())["embed.weight"].requires_grad_()
    found, expected = (gradients(one, CAPTIONS)["embed.weight"] for one in (built, plain))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def saved_rows(built: Model, documents: Sequence[Document]) -> list[tuple[int, ...]]:
    """Shapes of the real tensors that a step keeps for backward; weights are no activations.

    Which are weights is asked behind the step: the first call of a program may give weights a new place in memory, and
    what the step computes may then lie where they were.
    """
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        built.loss(**of_objective(documents))
    weights = {weight.data_ptr() for weight in built.parameters()}
    return [tuple(one.shape) for one in kept if one.is_floating_point() and one.data_ptr() not in weights]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "cpu"])
def test_nothing_of_a_caption_is_saved(alone: bool) -> None:
    """13 words, all in front of pictures of 18 rows. Attention keeps its 31 rows, whose queries are pictures too."""
    words = sum(len(one.ids) for one in CAPTIONS)
    before = saved_rows(model(passes=() if alone else WITHOUT), CAPTIONS)
    after = saved_rows(model(passes=(DEAD_GRADIENTS,) if alone else CPU_PASSES), CAPTIONS)
    assert sum(shape[0] == words for shape in before if shape) > 10
    assert not [shape for shape in after if shape and shape[0] == words]


def test_words_behind_a_picture_are_saved() -> None:
    """Freeze is not detach: of 5 words in front nothing is kept, of 7 behind it what was kept of all 12."""
    documents = [document(5, "p", 7)]
    before, after = (saved_rows(model(passes=passes), documents) for passes in (WITHOUT, CPU_PASSES))
    count = {rows: sum(shape[:1] == (rows,) for shape in after) for rows in (5, 7, 12)}
    assert count[5] == count[12] == 0
    assert count[7] > 10
    assert sum(shape[:1] == (12,) for shape in before) > 10


def test_words_in_front_of_a_picture_have_no_products_backward() -> None:
    """The backward of a step multiplies by no weight of words."""
    weights = {"text": 0, "image": 0}
    built = model(passes=CPU_PASSES)
    losses = built.loss(**of_objective(CAPTIONS))
    frozen = {weight.data_ptr() for path, weight in built.by_path() if ".text." in path or not weight.requires_grad}
    assert {weight.data_ptr() for path, weight in built.by_path() if path in ("head.weight", "embed.weight")} <= frozen
    total = torch.stack([value for value, _ in losses.values()]).sum()

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            read = [one for one in args if isinstance(one, Tensor) and one.dim() == 2]
            rows = [one.shape[0] for one in read]
            if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and all(rows):
                weights["text" if any(one.data_ptr() in frozen for one in read) else "image"] += 1
            return func(*args, **(kwargs or {}))

    with Counted():
        total.backward()
    assert weights["text"] == 0
    assert weights["image"] > 10


# -- where it does not hold ------------------------------------------------------------------------


def is_split(text: str) -> bool:
    # Without its `generate`, which refuses masks that a model may be trained with.
    text = text[: text.index("generate tell")] + text[text.index("init **.image.**") :]
    text = text.replace("only ids != begin", "only ids != begin and ids != end")
    built = model(text, passes=())
    objective = next(iter(built.checked.objectives.values()))
    graph = lower(objective, built, torch.float64)
    changed = optimise(graph, (DEAD_GRADIENTS,))
    return any(node.target is torch.detach for node in changed.graph.nodes)


# A mask that looks ahead would see what is to be predicted.
ANY_TARGET = ("following = take(next(ids, along=seq), seq -> word)", "following = ids")
FROZEN = "freeze ** where kind == text\n"


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ((), True),
        (((FROZEN, ""),), False),
        ((("freeze embed, head\n", ""),), False),
        ((("freeze embed, head\n", "freeze embed\n"),), False),
        ((("option qkv_apart: flag = true", "option qkv_apart: flag = false"),), False),
        ((("mask=causal or same(picture)", "mask=none"), ANY_TARGET), False),
        ((("mask=causal or same(picture)", "mask=causal"),), True),
        ((("mask=causal or same(picture)", "mask=causal and window(5) or same(picture)"),), True),
        ((("mask=causal or same(picture)", "mask=not causal or same(picture)"), ANY_TARGET), False),
    ],
)
def test_what_is_shown_to_have_no_gradient(edits: tuple[tuple[str, str], ...], expected: bool) -> None:
    """A tower that is trained, an embedding that is, weights that both towers share, a mask that looks ahead."""
    assert is_split(spec_text(*edits)) == expected


@pytest.mark.parametrize("name", TOWERS)
def test_rows_of_a_third_tag(name: str) -> None:
    """What a VLM looks at is projected by a trained weight: words behind it hand on its gradient."""
    text = spec_text(*LLAVA, *TOWERS[name])
    kinds = torch.tensor([0, 0, 0, 1, 1, 0, 0] + [2] * 9 + [0, 0])
    one = document(7, "p")
    features = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    given: dict[str, Any] = {
        "kind": [kinds],
        "ids": [one.ids],
        "latent": [one.latent],
        "cap": torch.tensor([100]),
        "features": [features],
    }
    found = []
    for passes in (WITHOUT, CPU_PASSES):
        built = model(text, passes=passes)
        sums = built.loss(**given)
        torch.stack([value for value, _ in sums.values()]).sum().backward()
        found.append({path: weight.grad for path, weight in built.by_path() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]["projector.weight"].any()
    for path, wanted in found[0].items():
        torch.testing.assert_close(found[1][path], wanted, rtol=1e-9, atol=1e-12)


# The tag by which rows of `highs` are told apart is itself selected.
NESTED = """
axis two = 2

enum tone: low, high, flat

axis seq
axis lows = seq where kind == low
axis highs = seq where kind == high
axis flats = seq where kind == flat

model m(n: int[seq, two], kind: tone[seq]) -> real[seq, two]:
    x = real(n) * 0.37
    routed by kind:
        y = 1.0 * x
        for layer in 0 .. 2:
            match kind:
                low:
                    y = tanh(y)
                high, flat:
                    y = linear(y, two -> two)
    high_rows = take(y, seq -> highs)
    mixed = attend(high_rows, high_rows, high_rows, over=two, along=highs, mask=causal)
    return join((take(y, seq -> flats), take(y, seq -> lows), mixed), (flats, lows, highs) -> seq)

objective o(n: int[seq, two], kind: tone[seq]):
    loss part = mean(m(n, kind)^2, over=two)
"""


@pytest.mark.parametrize("passes", [(DEAD_GRADIENTS,), CPU_PASSES, GPU_PASSES], ids=["alone", "cpu", "gpu"])
def test_a_tag_that_is_selected_itself(passes: tuple[Pass, ...]) -> None:
    program = checked(NESTED).objectives["o"]
    graph = op_samples.module(program)
    given = op_samples.arguments(graph, op_samples.inputs(program))
    results, expected = fused_models.gradients(graph, given)
    made = optimise(graph, passes)
    attach_kernels(made)
    found, gradients = fused_models.gradients(made, given)
    torch.testing.assert_close(found, results, rtol=1e-9, atol=1e-12)
    for name, wanted in expected.items():
        fused_models.assert_equal(gradients[name], wanted, name, 1e-9)
