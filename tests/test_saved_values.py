"""What forwards save for their backwards: which values, that it pays, and that gradients are the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import fx

from tests import op_samples
from tests.fused_models import assert_equal, fused, gradients
from tests.test_rowwise import FORMULAS
from weft import spec_files
from weft.codegen.ops import OPS
from weft.codegen.passes.fuse import fuse_rows
from weft.codegen.pipeline import BASIC_PASSES, GPU_PASSES, Pass, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.kept import kept
from weft.codegen.rowwise.kernel_texts import row_work
from weft.codegen.rowwise.saved import NEARLY_FREE
from weft.dsl.check import check
from weft.dsl.program import Program
from weft.dsl.source import Source
from weft.runtime.ahead_of_time import Compiled
from weft.views import planned_kernels
from weft.views.kernels import KernelRow, data, text

SPEC = """
size wide = 512
size words = 50
axis seq

model m({inputs}):
{body}
"""
ROWS = 1000


def graph_of(inputs: str, body: list[str], dtype: torch.dtype = torch.float32) -> tuple[Program, fx.GraphModule]:
    spec = SPEC.format(inputs=inputs, body="\n".join(f"    {line}" for line in body))
    program = check(Source("saved.weft", spec), OPS).value().models["m"]
    return program, op_samples.module(program, dtype)


RESIDUAL = (
    "x: real[seq, wide], y: real[seq, wide]",
    [
        "param g: real[wide] = ones",
        "h = x + y",
        "n = h * rsqrt(mean(h^2, over=wide) + 0.001) * g",
        "return h, n",
    ],
)
SOFTMAX = ("x: real[seq, wide], y: real[seq, wide]", ["return softmax(x * y, over=wide) * y"])
TABLES = (
    "i: id[seq] in words, j: id[seq] in words",
    [
        "s = embed(i, words -> wide) as one + embed(j, words -> wide) as two",
        "return s * rsqrt(mean(s^2, over=wide) + 0.001)",
    ],
)
LARGEST = ("x: real[seq, wide]", ["m = max(x * x, over=wide)", "return x * m"])


def saved_by(spec: tuple[str, list[str]], dtype: torch.dtype = torch.float32) -> tuple[FusedOp, set[tuple[str, str]]]:
    """The one fused call with its gradient, and what its backward reads of the forward."""
    _, graph = graph_of(*spec, dtype)
    _, ops = fused(graph, fewest=2)
    (op,) = [op for op in ops if op.derivative is not None]
    assert op.derivative is not None
    return op, {(one.name, one.how) for one in kept(op.program, op.derivative)}


def test_a_result_is_read_instead_of_what_it_was_made_of() -> None:
    op, read = saved_by(RESIDUAL)
    assert read == {("h", "result"), ("saved_rsqrt", "saved")}
    # Both sides of the residual have one gradient, which is written once.
    assert op.derivative is not None
    places = {name: place for place, name in enumerate(source.name for source in op.program.sources)}
    owners = dict(op.derivative.owners)
    assert owners[places["x"]] == owners[places["y"]]


def test_statistics_of_softmax_are_saved() -> None:
    _, read = saved_by(SOFTMAX)
    assert {name for name, how in read if how == "saved"} >= {"saved_sum"}
    assert sum(how == "saved" for _, how in read) == 2


def test_rows_of_tables_are_read_once() -> None:
    op, read = saved_by(TABLES)
    assert op.backward is not None
    # The sum of both, but neither table.
    assert not [source.name for source in op.backward.program.sources if source.is_table]
    assert ("s", "saved") in {(name.removeprefix("saved_"), how) for name, how in read}


def test_what_is_compared_is_computed_again() -> None:
    """A maximum saved by one kernel need not equal any entry as another kernel computes it."""
    _, read = saved_by(LARGEST)
    assert read == {("x", "operand")}


def test_rounded_results_are_not_read_where_the_rounding_would_grow() -> None:
    """In bfloat16 an exponent of 20 is off by 0.04."""
    spec = ("x: real[seq, wide], y: real[seq, wide]", ["h = x + y", "return h, softmax(h, over=wide)"])
    assert ("h", "result") in saved_by(spec, torch.float32)[1]
    assert ("h", "result") not in saved_by(spec, torch.bfloat16)[1]
    assert ("h", "result") in saved_by(RESIDUAL, torch.bfloat16)[1]


def test_short_rows_are_computed_again() -> None:
    text = "x: real[seq, heads, dim] => x * rsqrt(mean(x^2, over=dim) + 0.001)"
    _, ops = fused(op_samples.module(op_samples.elaborate(text)), fewest=2)
    assert [op.derivative.saved for op in ops if op.derivative is not None] == [()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", [RESIDUAL, SOFTMAX, TABLES, LARGEST], ids=["residual", "softmax", "tables", "largest"])
def test_gradients(spec: tuple[str, list[str]], dtype: torch.dtype) -> None:
    program, exact = graph_of(*spec, torch.float64)
    lengths = {"seq": (0, 5, 1)}
    inputs = op_samples.inputs(program, lengths, dtype=dtype)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    graph = graph_of(*spec, dtype)[1]
    with torch.no_grad():
        for one, two in zip(exact.parameters(), graph.parameters(), strict=True):
            one.copy_(two)
    want, want_gradients = gradients(exact, op_samples.arguments(exact, wide, lengths))
    got, got_gradients = gradients(fused(graph, 2)[0], op_samples.arguments(graph, inputs, lengths))
    limit = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)


def _ops(graph: torch.fx.GraphModule, saves: bool) -> dict[str, FusedOp]:
    fuse = Pass("fuse", partial(fuse_rows, fewest=1), "")
    made = optimise(graph, (*BASIC_PASSES, fuse))
    ops = {node.target.name: node.target for node in made.graph.nodes if isinstance(node.target, FusedOp)}
    return {name: op.saving() if saves else op for name, op in ops.items()}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
def test_backwards_move_no_more(formula: str) -> None:
    graph = op_samples.module(op_samples.elaborate(formula))
    saving = _ops(graph, True)
    for name, plain in _ops(graph, False).items():
        if plain.backward is not None:
            one, two = saving[name].backward, plain.backward
            assert one is not None
            assert row_work(one, ROWS).bytes <= row_work(two, ROWS).bytes * (1 + NEARLY_FREE)


def test_without_gradients_nothing_is_saved() -> None:
    program, graph = graph_of(*RESIDUAL, torch.float32)
    made, _ = fused(graph, fewest=2)
    (node,) = [node for node in made.graph.nodes if type(node.target).__name__ == "Fused"]
    call = node.target
    lengths = {"seq": (3, 2)}
    given = dict(zip([n.name for n in made.graph.nodes if n.op == "placeholder"],
                     op_samples.arguments(graph, op_samples.inputs(program, lengths, dtype=torch.float32), lengths),
                     strict=True))  # fmt: skip
    given |= {n.name: made.get_parameter(str(n.target)) for n in made.graph.nodes if n.op == "get_attr"}
    operands = [given[str(arg)] for arg in node.args]
    with torch.no_grad():
        made_for_it = call.operator(*call.arguments(operands))[2:]
        assert [x.shape for x in made_for_it] == [(0,)]
    kept_by_autograd = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept_by_autograd.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call(*[x.clone().requires_grad_() for x in operands])
    # The gain, h and the statistic: x and y are let go.
    assert len(kept_by_autograd) == 3


def test_the_pass_is_in_the_list() -> None:
    names = [pass_.name for pass_ in GPU_PASSES]
    assert names.index("saved-values") > names.index("fuse-rows")


def test_inspect_shows_it(root: Path) -> None:
    source = spec_files.read(str(root / "specs" / "olmo2.weft"))
    checked = spec_files.checked_source(source, "tiny", {"layers": "2", "dim": "1024"})
    planned = [
        one for one in planned_kernels.of_spec(checked, ["cuda:90"], ROWS) if one.kernel.name.startswith("rms_norm")
    ]
    rows = [
        KernelRow(
            Compiled(one.kernel.name, one.target, "", 0.0, error="not asked for"),
            one.spec, one.direction, one.work, one.count, one.written, one.kept,
        )
        for one in planned
    ]  # fmt: skip
    line = next(line for line in text(rows).splitlines() if line.startswith("rms_norm_backward") and "saved_" in line)
    # What the norm reads in bfloat16, and the statistic in float32.
    assert line.split() == ["rms_norm_backward_kernel", "out", "-", "saved_rsqrt", f"{1024 * 2 + 4:,}"]
    found = next(row for row in data(rows)["kernels"] if row["kernel"] == "rms_norm_backward_kernel")
    assert {"name": "saved_rsqrt", "how": "saved", "bytes_per_row": 4} in found["kept"]
