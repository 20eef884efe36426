"""Rows fused into generated kernels: every operator's samples, and formulas made of many, against the unfused graph."""

from __future__ import annotations

import pytest
import torch

from tests import op_samples
from tests.fused_models import assert_equal, calls, fused, gradients
from tests.op_samples import LENGTHS, SAMPLES, Sample
from weft.codegen.facts import EXAMPLES, facts
from weft.codegen.ops import OPS
from weft.codegen.rowwise.row_program import RowProgram
from weft.codegen.rowwise.tiles import Tiles
from weft.dsl.check import check
from weft.dsl.source import Source

EACH = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)


class Tensors(torch.fx.Interpreter):
    """Keeps what every node made."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.made = {}

    def run_node(self, n: torch.fx.Node):
        self.made[n] = super().run_node(n)
        return self.made[n]


@EACH
def test_facts_agree_with_tensors(sample: Sample) -> None:
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    known = facts(graph)
    seen = Tensors(graph)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    seen.run(*arguments)
    lengths = op_samples.with_cuts(program, op_samples.values_of(graph, arguments), LENGTHS)
    rows = {axis: sum(counts) for axis, counts in lengths.items()} | {EXAMPLES: len(LENGTHS["seq"])}
    for node, fact in known.items():
        tensor = seen.made[node]
        lead = () if fact.level is None else (rows[fact.level],)
        assert (tuple(tensor.shape), tensor.dtype) == ((*lead, *fact.dims), fact.dtype), node.format_node()


@EACH
def test_sample_fused(sample: Sample) -> None:
    """Results and every gradient, one function a kernel where it joins no other."""
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    want, want_gradients = gradients(graph, arguments)
    made, _ = fused(graph)
    got, got_gradients = gradients(made, arguments)
    for number, (one, two) in enumerate(zip(got, want, strict=True)):
        assert_equal(one, two, f"result {number}", 1e-7)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-7)


FORMULAS = {
    "third moment with a gate a head": (
        "x: real[seq, heads, dim], g: real[heads]; s = mean(abs(x)^3, over=dim) => x * (s + 0.1)^(-1 / 3) * sigmoid(g)"
    ),
    "softmax of two axes": "x: real[seq, heads, dim] => softmax(x * 3, over=(heads, dim)) * x",
    "entropy": "x: real[seq, dim] => logsumexp(x, over=dim) - sum(softmax(x, over=dim) * x, over=dim)",
    "halves that turn": (
        "x: real[seq, heads, two, dim], a: real[seq, dim]; p, q = split(x, over=two) "
        "=> stack((p * cos(a) - q * sin(a), q * cos(a) + p * sin(a)), over=two)"
    ),
    "an example's shift": (
        "x: real[seq, dim], c: real[dim]; m = mean(x, over=dim) => (x - m) * (1 + c) + sum(x * c, over=dim)"
    ),
    "norm of flattened axes": (
        "x: real[seq, heads, head_dim], w: real[width]; y = flatten(x, (heads, head_dim) -> width) "
        "=> unflatten(y * rsqrt(mean(y^2, over=width) + 0.001) * w, width -> (heads, head_dim))"
    ),
    "choice by a comparison": "x: real[seq, dim], y: real[dim] => where(x * 2 > y, x * y, max(x, over=dim) - x)",
    "largest entries share": "x: real[seq, heads, dim] => max(round(x), over=(heads, dim)) + min(round(x), over=dim)",
    "whole numbers": "i: int[seq] => (i * 31 - 7) mod 11 + (i - 50) // 3",
    "argument of the maximum": "x: real[seq, heads, dim] => argmax(x * x, over=heads)",
    "activations": "x: real[seq, dim] => tanh(x) * softplus(2 * x) + erf(x) - relu(x) * abs(x) + sqrt(x^2 + 1)",
    "a norm of two values end to end": (
        "x: real[seq, dim], y: real[seq, heads]; c = concat((x * 2, tanh(y)), (dim, heads) -> dim_and_heads) "
        "=> c * rsqrt(mean(c^2, over=dim_and_heads) + 0.1)"
    ),
    "end to end beside a weight": (
        "x: real[seq, dim], y: real[seq, heads]; param g: real[dim_and_heads]; "
        "c = concat((x * 2, tanh(y)), (dim, heads) -> dim_and_heads) "
        "=> softmax(c * g * 0.02, over=dim_and_heads), argmax(c, over=dim_and_heads)"
    ),
    "two that are put together alike": (
        "x: real[seq, dim], y: real[seq, heads], z: real[seq, heads]; "
        "c = concat((x * 2, y), (dim, heads) -> dim_and_heads); d = concat((x, z), (dim, heads) -> dim_and_heads) "
        "=> c * d"
    ),
    "end to end of other axes": (
        "x: real[seq, ffn, dim], y: real[seq, heads], w: real[seq, dim_and_heads] "
        "=> concat((x * 2, y), (dim, heads) -> dim_and_heads) * w"
    ),
    "powers": "x: real[seq, dim], y: real[seq] => (x^2 + 0.5)^y + 2.5^x + x^4 - (x^2 + 1)^-2 + (x^2 + 1)^0.5",
}


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_formula_is_one_kernel(text: str, dtype: torch.dtype) -> None:
    program = op_samples.elaborate(text)
    exact = op_samples.module(program)
    inputs = op_samples.inputs(program, dtype=dtype)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    want, want_gradients = gradients(exact, op_samples.arguments(exact, wide))
    graph, ops = fused(op_samples.module(program, dtype), fewest=2)
    assert len(ops) == calls(graph) == 1
    got, got_gradients = gradients(graph, op_samples.arguments(graph, inputs))
    limit = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)


# A gate a row: an example's would be made by a step of its own, and rounded a second time.
BY_ROW = {name: text.replace("g: real[heads]", "g: real[seq, heads]") for name, text in FORMULAS.items()}
# Rows in all and the size of an axis: what misses every tile, one of each. Examples of no rows and of one are among
# them.
ODD = [(63, 500), (500, 63), (60, 1), (1, 60)]


@pytest.mark.parametrize("text", BY_ROW.values(), ids=BY_ROW.keys())
@pytest.mark.parametrize(("rows", "dim"), ODD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_formula_at_odd_sizes(text: str, rows: int, dim: int, dtype: torch.dtype) -> None:
    source = op_samples.spec(text).replace("size dim = 5", f"size dim = {dim}")
    program = check(Source("odd.weft", source), OPS).value().models["m"]
    lengths = {"seq": (0, 1, rows - 1, 0), "other": (1, 0, 2, 1)}
    inputs = op_samples.inputs(program, lengths, dtype=dtype)
    exact = op_samples.module(program)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    want, want_gradients = gradients(exact, op_samples.arguments(exact, wide, lengths))
    graph, ops = fused(op_samples.module(program, dtype), fewest=2)
    # A part of one entry has no axis to be put in place by: what has one may stay apart.
    fewest = 0 if dim == 1 and "concat(" in text else 1
    assert fewest <= len(ops) == calls(graph) <= 1
    got, got_gradients = gradients(graph, op_samples.arguments(graph, inputs, lengths))
    limit = {torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)


# Found by random specs: each is one way in which a number or a lone entry went wrong.
NUMBERS = {
    "a flag as a number": "f: flag[seq] => real(f) - 0.4",
    "numbers in calls": "x: real[seq, dim] => maximum(x, 0.3) + where(x > 0.1, x, 0.7) + clamp(x, low=-1.3, high=0.6)",
    "an exponent of numbers": "x: real[seq, dim] => (x^2 + 1.5)^0.7",
    "one entry of a row": "x: real[seq, dim]; param g: real[dim] => select(x * g, dim, 2) * 0.3",
}


@pytest.mark.parametrize("text", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_are_double_where_rows_are(text: str) -> None:
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    want, want_gradients = gradients(graph, arguments)
    got, got_gradients = gradients(fused(graph)[0], arguments)
    assert_equal(got[0], want[0], "result", 1e-13)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-13)


TWICE = """
size dim = 5
axis again = dim
axis two = 2
axis seq

model m(x: real[seq, dim], w: real[seq], y: real[seq, again]):
    param gain: real[dim] = ones
    {lines}
"""
# Found by random specs: the entries of one value meet each other, so that one name would stand for two axes.
MEETINGS = {
    "under two names": "return outer(rename(x * gain, dim -> again), x) + y",
    "summed": "return x * mean(outer(rename(x, dim -> again), x)^2, over=(again, dim)) * gain",
    "with parts": (
        "s = stack((x, w), over=two); "
        "return mean(outer(rename(s * gain, dim -> again), s)^2, over=(again, two, dim)) * x"
    ),
}


@pytest.mark.parametrize("fewest", [1, 2])
@pytest.mark.parametrize("lines", MEETINGS.values(), ids=MEETINGS.keys())
def test_entries_that_meet_their_own(lines: str, fewest: int) -> None:
    text = TWICE.format(lines=lines.replace("; ", "\n    "))
    program = check(Source("twice.weft", text), OPS).value().models["m"]
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    want, want_gradients = gradients(graph, arguments)
    made, _ = fused(graph, fewest)
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", 1e-9)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-9)


LONG = """
size wide = 20011
axis seq

model m(x: real[seq, wide], y: real[seq, wide]) -> real[seq, wide]:
    param gain: real[wide] = ones
    return {formula}
"""
JOINED = """
size narrow = 3007
size rest = 17011
size wide = narrow + rest
axis seq

model m(x: real[seq, narrow], y: real[seq, rest]) -> real[seq, wide]:
    param gain: real[wide] = ones
    z = concat((x, y * 2), (narrow, rest) -> wide)
    return {formula}
"""
LONG_FORMULAS = {
    "cut into blocks, each a program's": ("x * sigmoid(y) * gain", False),
    "gone through in passes": ("x * rsqrt(mean(x^2, over=wide) + 0.001) * gain + y", True),
    "a row read by its neighbour": ("previous(x) * rsqrt(mean(x^2, over=wide) + 0.001) * gain + y", True),
    "passes that wait for each other": ("softmax(x * gain, over=wide) * (y - mean(y, over=wide))", True),
}


@pytest.mark.parametrize(("formula", "is_looped"), LONG_FORMULAS.values(), ids=LONG_FORMULAS.keys())
def test_long_rows(formula: str, is_looped: bool) -> None:
    program = check(Source("long.weft", LONG.format(formula=formula)), OPS).value().models["m"]
    lengths = {"seq": (0, 2, 1)}
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program, lengths), lengths)
    want, want_gradients = gradients(graph, arguments)
    made, ops = fused(graph)
    assert [any(part.loop for part in op.forward.passes) for op in ops] == [is_looped]
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", 1e-9)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-9)


@pytest.mark.parametrize("formula", ["z * rsqrt(mean(z^2, over=wide) + 0.1) * gain", "sigmoid(z) * gain"])
def test_long_rows_put_together(formula: str) -> None:
    """Parts of a row that no program holds whole: gone through in blocks, so that each is computed once."""
    program = check(Source("joined.weft", JOINED.format(formula=formula)), OPS).value().models["m"]
    lengths = {"seq": (0, 2, 1)}
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program, lengths), lengths)
    want, want_gradients = gradients(graph, arguments)
    made, (op,) = fused(graph)
    assert (any(part.loop for part in op.forward.passes), op.forward.columns) == (True, 1)
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", 1e-9)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-9)


@pytest.mark.parametrize(
    ("size", "block"), [(5120, 1024), (8192, 4096), (20011, 4096), (17408, 1024), (12288, 4096), (6144, 2048)]
)
def test_blocks_of_a_long_row_pad_little(size: int, block: int) -> None:
    """Of the largest that pad least: what is gone through is then nearly what is there."""
    tiles = Tiles(_norm_of(size))
    assert tiles.is_looped
    assert tiles.cut is not None
    assert tiles.block(tiles.cut) == block
    padded = -(-size // block) * block
    assert all(padded <= -(-size // other) * other for other in (1024, 2048, 4096))


@pytest.mark.parametrize(("formula", "waits"), [("sin(angle)", True), ("(angle + 1.0)", False)])
def test_a_thread_holds_fewer_entries_where_more_registers_wait(formula: str, waits: bool) -> None:
    """Threads that differ by head hold copies of an angle, and each angle waits for all others."""
    text = f"""
size heads = 4
size pair = 8
axis seq

model m(x: real[seq, heads, pair], y: real[seq, heads, pair], angle: real[seq, pair]) -> real[seq, heads, pair]:
    return {formula} * (x + y)
"""
    program = check(Source("turned.weft", text), OPS).value().models["m"]
    _, (op,) = fused(op_samples.module(program, torch.bfloat16), fewest=2)
    plan = op.forward
    per_thread = plan.block_rows * 32 // (32 * plan.warps)
    assert (plan.waits, plan.registers) == (waits, 255 if waits else None)
    assert per_thread == (8 if waits else 16)


def _norm_of(size: int) -> RowProgram:
    """The gradient of a norm of a sum, which holds many values at once."""
    text = f"""
size wide = {size}
axis seq

model m(x: real[seq, wide], y: real[seq, wide]) -> real[seq, wide]:
    param one: real[wide] = ones
    param two: real[wide] = ones
    h = x + y * rsqrt(mean(y^2, over=wide) + 0.001) * one
    return h * rsqrt(mean(h^2, over=wide) + 0.001) * two
"""
    program = check(Source("wide.weft", text), OPS).value().models["m"]
    _, ops = fused(op_samples.module(program, torch.bfloat16), fewest=2)
    (op,) = ops
    assert op.backward is not None
    return op.backward.program
