"""Row programs that read the rows before and after: one kernel, against float64, with the opposite shift backward."""

from __future__ import annotations

import pytest
import torch

from tests import op_samples
from tests.fused_models import assert_equal, calls, fused, gradients
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.evaluate import evaluate
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.row_program import Load
from weft.dsl.check import check
from weft.dsl.program import Program
from weft.dsl.source import Source
from weft.runtime.kernels import attach_kernels

FORMULAS = {
    "two rows back": "x: real[seq, dim] => previous(x, 2, first=0.5) * x + previous(x)",
    "a row for the first": "x: real[seq, dim], y: real[dim] => previous(tanh(x), 2, first=y) * x",
    "ahead and back": "x: real[seq, dim] => or_missing(next(x), 0) * sigmoid(x) + or_missing(shift(x, 3), 1)",
    "missing twice": "x: real[seq, dim] => or_missing(next(next(x), 2), 0) * x",
    "a shift of a shift": "x: real[seq, dim] => previous(previous(x, 1, first=2), 2, first=3) * x",
    "flags": "f: flag[seq], x: real[seq, dim] => where(previous(f), x * x, 0) + x",
    "in a reduction": "x: real[seq, dim] => x * rsqrt(mean(x^2 + previous(x)^2, over=dim) + 0.1)",
    "with a weight": "x: real[seq, dim]; param m: real[dim] => x * m + previous(x) * (1 - m)",
    "end to end": (
        "x: real[seq, dim], y: real[seq, heads]; c = concat((y, x), (heads, dim) -> dim_and_heads) => previous(c) * c"
    ),
    "whole numbers": (
        "i: int[seq]; h = (previous(i, 3, first=7) * 1000000007 + previous(i, 1)) * 1000000007 + i "
        "=> h mod 500002 + (h * h) // 77777777777 + (h // (0 - 3)) mod (0 - 5)"
    ),
}


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_kernel(text: str, dtype: torch.dtype) -> None:
    program = op_samples.elaborate(text)
    exact, graph = op_samples.module(program), op_samples.module(program, dtype)
    with torch.no_grad():
        for one, two in zip(exact.parameters(), graph.parameters(), strict=True):
            one.copy_(two)
    inputs = op_samples.inputs(program, dtype=dtype)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    want, want_gradients = gradients(exact, op_samples.arguments(exact, wide))
    made, ops = fused(graph, fewest=2)
    assert len(ops) == calls(made) == 1
    got, got_gradients = gradients(made, op_samples.arguments(graph, inputs))
    limit = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)


@pytest.mark.parametrize("read", ["previous(h)", "or_missing(next(h), 0)", "previous(or_missing(shift(h, 2), 0))"])
def test_where_there_is_no_row_nothing_is_divided_by_0(read: str) -> None:
    program = op_samples.elaborate(f"x: real[seq, dim]; param m: real[dim]; h = m / x => {read}")
    graph, inputs = op_samples.module(program), op_samples.inputs(program)
    made, _ = fused(graph, fewest=2)
    given = op_samples.arguments(graph, inputs)
    wanted = gradients(graph, given)[1]
    for name, got in gradients(made, given)[1].items():
        assert_equal(got, wanted[name], f"gradient of {name}", 1e-9)


def test_the_backward_reads_the_opposite_rows() -> None:
    _, (op,) = fused(op_samples.module(op_samples.elaborate(FORMULAS["two rows back"])), fewest=2)
    assert op.derivative is not None
    loads = [value for value in op.derivative.program.values if isinstance(value, Load)]
    arriving = {load.shift for load in loads if load.source is not None and load.source.name.startswith("d_")}
    assert arriving == {0, 1, 2}


def test_the_oracle_shifts_too() -> None:
    """`evaluate` says what a shifted load means; the kernel agrees with it, rows beyond both ends included."""
    text = "x: real[seq, dim] => previous(x, 2, first=0.5) * 3 + or_missing(shift(x, 0 - 4), 2)"
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    _, (op,) = fused(graph, fewest=2)
    given = op_samples.arguments(graph, op_samples.inputs(program))
    operands = {
        "x": given[0],
        "position": torch.cat([torch.arange(n) for n in op_samples.LENGTHS["seq"]]),
        "has_next": torch.cat([torch.arange(n) + 4 < n for n in op_samples.LENGTHS["seq"]]),
    }
    places = sorted(op.program.sources, key=lambda source: source.place)
    (found,) = evaluate(op.program, [operands[source.name] for source in places], given[0].shape[0])
    assert_equal(found, graph(*given)[0], "result", 1e-12)


def test_a_reduction_is_not_computed_at_every_row_that_reads_it() -> None:
    """Its result is stored, and read by a second kernel."""
    text = "x: real[seq, dim]; n = x * rsqrt(mean(x^2, over=dim) + 0.1) => previous(n) * n + n"
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    made, _ = fused(graph, fewest=2)
    assert calls(made) == 2
    want, want_gradients = gradients(graph, arguments)
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", 1e-9)
    assert_equal(got_gradients["argument 0"], want_gradients["argument 0"], "gradient", 1e-9)


# -- n-gram hashes -----------------------------------------------------------------------------------------------------

HASH = """
size vocab = 260
size buckets = {buckets}
axis seq

block hash_of(bytes: id[seq] in vocab, n) -> id[seq] in buckets:
    h = int(bytes)
    for k in 1 .. n:
        h = h * 1000000007 + int(previous(bytes, k, first=0))
    return wrap(h, buckets)
"""
SUM = """
size dim = 24

model m(bytes: id[seq] in vocab):
    x = embed(bytes, vocab -> dim) as own
{sums}
    return x * rsqrt(mean(x^2, over=dim) + 0.00001)
"""
SIZES = range(3, 9)


def hashes(buckets: int) -> Program:
    sums = [f"    x = x + embed(hash_of(bytes, {n}), buckets -> dim) as hash{n}" for n in SIZES]
    text = HASH.format(buckets=buckets) + SUM.format(sums="\n".join(sums))
    return check(Source("hashes.weft", text), OPS).value().models["m"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_six_tables_of_hashes_are_one_kernel(dtype: torch.dtype) -> None:
    program = hashes(37)
    exact, graph = op_samples.module(program), op_samples.module(program, dtype)
    lengths = {"seq": (0, 9, 1, 0, 13)}
    inputs = op_samples.inputs(program, lengths)
    with torch.no_grad():
        for one, two in zip(exact.parameters(), graph.parameters(), strict=True):
            one.copy_(two)
    want, want_gradients = gradients(exact, op_samples.arguments(exact, inputs, lengths))
    made = optimise(graph, GPU_PASSES)
    (op,) = [node.target for node in made.graph.nodes if isinstance(node.target, FusedOp)]
    # Besides it only where each row stands in its example.
    left = [node.target.__name__ for node in made.graph.nodes if node.op == "call_function" and node.target is not op]
    assert set(left) <= {"row_example", "position"}
    assert op.derivative is not None
    # One gradient of a row serves all seven tables, each scattered by sorted ids.
    assert len(op.derivative.gathered) == 7
    assert len({gathered.rows for gathered in op.derivative.gathered}) == 1
    attach_kernels(made)
    found = [gradients(made, op_samples.arguments(graph, inputs, lengths)) for _ in range(2)]
    (got, got_gradients), (_, again) = found
    limit = {torch.float64: 1e-9, torch.float32: 1e-5}[dtype]
    assert_equal(got[0], want[0], "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)
        one, two = got_gradients[name], again[name]
        assert one is not None
        assert two is not None
        assert torch.equal(one, two), f"gradient of {name} differs from run to run"


def test_hashes_wrap_at_64_bits() -> None:
    """Ids of "Hello world" with bytes moved by 4 behind a start id of 1, as published for 500,002 rows: int64 overflows
    from three bytes on, and negative sums are brought into range from above."""
    model = "model m(bytes: id[seq] in vocab):\n    return hash_of(bytes, 3), hash_of(bytes, 8)\n"
    program = check(Source("hashes.weft", HASH.format(buckets=500002) + model), OPS).value().models["m"]
    text = torch.tensor([1, *(byte + 4 for byte in b"Hello world")])
    made, ops = fused(op_samples.module(program), fewest=2)
    assert len(ops) == 1
    three, eight = made(text, op_samples.offsets((12,)))
    assert three.tolist() == [
        443987, 124875, 393970, 386145, 358223, 190185, 217383, 142034, 146186, 10172, 334275, 306354,
    ]  # fmt: skip
    assert eight.tolist() == [
        172383, 205585, 456240, 129346, 299568, 322649, 282857, 290820, 494436, 174564, 143229, 223667,
    ]  # fmt: skip
