"""Norms of groups that one program cannot hold all of: a group is a program's. In the interpreter, with gradients."""

from __future__ import annotations

import pytest
import torch

from tests import op_samples
from tests.fused_models import assert_equal, calls, fused, gradients
from weft.codegen.ops import OPS
from weft.codegen.rowwise.registers import Registers
from weft.codegen.rowwise.tiles import MOST_LOOPED, RESIDENT, Tiles, tiling
from weft.dsl.check import check
from weft.dsl.source import Source

SPEC = """
size channels = {channels}
axis picture
axis cell = grid({height}, {width})

model m(x: real[picture, cell, channels]) -> real[picture, cell, channels]:
    return silu(group_norm(x, cell, {groups}))
"""
# A group of 30 x 33 places and 5 channels is less than a program holds; one of 4 x 33 x 33 x 10 is not.
SHAPES = {
    "all in one program": (8, 5, 7, 2),
    "a group each": (40, 30, 33, 8),
    "many groups": (64, 17, 16, 64),
    "a group in passes": (60, 33, 33, 3),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_group_norm_of_any_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    channels, height, width, groups = shape
    text = SPEC.format(channels=channels, height=height, width=width, groups=groups)
    program = check(Source("norm.weft", text), OPS).value().models["m"]
    lengths = {"picture": (1, 0, 2)}
    inputs = op_samples.inputs(program, lengths, dtype=dtype)
    exact = op_samples.module(program)
    want, want_gradients = gradients(exact, op_samples.arguments(exact, [x.double() for x in inputs], lengths))
    graph, ops = fused(op_samples.module(program, dtype), fewest=2)
    assert calls(graph) >= 1
    got, got_gradients = gradients(graph, op_samples.arguments(graph, inputs, lengths))
    limit = {torch.float64: 1e-7, torch.float32: 1e-5}[dtype]
    assert_equal(got[0], want[0], "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)
    for op in ops:
        # What is stored counts too: the gradient of a mean is wider than any value of its program.
        assert Tiles(op.program).held <= RESIDENT


def test_many_channels_stay_in_registers() -> None:
    """Of the autoencoder of latent diffusion: 512 channels, whose gradient is gone through a few places at a time."""
    text = SPEC.format(channels=512, height=64, width=64, groups=32).replace("silu", "2 * ")
    program = check(Source("norm.weft", text), OPS).value().models["m"]
    _, ops = fused(op_samples.module(program, torch.bfloat16), fewest=2)
    for op in ops:
        assert op.derivative is not None
        found = tiling(op.derivative.program, 64)
        assert Registers(found.tiles).needed(found.rows, found.warps) <= MOST_LOOPED[found.warps]
