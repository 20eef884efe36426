"""A part of a model that starts as another checkpoint: exactly, strictly, recorded, and through a resumed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.patch_runs import documents, run_blt, run_entropy_model
from weft.runtime.checkpoint import WEIGHTS, read_manifest, read_weights
from weft.runtime.errors import RuntimeFault
from weft.runtime.run_config import make_config
from weft.runtime.start_weights import start_from


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Documents, and a run of the entropy model on them."""
    root = tmp_path_factory.mktemp("trained")
    data = documents(root / "data")
    run_entropy_model(data, root / "entropy", steps=3)
    return data, root / "entropy"


def test_weights_below_a_path_start_as_the_checkpoint(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, entropy = trained
    result = run_blt(data, tmp_path / "blt", weights={"entropy_lm": str(entropy)})
    source = entropy / "checkpoints/step-00000003"
    own, theirs = read_weights(result.checkpoint), read_weights(source)
    below = {path: weight for path, weight in own.items() if path.startswith("entropy_lm.")}
    assert {path.removeprefix("entropy_lm.") for path in below} == set(theirs)
    # Frozen, so they are still what they started as.
    for path, weight in theirs.items():
        assert torch.equal(below[f"entropy_lm.{path}"], weight)
    manifest = read_manifest(result.checkpoint)
    (start,) = manifest.started_from
    assert (start.path, start.checkpoint, start.step) == ("entropy_lm", str(source), 3)
    assert start.sha256 == next(entry.sha256 for entry in read_manifest(source).files if entry.name == WEIGHTS)
    assert manifest.run is not None
    assert manifest.run["weights"] == {"entropy_lm": str(entropy)}


def test_a_resumed_run_needs_the_other_checkpoint_no_more(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, entropy = trained
    moved = tmp_path / "entropy"
    shutil.copytree(entropy, moved)
    given = {"weights": {"entropy_lm": str(moved)}}
    whole = run_blt(data, tmp_path / "whole", steps=4, **given)
    stopped = run_blt(data, tmp_path / "parts", steps=4, stop_after=2, **given)
    shutil.rmtree(moved)
    resumed = run_blt(data, tmp_path / "parts", steps=4, resume=True, **given)
    for path, weight in read_weights(whole.checkpoint).items():
        assert torch.equal(read_weights(resumed.checkpoint)[path], weight)
    assert read_manifest(resumed.checkpoint).started_from == read_manifest(stopped.checkpoint).started_from
    with pytest.raises(RuntimeFault, match=r"other settings \(weights: .*elsewhere"):
        run_blt(data, tmp_path / "parts", steps=6, resume=True, weights={"entropy_lm": "elsewhere"})


def test_a_checkpoint_from_before_the_setting_still_goes_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    config = make_config({"spec": "a", "data": ("b",)})
    saved = config.model_dump(mode="json")
    for added in ("weights", "patches_per_step"):
        del saved[added]
    assert config.differences(json.loads(json.dumps(saved))) == []
    assert make_config({"spec": "a", "data": ("b",), "weights": {"x": "y"}}).differences(saved)


@pytest.mark.parametrize(
    ("target", "names", "said"),
    [
        ({"entropy_lm.embed.weight": (2,)}, ("entropy_lm",), "it has no embed.weight for entropy_lm.embed.weight"),
        ({}, ("entropy_ml",), "the model has no weights below entropy_ml (did you mean entropy_lm?)"),
        ({}, ("entropy",), "the model has no weights below entropy"),
        (
            {},
            ("entropy_lm", "entropy_lm.layer"),
            "given twice for entropy_lm.layer: also for entropy_lm, which holds it",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    trained: tuple[Path, Path], target: dict[str, tuple[int, ...]], names: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    own = {f"entropy_lm.{path}": weight * 0 for path, weight in _weights(trained[1]).items()}
    source = str(trained[1])
    if target:
        source = str(tmp_path / "less")
        _without(trained[1], tmp_path / "less", "embed.weight")
    before = {path: weight.clone() for path, weight in own.items()}
    with pytest.raises(RuntimeFault) as caught:
        start_from(own, dict.fromkeys(names, source))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(own[path], weight) for path, weight in before.items())


def test_an_extra_weight_and_a_wrong_shape_are_one_line(trained: tuple[Path, Path]) -> None:
    own = {f"entropy_lm.{path}": weight * 0 for path, weight in _weights(trained[1]).items()}
    head = own.pop("entropy_lm.head.weight")
    with pytest.raises(RuntimeFault, match=r"its head\.weight has no place below entropy_lm$"):
        start_from(own, {"entropy_lm": str(trained[1])})
    own["entropy_lm.head.weight"] = head[:, :-1]
    with pytest.raises(RuntimeFault, match=r"its head\.weight has shape \(260, 16\).*has \(260, 15\)"):
        start_from(own, {"entropy_lm": str(trained[1])})
    assert all(not weight.any() for weight in own.values())


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(run / "checkpoints/step-00000003")


def _without(run: Path, out: Path, path: str) -> None:
    from weft.runtime.checkpoint import save_checkpoint

    kept = {name: weight for name, weight in _weights(run).items() if name != path}
    save_checkpoint(out, read_manifest(run / "checkpoints/step-00000003").model, kept)
