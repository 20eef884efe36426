"""LMFusion trained, packed, imported and counted: the rest of its sheet's checks (lmfusion.md 2.6 and 9.3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import weft
from tests import huggingface
from tests.fused_models import assert_equal, gradients
from tests.lmfusion_models import (
    IMAGE,
    SPEC,
    TEXT,
    batch,
    document,
    imported,
    model,
    of_objective,
    spec_text,
)
from weft.codegen.ops import OPS
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, optimise
from weft.dsl.check import check, read_source
from weft.runtime.errors import InputFault
from weft.runtime.kernels import attach_kernels
from weft.runtime.optimiser import Moment, WeightOptimiser, make_groups
from weft.runtime.packed import pack
from weft.runtime.transfer import export_checkpoint

# Several pictures, touching ones, none, a picture first, nothing else.
DOCUMENTS = (
    document(4, "p", 2, "p", seed=1),
    document(3, "p", "p", 2, seed=2),
    document(5, seed=3),
    document("p", 4, seed=4),
    document("p", seed=5),
)


# -- numbers of weights ------------------------------------------------------------------------------------------------


def test_the_table_of_weights() -> None:
    weights = check(read_source(SPEC), OPS, size="8b").value().model.weights

    def total(*parts: str, frozen: bool | None = None) -> int:
        chosen = [w for w in weights if all(f".{part}." in f".{w.path}" for part in parts)]
        return sum(math.prod(w.shape) for w in chosen if frozen in (None, w.frozen))

    for tag in ("text", "image"):
        layer = f"layer.7.{{}}.{tag}"
        assert sum(total(layer.format(name)) for name in "qkv") == 25_165_824
        assert total(layer.format("out")) == 16_777_216
        assert total(layer.format("feed")) == 176_160_768
        assert total(layer.format("attention")) + total(layer.format("ffn")) == 8_192
        assert total("layer.7", tag) == 218_112_000
        assert total("layer", tag) == 6_979_584_000
    assert total("embed") + total("head") == 1_050_673_152
    assert total(frozen=True) == 8_030_261_248
    unet = sum(math.prod(w.shape) for w in weights if w.path.partition(".")[0] in ("t", "down", "noise"))
    assert unet == pytest.approx(0.27e9, rel=0.02)
    assert total(frozen=False) == 6_979_584_000 + 4096 + unet
    built = weft.load(SPEC, "8b", device="meta")
    assert sum(p.numel() for p in built.parameters() if not p.requires_grad) == 8_030_261_248


# -- one step ----------------------------------------------------------------------------------------------------------


def test_a_step_leaves_every_word_as_it_was() -> None:
    built = model(dtype=torch.float32)
    before = {path: weight.detach().clone() for path, weight in built.by_path()}
    words = document(11, seed=9)
    with torch.no_grad():
        said = built(**words.inputs)["logits"][0].clone()
    weights: dict[str, Tensor] = dict(built.by_path())
    frozen = {path for path in weights if ".text." in path or path.split(".")[0] in ("embed", "head")}
    groups = make_groups(built.checked.optimiser, weights, frozen, lr=1e-2)
    assert {group.settings.decay for group in groups} == {0.0, 0.1}
    optimiser = WeightOptimiser(groups, weights)
    losses = built.loss("joint", **of_objective(DOCUMENTS))
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    optimiser.step(Moment(), optimiser.gradient_norms())
    for path, weight in weights.items():
        assert torch.equal(weight, before[path]) == (path in frozen), path
        assert (weight.grad is None) == (path in frozen), path
    with torch.no_grad():
        assert torch.equal(built(**words.inputs)["logits"][0], said)


def test_both_losses_fall() -> None:
    """On two documents and one draw of their noise."""
    built = model(dtype=torch.float32, seed=2, layers=1)
    optimiser = torch.optim.AdamW([weight for weight in built.parameters() if weight.requires_grad], lr=3e-3)
    found = []
    for _ in range(16):
        losses = built.loss("joint", **of_objective(DOCUMENTS[:2]))
        optimiser.zero_grad()
        torch.stack([total / count for total, count in losses.values()]).sum().backward()
        optimiser.step()
        found.append({name: float((total / count).detach()) for name, (total, count) in losses.items()})
    assert found[-1]["image"] < 0.5 * found[0]["image"]
    assert found[-1]["text"] < found[0]["text"]


# -- losses ------------------------------------------------------------------------------------------------------------

NAN = """    logits, noise = lmfusion(kind, ids, noised(latent, drawn, cosine_left(time, steps)), time)
    logits = where(ids == begin, log(0 * logits - 1), logits)
"""


def test_what_stands_after_begin_is_not_learned() -> None:
    """Logits that are no numbers there, and none at all where the next row is a picture's."""
    line = NAN.splitlines(keepends=True)[0]
    one = document(7, "p", 3)
    ids = one.ids.clone()
    ids[[2, 6]] = 95
    given = {**of_objective([one]), "ids": [ids]}
    plain = model().loss("joint", **given)
    nan = model(spec_text((line, NAN))).loss("joint", **given)
    assert plain["text"][1] == 10 - 1 - 2  # words; not the last; no begin, of which one stands before the picture
    for name in ("text", "image"):
        assert torch.equal(plain[name][0], nan[name][0])
        assert torch.equal(plain[name][1], nan[name][1])
    logits = model()(**{**one.inputs, "ids": [ids]})["logits"][0]
    # With words as they are, not with noise: only the loss of rows before the picture can be done by hand.
    rows = [row for row in range(6) if row != 2]
    want = torch.nn.functional.cross_entropy(logits[rows], ids[[row + 1 for row in rows]], reduction="sum")
    alone = document(7)
    found = model().loss("joint", **{**of_objective([alone]), "ids": [ids[:7]]})["text"]
    torch.testing.assert_close(found[0], want.to(found[0].dtype), rtol=1e-6, atol=0)


def test_noise_of_twice_the_size() -> None:
    """Where the answer is 0, what is left is 5 times the mean square of the noise: four times as much."""
    found = []
    line = "    drawn = normal(like=latent)\n"
    for text in (spec_text(), spec_text((line, line + "    drawn = 2 * drawn\n"))):
        built = model(text)
        with torch.no_grad():
            for path, weight in built.by_path():
                if path.startswith("noise.up.last."):
                    weight.zero_()
            found.append(built.loss("joint", **of_objective(DOCUMENTS))["image"])
    (one, count), (four, _) = found
    assert count == 6  # pictures
    torch.testing.assert_close(four, 4 * one)
    assert 5 * 0.7 < float(one / count) < 5 * 1.3


# -- the U-Net ---------------------------------------------------------------------------------------------------------


def test_time_and_what_was_kept_reach_the_noise() -> None:
    one = DOCUMENTS[0]
    text = spec_text()
    kept = "    z, skip = down(latent, t)\n"
    without = spec_text((kept, kept + "    for i in 0 .. 4:\n        skip[i] = 0 * skip[i]\n"))
    with torch.no_grad():
        noise = model(text)(**one.inputs)["noise"][0]
        later = model(text)(**{**one.inputs, "time": [one.time + 1]})["noise"][0]
        nothing = model(without)(**one.inputs)["noise"][0]
    assert noise.shape == one.latent.shape
    assert (later - noise).abs().max() > 1e-4
    assert (nothing - noise).abs().max() > 1e-2


# -- who sees whom -----------------------------------------------------------------------------------------------------


def test_a_picture_changes_itself_and_what_follows() -> None:
    built, (one, other) = model(), DOCUMENTS[:2]
    with torch.no_grad():
        base = built(**batch([one, other]))
        for number, first in ((0, 4), (1, 6)):
            latent = one.latent.clone()
            latent[number, 7] += 1
            found = built(**{**batch([one, other]), "latent": [latent, other.latent]})
            changed = (found["logits"][0] - base["logits"][0]).abs().amax(1) > 0
            assert changed.tolist() == [row >= first for row in range(6)]
            pictures = (found["noise"][0] - base["noise"][0]).abs()
            assert bool((pictures[number] > 0).all())
            assert bool((pictures[:number] == 0).all())
            for name in ("logits", "noise"):
                assert torch.equal(found[name][1], base[name][1])


GIVEN = (
    ("    time: int[picture],\n):", "    time: int[picture],\n    given: real[picture, spot, dim],\n):"),
    ("cosine_left(time, steps)), time)", "cosine_left(time, steps)), time, given)"),
    ("cap: int):", "cap: int, given: real[picture, spot, dim]):"),
    ("(latent=x, time=now", "(latent=x, time=now, given=normal(per=(spot, dim))"),
    ("(latent=x, time=0", "(latent=x, time=0, given=normal(per=(spot, dim))"),
    ("places = flatten(z,", "places = flatten(given,"),
    (" |> rope(along=seq, theta=theta)", ""),
)


def test_without_positions_rows_of_a_picture_may_change_places() -> None:
    built, one = model(spec_text(*GIVEN)), DOCUMENTS[0]
    rows = torch.randn(2, 9, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = built.values(("seen", "logits"), **one.inputs, given=[rows])
        moved = built.values(("seen", "logits"), **one.inputs, given=[rows[:, order]])
    torch.testing.assert_close(moved["seen"][0].reshape(2, 9, 64), found["seen"][0].reshape(2, 9, 64)[:, order])
    torch.testing.assert_close(moved["logits"][0], found["logits"][0])


# -- packed, and every way to run it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [None, ()], ids=["cpu", "reference"])
def test_documents_together_are_documents_alone(passes) -> None:
    built = model(passes=passes)
    with torch.no_grad():
        found = built(**batch(DOCUMENTS))
        again = built(**batch(DOCUMENTS[::-1]))
        for number, one in enumerate(DOCUMENTS):
            alone = built(**one.inputs)
            for name in ("logits", "noise"):
                torch.testing.assert_close(found[name][number], alone[name][0], rtol=1e-10, atol=1e-11)
                torch.testing.assert_close(again[name][-1 - number], alone[name][0], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("passes", [CPU_PASSES, GPU_PASSES], ids=["cpu", "gpu"])
@pytest.mark.parametrize("program", ["lmfusion", "joint"])
def test_passes_agree_with_the_unfused_graph(program: str, passes) -> None:
    """Results, and gradients of weights and latents, in float64."""
    built = model(layers=2)
    of = built.program if program == "lmfusion" else built.objective("joint")
    graph = built.reference(of)
    given = batch(DOCUMENTS[:3]) if program == "lmfusion" else of_objective(DOCUMENTS[:3])
    shape = graph.meta["weft_signature"]
    arguments = pack(shape, (), given, torch.float64).arguments(shape)
    if shape.draws:
        arguments += [torch.tensor(7), torch.tensor(3), torch.arange(3)]
    for weight in built.parameters():
        weight.requires_grad_()
    want = gradients(graph, arguments)
    # Every weight has a gradient here, those that the spec freezes too.
    made = optimise(graph, tuple(one for one in passes if not one.trusts_frozen))
    attach_kernels(made)
    got = gradients(made, arguments)
    for number, (one, other) in enumerate(zip(got[0], want[0], strict=True)):
        assert_equal(one, other, f"result {number}", 1e-9)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        assert_equal(got[1][name], gradient, name, 1e-8)


def products(built, one) -> int:
    """FLOPs of matrix products; attention counts by itself."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built.values(("seen", "logits"), **one.inputs)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for op, count in counts.items() if str(op) in ("aten.mm", "aten.addmm"))


def test_a_row_costs_one_tower() -> None:
    """Of the layers: 2 for each weight of one tower and row, whatever the tags are. At 8B, 4096 rows and one layer that
    is 1787 GFLOP."""
    tower = 64 * (64 + 2 * 16) + 64 * 64 + 3 * 64 * 160
    two, three = (model(passes=CPU_PASSES, layers=layers) for layers in (2, 3))
    for one in (document(20), DOCUMENTS[0], DOCUMENTS[4]):
        assert products(three, one) - products(two, one) == 2 * len(one.kind) * tower
    assert pytest.approx(1787, abs=1) == 2 * 4096 * (218_112_000 - 8_192) / 1e9


# -- which parts are apart ---------------------------------------------------------------------------------------------

DEPTHS = {
    "deep": {},
    "shallow": {"qkv_apart": False, "out_apart": False},
    "norms together": {"norms_apart": False},
    "none": {"norms_apart": False, "qkv_apart": False, "out_apart": False, "ffn_apart": False},
    "products alone": {"norms_apart": False, "out_apart": False, "ffn_apart": False},
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_of_separation_starts_from_the_llama_and_goes_back(depth: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, folder = imported(tmp_path, **DEPTHS[depth])
    built: Any = weft.load(folder)
    words, one = document(9), DOCUMENTS[0]
    with torch.no_grad():
        found = built(**words.inputs)["logits"][0]
        torch.testing.assert_close(found, huggingface.logits(theirs, words.ids.tolist()), rtol=0, atol=3e-7)
        assert built(**one.inputs)["noise"][0].isfinite().all()
    weights = dict(built.by_path())
    for path, weight in weights.items():
        if ".image." in path:
            assert torch.equal(weight, weights[path.replace(".image.", ".text.")])
    names = {"norms": ("attention", "ffn"), "qkv": ("q", "k", "v"), "out": ("out",), "ffn": ("feed",)}
    for option, parts in names.items():
        for part in parts:
            is_apart = DEPTHS[depth].get(f"{option}_apart", True)
            assert any(path.startswith(f"layer.0.{part}.image.") for path in weights) == is_apart
    export_checkpoint(folder, tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key


# -- data that does not fit --------------------------------------------------------------------------------------------


def wrong(kind: list[int], pictures: int) -> dict[str, list[Tensor]]:
    one = document(kind.count(TEXT), *["p"] * pictures)
    return {**one.inputs, "kind": [torch.tensor(kind)]}


BAD = {
    r"example 0: the 9 rows of seq with the tag image in kind of row 1 of picture are not side by side":
        ([IMAGE] * 14 + [TEXT] * 2 + [IMAGE] * 4, 2),
    r"example 0 has 1 rows of picture with 9 rows of seq each, but 8 have the tag image in kind":
        ([TEXT] * 3 + [IMAGE] * 8, 1),
    r"example 0 has 2 rows of picture with 9 rows of seq each, but 9 have the tag image in kind":
        ([TEXT] * 3 + [IMAGE] * 9, 2),
    r"example 0 has 0 rows of picture with 9 rows of seq each, but 9 have the tag image in kind":
        ([TEXT] * 3 + [IMAGE] * 9, 0),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_rows_that_are_no_pictures(message: str) -> None:
    kind, pictures = BAD[message]
    with pytest.raises(InputFault, match=message) as caught:
        model()(**wrong(kind, pictures))
    assert "\n" not in str(caught.value)


def test_pictures_of_another_example() -> None:
    """As many rows in all, but not in each."""
    one, other = document(2, "p"), document(3)
    given = {**batch([one, other]), "latent": [other.latent, one.latent], "time": [other.time, one.time]}
    with pytest.raises(InputFault, match="example 0 has 0 rows of picture with 9 rows"):
        model()(**given)
