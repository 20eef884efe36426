"""Training with patches: thresholds for a wanted length, packing by patches, lengths and bits among the metrics."""

from __future__ import annotations

import json
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.blt_models import patch_lengths, tiny
from tests.patch_runs import SPECS, documents, run_blt, run_entropy_model
from weft.runtime import metrics
from weft.runtime.calibrate import calibrate
from weft.runtime.checkpoint import read_manifest
from weft.runtime.cut_lengths import BINS, bin_names, count_lengths, cross_entropy_of, segment_lengths
from weft.runtime.data import Corpus, DataOptions, load_corpus
from weft.runtime.errors import RuntimeFault
from weft.runtime.loader import Batch, BatchPlan, TokenLoader
from weft.runtime.model import Model, load
from weft.runtime.patch_counting import counter_of_segments
from weft.runtime.tokens import MarkedByteTokens

# -- thresholds ------------------------------------------------------------------------------------


def _sample(seed: int = 0) -> list[np.ndarray]:
    """Entropies of examples of 1, 2 and more tokens, with many ties."""
    chosen = np.random.default_rng(seed)
    return [np.round(chosen.gamma(2.0, 1.0, n), 1).astype(np.float32) for n in (1, 2, 3, 40, 90, 17, 1, 64)]


def _cut(values: np.ndarray, threshold: float, rule: str, longest: int) -> list[int]:
    """Patch lengths by the words of the rule, token by token."""
    lengths, length = [], 0
    for t, value in enumerate(values):
        length += 1
        rise = float(value) - float(values[t - 1]) if t else 0.0
        over = float(value) > threshold if rule == "entropy" else np.float32(rise) > threshold or t == 1
        if over or t == 0 or t + 1 == len(values) or length == longest:
            lengths.append(length)
            length = 0
    return lengths


@pytest.mark.parametrize("rule", ["entropy", "monotonic"])
@pytest.mark.parametrize("longest", [0, 5])
@pytest.mark.parametrize("wanted", [1.0, 2.0, 3.3, 4.5, 9.0])
def test_no_other_threshold_comes_nearer(rule: str, longest: int, wanted: float) -> None:
    sample = _sample()
    tokens = sum(map(len, sample))
    found = calibrate(sample, wanted, rule, longest)  # type: ignore[arg-type]
    lengths = [length for one in sample for length in _cut(one, found.threshold, rule, longest)]
    assert found.statistics.segments == len(lengths)
    assert found.statistics.mean == pytest.approx(tokens / len(lengths), rel=1e-12)
    names = dict(zip(range(1, 9), bin_names(), strict=False))
    short = Counter(names[length] for length in lengths if length <= 8)
    assert {k: v for k, v in found.statistics.histogram.items() if "-" not in k} == dict(short)
    scores = np.concatenate(sample) if rule == "entropy" else np.concatenate([np.diff(one) for one in sample])
    for other in [-100.0, *map(float, np.unique(scores))]:
        mean = tokens / sum(len(_cut(one, other, rule, longest)) for one in sample)
        assert abs(mean - wanted) >= abs(found.statistics.mean - wanted) - 1e-12


@pytest.mark.parametrize("rule", ["entropy", "monotonic"])
def test_the_model_cuts_as_calibrated(rule: str) -> None:
    """With the threshold as its option, the spec makes the patches that were counted."""
    ids = [torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(n)) for n in (50, 1, 7, 30)]
    values = [one.numpy().astype(np.float32) for one in tiny(torch.float32).values(("surprise",), ids)["surprise"]]
    found = calibrate(values, 3.0, rule)  # type: ignore[arg-type]
    model = tiny(torch.float32, rule=rule, threshold=found.threshold)
    given = [torch.from_numpy(one) for one in values]
    ends = model.values(("ends",), ids, surprise=given)["ends"]
    lengths = [length for one in ends for length in _lengths(one)]
    assert len(lengths) == found.statistics.segments
    assert 2.5 < found.statistics.mean < 3.5


def _lengths(ends: torch.Tensor) -> list[int]:
    """Of one example; what is open at its end counts."""
    lengths = patch_lengths(ends)
    return [*lengths[:-1], *([lengths[-1] - 1] if lengths[-1] > 1 else [])]


def test_a_sample_that_says_nothing_is_one_line() -> None:
    with pytest.raises(RuntimeFault, match="too short to calibrate"):
        calibrate([np.ones(1, np.float32)], 4.5)


# -- lengths ---------------------------------------------------------------------------------------


def test_lengths_of_segments() -> None:
    flags = torch.tensor([0, 1, 0, 0, 1, 1, 0], dtype=torch.bool)
    offsets = torch.tensor([0, 3, 3, 6, 7], dtype=torch.int32)
    assert segment_lengths(flags, None, offsets).tolist() == [2, 1, 2, 1, 1]
    inside = torch.tensor([0, 1, 1, 0, 1, 0, 0], dtype=torch.bool)
    assert segment_lengths(flags & inside, inside, offsets).tolist() == [1, 1, 1]
    lengths = torch.tensor([1, 1, 8, 9, 12, 13, 128, 129, 5000])
    found = count_lengths(lengths).statistics()
    assert found.histogram == {"1": 2, "8": 1, "9-12": 2, "13-16": 1, "65-128": 1, "129-": 2}
    assert (found.segments, found.rows) == (9, int(lengths.sum()))
    assert len(bin_names()) == len(BINS) + 1


TWO_LOSSES = """
size vocab = 260
size dim = 4
axis seq
model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    return linear(embed(tokens, vocab -> dim), dim -> vocab)
objective o(tokens: id[seq] in vocab):
    logits = m(tokens)
    loss z = 0.001 * z_loss(logits)
    loss text = {}
"""


@pytest.mark.parametrize(
    ("loss", "name"),
    [("cross_entropy(logits, next(tokens))", "text"), ("2 * cross_entropy(logits, next(tokens))", None)],
)
def test_bits_are_those_of_the_plain_cross_entropy(loss: str, name: str | None) -> None:
    from tests.small_models import model

    assert cross_entropy_of(model(TWO_LOSSES.format(loss)).objective()) == name


# -- in a run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("trained")
    data = documents(root / "data")
    run_entropy_model(data, root / "entropy", eval_every=6)
    return data, root / "entropy"


def _records(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def test_bits_and_lengths_among_the_metrics_and_in_the_manifest(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, entropy = trained
    given = {"weights": {"entropy_lm": str(entropy)}, "overrides": {"rule": "static", "stride": 4}, "eval_every": 2}
    result = run_blt(data, tmp_path / "whole", steps=2, **given)
    run_blt(data, tmp_path / "parts", steps=2, accumulate=3, **given)
    for run in ("whole", "parts"):
        for line in _records(tmp_path / run, "train"):
            assert line["bits_per_byte"] == pytest.approx(line["losses"]["cross_entropy"] / log(2), rel=1e-12)
            cut = line["cuts"]["patch"]
            assert sum(cut["histogram"].values()) == cut["segments"]
            assert set(cut["histogram"]) <= {"1", "2", "3", "4"}
            assert cut["histogram"]["4"] > cut["histogram"]["3"] > 0
    whole, parts = _records(tmp_path / "whole", "train"), _records(tmp_path / "parts", "train")
    assert [line["cuts"] for line in whole] == [line["cuts"] for line in parts]
    rows = np.diff([0, *(line["tokens"] for line in whole)])
    for line, count in zip(whole, rows, strict=True):
        assert line["cuts"]["patch"]["mean"] == pytest.approx(count / line["cuts"]["patch"]["segments"], rel=1e-12)
    (held_out,) = _records(tmp_path / "whole", "held_out")
    assert read_manifest(result.checkpoint).measured == {
        "bits_per_byte": whole[-1]["bits_per_byte"],
        "held_out_bits_per_byte": held_out["bits_per_byte"],
        "cuts": whole[-1]["cuts"],
    }


def test_bits_and_lengths_are_curves(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: dict[tuple[str, int], float] = {}

    class Curves:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            points[tag, step] = value

        def close(self) -> None:
            pass

    monkeypatch.setattr(metrics, "open_curves", lambda *_: Curves())
    run_blt(trained[0], tmp_path / "run", overrides={"rule": "space"}, eval_every=2)
    for line in _records(tmp_path / "run", "train"):
        cut, step = line["cuts"]["patch"], line["step"]
        assert points["train/bits_per_byte", step] == line["bits_per_byte"]
        assert points["train/patch/segments", step] == cut["segments"]
        assert points["train/patch/mean", step] == cut["mean"]
        shown = {name: points[f"train/patch/length {name}", step] for name in bin_names()}
        assert {name: count for name, count in shown.items() if count} == cut["histogram"]
    (held_out,) = _records(tmp_path / "run", "held_out")
    assert points["held_out/bits_per_byte", 2] == held_out["bits_per_byte"]


def test_a_run_without_cuts_or_bytes_says_nothing_of_them(trained: tuple[Path, Path]) -> None:
    line = _records(trained[1], "train")[0]
    assert "cuts" not in line
    assert "bits_per_byte" in line


def test_measuring_changes_no_step(trained: tuple[Path, Path]) -> None:
    """The losses and their gradients are those without the lengths, bit for bit."""
    model = load(SPECS / "blt.weft", "tiny", {"rule": "space"})
    assert isinstance(model, Model)
    ids = [torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(n)) for n in (30, 1, 12)]
    gradients = []
    for losses in (model.loss(None, ids), model.loss_and_cuts(None, ids)[0]):
        model.zero_grad()
        total, count = losses["cross_entropy"]
        (total / count).backward()
        gradients.append({path: weight.grad.clone() for path, weight in model.by_path() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][path], gradients[1][path]) for path in gradients[0])


# -- packing by patches ----------------------------------------------------------------------------


def _loader(data: Path, rule: str, **plan: int | None) -> tuple[TokenLoader, Corpus, Model]:
    model = load(SPECS / "blt.weft", "tiny", {"rule": rule, "stride": 4})
    assert isinstance(model, Model)
    options = DataOptions((str(data),), max_length=50, eval_fraction=0.0, begin_mark=True)
    corpus = load_corpus(options, MarkedByteTokens(260), 260)
    counter = counter_of_segments(model, model.objective(), ())
    chosen = {"tokens": None, "examples": None, "seed": 1, **plan}
    return TokenLoader(corpus, BatchPlan(**chosen), segments_of=counter), corpus, model  # type: ignore[arg-type]


def _patches(model: Model, batch: Batch) -> int:
    with torch.no_grad():
        _, cuts = model.loss_and_cuts(None, (batch.tokens, batch.offsets))
    return len(cuts["patch"])


@pytest.mark.parametrize("rule", ["space", "static", "byte"])
def test_each_step_has_exactly_so_many_patches(rule: str, tmp_path: Path) -> None:
    loader, corpus, model = _loader(documents(tmp_path / "data"), rule, patches=37)
    windows = corpus.train
    seen = np.zeros(len(corpus.tokens), int)
    order = []
    while loader.epoch == 0:
        batch = loader.next_batch()
        assert _patches(model, batch) == 37
        assert len(set(batch.example_ids.tolist())) == batch.examples
        for label, begin, end in zip(batch.labels, batch.offsets[:-1], batch.offsets[1:], strict=True):
            name, _, begun = label.partition("+")
            index = next(i for i in range(len(windows)) if corpus.label(windows, i) == name)
            start = int(windows.begins[index]) + int(begun or 0)
            own = corpus.tokens[start : start + int(end - begin)]
            assert torch.equal(batch.tokens[begin:end], torch.from_numpy(own.astype(np.int64)))
            seen[start : start + len(own)] += 1
            order.append(index)
    # The epoch's last batch may have begun the next one.
    again = seen.sum() - len(seen)
    assert seen.min() == 1
    assert again == (seen == 2).sum() < 37 * 20
    assert len(order) > len(set(order))


def test_a_budget_of_rows_limits_a_step_of_patches(tmp_path: Path) -> None:
    loader, _, model = _loader(documents(tmp_path / "data"), "static", patches=30, tokens=70)
    rows = [loader.next_batch() for _ in range(30)]
    assert all(batch.rows <= 70 for batch in rows)
    assert any(batch.rows > 66 for batch in rows)
    assert all(_patches(model, batch) <= 30 for batch in rows)


def test_a_saved_state_goes_on_in_the_middle_of_an_example(tmp_path: Path) -> None:
    data = documents(tmp_path / "data")
    loader, _, _ = _loader(data, "space", patches=11)
    states, batches = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(loader.state_dict())))
        batches.append(loader.next_batch())
    assert any(state["begun"] for state in states)
    for at in (0, 3, 7):
        other, _, _ = _loader(data, "space", patches=11)
        other.load_state_dict(states[at])
        for batch in batches[at:]:
            found = other.next_batch()
            assert torch.equal(found.tokens, batch.tokens)
            assert torch.equal(found.example_ids, batch.example_ids)


def test_stored_entropies_are_packed_by_patches_in_a_run(trained: tuple[Path, Path], tmp_path: Path) -> None:
    from tests.commands import weft

    data, entropy = trained
    made = weft(
        "entropies", str(entropy), "--data", str(data), "--out", str(tmp_path / "c"), "--patch-bytes", "3", "--json"
    )
    threshold = json.loads(made.stdout)["calibration"]["threshold"]
    given = {"overrides": {"threshold": threshold}, "patches_per_step": 40, "weights": {"entropy_lm": str(entropy)}}
    run_blt(data, tmp_path / "blt", steps=4, columns={"surprise": str(tmp_path / "c")}, tokens_per_step=None, **given)
    lines = _records(tmp_path / "blt", "train")
    assert [line["cuts"]["patch"]["segments"] for line in lines] == [40] * 4
    assert len({line["tokens"] for line in lines}) == 4
    with pytest.raises(RuntimeFault, match="weights decide where those of next_byte end: give a column for surprise"):
        run_blt(data, tmp_path / "online", tokens_per_step=None, **given)
    with pytest.raises(RuntimeFault, match="next_byte has no cut"):
        run_entropy_model(data, tmp_path / "lm", patches_per_step=10)
