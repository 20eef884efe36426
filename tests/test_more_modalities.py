"""LMFusion with more kinds of rows, by edits of its spec: sound, and what a VLM sees (lmfusion.md 6)."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lmfusion_models import checked, document, model, of_objective, spec_text
from weft.runtime.model import Model
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups

# A tag more: rows of sound, whose loss is nobody's business here.
FOURTH = (
    ("enum modality: text, image", "enum modality: text, image, sound"),
    ("axis picture\n", "axis picture\naxis tick = seq where kind == sound\n"),
    ("x = join((words, places), (word, place) -> seq)",
     "x = join((words, places, linear(sound, mel -> dim) as ear), (word, place, tick) -> seq)"),
)  # fmt: skip


def test_a_fourth_modality_is_three_lines_and_its_input() -> None:
    """Its tag, its rows, and where they are put among the others; and the inputs that bring them. It trains."""
    inputs = (
        ("    time: int[picture],\n):", "    time: int[picture],\n    sound: real[tick, mel],\n):"),
        ("cosine_left(time, steps)), time)", "cosine_left(time, steps)), time, sound)"),
        ("cap: int):", "cap: int, sound: real[tick, mel]):"),
        ("axis seq\n", "axis seq\naxis mel = 5\n"),
        ("new **.image.**,", "new **.image.**, **.sound.**, ear.**,"),
    )
    built = model(spec_text(*FOURTH, *inputs))
    one = document(4, "p", 2)
    kind = torch.cat([one.kind[:3], torch.tensor([2] * 4), one.kind[3:]])
    sound = torch.randn(4, 5, dtype=torch.float64)
    losses = built.loss("joint", **{**of_objective([one]), "kind": [kind], "sound": [sound]})
    (losses["text"][0] + losses["image"][0]).backward()
    weights: dict[str, Tensor] = dict(built.by_path())
    tower = [path for path in weights if ".sound." in path and not path.startswith(("layer.2", "last"))]
    assert len(tower) == 2 * 9
    for path in (*tower, "ear.weight"):
        gradient = weights[path].grad
        assert gradient is not None, path
        assert gradient.any(), path


# Rows that a VLM's own encoder made stay with the VLM, and are causal (lmfusion.md 6): routed by role.
LLAVA = (
    ("enum modality: text, image", "enum modality: text, understanding, image"),
    ("axis seq\n", "axis seq\naxis encoded = dim\naxis look = seq where kind == understanding\n"),
    ("    time: int[picture],\n):", "    time: int[picture],\n    features: real[look, encoded],\n):"),
    ("x = join((words, places), (word, place) -> seq)",
     ("looks = linear(features, encoded -> dim) as projector\n    "
      "x = join((words, looks, places), (word, look, place) -> seq)")),
    ("cosine_left(time, steps)), time)", "cosine_left(time, steps)), time, features)"),
    ("cap: int):", "cap: int, features: real[look, encoded]):"),
)  # fmt: skip
TOWERS = {
    "one tower with words": (
        ("        routed by kind:\n            y = part(x) as part\n",
         ("        match kind:\n            text, understanding:\n                y = part(x) as part\n"
          "            image:\n                y = part(x) as part\n")),
        ("copy(**.text.**)", "copy(**.text_or_understanding.**)"),
        ("new **.image.**,", "new **.image.**, projector.**,"),
    ),
    "a tower of its own": (
        ("init **.image.** = copy(**.text.**)",
         "init **.image.** = copy(**.text.**)\ninit **.understanding.** = copy(**.text.**)"),
        ("new **.image.**,", "new **.image.**, **.understanding.**, projector.**,"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_pictures_to_understand_are_no_pictures_to_make(name: str) -> None:
    """What is looked at is rows of the language model: where they hold embeddings of words, they are those words."""
    built = Model(checked(spec_text(*LLAVA, *TOWERS[name])), torch.float64)
    weights: dict[str, Tensor] = dict(built.by_path())
    tower = "text_or_understanding" if name == "one tower with words" else "understanding"
    assert all(not weight.requires_grad for path, weight in weights.items() if ".text" in path)
    assert weights["projector.weight"].requires_grad
    assert weights[f"layer.0.q.{tower}.part.linear.weight"].requires_grad == (tower == "understanding")
    one = document(4, "p", 3)
    with torch.no_grad():
        weights["projector.weight"].copy_(torch.eye(64))
        none = {"features": [torch.zeros(0, 64, dtype=torch.float64)]}
        kind = torch.where(one.kind == 1, 2, 0)
        want: Any = built(**{**one.inputs, "kind": [kind], **none})
        looked = kind.clone()
        looked[[1, 2, 14]] = 1
        is_look = (looked == 1)[kind == 0]
        features = weights["embed.weight"][one.ids[is_look]]
        given = {**one.inputs, "kind": [looked], "ids": [one.ids[~is_look]], "features": [features]}
        found: Any = built(**given)
        # Causal: what comes later changes no row before it, though it is a picture for people.
        later: Any = built(**{**given, "features": [torch.cat([features[:2], features[2:] + 1])]})
    torch.testing.assert_close(found["logits"][0], want["logits"][0][~is_look], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found["noise"][0], want["noise"][0], rtol=1e-9, atol=1e-10)
    assert torch.equal(later["noise"][0], found["noise"][0])
    assert torch.equal(later["logits"][0][:3], found["logits"][0][:3])
    assert not torch.equal(later["logits"][0][3:], found["logits"][0][3:])


# LLaVAFusion has three kinds of rows. Of a fourth: what tags there are, which rows it is among, how its tower begins.
# What is embedded or projected is handed in with what the rows it is among are: no input is new.
BEGINS = "init **.understanding.** = copy(**.text.**)\n"
FOURTHS = {
    "code": (
        ("enum modality: text, understanding, image", "enum modality: text, understanding, image, code"),
        ("axis word = seq where kind == text", "axis word = seq where kind == text or kind == code"),
        (BEGINS, BEGINS + "init **.code.** = copy(**.text.**)\n"),
    ),
    "sound": (
        ("enum modality: text, understanding, image", "enum modality: text, understanding, image, sound"),
        ("axis look = seq where kind == understanding", "axis look = seq where kind == understanding or kind == sound"),
        (BEGINS, BEGINS + "init **.sound.** = copy(**.text.**)\n"),
    ),
}  # fmt: skip


def lines_of_an_edit(before: str, after: str) -> int:
    """Lines that are other than they were, or were not there."""
    marks = [line[0] for line in difflib.ndiff(before.splitlines(), after.splitlines())]
    return max(marks.count("+"), marks.count("-"))


@pytest.mark.parametrize("name", FOURTHS)
def test_a_fourth_modality_is_three_lines_and_trains(name: str) -> None:
    """Words of another kind, and what another encoder made: a tower of its own, whose steps make both losses fall."""
    three = spec_text(*LLAVA, *TOWERS["a tower of its own"])
    four = spec_text(*LLAVA, *TOWERS["a tower of its own"], *FOURTHS[name])
    assert lines_of_an_edit(three, four) == 3
    built = model(four, dtype=torch.float32, layers=2)
    weights: dict[str, Tensor] = dict(built.by_path())
    frozen = {path for path, weight in weights.items() if not weight.requires_grad}
    assert {path for path in weights if ".text." in path} | {"embed.weight", "head.weight"} == frozen
    # Words, two things to look at, four rows of the fourth kind, a picture, words; nothing but the fourth is trained.
    kind = torch.tensor([0, 0, 1, 1, 0, 3, 3, 3, 3, 0, *[2] * 9, 0, 0])
    features = torch.randn(6 if name == "sound" else 2, 64, generator=torch.Generator().manual_seed(3))
    given = {**of_objective([document(10 if name == "code" else 6, "p")]), "kind": [kind], "features": [features]}
    own = {path for path in weights if f".{name}." in path}
    assert len(own) == 2 * 9 + 1
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    groups = make_groups(built.checked.optimiser, weights, set(weights) - own, lr=1e-2)
    optimiser, found = WeightOptimiser(groups, {path: weights[path] for path in own}), []
    for _ in range(6):
        losses = {part: total / count for part, (total, count) in built.loss("joint", **given).items()}
        found.append({part: float(loss.detach()) for part, loss in losses.items()})
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step(Moment(), optimiser.gradient_norms())
        for weight in weights.values():
            weight.grad = None
    assert found[-1]["text"] < 0.9 * found[0]["text"], found
    assert found[-1]["image"] < found[0]["image"], found
    moved = {path for path, weight in weights.items() if not torch.equal(weight, before[path])}
    assert moved <= own
    assert {path for path in own if path.startswith("layer.0.")} <= moved
