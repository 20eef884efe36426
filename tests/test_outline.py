"""The outline of a program that `weft inspect` shows."""

from __future__ import annotations

from textwrap import dedent

from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.views.outline import Call, outline


def test_turns_with_other_numbers_are_not_joined() -> None:
    text = """
    size layers = size(widths)
    size dim = 4
    option widths: list = (2, 2, 4)
    axis seq
    mask near(i) = causal and window(widths[i])
    model m(x: real[seq, dim]) -> real[seq, dim]:
        for layer in 0 .. layers:
            x = x * widths[layer]
        for layer in 0 .. layers:
            x = attend(x, x, x, over=dim, along=seq, mask=near(layer))
        return x
    """
    model = check(Source("m.weft", dedent(text)), OPS).value().model
    assert [call.repeat for call in outline(model).children if isinstance(call, Call)] == [2, 1, 2, 1]
