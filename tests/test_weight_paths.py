"""Paths of weights: what names a parameter in a checkpoint (SEMANTICS 7)."""

from __future__ import annotations

import pytest

from tests.diagnostics import checked, codes
from weft.dsl.patterns import captures, matches
from weft.dsl.weight_book import counterpart

HEAD = "size dim = 8\nsize wide = 16\naxis seq\n"


def spec_text(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    return f"{HEAD}{before}model m(x: real[seq, dim]) -> real[seq, dim]:\n{lines}"


def paths(body: str, before: str = "") -> list[str]:
    return [weight.path for weight in checked(spec_text(body, before)).value().model.weights]


BLOCKS = """
block unit(x: real[seq, dim]) -> real[seq, dim]:
    up = linear(x, dim -> wide)
    return linear(up, wide -> dim)
block twice(x: real[seq, dim]) -> real[seq, dim]:
    param gain: real[dim] = ones
    first = unit(x)
    return unit(first) as second * gain
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return linear(x, dim -> dim)", ["linear.weight"]),
        ("return linear(x, dim -> dim, bias=true)", ["linear.weight", "linear.bias"]),
        ("y = linear(x, dim -> dim)\nreturn y", ["y.linear.weight"]),
        ("return linear(x, dim -> dim) as head", ["head.weight"]),
        ("y = linear(x, dim -> dim) as head\nreturn y", ["head.weight"]),
        # A rebinding adds nothing.
        ("x = linear(x, dim -> dim)\nreturn x", ["linear.weight"]),
        ("y = x\ny = linear(y, dim -> dim)\nreturn y", ["linear.weight"]),
        # A binding names all calls of its statement.
        ("y = rms_norm(linear(x, dim -> dim))\nreturn y", ["y.linear.weight", "y.rms_norm.gain"]),
        # `as` names the call before it only.
        ("x = x + rms_norm(linear(x, dim -> dim)) as norm\nreturn x", ["linear.weight", "norm.gain"]),
        ("return x |> linear(dim -> dim) as a |> linear(dim -> dim) as b", ["a.weight", "b.weight"]),
        ("return unit(x)", ["unit.up.linear.weight", "unit.linear.weight"]),
        ("h = unit(x)\nreturn h", ["h.unit.up.linear.weight", "h.unit.linear.weight"]),
        ("return unit(x) as first", ["first.up.linear.weight", "first.linear.weight"]),
        ("return twice(x)", ["twice.gain", "twice.first.unit.up.linear.weight", "twice.first.unit.linear.weight",
                             "twice.second.up.linear.weight", "twice.second.linear.weight"]),
        ("for i in 2 .. 4:\n    x = linear(x, dim -> dim)\nreturn x", ["i.2.linear.weight", "i.3.linear.weight"]),
        ("for i in 0 .. 1:\n    for j in 0 .. 2:\n        y = linear(x, dim -> dim)\nreturn x",
         ["i.0.j.0.y.linear.weight", "i.0.j.1.y.linear.weight"]),
        ("for i in (3, 5):\n    x = linear(x, dim -> dim)\nreturn x", ["i.3.linear.weight", "i.5.linear.weight"]),
        ("for i in 0 .. 2:\n    s[i] = linear(x, dim -> dim)\nreturn s[1]", ["i.0.linear.weight", "i.1.linear.weight"]),
        ("if dim > 4:\n    x = linear(x, dim -> dim)\nreturn x", ["linear.weight"]),
        ("a, b = (linear(x, dim -> dim) as left, linear(x, dim -> dim) as right)\nreturn a + b",
         ["left.weight", "right.weight"]),
        ("y = attend(linear(x, dim -> dim), x, x, over=dim, along=seq)\nreturn y", ["y.linear.weight"]),
    ],
)  # fmt: skip
def test_path(body: str, expected: list[str]) -> None:
    assert paths(body, BLOCKS) == expected


@pytest.mark.parametrize(
    "body",
    [
        "x = linear(x, dim -> dim)\nx = linear(x, dim -> dim)\nreturn x",
        "return linear(x, dim -> dim) + linear(x, dim -> dim)",
        "x = unit(x)\nx = unit(x)\nreturn x",
        "x = rms_norm(x)\nreturn rms_norm(x)",
        "x = linear(x, dim -> dim) as a\nx = linear(x, dim -> dim) as a\nreturn x",
        "for i in 0 .. 2:\n    x = linear(x, dim -> dim)\nfor i in 1 .. 3:\n    x = linear(x, dim -> dim)\nreturn x",
    ],
)
def test_two_sites_of_one_path(body: str) -> None:
    assert codes(spec_text(body, BLOCKS)) == ["E501"]


def test_the_help_repairs() -> None:
    broken = "x = x + rms_norm(unit(x))\nx = x + rms_norm(x)\nreturn x"
    repaired = broken.replace("rms_norm(x)", "rms_norm(x) as other_name")
    assert codes(spec_text(broken, BLOCKS)) == ["E501"]
    assert codes(spec_text(repaired, BLOCKS)) == []


def test_an_objectives_own_weights() -> None:
    text = (
        spec_text("return linear(x, dim -> dim)")
        + """
objective o(x: real[seq, dim]):
    judge = linear(m(x), dim -> dim)
    loss = mean(judge^2, over=dim)
"""
    )
    found = checked(text).value()
    assert [weight.path for weight in found.objectives["o"].weights] == [
        "linear.weight",
        "objective.o.judge.linear.weight",
    ]
    assert [weight.path for weight in found.model.weights] == ["linear.weight"]


@pytest.mark.parametrize(
    ("pattern", "path", "matched"),
    [
        ("embed", "embed.weight", True),
        ("embed", "embedding.weight", False),
        ("layer.*.mix", "layer.3.mix.linear.weight", True),
        ("layer.*.mix", "layer.3.other.mix.weight", False),
        ("**.weight", "weight", True),
        ("**.weight", "a.b.c.weight", True),
        ("**", "a", True),
        ("*.gain", "norm.gain", True),
        ("*.gain", "a.norm.gain", False),
        ("layer.**.text", "layer.0.mix.text.weight", True),
    ],
)
def test_pattern(pattern: str, path: str, matched: bool) -> None:
    assert matches(pattern, path) == matched


def test_captures() -> None:
    assert captures("layer.*.up.weight", "layer.3.up.weight") == ("3",)
    assert captures("layer.*.up", "layer.3.up.weight") is None


@pytest.mark.parametrize(
    ("pattern", "source", "path", "found"),
    [
        ("layer.*.**.image", "layer.*.**.text", "layer.3.mix.image.weight", "layer.3.mix.text.weight"),
        ("layer.*.**.image", "layer.*.**.text", "layer.3.image", "layer.3.text"),
        ("head", "embed", "head.weight", "embed.weight"),
        ("a.*.b.*", "c.*.*", "a.1.b.2.weight", "c.1.2.weight"),
        ("head", "embed.*", "head.weight", None),
        ("head", "embed", "body.weight", None),
    ],
)
def test_counterpart(pattern: str, source: str, path: str, found: str | None) -> None:
    assert counterpart(pattern, source, path) == found
