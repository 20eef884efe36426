"""Calls and turns that are copied from others like them: the program is the one that elaborating each would make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.front_end_fuzz import failure_of
from tests.diagnostics import codes
from tests.program_text import lines_of
from tests.random_specs import random_spec
from weft.codegen.ops import OPS
from weft.dsl import expansions
from weft.dsl.check import check, check_all
from weft.dsl.source import Source

ROOT = Path(__file__).resolve().parent.parent
HEAD = "size dim = 8\naxis seq\n"
MODEL = "model m(x: real[seq, dim]) -> real[seq, dim]:\n"


@contextmanager
def each_elaborated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(expansions, "_key", lambda body, call: None)
        yield


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what was copied."""
    names: list[str] = []
    whole = expansions._Copy.result

    def result(self: expansions._Copy) -> object:
        names.append(self.call.frames[-1].name)
        return whole(self)

    with monkeypatch.context() as patch:
        patch.setattr(expansions._Copy, "result", result)
        yield names


def programs(source: Source, size: str | None) -> list[str]:
    found = check(source, OPS, size).value()
    return [line for program in (*found.models.values(), *found.objectives.values()) for line in lines_of(program)]


def compared(source: Source, size: str | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was copied, after a comparison with elaborating each."""
    with counted(monkeypatch) as names:
        copied = programs(source, size)
    with each_elaborated(monkeypatch):
        assert copied == programs(source, size)
    return names


@pytest.mark.parametrize(
    ("name", "size", "among"),
    [
        ("olmo2", "1b", "layer"),
        ("memory_layers", "tiny", "rms_norm"),
        ("blt", "tiny", "rms_norm"),
        ("lmfusion", "tiny", "norm"),
        ("unet", "tiny", "silu"),
        ("vae", "digits", "silu"),
        ("entropy_lm", "100m", "layer"),
    ],
)
def test_shipped_specs(name: str, size: str, among: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "specs" / f"{name}.weft"
    assert among in compared(Source(str(path), path.read_text("utf-8")), size, monkeypatch)


def test_random_specs(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = 0
    for seed in range(24):
        source = Source("random.weft", random_spec(seed, 4 + seed % 12).text)
        copied += len(compared(source, None, monkeypatch))
    assert copied > 24


def of(text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return compared(Source("m.weft", HEAD + text), None, monkeypatch)


def test_a_call_is_copied_only_for_like_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    block = "block f(x: real[..], y: real[..], n: number) -> real[..]:\n    return x * n + y\n"
    calls = ("f(x, x, 2)", "f(a, x, 2)", "f(b, x, 2)", "f(c, c, 2)", "f(x, c, 3)", "f(x, 0.0, 2)", "f(x, -0.0, 2)")
    body = "".join(f"    {name} = {call}\n" for name, call in zip("abcdefg", calls, strict=True))
    # Two unlike values, and two that are one.
    assert of(f"{block}{MODEL}{body}    return a + b + c + d + e + f + g\n", monkeypatch) == ["f", "f"]


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = "    for i in 0 .. 5:\n        x = x + linear(silu(x), dim -> dim)\n"
    assert of(f"{MODEL}{turns}    return x\n", monkeypatch).count("i") == 4
    turns = "    for i in 0 .. 5:\n        x = x + linear(silu(x), dim -> dim) * i\n"
    assert "i" not in of(f"{MODEL}{turns}    return x\n", monkeypatch)
    # From other values than the turn before.
    turns = "    gain = 1\n    for i in 0 .. 5:\n        x = x * gain\n        gain = gain * 2\n"
    assert "i" not in of(f"{MODEL}{turns}    return x\n", monkeypatch)
    turns = "    y = 0\n    for i in 0 .. 5:\n        z = x + y\n        y = x\n        x = z\n"
    assert of(f"{MODEL}{turns}    return x + y\n", monkeypatch).count("i") == 3


def test_axes_of_a_call_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is given as a number is an axis of that call: the results of two calls have two."""
    block = "block f(x: real[seq, dim], width: size) -> real[..]:\n    return linear(x, dim -> width)\n"
    with counted(monkeypatch) as copied:
        assert codes(f"{HEAD}{block}{MODEL}    a = f(x, 4)\n    b = f(x, 4)\n    return a * b\n") == ["E202"]
    assert not copied


def test_families_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    block = "block f(x: real[..], kept):\n    kept[3] = x\n    return x + kept[0]\n"
    body = "    k[0] = x\n    a = f(x, k)\n    k[0] = a\n    b = f(a, k)\n    return b + k[3]\n"
    assert of(f"{block}{MODEL}{body}", monkeypatch) == []


def test_a_path_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls under one name are a mistake, which is said as ever."""
    block = "block f(x: real[seq, dim]) -> real[seq, dim]:\n    return linear(x, dim -> dim)\n"
    text = f"{HEAD}{block}{MODEL}    return f(x) as part + f(x) as part\n"
    assert codes(text) == ["E501"]
    source = Source("m.weft", text)
    said = [error.describe() for error in check_all(source, OPS).problems.errors]
    with each_elaborated(monkeypatch):
        assert said == [error.describe() for error in check_all(source, OPS).problems.errors]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("unet", "size blocks = 2", "size blocks = 320"),
        ("olmo2", "layers = 64", "layers = 1000"),
        ("olmo2", "layers = 4,", "layers = 300,"),
    ],
)
def test_deep_models_are_checked_in_time(name: str, old: str, new: str) -> None:
    path = ROOT / "specs" / f"{name}.weft"
    text = path.read_text("utf-8")
    assert old in text
    text = text.replace(old, new)
    # 320 blocks, six times, are past the limit of a check.
    found = check_all(Source(str(path), text), OPS).problems.errors
    assert [error.code for error in found] == (["E506"] if "320" in new else [])
    failure = failure_of(text)
    assert failure is None, failure.why
