"""Values of segments read by rows inside fused kernels, and attention along a static axis of each row."""

from __future__ import annotations

import pytest
import torch

from tests import op_samples
from tests.fused_models import assert_equal, calls, fused, gradients
from weft.codegen.functions import attention, cuts
from weft.codegen.gpu.run_attention import attend_runs
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.evaluate import evaluate
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.row_program import Load
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.kernels import attach_kernels

# Of the largest entry, besides how far off the unfused graph is in the same type: as in runtime/verify.py.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-3}
GRADIENT, WHOLE = 2.5, 3.0
CUT = "segment seq into patch ends where f"
GAPS = "segment seq into patch by i"
TEXTS = {
    # What BLT's decoder does: each row weighs the slots of the last segment that has ended.
    "weighs slots": (
        "q: real[seq, heads, dim], x: real[seq, two, heads, dim], y: real[seq, two, heads, dim], f: flag[seq]; "
        f"{CUT}; p = pool(x, seq -> patch, by=mean); r = pool(y, seq -> patch, by=max); "
        "k = spread(p, patch -> seq, closed); v = spread(r, patch -> seq, closed) => "
        "attend(q, k, v, over=dim, along=two)"
    ),
    "weighs its own slots": (
        "q: real[seq, heads, dim], k: real[seq, three, heads, dim], v: real[seq, three, heads, ffn] => "
        "tanh(attend(q, k, v, over=dim, along=three, scale=0.7)) * 2"
    ),
    "several queries": (
        "q: real[seq, four, heads, dim], k: real[seq, two, heads, dim], v: real[seq, two, heads, dim] => "
        "attend(q, k, v, over=dim, along=two) + q"
    ),
    "heads that share keys": (
        "q: real[seq, heads, dim], k: real[seq, three, kv_heads, dim], v: real[seq, three, kv_heads, dim] => "
        "attend(q, k, v, over=dim, along=three, group=heads -> kv_heads) * q"
    ),
    "own": (
        f"x: real[seq, dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=mean) => (x - spread(p, patch -> seq))^2"
    ),
    "before": (
        f"x: real[seq, dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=sum) => "
        "x * sigmoid(spread(p, patch -> seq, before))"
    ),
    # What each row has of a segment and what it has of its own get one gradient, a sum of runs and a row of it.
    "read and added": (
        f"x: real[seq, dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=first) => "
        "tanh(spread(p, patch -> seq, closed) + x)"
    ),
    "two segments' values added": (
        f"x: real[seq, dim], y: real[seq, dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=first); "
        "r = pool(y, seq -> patch, by=sum) => tanh(spread(p, patch -> seq, closed) + spread(r, patch -> seq, closed))"
    ),
    # A gain is summed over all rows beside it, so the runs are summed afterwards.
    "beside a weight": (
        f"x: real[seq, dim], w: real[dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=sum) => "
        "x * w + tanh(spread(p, patch -> seq, closed)) * w"
    ),
    "by two numbers": (
        f"x: real[seq, dim], f: flag[seq]; {CUT}; p = pool(x, seq -> patch, by=mean) => "
        "spread(p, patch -> seq, closed) * spread(p, patch -> seq, before) + x"
    ),
    "with gaps": (
        f"x: real[seq, dim], i: id[seq] in vocab or none; {GAPS}; p = pool(x, seq -> patch, by=max) => "
        "x * spread(p, patch -> seq) + sum(spread(p, patch -> seq, closed)^2, over=dim)"
    ),
}
ODD = ((1, 60), (63, 5), (7, 63), (60, 1))


def graphs(text: str, dim: int, lengths: dict[str, tuple[int, ...]], dtype: torch.dtype):
    """The reference in float64 and in `dtype`, with arguments of both."""
    source = op_samples.spec(text).replace("size dim = 5", f"size dim = {dim}")
    program = check(Source("segments.weft", source), OPS).value().models["m"]
    inputs = op_samples.inputs(program, lengths, dtype=dtype)
    exact, graph = op_samples.module(program), op_samples.module(program, dtype)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    return exact, op_samples.arguments(exact, wide, lengths), graph, op_samples.arguments(graph, inputs, lengths)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize(("rows", "dim"), ODD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_float64(text: str, rows: int, dim: int, dtype: torch.dtype) -> None:
    lengths = {"seq": (0, 1, rows - 1, 0, 9), "other": (1, 0, 2, 1, 1)}
    exact, wide, graph, arguments = graphs(text, dim, lengths, dtype)
    want, want_gradients = gradients(exact, wide)
    near, near_gradients = gradients(graph, arguments)
    made, _ = fused(graph, fewest=2)
    assert calls(made) >= 1
    assert not [node for node in made.graph.nodes if node.target in (cuts.spread, attention.attend_static)]
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", LIMITS[dtype] + WHOLE * off(near[0], want[0]))
    for name in want_gradients:
        limit = GRADIENT * LIMITS[dtype] + WHOLE * off(near_gradients[name], want_gradients[name])
        assert limit < 0.1, (name, limit)
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", limit)


def off(x: torch.Tensor | None, want: torch.Tensor | None) -> float:
    """How far a result is from the truth, of its largest entry."""
    if x is None or want is None or not want.is_floating_point() or not want.abs().max() > 0:
        return 0.0
    return ((x.double() - want).abs().max() / want.abs().max()).item()


def test_rows_that_read_nothing() -> None:
    """All rows in gaps: there is no segment to read from. A row before the first end reads 0."""
    lengths = {"seq": (0, 3, 2), "other": (1, 1, 1)}
    _, _, graph, arguments = graphs(TEXTS["with gaps"], 5, lengths, torch.float32)
    made, _ = fused(graph)
    arguments[1] = torch.full_like(arguments[1], 11)
    results, found = gradients(made, arguments)
    assert torch.equal(results[0], torch.zeros(5, 5))
    assert_equal(found["argument 0"], torch.zeros(5, 5), "gradient", 0)
    _, _, graph, arguments = graphs(TEXTS["weighs slots"], 5, lengths, torch.float32)
    made, _ = fused(graph, fewest=2)
    arguments[3] = torch.tensor([False, False, True, True, False])
    (result,), _ = gradients(made, arguments)
    assert [bool(row.any()) for row in result] == [False, False, True, True, True]


def test_the_decoders_attention_is_one_kernel() -> None:
    """Slots are read where they lie: nothing of `[rows, slots, ...]` is stored in the forward."""
    lengths = {"seq": (4, 9), "other": (1, 1)}
    _, _, graph, _ = graphs(TEXTS["weighs slots"], 8, lengths, torch.bfloat16)
    made = optimise(graph, GPU_PASSES)
    loads_of = {
        node.target: [value for value in node.target.program.values if isinstance(value, Load) and value.in_runs]
        for node in made.graph.nodes
        if isinstance(node.target, FusedOp)
    }
    # The other decides where segments end.
    ((op, loads),) = [(op, loads) for op, loads in loads_of.items() if loads]
    assert len(loads) == 2
    assert [result.dims for result in op.program.results] == [(4, 8)]
    assert op.derivative is not None
    assert [gathered.is_summed for gathered in op.derivative.gathered] == [True, True]
    assert [result.dims for result in op.derivative.program.results if result.by_row] == [(4, 8)]


def test_long_runs_and_rows_of_none() -> None:
    """More rows in a run than a program holds at a time, segments that nobody reads, rows that read nothing."""
    lengths = {"seq": (40, 3, 0, 33), "other": (1, 1, 1, 1)}
    for text in ("own", "weighs slots", "before"):
        exact, wide, graph, arguments = graphs(TEXTS[text], 5, lengths, torch.float32)
        flags = torch.zeros(76, dtype=torch.bool)
        flags[[2, 3, 30, 41, 50, 75]] = True
        place = next(n for n, x in enumerate(wide) if x.dtype == torch.bool)
        wide[place] = arguments[place] = flags
        want, want_gradients = gradients(exact, wide)
        made, _ = fused(graph, fewest=2)
        got, got_gradients = gradients(made, arguments)
        assert_equal(got[0], want[0], f"result, {text}", 1e-5)
        for name in want_gradients:
            assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}, {text}", 1e-5)


def test_programs_mean_what_kernels_compute() -> None:
    """A row program, run value by value, with an index that may be -1."""
    lengths = {"seq": (4, 0, 9), "other": (1, 1, 1)}
    exact, *_ = graphs(TEXTS["own"], 5, lengths, torch.float32)
    _, (op,) = fused(exact, fewest=2)
    number = torch.tensor([0, -1, 1, 1, 3])
    x, p = torch.randn(5, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    by_name = {"x": x, "p": p}
    tensors = [torch.empty(0)] * op.operands
    for source in op.program.sources:
        tensors[source.place] = number if not source.dtype.is_floating_point else by_name[source.name]
    want = (x - torch.where(number[:, None] >= 0, p[number.clamp(min=0)], 0)) ** 2
    assert_equal(evaluate(op.program, tensors, 5)[0], want, "result", 1e-14)


@pytest.mark.parametrize(
    "text",
    [
        (
            "q: real[seq, heads, dim], k: real[seq, four, heads, dim], v: real[seq, four, heads, dim] => "
            "attend(q, k, v, over=dim, along=four, mask=key(position) < 2)"
        ),
        (
            "q: real[seq, heads, dim], k: real[four, heads, dim], v: real[four, heads, dim] => "
            "attend(q, k, v, over=dim, along=four)"
        ),
    ],
)
def test_other_attention_along_static_axes_stays_right(text: str) -> None:
    lengths = {"seq": (4, 0, 9), "other": (1, 1, 1)}
    exact, wide, _, _ = graphs(text, 5, lengths, torch.float64)
    want, want_gradients = gradients(exact, wide)
    made, _ = fused(exact)
    got, got_gradients = gradients(made, wide)
    assert_equal(got[0], want[0], "result", 1e-12)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("slots", ["heads, dim", "two, heads, dim"])
def test_attention_over_segments(slots: str, dtype: torch.dtype) -> None:
    """Each segment's queries see its own rows: segments of one row, of a few, and of many."""
    text = (
        f"x: real[seq, heads, dim], v: real[seq, heads, dim], y: real[seq, {slots}], f: flag[seq]; {CUT}; "
        "q = pool(y, seq -> patch, by=mean); m = attend(q, x, v, over=dim, along=seq, mask=same(patch)) => "
        "spread(m, patch -> seq)"
    )
    lengths = {"seq": (4, 150, 0, 1), "other": (1, 1, 1, 1)}
    exact, wide, graph, arguments = graphs(text, 5, lengths, dtype)
    ends = torch.zeros(155, dtype=torch.bool)
    ends[[0, 3, 4, 6, 9, 140]] = True
    wide[3] = arguments[3] = ends
    want, want_gradients = gradients(exact, wide)
    near, near_gradients = gradients(graph, arguments)
    made = optimise(graph, GPU_PASSES)
    assert attend_runs in [node.target for node in made.graph.nodes]
    attach_kernels(made)
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", LIMITS[dtype] + WHOLE * off(near[0], want[0]))
    for name in want_gradients:
        limit = GRADIENT * LIMITS[dtype] + WHOLE * off(near_gradients[name], want_gradients[name])
        assert limit < 0.1, (name, limit)
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", limit)
