"""Bags whose weights are computed inside of their kernels, in Triton's interpreter: any formula of a row's lists
against float64, forward and all gradients; what is left as it is; how kernels compile and what they move."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from tests import op_samples
from tests.counted_memory import counted
from tests.fused_models import assert_equal, gradients
from weft import spec_files
from weft.codegen.bag_text import backward_kernels, bag_calls, bag_work, forward_kernels
from weft.codegen.bags.op import BagOp
from weft.codegen.functions import row_tables
from weft.codegen.gpu import bags, shared_tables
from weft.codegen.gpu.weighed_bags import WeighedBag
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.runtime.kernel_calls import kernel_calls
from weft.runtime.kernels import attach_kernels, launchable
from weft.runtime.lazy_rows import LazyRows
from weft.runtime.rows_behind import RowSettings
from weft.views.planned_kernels import fused, of_bags

LIMITS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}
LISTS = "i: id[seq, heads, three] in vocab, s: real[seq, heads, three]"
TABLE = "param t: real[vocab, dim]"
# Parameters, weights, what they are summed over.
FORMULAS = {
    "softmax of each head": (LISTS, "softmax(s, over=three)", "(heads, three)"),
    "softmax of all": (LISTS, "softmax(s, over=(heads, three))", "(heads, three)"),
    "sigmoid": (LISTS, "sigmoid(s)", "(heads, three)"),
    "relu": (LISTS, "relu(s)", "(heads, three)"),
    "a list for each head": (LISTS, "softmax(s, over=three)", "three"),
    "a gate of the row": (f"{LISTS}, g: real[seq]", "sigmoid(g) * softmax(s, over=three)", "(heads, three)"),
    "gates of heads, alike in a list": (f"{LISTS}, g: real[seq, heads]", "tanh(g) + 0.5", "(heads, three)"),
    "two scores": (f"{LISTS}, r: real[seq, heads, three]", "softmax(s, over=three) * gelu(r)", "(heads, three)"),
    "a sum": (f"{LISTS}, r: real[seq, heads, three]", "r + s * s", "(heads, three)"),
    "scaled to one": (LISTS, "s / (sum(abs(s), over=(heads, three)) + 0.5)", "(heads, three)"),
    "of a temperature that is no weight": (f"{LISTS}, c: real", "softmax(s / 3, over=three) * c", "(heads, three)"),
    "another order": (
        "i: id[seq, heads, three] in vocab, s: real[seq, three, heads]", "softmax(s, over=three)", "(heads, three)"
    ),
}  # fmt: skip


def bag(parameters: str, weight: str, over: str) -> str:
    return f"{parameters}; {TABLE} => bag(t, i, weight={weight}, over={over})"


def ops_of(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if isinstance(node.target, BagOp)]


def with_kernels(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[BagOp]]:
    made = optimise(graph, GPU_PASSES)
    found: list[BagOp] = [node.target for node in ops_of(made)]  # type: ignore[misc]
    attach_kernels(made)
    return made, found


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS.keys())
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_formulas(formula: tuple[str, str, str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are few, or counted as many: a program for each list, both ways."""
    is_many = dtype != torch.float32
    monkeypatch.setattr(bags, "PROGRAMS", 1 if is_many else 512)
    program = op_samples.elaborate(bag(*formula))
    exact, graph = op_samples.module(program), op_samples.module(program, dtype)
    with torch.no_grad():
        for one, two in zip(exact.parameters(), graph.parameters(), strict=True):
            one.copy_(two)
    inputs = op_samples.inputs(program, dtype=dtype)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    want, want_gradients = gradients(exact, op_samples.arguments(exact, wide))
    made, ops = with_kernels(graph)
    assert len(ops) == 1
    with counted() as launches:
        got, got_gradients = gradients(made, op_samples.arguments(graph, inputs))
    # One each way, the sum by sorted rows, and parts of few lines.
    names = [launch.kernel for launch in launches]
    assert names[0] == f"{ops[0].name}_sum"
    assert {"join_bags", "multiply_bags"}.isdisjoint(names) if is_many else "multiply_bags" in names
    assert set(names[1:]) <= {"join_bags", "multiply_bags", f"{ops[0].name}_gradients", "sum_runs", "join_parts"}
    assert_equal(got[0], want[0], "result", LIMITS[dtype])
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * LIMITS[dtype])


# -- what a bag takes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "weight", "taken"),
    {
        "a trained scale is summed over all rows": (f"{LISTS}; param c: real", "c * softmax(s, over=three)", []),
        "but not what is below it": (f"{LISTS}; param c: real", "sigmoid(c * softmax(s, over=three))", ["sigmoid"]),
        "nothing larger than a list": (
            f"{LISTS}, x: real[seq, vocab, dim_pair]",
            "sigmoid(mean(x, over=(vocab, dim_pair))) * s",
            ["mul", "sigmoid"],
        ),
        "nothing is computed": (LISTS, "s", []),
        "rows of others": (f"{LISTS}, g: real[seq]", "relu(previous(g)) * s", ["mul", "relu"]),
    }.values(),
)
def test_what_is_taken_in(parameters: str, weight: str, taken: list[str]) -> None:
    given, *statements = parameters.split("; ")
    text = "; ".join([given, TABLE, *statements]) + f" => bag(t, i, weight={weight}, over=(heads, three))"
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    made = optimise(graph, GPU_PASSES)
    inside = [
        node.target.__name__
        for call in ops_of(made)
        for node in call.target.meaning.graph.nodes  # type: ignore[union-attr]
        if node.op == "call_function" and node.target.__name__ not in ("flatten", "expand", "getitem")
    ]
    assert sorted(inside) == sorted(taken)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    want, want_gradients = gradients(graph, arguments)
    attach_kernels(made)
    got, got_gradients = gradients(made, arguments)
    assert_equal(got[0], want[0], "result", 1e-12)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], name, 1e-11)


def test_weights_that_others_read_are_stored() -> None:
    text = f"{LISTS}; {TABLE}; w = softmax(s, over=three) => bag(t, i, weight=w, over=three) + sum(w, over=three)"
    assert not ops_of(optimise(op_samples.module(op_samples.elaborate(text)), GPU_PASSES))


# -- calls -------------------------------------------------------------------------------------------------------------


@cache
def call_of(name: str, dtype: torch.dtype = torch.float64) -> tuple[BagOp, WeighedBag]:
    (node,) = ops_of(optimise(op_samples.module(op_samples.elaborate(bag(*FORMULAS[name])), dtype), GPU_PASSES))
    op = node.target
    assert isinstance(op, BagOp)
    return op, launchable(op)


def given(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A table of 11 rows, and of each row lists of 4 times 3 ids and scores."""
    generator = torch.Generator().manual_seed(rows)
    table = torch.randn(11, 70, generator=generator, dtype=torch.float64).to(dtype)
    index = torch.randint(11, (rows, 12), generator=generator)
    return table, index, torch.randn(rows, 4, 3, generator=generator, dtype=torch.float64).to(dtype)


def plain(table: Tensor, index: Tensor, score: Tensor) -> Tensor:
    return (table[index] * score.softmax(-1).flatten(1)[..., None]).sum(1)


@pytest.mark.parametrize("programs", [1, 10_000])
def test_few_lines_share_their_lists(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch 1: each program computes all weights and reads its part of the rows."""
    monkeypatch.setattr(bags, "PROGRAMS", programs)
    op, call = call_of("softmax of each head", torch.float32)
    table, index, score = given(1, torch.float32)
    with counted() as launches, torch.no_grad():
        got = call(table, index, score)
    assert [launch.kernel for launch in launches] == [f"{op.name}_sum", *(["join_bags"] if programs > 1 else [])]
    assert launches[0].programs == (2 if programs > 1 else 1)
    assert_equal(got, plain(table.double(), index, score.double()), "sums", 1e-6)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_readers_share_a_table(rows: int) -> None:
    """One that computes its weights and one that does not: a sum of both lists, as one gradient."""
    _, call = call_of("softmax of each head")
    table, index, score = given(rows)
    other = index[:, :5]
    table, score = table.requires_grad_(), score.requires_grad_()
    shared = shared_tables.share(table, 2)
    got = call(table, index, score, shared=shared, reader=0).sin().sum()
    got = got + shared_tables.bag(table, other, None, shared=shared, reader=1).sin().sum()
    with counted() as launches:
        found = torch.autograd.grad(got, (table, score))
    want = plain(table, index, score).sin().sum() + table[other].sum(1).sin().sum()
    for one, two in zip(found, torch.autograd.grad(want, (table, score)), strict=True):
        assert_equal(one, two, "gradient", 1e-13)
    assert [launch.kernel for launch in launches].count("sum_runs") == (rows > 0)


@pytest.mark.parametrize("programs", [1, 512])
def test_only_what_is_asked_for(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen tables and frozen scores; weights are stored for a table's gradient alone."""
    monkeypatch.setattr(bags, "PROGRAMS", programs)
    op, call = call_of("softmax of each head")
    table, index, score = given(5)
    for trained in ((table,), (score,)):
        leaf = trained[0].requires_grad_()
        with counted() as launches:
            (got,) = torch.autograd.grad(call(table, index, score).sin().sum(), leaf)
        (want,) = torch.autograd.grad(plain(table, index, score).sin().sum(), leaf)
        assert_equal(got, want, "gradient", 1e-13)
        (back,) = [launch for launch in launches if launch.kernel == f"{op.name}_gradients"]
        assert back.arguments["weight_ptr"].written == (5 * 12 * 8 if leaf is table else 0)
        leaf.requires_grad_(False)


def test_an_optimiser_gets_rows() -> None:
    _, call = call_of("softmax of each head", torch.float32)
    table, index, score = given(6, torch.float32)
    parameter = torch.nn.Parameter(table)
    rows = LazyRows(parameter, RowSettings((0.9, 0.95), 1e-8, 0.1))
    setattr(parameter, row_tables.ATTRIBUTE, rows)
    call(parameter, index, score).sin().sum().backward()
    wide = table.double().requires_grad_()
    plain(wide, index, score.double()).sin().sum().backward()
    assert parameter.grad is None
    assert_equal(rows.dense_gradient(), wide.grad, "gradient", 1e-6)


def test_the_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    op, call = call_of("softmax of each head")
    table, index, score = given(5)
    arguments = table.requires_grad_(), index, score.requires_grad_()
    want = torch.autograd.grad(plain(*arguments).sin().sum(), (table, score))
    monkeypatch.setattr(bags, "interprets", lambda: False)
    # As it is called, and as a compiled graph calls it; the op of the compiler's graphs is the same.
    for function in (call, call.operator, op):
        for one, two in zip(torch.autograd.grad(function(*arguments).sin().sum(), (table, score)), want, strict=True):
            assert_equal(one, two, "gradient", 1e-13)


def test_operators() -> None:
    _, call = call_of("softmax of each head")
    table, index, score = given(3)
    torch.library.opcheck(call.operator, (table[:, :4].contiguous().requires_grad_(), index, score.requires_grad_()))
    grad = torch.randn(index.shape[0], 4, dtype=table.dtype)
    for stores in (False, True):
        given_back = (table[:, :4].contiguous(), index, grad, stores, score.detach())
        torch.library.opcheck(call.backward_operator, given_back)

    def run(table: Tensor, index: Tensor, score: Tensor) -> Tensor:
        return call(table, index, score).sin()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(table, index, score).sum(), score)
    assert_equal(got[0], torch.autograd.grad(plain(table, index, score).sin().sum(), score)[0], "gradient", 1e-13)


def test_verify_knows_what_they_mean() -> None:
    made = optimise(op_samples.module(op_samples.elaborate(bag(*FORMULAS["two scores"]))), GPU_PASSES)
    (node,) = ops_of(made)
    call = kernel_calls(made)[node.name]
    table, index, score = given(4)
    truth = call.truth((table, index, score, score), {})
    weight = score.softmax(-1) * torch.nn.functional.gelu(score)
    assert_equal(truth, (table[index] * weight.flatten(1)[..., None]).sum(1), "truth", 1e-12)


# -- as others see them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("programs", [1, 512])
def test_planned_bytes_are_those_that_move(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every id is read once, so that nothing is read twice."""
    monkeypatch.setattr(bags, "PROGRAMS", programs)
    made = optimise(op_samples.module(op_samples.elaborate(bag(*FORMULAS["two scores"])), torch.float32), GPU_PASSES)
    ((call, _),) = bag_calls(made)
    attach_kernels(made)
    (node,) = [node for node in made.graph.nodes if isinstance(node.target, WeighedBag)]
    rows, (count, width) = 11, (call.count, call.width)
    assert (call.n, count, width) == (12, 11, 5)
    wide = torch.randn(rows * 12, width).requires_grad_()
    scores = torch.randn(2, rows, 4, 3).requires_grad_()
    with counted() as launches:
        node.target(wide, torch.randperm(rows * 12).reshape(rows, 12), *scores).sum().backward()
    real = replace(call, count=rows * 12)
    texts = (*forward_kernels(real, rows), *backward_kernels(real, rows))
    launched = [launch for launch in launches if launch.kernel not in ("sum_runs", "join_parts")]
    assert [launch.kernel for launch in launched] == [text.name for text in texts]
    for launch in launched:
        planned = bag_work(real, launch.kernel, rows)
        assert sum(touched.distinct_read for touched in launch.arguments.values()) == planned.read, launch.kernel
        assert sum(touched.written for touched in launch.arguments.values()) == planned.written


@cache
def memory_graph(size: str) -> fx.GraphModule:
    source = spec_files.read(str(Path(__file__).resolve().parent.parent / "specs" / "memory_layers.weft"))
    (program,) = spec_files.checked_source(source, size, {"layers": "3", "stride": "1"}).objectives.values()
    return fused(program)


def test_inspect_shows_them() -> None:
    """Three layers have one kernel each way, and no launch for their softmax."""
    graph = memory_graph("1m")
    planned = of_bags(graph, "cuda:90", 32768)
    assert [(one.kernel.name, one.direction, one.count) for one in planned] == [
        ("memory_bag_sum", "forward", 3), ("memory_bag_gradients", "backward", 3)
    ]  # fmt: skip
    assert all("bag(values" in one.written for one in planned)
    assert planned[0].work is not None
    assert planned[0].work.read == pytest.approx(17.2e9, rel=0.01)
    assert "softmax_static" not in {getattr(node.target, "__name__", "") for node in graph.graph.nodes}


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_no_spills_at_real_size(target: str) -> None:
    texts = [one.kernel for one in of_bags(memory_graph("1m"), target, 1)]
    assert [text.name for text in texts] == ["memory_bag_sum", "join_bags", "multiply_bags", "memory_bag_gradients"]
    texts += [one.kernel for one in of_bags(memory_graph("1m"), target, 32768)]
    for made in compile_ahead(texts, [target]):
        assert problems(made) == [], made.kernel
