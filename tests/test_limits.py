"""Limits: what is too large is counted before it is built, and said in one line (SEMANTICS 14)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.front_end_fuzz import ATTEMPTS, slowdown
from tests.diagnostics import checked, codes

HEAD = "size dim = 8\naxis seq\n"


def spec_text(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    return f"{HEAD}{before}model m(x: real[seq, dim]) -> real[seq, dim]:\n{lines}"


def doubling(levels: int) -> str:
    blocks = ["block b0(x: real[..]) -> real[..]:\n    return x + 1\n"]
    for level in range(1, levels):
        blocks.append(f"block b{level}(x: real[..]) -> real[..]:\n    return b{level - 1}(b{level - 1}(x))\n")
    return "".join(blocks)


def chain(depth: int) -> str:
    blocks = ["block b0(x: real[..]) -> real[..]:\n    return x + 1\n"]
    for level in range(1, depth):
        blocks.append(f"block b{level}(x: real[..]) -> real[..]:\n    return b{level - 1}(x)\n")
    return "".join(blocks)


@pytest.mark.parametrize(
    ("body", "before"),
    [
        ("for i in 0 .. 300_000:\n    x = x + 1\nreturn x", ""),
        ("for i in 0 .. 10^18:\n    x = x + i\nreturn x", ""),
        ("for i in 0 .. 1000:\n    for j in 0 .. 1000:\n        x = x + j\nreturn x", ""),
        ("for i in 0 .. 1000:\n    for j in 0 .. i:\n        x = x + j\nreturn x", ""),
        ("return b59(x)", doubling(60)),
        ("for i in 0 .. n^2:\n    x = x + 1\nreturn x", "size n = 1000\n"),
        ("for i in 0 .. n:\n    x = x + 1\nreturn x", "option n: int = 1_000_000\n"),
        ("return f(x, 1_000_000)",
         "block f(x: real[..], n: number) -> real[..]:\n    for i in 0 .. n:\n        x = x + 1\n    return x\n"),
    ],
)  # fmt: skip
def test_counted_before_it_is_built(body: str, before: str) -> None:
    """A second on the machine that the fuzzer's limits are meant for; another may be slower, or for a while."""
    found = []
    for _ in range(ATTEMPTS):
        started = time.process_time()
        problems = checked(spec_text(body, before)).problems
        took = time.process_time() - started
        assert [error.code for error in problems.errors] == ["E506"]
        assert problems.built < 100
        if took < 1 or took < slowdown():
            return
        found.append(took)
    pytest.fail(f"took {found} s")


def test_within_the_limit() -> None:
    assert len(checked(spec_text("for i in 0 .. 2_000:\n    x = x + 1\nreturn x")).value().model.nodes) == 2_000
    assert codes(spec_text("return b9(x)", doubling(10))) == []


def test_a_branch_not_taken_does_not_count() -> None:
    assert codes(spec_text("if dim == 3:\n    for i in 0 .. 10^9:\n        x = x + 1\nreturn x")) == []


def test_nesting() -> None:
    assert codes(spec_text("return b60(x)", chain(61))) == []
    assert codes(spec_text("return b69(x)", chain(70))) == ["E506"]


def test_sixteen_axes() -> None:
    sizes = "".join(f"size a{i} = 1\n" for i in range(20))
    names = ", ".join(f"a{i}" for i in range(14))
    assert codes(spec_text(f"y = linear(x, dim -> ({names}))\nreturn x", sizes)) == []
    names = ", ".join(f"a{i}" for i in range(17))
    assert codes(spec_text(f"y = linear(x, dim -> ({names}))\nreturn x", sizes)) == ["E506"]


@pytest.mark.parametrize("size", ["2^48", "2^60", "9^9^9", "0 - 1", "2^70"])
def test_sizes(size: str) -> None:
    found = codes(spec_text("y = linear(x, dim -> big)\nreturn x", f"size big = {size}\n"))
    assert found in (["E306"], ["E315"])


def test_a_size_just_below() -> None:
    assert codes(spec_text("y = linear(x, dim -> big)\nreturn x", "size big = 2^48 - 1\n")) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("block f(x: real[..]) -> real[..]:\n    return f(x)\nmodel m(x: real) -> real:\n    return f(x)", "E308"),
        ("axis a = b\naxis b = a\nmodel m(x: real[a]) -> real[a]:\n    return x", "E308"),
        ("axis a[i] = a[i + 1] / 2\nmodel m(x: real[a[0]]) -> real:\n    return 1.0", "E308"),
        ("size a = b\nsize b = a\nmodel m(x: real[a]) -> real[a]:\n    return x", "E308"),
        ("option a: real = a\nmodel m(x: real) -> real:\n    return x * a", "E308"),
        ("shared s: s()\nmodel m(x: real) -> real:\n    return s(x)", "E308"),
        ("mask k = k\naxis q\nsize d = 2\nmodel m(x: real[q, d]) -> real[d]:\n    return attend(x, x, x, d, q, mask=k)",
         "E308"),
    ],
)  # fmt: skip
def test_circles(text: str, code: str) -> None:
    assert codes(text) == [code]


def test_a_mistake_in_a_loop_is_said_once() -> None:
    assert codes(spec_text("for i in 0 .. 50:\n    x = x + linear(x, seq -> dim)\nreturn x")) == ["E212"]
