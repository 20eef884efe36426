"""Specs of several files: what `use` means, and which weights and sizes it brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.diagnostics import checked
from weft.dsl.check import Checked
from weft.dsl.program import Program


def ops(program: Program) -> list[str]:
    return [node.op.name for node in program.nodes]


def paths(program: Program) -> list[str]:
    return [weight.path for weight in program.weights]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


LM = """
size tiny: dim = 8, vocab = 10
size large: dim = 32, vocab = 10
option scale: real = 1
axis seq
shared table: real[vocab, dim]
model lm(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim, weight=table) * scale
    return linear(x, dim -> vocab, weight=table)
init table = normal(0.1)
"""
USER = """
size tiny: vocab = 10
size large: vocab = 10
axis row
"""


def used(folder: Path, text: str, size: str | None = "tiny") -> Checked:
    (folder / "lm.weft").write_text(LM, "utf-8")
    return checked(text, str(folder / "main.weft"), size).value()


def test_use_is_one_instance(folder: Path) -> None:
    (folder / "helper.weft").write_text(
        "use lm\nsize tiny: vocab = 10\nblock again(t: int[..]) -> real[..]:\n    return lm(t)\n", "utf-8"
    )
    text = "use lm\nuse helper: again\n" + USER + """
model both(t: id[row] in vocab) -> real[row, vocab]:
    return lm(t) + lm(t)
"""  # fmt: skip
    found = used(folder, text)
    assert paths(found.model) == ["lm.table"]
    assert found.model.weights[0].init.kind == "normal"
    assert str(found.model.outputs[0][1].type) == "real[row, vocab]"


def test_use_as_is_another_instance(folder: Path) -> None:
    text = "use lm as policy\nuse lm as reference\n" + USER + """
model gap(t: id[row] in vocab) -> real[row, vocab]:
    return policy(t) - reference(t)
freeze reference
"""  # fmt: skip
    weights = used(folder, text).model.weights
    assert [(weight.path, weight.frozen) for weight in weights] == [("policy.table", False), ("reference.table", True)]


def test_sizes_of_a_used_file_come_from_the_preset_of_the_same_name(folder: Path) -> None:
    text = "use lm\n" + USER + "model n(t: id[row] in vocab) -> real[row, vocab]:\n    return lm(t)\n"
    assert used(folder, text, "tiny").model.weights[0].shape == (10, 8)
    assert used(folder, text, "large").model.weights[0].shape == (10, 32)


def test_use_with_settings(folder: Path) -> None:
    text = "use lm(dim = 4 * width, scale = 2.5)\nsize width = 3\n" + USER + """
model n(t: id[row] in vocab) -> real[row, vocab]:
    return lm(t)
"""  # fmt: skip
    assert used(folder, text).model.weights[0].shape == (10, 12)


def test_use_of_names(folder: Path) -> None:
    (folder / "parts.weft").write_text(
        "enum mood: calm, wild\naxis pair = 2\nmask near = abs(query(position) - key(position)) < reach\n"
        "size reach = 3\nblock twice(x: real[..]) -> real[..]:\n    return x * 2\n", "utf-8",
    )  # fmt: skip
    text = """
use parts: mood, pair, near as close, twice as double
size dim = 4
option now: mood = wild
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    if now == wild:
        x = double(x)
    y = linear(x, dim -> pair)
    return linear(attend(y, y, y, over=pair, along=seq, mask=close), pair -> dim)
"""
    program = checked(text, str(folder / "main.weft")).value().model
    assert ops(program) == ["mul", "linear", "attend", "linear"]


def test_a_folder_is_a_part_of_the_name(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "one.weft").write_text("use two: g\nblock f(x: real[..]) -> real[..]:\n    return g(x)\n")
    (folder / "deep" / "two.weft").write_text("block g(x: real[..]) -> real[..]:\n    return x * 2\n")
    text = "use deep.one: f\naxis seq\nmodel m(x: real[seq]) -> real[seq]:\n    return f(x)\n"
    assert ops(checked(text, str(folder / "main.weft")).value().model) == ["mul"]


def test_values_handed_over_take_the_axes_of_the_other_file(folder: Path) -> None:
    """`dim` here and `dim` there are two sizes; where both are 8, a value goes over under the other name."""
    (folder / "mix.weft").write_text(
        "size dim = 8\naxis seq\nmodel mix(x: real[seq, dim]) -> real[seq, dim]:\n    return linear(x, dim -> dim)\n"
    )
    text = "use mix\nsize dim = 8\naxis row\nmodel m(x: real[row, dim]) -> real[row, dim]:\n    return mix(x) + x\n"
    program = checked(text, str(folder / "main.weft")).value().model
    assert ops(program) == ["rename", "linear", "rename", "add"]


def test_several_models_under_an_alias(folder: Path) -> None:
    (folder / "pair.weft").write_text(
        "size dim = 8\naxis seq\nmodel up(x: real[seq, dim]) -> real[seq, dim]:\n    return linear(x, dim -> dim)\n"
        "model down(x: real[seq, dim]) -> real[seq, dim]:\n    return linear(x, dim -> dim)\n"
    )
    text = "use pair as old\nuse pair as new\nsize dim = 8\naxis row\n"
    text += "model m(x: real[row, dim]) -> real[row, dim]:\n    return old.up(new.up(x))\n"
    program = checked(text, str(folder / "main.weft")).value().model
    assert sorted(paths(program)) == ["new.up.linear.weight", "old.up.linear.weight"]
