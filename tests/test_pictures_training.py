"""Documents with parts: batches of them, training on them, and more kinds of parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weft
from tests.picture_data import (
    SMALL,
    SPECS,
    as_bytes,
    corpus_of,
    fault,
    grey,
    model_of,
    only_batch,
    picture,
    write_lines,
)  # fmt: skip
from weft.cli import main
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.checkpoint import read_weights
from weft.runtime.errors import RuntimeFault
from weft.runtime.loader import BatchPlan, held_out_batches
from weft.runtime.model import Model
from weft.runtime.part_loader import PartLoader, pack_parts
from weft.runtime.run_config import make_config
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.train import train

pytest.importorskip("PIL.Image", reason="pictures are an extra")


@pytest.fixture(scope="module")
def lmfusion() -> Model:
    model = weft.load(SPECS / "lmfusion.weft", size="tiny", overrides=SMALL)
    assert isinstance(model, Model)
    return model


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for number in range(30):
        picture(tmp_path / "pictures" / f"{number}.png", rng.integers(0, 255, (8, 8)).astype(np.uint8))
    records = [{"caption": "x" * (1 + i % 7), "image": f"pictures/{i}.png"} for i in range(30)]
    return write_lines(tmp_path / "x.jsonl", *records)


def by_example(batch: Any) -> dict[str, tuple[Any, ...]]:
    """What each example is given, by its label."""
    shown = {}
    for one in batch.split(10_000):
        if one.examples:
            (tags, _), (ids, _), (latent, _), cap = one.given
            shown[one.labels[0]] = (tags.tolist(), ids.tolist(), latent.tolist(), cap.tolist())
    return shown


def test_an_example_is_the_same_whatever_it_is_packed_with(lmfusion: Model, captions: Path) -> None:
    corpus = corpus_of(lmfusion, captions, max_length=64)
    few, many = PartLoader(corpus, BatchPlan(60, None, 0)), PartLoader(corpus, BatchPlan(None, 30, 0))
    whole = by_example(many.next_batch())
    assert len(whole) == 30
    seen: dict[str, Any] = {}
    while few.epoch == 0:
        batch = few.next_batch()
        assert batch.examples == 1 or batch.rows <= 60
        seen |= by_example(batch)
    assert {label: seen[label] for label in whole if label in seen} | whole == whole
    assert by_example(many.next_batch()) != whole  # the next epoch draws anew


def test_parts_of_a_batch_have_the_losses_of_the_whole(captions: Path) -> None:
    """The shares of ranks and micro-batches: sums and counts add up, draws included."""
    model: Any = weft.load(SPECS / "lmfusion.weft", size="tiny", overrides=SMALL, dtype=torch.float64)
    batch = PartLoader(corpus_of(model, captions), BatchPlan(None, 7, 0)).next_batch()
    whole = model.loss("joint", *batch.given, example_ids=batch.example_ids, seed=4, step=2)
    parts = [part for part in batch.split(3) if part.examples]
    assert len(parts) == 3
    found = [model.loss("joint", *part.given, example_ids=part.example_ids, seed=4, step=2) for part in parts]
    for name, (total, count) in whole.items():
        torch.testing.assert_close(sum(one[name][0] for one in found), total, rtol=1e-10, atol=1e-10)
        assert sum(one[name][1] for one in found) == count


def test_the_loader_goes_on_where_it_was(lmfusion: Model, captions: Path) -> None:
    corpus, plan = corpus_of(lmfusion, captions), BatchPlan(200, None, 5)
    loader = PartLoader(corpus, plan)
    for _ in range(4):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state_dict()))
    again = PartLoader(corpus_of(lmfusion, captions), plan)
    again.load_state_dict(state)
    for _ in range(5):
        assert by_example(again.next_batch()) == by_example(loader.next_batch())
    picture(captions.parent / "pictures" / "3.png", grey(9))
    message = fault(PartLoader(corpus_of(lmfusion, captions), plan).load_state_dict, state)
    assert "pictures/3.png has changed" in message


def test_held_out_examples_are_always_the_same(lmfusion: Model, captions: Path) -> None:
    corpus = corpus_of(lmfusion, captions, eval_fraction=0.3)
    assert len(corpus.train) + len(corpus.held_out) == 30
    plan = BatchPlan(100, None, 0)
    first, again = (held_out_batches(corpus, plan, None, pack_parts) for _ in range(2))
    assert sum(batch.examples for batch in first) == len(corpus.held_out) > 3
    assert [by_example(one) for one in first] == [by_example(one) for one in again]
    assert all(batch.examples == 1 or batch.rows <= 100 for batch in first)


def test_items_beyond_what_is_kept_are_read_again(
    lmfusion: Model, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = by_example(only_batch(corpus_of(lmfusion, captions)))
    monkeypatch.setattr("weft.runtime.part_corpus.MOST_BYTES_KEPT", 100)
    corpus = corpus_of(lmfusion, captions)
    assert by_example(only_batch(corpus)) == kept
    os.remove(captions.parent / "pictures" / "5.png")
    with pytest.raises(RuntimeFault, match=r"pictures/5\.png cannot be read: No such file"):
        by_example(only_batch(corpus))


# -- training ----------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, data: Path, out: str, **more: Any) -> dict[str, Any]:
    return {
        "spec": str(SPECS / "lmfusion.weft"), "size": "tiny", "overrides": SMALL, "data": [str(data)], "steps": 4,
        "tokens_per_step": 150, "max_length": 64, "lr": 1e-3, "out": str(tmp_path / out), "tensorboard": "off",
        "eval_every": 2, "save_every": 2,
    } | more  # fmt: skip


def weights_of(out: str) -> dict[str, torch.Tensor]:
    return dict(read_weights(latest_checkpoint(Path(out))))


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, captions: Path) -> None:
    whole = settings(tmp_path, captions, "whole")
    assert train(make_config(whole)).reason == "finished"
    cut = settings(tmp_path, captions, "cut")
    assert train(make_config(cut | {"stop_after": 2})).reason == "stop_after"
    train(make_config(cut | {"resume": True}))
    expected, found = weights_of(whole["out"]), weights_of(cut["out"])
    assert all(torch.equal(found[path], weight) for path, weight in expected.items())
    logs = [(Path(run["out"]) / "metrics.jsonl").read_bytes() for run in (whole, cut)]
    assert logs[0] == logs[1]
    record = json.loads(logs[0].splitlines()[0])
    assert set(record["losses"]) == {"text", "image"}


def test_text_stays_as_it_was(tmp_path: Path, captions: Path) -> None:
    """Every weight of the text tower, and the logits of texts, bit for bit; the pictures' tower has moved."""
    run = settings(tmp_path, captions, "run", overrides={**SMALL, "picture_weight": 1})
    before: Any = weft.load(run["spec"], size="tiny", overrides=run["overrides"])
    train(make_config(run))
    after: Any = weft.load(Path(run["out"]))
    moved = {path for path, weight in after.by_path() if not torch.equal(weight, dict(before.by_path())[path])}
    frozen = {path for path, weight in before.weights.items() if weight.frozen}
    assert frozen
    assert not moved & frozen
    assert {path for path in before.weights if ".image." in path} <= moved
    text = [torch.tensor(as_bytes(words)) for words in ("some words", "x")]
    kinds = [torch.zeros(len(ids), dtype=torch.int64) for ids in text]
    nothing = [torch.zeros(0, 64, 1)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    with torch.no_grad():
        logits = [model(kinds, text, *nothing)["logits"] for model in (before, after)]
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))


def test_pictures_alone(tmp_path: Path) -> None:
    """A folder of files, each an example; other files in it are nothing to do with it."""
    for number in range(6):
        picture(tmp_path / "data" / f"{number}.png", grey(40 * number, 9))
    (tmp_path / "data" / "README").write_text("six pictures")
    run = settings(tmp_path, tmp_path / "data", "run", spec=str(SPECS / "unet.weft"), eval_fraction=0.2)
    run |= {"overrides": {"channels": 1, "base": 16, "blocks": 1}, "tokens_per_step": 128, "steps": 2}
    result = train(make_config(run))
    assert (result.tokens, set(result.losses)) == (256, {"noise"})


def test_a_mistake_in_the_data_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path / "x.jsonl", {"caption": "x", "image": "a.png"})
    command = ["train", str(SPECS / "lmfusion.weft"), "--size", "tiny", "--data", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "run")])
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"{file}:1: there is no file a.png")


# -- more kinds of parts -----------------------------------------------------------------------------------------------

SOUNDS = """
enum modality: text, image, sound

size s: dim = 16, vocab = 262, heads = 2, mel = 3, classes = 4, channels = 1

axis seq
axis head_dim = dim / heads
axis word = seq where kind == text
axis place = seq where kind == image
axis frame = seq where kind == sound
axis picture
axis cell = grid(2, 2)

model m(
    kind: modality[seq],
    ids: id[word] in vocab,
    latent: real[picture, cell, channels],
    sound: real[frame, mel],
    label: id in classes,
):
    words = embed(ids, vocab -> dim)
    places = flatten(linear(latent, channels -> dim), (picture, cell) -> place)
    frames = linear(sound, mel -> dim)
    x = join((words, places, frames), (word, place, frame) -> seq) + embed(label, classes -> dim)
    routed by kind:
        q = linear(x, dim -> (heads, head_dim))
    x = x + linear(
        attend(q, q, q, over=head_dim, along=seq, mask=causal or same(picture)),
        (heads, head_dim) -> dim,
    ) as out
    return linear(take(x, seq -> word), dim -> vocab) as head

objective o(
    kind: modality[seq],
    ids: id[word] in vocab,
    latent: real[picture, cell, channels],
    sound: real[frame, mel],
    label: id in classes,
):
    loss text = cross_entropy(m(kind, ids, latent, sound, label), take(next(ids, along=seq), seq -> word))
"""


def test_three_kinds_and_a_label(tmp_path: Path) -> None:
    """Rows of any number for each sound; a value of the example from its record; marks for each kind."""
    (tmp_path / "sounds.weft").write_text(SOUNDS)
    picture(tmp_path / "a.png", grey(255, 2))
    np.save(tmp_path / "b.npy", np.arange(9.0).reshape(3, 3))
    parts = ["hear ", {"sound": "b.npy"}, {"image": "a.png"}, "ok"]
    file = write_lines(
        tmp_path / "x.jsonl", {"parts": parts, "label": 3}, {"caption": "c", "sound": "b.npy", "label": 0}
    )
    model: Any = weft.load(tmp_path / "sounds.weft", size="s")
    batch = only_batch(corpus_of(model, file, drop_caption=0.0, picture_first=0.0))
    (tags, _), (ids, _), (latent, _), (sound, frames), label = batch.given
    assert tags.tolist() == [0] * 7 + [2] * 3 + [0, 0] + [1] * 4 + [0] * 4 + [0] * 3 + [2] * 3 + [0, 0]
    assert ids.tolist()[6:8] == [260, 261]
    assert (label.tolist(), frames.tolist(), latent.flatten().tolist()) == ([3, 0], [0, 3, 6], [1.0] * 4)
    assert sound.flatten().tolist() == [*range(9), *range(9)]
    run = settings(tmp_path, file, "run", spec=str(tmp_path / "sounds.weft"), size="s", overrides={}, eval_fraction=0.0)
    assert train(make_config(run | {"max_length": 32})).reason == "finished"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({}, ":1: no field 'label', which an input of that name is given"),
        ({"label": 4}, ":1: the field 'label' is 4, not in 0 .. 3"),
        ({"label": "x"}, ":1: the field 'label' is text, not a whole number"),
        ({"label": 1.5}, ":1: the field 'label' is a number, not a whole number"),
    ],
)
def test_mistakes_in_values(tmp_path: Path, label: dict[str, Any], message: str) -> None:
    file = write_lines(tmp_path / "x.jsonl", {"text": "x", **label})
    assert fault(corpus_of, model_of(SOUNDS, size="s"), file) == f"{file}{message}"


@pytest.mark.parametrize("where", ["kind == text and kind == code", "kind == text or other == code", "kind"])
def test_rows_are_selected_by_members_of_one_tag(where: str) -> None:
    text = f"enum modality: text, code\naxis seq\naxis word = seq where {where}\n"
    text += "model m(kind: modality[seq], x: real[word]) -> real[word]:\n    return x\n"
    assert [error.code for error in check(Source("m.weft", text), OPS).problems.errors] == ["E253"]


def test_a_modality_more_is_three_lines_of_the_spec(tmp_path: Path, captions: Path) -> None:
    """LMFusion with a tower for code, beside words: what tags there are, which rows are words, what stays as it was."""
    text = (SPECS / "lmfusion.weft").read_text()
    for line, other in (
        ("enum modality: text, image", "enum modality: text, code, image"),
        ("axis word = seq where kind == text", "axis word = seq where kind == text or kind == code"),
        ("init **.image.** = copy(**.text.**)", "init **.code.** = copy(**.text.**)"),
    ):
        assert text.count(line) == 1
        text = text.replace(line, other)
    (tmp_path / "coded.weft").write_text(text)
    file = tmp_path / "y.jsonl"
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    made = [{"parts": [one["caption"], {"code": "x = 1"}, {"image": one["image"]}]} for one in lines]
    write_lines(file, *made)
    run = settings(tmp_path, file, "run", spec=str(tmp_path / "coded.weft"))
    before: Any = weft.load(run["spec"], size="tiny", overrides=SMALL)
    assert train(make_config(run)).reason == "finished"
    after: Any = weft.load(Path(run["out"]))
    code = [path for path, _ in after.by_path() if ".code." in path and path.startswith("layer")]
    start = dict(before.by_path())
    assert code
    assert all(not torch.equal(weight, start[path]) for path, weight in after.by_path() if path in code)
