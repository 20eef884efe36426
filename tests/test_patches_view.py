"""`weft inspect CKPT patches`: what it says is what the model does, and nothing of a text is markup or control."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from tests.blt_models import tiny
from tests.commands import weft
from tests.patch_runs import SPECS, documents, run_entropy_model
from weft.faults import CommandFault
from weft.runtime.model import Model, load
from weft.runtime.tokens import ByteTokens, MarkedByteTokens
from weft.views import patches

TOKENS = MarkedByteTokens(260)
NASTY = "if a < b & c:\n\t<script>\x1b[31m naïve \u202e</script>"


def _reading(text: str, **options: Any) -> tuple[patches.Reading, Model, torch.Tensor]:
    model = tiny(torch.float32, **options)
    ids = torch.tensor([1, *TOKENS.encode(text)])
    return patches.read(model, TOKENS, text, begin_mark=True, title="<title>"), model, ids


def test_patches_are_those_of_the_model() -> None:
    reading, model, ids = _reading(NASTY)
    values = model.values(("surprise", "ends"), [ids])
    assert reading.surprise == pytest.approx(values["surprise"][0].tolist(), abs=1e-6)
    found = reading.cuts["patch"]
    closed = [patch.begin + patch.length - 1 for patch in found if not patch.is_open]
    assert closed == values["ends"][0].nonzero()[:, 0].tolist()
    assert [patch.number for patch in found] == list(range(len(found)))
    assert sum(patch.length for patch in found) == len(ids)
    assert found[0].text == "<begin>"


def test_by_rule_of_the_bytes() -> None:
    reading, _, _ = _reading("Hello, world 42! naïve x", rule="space")
    assert [patch.length for patch in reading.cuts["patch"]] == [1, 6, 7, 3, 4, 4, 1]
    assert [patch.text for patch in reading.cuts["patch"]] == [
        "<begin>", "Hello,", " world ", "42!", " na\\xc3", "\\xafve ", "x",
    ]  # fmt: skip


def test_gaps_have_no_number() -> None:
    ids = ByteTokens(256).encode("a b  c")
    ends = [True, False, True, False, False, False]
    inside = [True, False, True, False, False, True]
    found = patches.patches(ids, ByteTokens(256), ends, inside)
    assert [(patch.number, patch.text, patch.is_open) for patch in found] == [
        (0, "a", False), (None, " ", False), (1, "b", False), (None, "  ", False), (2, "c", True),
    ]  # fmt: skip


@pytest.mark.parametrize("color", [True, False])
def test_a_terminal_gets_no_control_characters(color: bool) -> None:
    reading, _, _ = _reading(NASTY)
    stream = io.StringIO()
    patches.show(reading, Console(file=stream, force_terminal=color, no_color=not color, markup=False, width=70))
    text = stream.getvalue()
    assert "\u202e" not in text
    assert ("\x1b[" in text) == color
    assert "\x1b[31m" not in text
    assert "\t" not in text
    for value in reading.surprise or ():
        assert f"{value:.2f}" in text


@pytest.mark.parametrize("path", ["p.svg", "p.html"])
def test_pictures_hold_every_byte_and_no_markup_of_the_text(path: str) -> None:
    reading, _, ids = _reading(NASTY)
    text = patches.picture(reading, path)
    assert "<script" not in text
    assert "<title><title>" not in text
    body = text[text.index("<svg") : text.index("</svg>") + 6]
    tree = ElementTree.fromstring(body)  # noqa: S314  of our own making
    space = "{http://www.w3.org/2000/svg}"
    hints = [group.find(f"{space}title") for group in tree.iter(f"{space}g")]
    assert len(hints) == len(ids)
    for row, (hint, value) in enumerate(zip(hints, reading.surprise or (), strict=True)):
        assert hint is not None
        assert hint.text is not None
        assert hint.text.startswith(f"{row}: {reading.pieces[row]}, patch ")
        assert hint.text.endswith(f"surprise {value:.3f}")
    assert len(tree.findall(f".//{space}path")) == len(reading.cuts["patch"])


def test_models_without_cuts_and_empty_texts_are_one_line() -> None:
    plain = load(SPECS / "entropy_lm.weft", "tiny")
    assert isinstance(plain, Model)
    with pytest.raises(CommandFault, match="entropy_lm cuts no axis"):
        patches.read(plain, TOKENS, "x", True, "")
    with pytest.raises(CommandFault, match="the text is empty"):
        patches.read(tiny(torch.float32), TOKENS, "", False, "")


def test_lines_of_the_entropy_model() -> None:
    model = load(SPECS / "entropy_lm.weft", "tiny", {"newline_reset": True})
    assert isinstance(model, Model)
    reading = patches.read(model, TOKENS, "one\ntwo\n", True, "")
    assert [patch.text for patch in reading.cuts["line"]] == ["<begin>one\\n", "two\\n"]
    # A line does not know the one before.
    again = patches.read(model, TOKENS, "two\n", False, "")
    assert reading.surprise is not None
    assert again.surprise == pytest.approx(reading.surprise[5:], abs=1e-6)


def test_the_command(tmp_path: Path) -> None:
    run_entropy_model(documents(tmp_path / "data"), tmp_path / "run", steps=1)
    spec = ("inspect", "specs/blt.weft", "patches", "--set", "rule=space", "--tokenizer", "bytes4")
    shown = weft(*spec, "--text", "a b", "--json")
    assert [patch["text"] for patch in json.loads(shown.stdout)["patches"]["cuts"]["patch"]["patches"]] == [
        "<begin>",
        "a ",
        "b",
    ]
    assert weft(*spec, "--text", "-", stdin="a b").stdout.splitlines()[3] == "<begin>|a |b"
    out = tmp_path / "p.svg"
    assert weft(*spec, "--text", "a b", "-o", str(out)).stdout == f"wrote {out}\n"
    assert out.read_text().startswith("<svg")
    for words, said in (
        (("inspect", str(tmp_path / "run"), "patches", "--text", "a"), "entropy_lm cuts no axis"),
        (("inspect", str(tmp_path / "run"), "patches", "--text", "a", "--size", "tiny"), "whose sizes are fixed"),
        (("inspect", str(tmp_path), "patches", "--text", "a"), "is not a checkpoint"),
        (spec, "patches needs a text"),
        ((*spec, "--text", "a", "-o", "p.png"), "a picture is written as .svg or .html"),
        (("inspect", "specs/olmo2.weft", "graph", "--text", "a"), "--text goes with patches, not with graph"),
    ):
        run = weft(*words)
        assert run.returncode in (1, 2)
        assert said in run.stderr
        assert run.stderr.count("\n") == 1
