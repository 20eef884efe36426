"""What a command says when a file or an option is wrong: one line, the right exit code, and the rest still done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import says, weft
from tests.test_cli import BAD, GOOD


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "good.weft"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("name", "usage"),
    [("check", "FILE..."), ("fmt", "FILE..."), ("inspect", "FILE VIEW"), ("explain", "[CODE]"), ("generate", "CKPT")],
)
def test_usage_says_what_is_taken_once_and_what_many_times(name: str, usage: str) -> None:
    assert weft(name, "--help").stdout.startswith(f"Usage: weft {name} [OPTIONS] {usage}\n")


def test_a_missing_file_does_not_keep_the_others_from_being_checked(spec: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.weft"
    bad.write_text(BAD)
    run = weft("check", "nothing.weft", str(spec), str(bad))
    assert run.returncode == 2
    assert "weft: nothing.weft: no such file\n" in run.stderr
    assert f"{spec}: no mistakes\n" in run.stdout
    assert "error[E301]" in run.stdout
    found = json.loads(weft("check", "--json", "nothing.weft", str(spec)).stdout)
    assert [file["file"] for file in found["files"]] == [str(spec)]


def test_a_missing_file_does_not_keep_the_others_from_being_formatted(tmp_path: Path) -> None:
    untidy = tmp_path / "untidy.weft"
    untidy.write_text("axis   seq")
    run = weft("fmt", "nothing.weft", str(untidy))
    assert (run.returncode, untidy.read_text()) == (2, "axis seq\n")


@pytest.mark.parametrize(
    "data", ["axis seq\n".encode("utf-16"), "axis seq\n".encode("utf-16-be").join((b"\xfe\xff", b""))]
)
def test_utf16_is_called_by_its_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.weft"
    path.write_bytes(data)
    says(weft("check", str(path)), 2, "UTF-16", "UTF-8")


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("", ("inspect", "graph")),
        ('"""Only a docstring."""', ("inspect", "decode")),
        ("# only a comment", ("compile", "-o", "out")),
        ("\n\n", ("train", "--data", "x.weft", "--out", "r")),
    ],
)
def test_a_spec_without_a_model(text: str, command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "x.weft").write_text(text)
    says(weft(command[0], "x.weft", *command[1:], cwd=tmp_path), 1, "x.weft declares no model")


@pytest.mark.parametrize(
    ("target", "why"), [("/", "is a folder"), (".", "is a folder"), ("no/x.svg", "there is no folder")]
)
def test_a_drawing_that_cannot_be_written(spec: Path, tmp_path: Path, target: str, why: str) -> None:
    says(weft("inspect", str(spec), "graph", "--svg", target, cwd=tmp_path), 2, why)
    assert sorted(tmp_path.iterdir()) == [spec]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--tokens", "-1"), ("--temperature", "-1"), ("--top-k", "0"), ("--top-p", "1.5"), ("--top-p", "half")],
)
def test_numbers_out_of_range_are_wrong_usage(option: str, value: str) -> None:
    says(weft("generate", "run", "--prompt", "a", option, value), 2, option, value)


def test_a_run_can_be_exported_and_a_device_is_checked(spec: Path, tmp_path: Path) -> None:
    spec.write_text(GOOD.replace("vocab = 10", "vocab = 260") + WEIGHTS)
    (tmp_path / "text.txt").write_text("one two three four five six seven eight\n" * 50)
    out = tmp_path / "run"
    common = ("--max-length", "64", "--tokens-per-step", "128", "--threads", "1")
    run = weft("train", str(spec), "--data", str(tmp_path / "text.txt"), "--steps", "1", "--out", str(out), *common)
    assert run.returncode == 0, run.stderr
    run = weft("export", str(out), "--to", str(tmp_path / "foreign"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "foreign" / "config.json").is_file()
    says(weft("generate", str(out), "--prompt", "a", "--device", "toaster"), 2, "toaster cannot be used")


WEIGHTS = """
weights huggingface:
    config "hidden_size" = dim
    tensor "embed.weight" = embed.weight
    tensor "head.weight" = head.weight
"""


def test_explain_names_the_codes_nearby() -> None:
    says(weft("explain", "E117"), 2, "E117", "E116", "--list")
    says(weft("explain", "spam"), 2, "spam", "--list")
