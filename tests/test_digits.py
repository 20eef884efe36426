"""The parts of `make digits` that are not commands: the data, the classifier, what is asked of the trained model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import weft

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import digits  # noqa: E402
from bench.digit_classifier import fit  # noqa: E402


def test_the_classifier_finds_the_minimum() -> None:
    """Of classes that are apart it names every one; where the penalty is all, it knows nothing."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    labels = torch.arange(200) % 10
    pictures = centres[labels] + 0.3 * torch.randn(200, 64, generator=generator)
    judge = fit(pictures[:100], labels[:100])
    assert judge.accuracy(pictures[100:], labels[100:]) == 1
    scores = judge.scores(pictures)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(200))
    again = fit(pictures[:100].flip(0), labels[:100].flip(0))
    torch.testing.assert_close(again.weight, judge.weight, rtol=1e-3, atol=1e-3)
    assert fit(pictures, labels, decay=1e6).weight.abs().max() < 1e-5


def test_real_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="digits are an extra")
    digits.write_data(tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / digits.PICTURES).read_text().splitlines()]
    assert len(pairs) == 1797
    assert {pair["caption"] for pair in pairs} == {digits.caption(label) for label in range(10)}
    pictures, labels = digits.read_data(tmp_path)
    assert (pictures.shape, pictures.min().item(), pictures.max().item()) == ((1797, 64), -1, 1)
    judge = fit(pictures[:1400], labels[:1400])
    assert judge.accuracy(pictures[1400:], labels[1400:]) > 0.88
    capsys.readouterr()
    digits.show_judge(tmp_path)
    assert "of 360 pictures that it has not seen" in capsys.readouterr().out


def test_captions() -> None:
    assert [digits.caption(label) for label in (0, 8, 9)] == ["a zero", "an eight", "a nine"]


def test_a_changed_bit_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (weft.load(ROOT / "specs" / "lmfusion.weft", size="tiny", overrides={"layers": 1}) for _ in range(2))
    models: dict[Path, Any] = {Path("before"): one, Path("after"): other}
    monkeypatch.setattr(weft, "load", lambda path: models[path])
    digits.show_unchanged(Path("before"), Path("after"))
    assert capsys.readouterr().out.endswith("logits of 10 texts are the same, bit for bit\n")
    with torch.no_grad():
        for path, weight in models[Path("after")].by_path():
            if ".image." in path:
                weight += 1
    digits.show_unchanged(Path("before"), Path("after"))
    with torch.no_grad():
        head = dict(models[Path("after")].by_path())["head.weight"]
        head[7] = torch.nextafter(head[7], head[7] + 1)
    with pytest.raises(SystemExit, match="the logits of 10 texts have changed"):
        digits.show_unchanged(Path("before"), Path("after"))


def metrics(run: Path, *losses: float) -> Path:
    """A run whose held-out pictures had these losses, every five steps."""
    lines: list[Any] = [{"kind": "train", "step": 1, "losses": {"text": 9, "image": 9}}]
    lines += [
        {"kind": "held_out", "step": 5 * number, "losses": {"text": 1.0, "image": loss}}
        for number, loss in enumerate(losses, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_losses_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits.show_losses(metrics(tmp_path, 2.0, 1), Path("1"))
    shown = capsys.readouterr().out.splitlines()
    assert [line.count("#") for line in shown] == [40, 20]
    assert shown[0].startswith("step      5  text 1.0000  image 2.0000  ####")


@pytest.mark.parametrize(
    ("losses", "most"),
    [((2.0, 1.0, 2.0), "1"), ((2.0, 1.0, 2.5), "1"), ((2.0, 1.0), "0.5"), ((2.0,), "1")],
    ids=["as much", "more", "too little", "one evaluation"],
)
def test_losses_that_do_not_fall_end_the_script(
    tmp_path: Path, losses: tuple[float, ...], most: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the lines have been shown: one line on stderr, and 1. With another setting it goes on."""
    command = [sys.executable, "bench/digits.py", "losses", str(metrics(tmp_path, *losses)), most]
    if most == "0.5":
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, len(done.stdout.splitlines())) == (1, len(losses))
        assert done.stderr == "the loss of held-out pictures has not fallen: from 2.0000 to 1.0000\n"
    with pytest.raises(SystemExit, match="the loss of held-out pictures has not fallen: from 2"):
        digits.show_losses(tmp_path, Path(most))
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(losses)
    digits.show_losses(tmp_path, Path("inf"))


@pytest.mark.slow
def test_the_whole_script(tmp_path: Path) -> None:
    """Every command of docs/digits.sh, with a few steps of training."""
    pytest.importorskip("sklearn", reason="digits are an extra")
    command = tmp_path / "weft"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m weft "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ, "WEFT": str(command), "PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "STEPS": "2",
        "TEXT_STEPS": "2", "TURNS": "2", "MOST": "inf", "LEAST": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    }  # fmt: skip
    done = subprocess.run(["bash", "docs/digits.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of 80 drawings as they were asked for" in done.stdout
    assert (tmp_path / "out" / "drawn" / "all.png").is_file()
    assert "logits of 10 texts are the same, bit for bit" in done.stdout
