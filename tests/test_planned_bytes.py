"""What the kernels of OLMo 2 7B move, counted while they run: each input once and each output once, nearly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import pytest
import torch
from torch import Tensor, fx

from tests.counted_memory import Launch, counted
from weft import spec_files
from weft.codegen.facts import facts
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.fused import Fused
from weft.codegen.gpu.rowwise import PROGRAMS, RowKernel
from weft.codegen.logits.op import LogitsOp
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.kernel_texts import row_work
from weft.codegen.rowwise.plan import RowPlan
from weft.codegen.score.cost import Rows, kernel_cost
from weft.codegen.score.graph_keys import attention_keys
from weft.codegen.score.kernels import KERNELS, plan_of
from weft.codegen.score.load import connect
from weft.runtime.ahead_of_time import problems
from weft.runtime.kernels import attach_kernels
from weft.views import kernels
from weft.views.planned_kernels import fused, of_graph

ROWS = 16384  # of the step that bytes are planned for
MOST = 1.15  # times the least


@dataclass(frozen=True)
class Call:
    """A fused call of the graph, with its plans, and the call that launches them."""

    op: FusedOp
    launched: Fused


def graph_of(root, size: str, **sizes: str) -> fx.GraphModule:
    source = spec_files.read(str(root / "specs" / "olmo2.weft"))
    (program,) = spec_files.checked_source(source, size, {"layers": "2", **sizes}).objectives.values()
    return fused(program)


def calls_of(graph: fx.GraphModule) -> dict[str, Call]:
    found = {node: node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)}
    attach_kernels(graph)
    return {op.name: Call(op, node.target) for node, op in found.items()}


@pytest.fixture(scope="module")
def seven(root) -> fx.GraphModule:
    return graph_of(root, "7b")


@pytest.fixture(scope="module")
def calls(root) -> dict[str, Call]:
    return calls_of(graph_of(root, "7b"))


def operands_of(plan: RowPlan, rows: int) -> list[Tensor]:
    """By place; what the plan does not read is empty. A table has few rows, all of which are one."""
    found = [torch.empty(0)] * (1 + max(source.place for source in plan.program.sources))
    for source in plan.program.sources:
        shape = (
            (rows if source.by_row else 8, source.entries) if source.by_row or source.is_table else (source.entries,)
        )
        found[source.place] = torch.ones(shape).to(source.dtype)
    return found


def run(kernel: RowKernel, plan: RowPlan, operands: list[Tensor]) -> Launch:
    with counted() as launches:
        kernel(operands)
    (launch,) = launches
    assert launch.kernel == f"{plan.name}_kernel"
    return launch


def planned(launch: Launch, plan: RowPlan, rows: int) -> float:
    """Bytes of a step of ROWS rows, by what `rows` rows of it moved. What has no rows is read from memory once:
    programs after the first find it in the cache. A sum over rows is written by PROGRAMS programs, and read again to
    be added up."""
    sources = {argument.name: source for argument, source in zip(plan.arguments, plan.program.sources, strict=False)}
    results = [argument.name for argument in plan.arguments if argument.type.startswith("*")][len(sources) :]
    total = 0.0
    for name, source in sources.items():
        touched = launch.arguments[name]
        total += touched.read * ROWS / rows if source.by_row or source.is_table else touched.distinct_read
    for name, result in zip(results, plan.program.results, strict=True):
        touched = launch.arguments[name]
        if result.by_row:
            total += (touched.read + touched.written) * ROWS / rows
        else:
            assert touched.distinct_written == launch.programs * prod(result.dims) * touched.itemsize
            total += 2 * min(PROGRAMS, -(-ROWS // plan.block_rows)) * prod(result.dims) * touched.itemsize
    return total


def least(plan: RowPlan, operands: list[Tensor]) -> float:
    """Every operand that is read once, of a table one row for each row, every result once, as large as they are."""
    total = 0.0
    for place, source in {source.place: source for source in plan.program.sources}.items():
        size = operands[place].nbytes
        total += ROWS * size / len(operands[place]) if source.is_table or source.by_row else size
    for result in plan.program.results:
        total += prod(result.dims) * result.dtype.itemsize * (ROWS if result.by_row else 1)
    return total


def test_every_kernel_of_a_step_is_here(calls: dict[str, Call]) -> None:
    """Those of one layer of many, and of what comes before and after them."""
    assert {name: call.op.backward is not None for name, call in calls.items()} == {
        "rope_turn": False, "rms_norm_turn": True, "rms_norm": True, "silu_swiglu": True, "rms_norm_2": True,
        "rms_norm_3": True, "logical_or": False, "z_loss": True,
    }  # fmt: skip


@pytest.mark.timeout(1500)
def test_every_kernel_of_a_step_compiles_without_spills(root, seven: fx.GraphModule) -> None:
    """For an H100. What is known of a text is kept in build/kernels, as by bench/aot.py."""
    planned = of_graph(seven, "cuda:90", ROWS)
    names = [one.kernel.name for one in planned]
    assert {"rms_norm_turn_backward_kernel", "olmo2_logits_slopes", "attention_key_gradient"} <= set(names)
    assert len(names) >= 20
    rows = kernels.compiled(planned, root / "build" / "kernels", timeout=120, workers=2)
    assert not [(row.made.kernel, problem) for row in rows for problem in problems(row.made)]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_rowwise_kernels_move_each_entry_once(calls: dict[str, Call], direction: str) -> None:
    for call in calls.values():
        plan = call.op.forward if direction == "forward" else call.op.backward
        if plan is None:
            continue
        rows = 2 * plan.block_rows + 1  # a last tile that is not full
        operands = operands_of(plan, rows)
        backward = call.launched.backward
        kernel = call.launched.forward if plan is call.op.forward or backward is None else backward.kernel
        launch = run(kernel, plan, operands)
        assert planned(launch, plan, rows) <= MOST * least(plan, operands), plan.name
        # What `weft inspect cost` shows is what was counted.
        shown = row_work(plan, rows)
        sources = zip(plan.arguments, plan.program.sources, strict=False)
        counts = [(launch.arguments[argument.name], source) for argument, source in sources]
        read = sum(touched.read if source.is_table else touched.distinct_read for touched, source in counts)
        assert shown.read == read, plan.name
        written = sum(touched.distinct_written for touched in launch.arguments.values())
        assert shown.written == written, plan.name


def test_attention_reads_and_writes_no_scores(root) -> None:
    """At the head width of 7B, two heads: rows and bounds are all there is; outputs are written once, and what
    a program owns is read once. Keys and values are read again by each tile of queries that sees them."""
    connect()
    graph = graph_of(root, "7b", dim="256", heads="2", kv_heads="2", ffn="64", vocab="512")
    (key,) = attention_keys(graph)
    plan = plan_of(key)
    assert plan.q_width == 128
    lengths = (150, 0, 1, 139)
    rows = sum(lengths)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    shape = rows, 2, 128
    q, k, v = (torch.randn(shape).to(torch.bfloat16).requires_grad_() for _ in range(3))
    with counted() as launches:
        attend(q, k, v, offsets, offsets, 128**-0.5, None, 0).backward(torch.ones(shape, dtype=torch.bfloat16))
    assert [launch.kernel for launch in launches] == list(KERNELS)
    owned = {
        "attention_forward": ("q",), "attention_delta": ("out", "do"),
        "attention_query_gradient": ("q", "do", "lse", "delta"), "attention_key_gradient": ("k", "v"),
    }  # fmt: skip
    for launch in launches:
        least = 0
        for name, touched in launch.arguments.items():
            assert touched.size <= q.nbytes, f"{launch.kernel} {name}"
            assert touched.written == touched.distinct_written, f"{launch.kernel} {name}"
            if name.removesuffix("_ptr") in owned[launch.kernel]:
                assert touched.read == touched.distinct_read, f"{launch.kernel} {name}"
            least += max(touched.distinct_read, touched.distinct_written)
        shown = kernel_cost(plan, launch.kernel, Rows(rows, rows, 0)).bytes
        assert least <= shown <= MOST * least, launch.kernel


def test_attention_and_logits_of_a_step_hold_rows_only(seven: fx.GraphModule) -> None:
    """Of the graph itself: no value has an entry for each pair of rows, or each row and word of the vocabulary."""
    known = facts(seven)
    logits = [node.target for node in seven.graph.nodes if getattr(node.target, "form", None) is not None]
    assert len(logits) == 1
    assert any(node.target is attend for node in seven.graph.nodes)
    # What the origin of the streamed logits says is the type of the logits, which they stand for.
    alone = [known.get(node) for node in seven.graph.nodes if not isinstance(node.target, LogitsOp)]
    entries = [prod(fact.dims) for fact in alone if fact is not None and fact.level == "seq"]
    # Queries, keys, values and gates of two layers at least; none as wide as the vocabulary or the rows are many.
    assert entries.count(4096) >= 8
    assert entries.count(11008) >= 4
    assert max(entries) == 11008


def test_logits_are_read_and_written_once_a_block(root) -> None:
    """At the vocabulary of 7B: a block is read by the kernel that scans it, and by the one that turns it into its
    gradient."""
    rows, width, entries = 9, 16, 1 << 18
    graph = graph_of(root, "7b", dim="16", heads="2", kv_heads="2", ffn="16")
    (op,) = [node.target for node in graph.graph.nodes if isinstance(node.target, LogitsOp)]
    attach_kernels(graph)
    (call,) = [n.target for n in graph.graph.nodes if getattr(n.target, "form", None) is not None]
    call = replace(call, name="counted", entries=entries)
    x = torch.randn(rows, width).to(torch.bfloat16).requires_grad_()
    weight = torch.randn(op.vocabulary, width).to(torch.bfloat16).requires_grad_()
    ids = [torch.arange(rows) for _ in range(op.form.picks)]
    with counted() as launches:
        results = call(x, weight, *ids)
        torch.stack([result.sum() for result in results if result.is_floating_point()]).sum().backward()
    scans = [launch for launch in launches if launch.kernel.endswith("statistics")]
    slopes = [launch for launch in launches if launch.kernel.endswith("slopes")]
    cut = call.blocks(x, weight)
    assert len(scans) == len(slopes) == len(list(cut)) > 1
    for made in (scans, slopes):
        read = sum(launch.arguments["z_ptr"].read for launch in made)
        assert read == rows * op.vocabulary * 4
        assert all(launch.arguments["z_ptr"].size <= 4 * entries for launch in made)
        for launch in made:
            for name, touched in launch.arguments.items():
                assert touched.written == touched.distinct_written, f"{launch.kernel} {name}"
        all_bytes = sum(t.read + t.written for launch in made for t in launch.arguments.values())
        least = sum(t.distinct_read + t.distinct_written for launch in made for t in launch.arguments.values())
        assert all_bytes <= MOST * least
