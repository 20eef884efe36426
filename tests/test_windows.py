"""Convolutions along ragged axes, and axes scaled from them, against torch's on each example alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests import op_samples

SEQ = (7, 0, 1, 4, 12)
LENGTHS = op_samples.lengths_of(SEQ, (1,) * len(SEQ))


def run(text: str) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """The result and the first input by example, and the weights by their last names."""
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    values = op_samples.inputs(program, LENGTHS)
    values[0].requires_grad_()
    found = graph(*op_samples.arguments(graph, values, LENGTHS))[0]
    type = program.outputs[0][1].type
    rows = op_samples.with_cuts(program, {}, LENGTHS) if type.rows is not None else LENGTHS
    parts = [op_samples.part(found, type, number, rows) for number in range(len(SEQ))]
    given = [op_samples.part(values[0], program.inputs[0].type, number, LENGTHS) for number in range(len(SEQ))]
    names = [weight.path.rpartition(".")[2] for weight in program.weights]
    return parts, given, dict(zip(names, graph.parameters(), strict=True))


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (4, 1), (3, 2), (5, 2), (2, 2)])
@pytest.mark.parametrize("pad", ["same", "causal"])
def test_conv_is_torchs_on_each_example(size: int, stride: int, pad: str) -> None:
    target = "seq" if stride == 1 else "pair"
    places = f"conv(x, seq -> {target}, dim -> ffn, size={size}, stride={stride}, pad={pad}, bias=true)"
    # A result lies along seq: that of the scaled axis is read back by a row of each pair.
    whole = places if stride == 1 else f"spread({places}, pair -> seq)"
    found, given, weights = run(f"x: real[seq, dim] => {whole}")
    before = size - 1 if pad == "causal" else (size - 1) // 2
    for mine, x in zip(found, given, strict=True):
        if len(x) == 0:
            assert len(mine) == 0
            continue
        padded = functional.pad(x.T, (before, size + stride))
        wanted = functional.conv1d(padded, weights["weight"], weights["bias"], stride).T[: -(-len(x) // stride)]
        wanted = wanted.repeat_interleave(stride, 0)[: len(x)]
        torch.testing.assert_close(mine, wanted)
    grad = torch.autograd.grad(torch.cat(found).sum(), given, allow_unused=True)
    assert all(one is None or one.isfinite().all() for one in grad)


@pytest.mark.parametrize("by", ["max", "mean", "sum", "first", "last"])
def test_pool_of_a_scaled_axis(by: str) -> None:
    found, given, _ = run(f"x: real[seq, dim]; p = pool(x, seq -> pair, by={by}) => spread(p, pair -> seq)")
    take = {"first": lambda rows: rows[0], "last": lambda rows: rows[-1], "max": lambda rows: rows.amax(0)}
    take |= {"mean": lambda rows: rows.mean(0), "sum": lambda rows: rows.sum(0)}
    for mine, x in zip(found, given, strict=True):
        for t, row in enumerate(mine):
            torch.testing.assert_close(row, take[by](x[t // 2 * 2 : t // 2 * 2 + 2]))


@pytest.mark.parametrize(("which", "read"), [("own", 0), ("before", -1), ("closed", None)])
def test_spread_of_a_scaled_axis(which: str, read: int | None) -> None:
    """`closed`: the pair whose last row is at or before t; where there is none, 0."""
    found, given, _ = run(f"x: real[seq, dim]; p = pool(x, seq -> pair, by=sum) => spread(p, pair -> seq, {which})")
    for mine, x in zip(found, given, strict=True):
        for t, row in enumerate(mine):
            number = (t + 1) // 2 - 1 if read is None else t // 2 + read
            wanted = x[2 * number : 2 * number + 2].sum(0) if number >= 0 else torch.zeros(5, dtype=torch.float64)
            torch.testing.assert_close(row, wanted)


def test_an_axis_scaled_twice_counts_from_the_first() -> None:
    """Six rows of seq are one of `six`, which is declared from `pair`."""
    text = "x: real[seq, dim]; p = pool(pool(x, seq -> pair, by=sum), pair -> six, by=sum); "
    found, given, _ = run(text + "y = spread(spread(p, six -> pair), pair -> seq) => y")
    for mine, x in zip(found, given, strict=True):
        for t, row in enumerate(mine):
            torch.testing.assert_close(row, x[t // 6 * 6 : t // 6 * 6 + 6].sum(0))
