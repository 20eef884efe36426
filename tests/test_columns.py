"""Stored entropies: what a file holds, that it fits the data, and that patches are those of the online model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import weft
from tests.patch_runs import documents, run_blt, run_entropy_model
from weft.runtime.checkpoint import read_manifest
from weft.runtime.columns import Column, ColumnOrigin, read_column, write_column
from weft.runtime.data import Corpus, DataOptions, encode_documents, load_corpus
from weft.runtime.entropies import measure_documents, measure_of
from weft.runtime.errors import RuntimeFault
from weft.runtime.loader import BatchPlan, TokenLoader, held_out_batches
from weft.runtime.model import Model, load
from weft.runtime.run_folder import latest_checkpoint
from weft.runtime.tokens import MarkedByteTokens

TOKENS = MarkedByteTokens(260)
ORIGIN = ColumnOrigin("surprise", TOKENS.digest, True, 0, "weights")


def written(path: Path, data: Path, origin: ColumnOrigin = ORIGIN) -> Path:
    """A column whose value of a token says which token it is, and where."""
    names, ids, _ = encode_documents(DataOptions((str(data),), begin_mark=True), TOKENS, 260)
    values = [one.astype(np.float32) + np.arange(len(one), dtype=np.float32) * 1000 for one in ids]
    write_column(path, origin, names, ids, values)
    return path


def corpus(data: Path, column: Column, **options: object) -> Corpus:
    chosen = {"max_length": 32, "begin_mark": True, "eval_fraction": 0.2, **options}
    return load_corpus(DataOptions((str(data),), **chosen), TOKENS, 260, {"surprise": column})  # type: ignore[arg-type]


def test_columns_are_cut_and_packed_as_tokens_are(tmp_path: Path) -> None:
    data = documents(tmp_path / "data")
    found = corpus(data, read_column(written(tmp_path / "c", data)))
    loader = TokenLoader(found, BatchPlan(300, None, seed=4))
    batches = [loader.next_batch() for _ in range(30)] + list(held_out_batches(found, BatchPlan(300, None, 0)))
    starts = set()
    for batch in batches:
        for part in batch.split(3):
            values = part.columns["surprise"]
            assert len(values) == part.rows
            row = torch.div(values, 1000, rounding_mode="floor").long()
            assert torch.equal(values - row * 1000, part.tokens.float())
            for begin, end in zip(part.offsets[:-1], part.offsets[1:], strict=True):
                assert torch.equal(row[begin:end], row[begin] + torch.arange(int(end - begin)))
                starts.add(int(row[begin]))
    assert starts >= {0, 32, 64}


def test_documents_are_found_by_their_contents(tmp_path: Path) -> None:
    data = documents(tmp_path / "data")
    column = read_column(written(tmp_path / "c", data))
    fewer = documents(tmp_path / "fewer")
    for file in list(fewer.iterdir())[::2]:
        file.unlink()
    (fewer / "00.txt").unlink(missing_ok=True)
    assert corpus(fewer, column).columns["surprise"].size == corpus(fewer, column).tokens.size
    (fewer / "01.txt").write_text("something else")
    with pytest.raises(RuntimeFault, match=r"fewer/01\.txt") as caught:
        corpus(fewer, column)
    assert "it has no values for" in str(caught.value)
    (data / "01.txt").write_text("something else")
    with pytest.raises(RuntimeFault, match=r"data/01\.txt has changed since"):
        corpus(data, column)


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (ColumnOrigin("surprise", "bytes-260", True, 0, ""), "made with vocabulary bytes-260, not bytes4-260"),
        (ColumnOrigin("surprise", TOKENS.digest, False, 0, ""), "made with begin_mark False, not True"),
        (ColumnOrigin("surprise", TOKENS.digest, True, 33, ""), "made for windows of 33 tokens (max_length), not 32"),
    ],
)
def test_another_reading_is_one_line(origin: ColumnOrigin, said: str, tmp_path: Path) -> None:
    data = documents(tmp_path / "data")
    with pytest.raises(RuntimeFault) as caught:
        corpus(data, read_column(written(tmp_path / "c", data, origin)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    good = written(tmp_path / "c", documents(tmp_path / "data")).read_bytes()
    other = tmp_path / "other"
    for bad in (b"", b"not safetensors at all", good[:-9], good[:200]):
        other.write_bytes(bad)
        with pytest.raises(RuntimeFault, match="is damaged, or no file of"):
            read_column(other)
    with pytest.raises(RuntimeFault, match="cannot be read"):
        read_column(tmp_path / "none")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(RuntimeFault, match="is not a file of `weft entropies`"):
        read_column(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "data", "other"]


# -- entropies of models ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Documents, a run of the entropy model, and one of BLT that reads it."""
    root = tmp_path_factory.mktemp("trained")
    data = documents(root / "data")
    run_entropy_model(data, root / "entropy")
    run_blt(data, root / "blt", weights={"entropy_lm": str(root / "entropy")}, overrides={"threshold": 2.0})
    return data, root / "entropy", root / "blt"


def _model(run: Path) -> Model:
    model = load(run)
    assert isinstance(model, Model)
    return model


def _clear_threshold(values: np.ndarray) -> float:
    """In the middle of a gap between entropies, so that rounding decides no patch."""
    ordered = np.sort(values)
    middle = slice(len(ordered) // 3, 2 * len(ordered) // 3)
    at = np.argmax(np.diff(ordered)[middle]) + middle.start
    assert ordered[at + 1] - ordered[at] > 1e-4
    return float((ordered[at] + ordered[at + 1]) / 2)


@pytest.mark.parametrize("max_length", [64, 256])
def test_stored_and_online_entropies_give_the_same_patches(
    trained: tuple[Path, Path, Path], max_length: int, tmp_path: Path
) -> None:
    """In windows of the run's length always; for whole documents where no document is longer than that."""
    data, entropy, blt = trained
    window = 64 if max_length == 64 else 0
    alone = _model(entropy)
    names, ids, _ = encode_documents(DataOptions((str(data),), begin_mark=True), TOKENS, 260)
    assert max(map(len, ids)) > 64
    assert max(map(len, ids)) <= 256
    values = measure_documents(alone, measure_of(alone), ids, window, tokens_per_batch=100)
    write_column(tmp_path / "c", ColumnOrigin("entropy", TOKENS.digest, True, window, ""), names, ids, values)
    found = corpus(data, read_column(tmp_path / "c"), max_length=max_length)
    batch = TokenLoader(found, BatchPlan(900, None, 0)).next_batch()

    model = load(Path(__file__).parent.parent / "specs/blt.weft", "tiny", _small(blt, np.concatenate(values)))
    assert isinstance(model, Model)
    from weft.runtime.start_weights import start_from

    start_from(dict(model.by_path()), {"entropy_lm": str(entropy)})
    packed = (batch.tokens, batch.offsets)
    online = model.values(("surprise", "ends"), packed)
    torch.testing.assert_close(batch.columns["surprise"], online["surprise"].values, rtol=0, atol=2e-6)
    stored = model.values(("ends",), packed, surprise=(batch.columns["surprise"], batch.offsets))["ends"].values
    assert torch.equal(stored, online["ends"].values)
    assert 0.1 < stored.float().mean() < 0.9
    with torch.no_grad():
        one, count = model.loss(None, packed)["cross_entropy"]
        two, _ = model.loss(None, packed, surprise=(batch.columns["surprise"], batch.offsets))["cross_entropy"]
    torch.testing.assert_close(one / count, two / count, rtol=0, atol=1e-6)


def _small(run: Path, values: np.ndarray) -> dict[str, object]:
    return {**(read_manifest(latest_checkpoint(run)).model.overrides or {}), "threshold": _clear_threshold(values)}


def test_a_window_from_the_middle_has_the_entropies_of_its_document(trained: tuple[Path, Path, Path]) -> None:
    data, entropy, _ = trained
    model = _model(entropy)
    _, ids, _ = encode_documents(DataOptions((str(data),), begin_mark=True), TOKENS, 260)
    longest = max(ids, key=len)
    (whole,) = measure_documents(model, measure_of(model), [longest])
    (cut,) = measure_documents(model, measure_of(model), [longest], window=64)
    np.testing.assert_allclose(whole[:64], cut[:64], atol=2e-6)
    assert abs(whole[64:] - cut[64:]).max() > 1e-3


def test_a_model_that_binds_surprise_gives_it(trained: tuple[Path, Path, Path]) -> None:
    data, entropy, blt = trained
    _, ids, _ = encode_documents(DataOptions((str(data),), begin_mark=True), TOKENS, 260)
    of_blt, of_entropy = _model(blt), _model(entropy)
    assert measure_of(of_blt).bound == "surprise"
    assert measure_of(of_entropy).bound is None
    ours = measure_documents(of_blt, measure_of(of_blt), ids)
    theirs = measure_documents(of_entropy, measure_of(of_entropy), ids)
    np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=2e-6)
    with pytest.raises(RuntimeFault, match=r"blt binds no x once; it binds bytes, surprise, ends"):
        measure_of(of_blt, "x")
    with pytest.raises(RuntimeFault, match=r"ends is flag\[seq\]: one real for each token was wanted"):
        measure_of(of_blt, "ends")


def test_the_command_writes_a_file_that_training_reads(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    data, entropy, _ = trained
    made = weft("entropies", str(entropy), "--data", str(data), "--out", str(tmp_path / "c"), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["documents"] == 24
    column = {"surprise": str(tmp_path / "c")}
    weights = {"entropy_lm": str(entropy)}
    given = {"columns": column, "weights": weights, "overrides": {"threshold": 2.0}}
    whole = run_blt(data, tmp_path / "whole", steps=4, **given)
    run_blt(data, tmp_path / "parts", steps=4, stop_after=2, **given)
    resumed = run_blt(data, tmp_path / "parts", steps=4, resume=True, **given)
    assert resumed.losses == whole.losses
    # Other values are other data.
    run_blt(data, tmp_path / "again", steps=4, stop_after=2, **given)
    weft("entropies", str(entropy), "--data", str(data), "--out", str(tmp_path / "c"), "--max-length", "64")
    with pytest.raises(RuntimeFault, match="the data is not what this run was trained on: column surprise has changed"):
        run_blt(data, tmp_path / "again", steps=4, resume=True, **given)


def test_mistakes_of_the_command_are_one_line(trained: tuple[Path, Path, Path], tmp_path: Path) -> None:
    data, entropy, _ = trained
    for words, said in (
        (("--data", str(data)), "give --out FILE"),
        (("--out", "x"), "give --data PATH..."),
        (("--data", str(data), "--out", str(tmp_path)), "a file in a folder that is there was wanted"),
        (("--data", str(data), "--patch-bytes", "0.5"), "a patch has at least one token"),
        (("--data", str(data), "--out", str(tmp_path / "c"), "--value", "x"), "entropy_lm binds no x once"),
    ):
        run = weft("entropies", str(entropy), *words)
        assert run.returncode in (1, 2)
        assert said in run.stderr
        assert run.stderr.count("\n") == 1
    with pytest.raises(RuntimeFault, match="next_byte has no optional input surprised; it has surprise, ends"):
        run_blt(data, tmp_path / "run", columns={"surprised": "c"})
    with pytest.raises(RuntimeFault, match=r"ends is flag\[seq\]: a column holds one real for each token"):
        run_blt(data, tmp_path / "run", columns={"ends": "c"})
