"""`weft verify`: what is right agrees, what is made wrong is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.commands import weft
from tests.small_models import DECODER, LEVELS, checked
from weft.codegen.rowwise import functions
from weft.runtime.verify import NotCompared, Part, verify

ONE_LAYER = """
size dim = 6
size vocab = 9
axis seq

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    x = x + attend(x, x, x, over=dim, along=seq, mask=causal)
    y = x * sigmoid(x) + 0.5
    return linear(rms_norm(y) as norm, dim -> vocab) as head

objective text(tokens: id[seq] in vocab):
    loss text = cross_entropy(m(tokens), next(tokens))
"""


def parts_of(text: str, dtype: torch.dtype = torch.float64, with_gradients: bool = True) -> list[Part]:
    return [part for part in verify(checked(text), dtype, with_gradients) if isinstance(part, Part)]


def described(parts: list[Part]) -> str:
    return "\n".join(f"{p.kind} {p.name} {p.place}: {p.error:.2e} of {p.limit:.2e} {p.note}" for p in parts)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_right_agrees(dtype: torch.dtype) -> None:
    parts = parts_of(ONE_LAYER, dtype)
    wrong = [part for part in parts if not part.is_ok]
    assert not wrong, described(wrong)
    kinds = {part.kind for part in parts}
    assert kinds == {"region", "region gradient", "output", "loss", "gradient", "decode"}
    gradients = {part.name for part in parts if part.kind == "gradient" and part.program == "text"}
    assert gradients == {"embed.weight", "norm.gain", "head.weight"}
    assert all(part.limit < 0.2 for part in parts), described(parts)
    if dtype != torch.float64:
        # Something was rounded, so the comparison is not of a thing with itself.
        assert any(part.error > 0 for part in parts if part.kind == "region")


def test_every_level_and_several_axes() -> None:
    parts = parts_of(LEVELS)
    assert all(part.is_ok for part in parts), described(parts)
    assert {part.kind for part in parts} >= {"region", "output", "gradient"}


def test_a_whole_decoder() -> None:
    parts = parts_of(DECODER, torch.float32, with_gradients=False)
    assert all(part.is_ok for part in parts), described(parts)
    assert "decode" in {part.kind for part in parts}


def test_a_model_that_looks_ahead_is_not_decoded() -> None:
    found = list(verify(checked(ONE_LAYER.split("objective")[0].replace(", mask=causal", ""))))
    skipped = [part for part in found if isinstance(part, NotCompared)]
    assert [(part.program, part.kind) for part in skipped] == [("m", "decode")]


@pytest.fixture
def broken_sigmoid():
    text = functions.SIGMOID.text
    object.__setattr__(functions.SIGMOID, "text", "tl.sigmoid(1.01 * {0})")
    yield
    object.__setattr__(functions.SIGMOID, "text", text)


@pytest.mark.usefixtures("broken_sigmoid")
def test_a_broken_region_is_named() -> None:
    parts = parts_of(ONE_LAYER, torch.float32, with_gradients=False)
    first = next(part for part in parts if not part.is_ok)
    assert first.kind == "region"
    assert first.place.startswith("test.weft:7, 8, 9  return linear(rms_norm(y) as norm"), first.place
    assert 1e-4 < first.error < 0.1
    assert {part.kind for part in parts if not part.is_ok} >= {"region", "output", "loss"}


@pytest.fixture
def broken_gradient():
    rule = functions.SIGMOID.gradient
    object.__setattr__(functions.SIGMOID, "gradient", lambda make, x, y, g: (make(functions.MUL, g, y),))
    yield
    object.__setattr__(functions.SIGMOID, "gradient", rule)


@pytest.mark.usefixtures("broken_gradient")
def test_a_broken_gradient_is_named() -> None:
    parts = parts_of(ONE_LAYER)
    wrong = [part for part in parts if not part.is_ok]
    assert wrong[0].kind == "region gradient"
    assert {part.kind for part in wrong} == {"region gradient", "gradient"}
    assert "embed.weight" in {part.name for part in wrong if part.kind == "gradient"}
    assert "head.weight" not in {part.name for part in wrong}


@pytest.fixture
def broken_text():
    text = functions.SIGMOID.text
    object.__setattr__(functions.SIGMOID, "text", "tl.no_such_function({0})")
    yield
    object.__setattr__(functions.SIGMOID, "text", text)


@pytest.mark.usefixtures("broken_text")
def test_a_kernel_that_does_not_run_is_named() -> None:
    parts = parts_of(ONE_LAYER, torch.float32, with_gradients=False)
    first = next(part for part in parts if not part.is_ok)
    assert first.kind == "region"
    assert math.isinf(first.error)
    assert "no_such_function" in first.note


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    spec = tmp_path / "one.weft"
    spec.write_text(ONE_LAYER.lstrip())
    run = weft("verify", str(spec), "--grad", TRITON_INTERPRET="")
    assert run.returncode == 0, run.stderr
    assert "parts agree with float64 in float32" in run.stdout
    assert "region" in run.stdout
    assert "one.weft:7" in run.stdout
    run = weft("verify", str(spec), "--set", "dim=3", "--dtype", "bfloat16", "--grad", "--json")
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["ok"]
    assert told["first"] is None
    assert {"program", "kind", "name", "place", "error", "limit", "ok", "note"} == set(told["parts"][0])
    assert "one.weft:6  x = embed(tokens, vocab -> dim) as embed" in {part["place"] for part in told["parts"]}


def test_command_names_the_offender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from weft.cli import main
    from weft.runtime import verify as module

    spec = tmp_path / "one.weft"
    spec.write_text(ONE_LAYER.lstrip())
    monkeypatch.setattr(module, "LIMITS", dict.fromkeys(module.LIMITS, -1.0))
    with pytest.raises(SystemExit) as end:
        main(["verify", str(spec), "--json"])
    assert end.value.code == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert not told["ok"]
    assert told["first"]["kind"] == "region"
    assert "one.weft:" in said.err
    assert "more than -1" in said.err


def test_command_wants_a_known_type(tmp_path: Path) -> None:
    spec = tmp_path / "one.weft"
    spec.write_text(ONE_LAYER.lstrip())
    run = weft("verify", str(spec), "--dtype", "float16")
    assert run.returncode == 2
    assert "float32, bfloat16, float64" in run.stderr
