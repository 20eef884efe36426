"""Gradients of tables: rows added by sorted ids, against float64, in a fixed order."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from tests.fused_models import assert_equal, gradients
from tests.op_samples import arguments, elaborate, inputs, module
from weft.codegen.gpu import scatter, tables
from weft.codegen.gpu.scatter import TILE, add_rows
from weft.codegen.passes.tables import read_tables
from weft.codegen.pipeline import BASIC_PASSES, Pass, optimise
from weft.codegen.scatter_text import scatter_kernels
from weft.runtime.ahead_of_time import compile_ahead, problems

LIMITS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


def ids(kind: str, rows: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows + count)
    match kind:
        case "any":
            return torch.randint(count, (rows,), generator=generator)
        case "one":
            return torch.full((rows,), count - 1)
        case "hot":  # three of four are the same
            picked = torch.randint(count, (rows,), generator=generator)
            return torch.where(torch.rand(rows, generator=generator) < 0.75, count // 2, picked)
        case _:  # all different, in any order
            return torch.randperm(rows, generator=generator)


def want_of(index: Tensor, rows: Tensor, count: int) -> Tensor:
    flat = rows.double().reshape(-1, rows.shape[-1])
    return torch.zeros(count, rows.shape[-1], dtype=torch.float64).index_add_(0, index.reshape(-1), flat)


def check(got: Tensor, index: Tensor, rows: Tensor, count: int, limit: float) -> None:
    """Relative to the largest sum of magnitudes: terms of a sum may cancel."""
    difference = (got.double() - want_of(index, rows, count)).abs()
    size = want_of(index, rows.abs(), count)
    assert (difference <= limit * (size.max() if size.numel() else 0)).all(), (difference.max(), size.max())


@pytest.mark.parametrize("kind", ["any", "one", "hot", "different"])
@pytest.mark.parametrize(("rows", "width"), [(0, 63), (1, 63), (TILE, 1), (TILE + 1, 63), (500, 63)])
def test_against_float64(kind: str, rows: int, width: int) -> None:
    count = 500 if kind == "different" else 11
    index = ids(kind, rows, count)
    given = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    got = add_rows(index, given, count)
    assert (got.shape, got.dtype) == ((count, width), torch.float32)
    check(got, index, given, count, LIMITS[torch.float32])
    assert torch.equal(got, add_rows(index, given, count))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("index_type", [torch.int32, torch.int64], ids=str)
def test_types(dtype: torch.dtype, index_type: torch.dtype) -> None:
    """Sums of many are rounded once, from float32 or wider."""
    index = ids("hot", 300, 7).to(index_type)
    given = torch.randn(300, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    got = add_rows(index, given, 7)
    assert got.dtype == dtype
    check(got, index.long(), given, 7, LIMITS[dtype])


def test_runs_over_many_tiles_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than are added at a time, more entries than a program holds."""
    monkeypatch.setattr(scatter, "TILE", 4)
    monkeypatch.setattr(scatter, "BLOCK_E", 16)
    index = torch.cat([torch.full((3,), 4), torch.full((150,), 2), torch.tensor([0, 1, 1, 4])])
    given = torch.randn(len(index), 37, generator=torch.Generator().manual_seed(1))
    check(add_rows(index, given, 6), index, given, 6, 1e-6)


def test_any_shape_and_layout() -> None:
    index = ids("any", 12, 5).reshape(3, 4)
    given = torch.randn(9, 4, 3, generator=torch.Generator().manual_seed(1)).permute(2, 1, 0)
    check(add_rows(index, given, 5), index, given, 5, 1e-6)
    assert add_rows(index, given[..., :0], 5).shape == (5, 0)


def test_an_infinite_row_stays_where_it_belongs() -> None:
    given = torch.ones(40, 3)
    given[7] = float("inf")
    got = add_rows(torch.arange(40) % 10, given, 10)
    assert torch.isinf(got[7]).all()
    assert torch.equal(got[torch.arange(10) != 7], torch.full((9, 3), 4.0))


def test_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    index, given = ids("hot", 100, 7), torch.randn(100, 5, dtype=torch.float64)
    want = add_rows(index, given, 7)
    monkeypatch.setattr(scatter, "interprets", lambda: False)
    assert_equal(add_rows(index, given, 7), want, "sums", 1e-14)


# -- the operator ------------------------------------------------------------------------------------------------------


def test_operator_of_a_table() -> None:
    table = torch.randn(11, 3, 2, dtype=torch.float64, requires_grad=True)
    index = ids("any", 20, 11).reshape(4, 5)
    assert torch.equal(tables.read_rows(table, index), table[index])
    torch.autograd.gradcheck(lambda t: tables.read_rows(t, index), table)
    flat = table.detach().reshape(11, 6).requires_grad_()
    torch.library.opcheck(tables._read, (flat, index))
    torch.library.opcheck(tables._add, (torch.randn(4, 5, 6), index, 11))


def test_operator_compiled_and_exported() -> None:
    table = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    index = ids("any", 20, 11)

    def run(table: Tensor, index: Tensor) -> Tensor:
        return tables.embedding(index, table).sin()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (want,) = torch.autograd.grad(run(table, index).sum(), table)
    (got,) = torch.autograd.grad(compiled(table, index).sum(), table)
    assert_equal(got, want, "gradient", 1e-12)

    class Module(torch.nn.Module):
        def forward(self, table, index):
            return run(table, index)

    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Module(), (table, index), dynamic_shapes=(None, {0: rows}))
    more = torch.cat([index, index])
    assert_equal(exported.module()(table, more), run(table, more), "result", 1e-12)


@pytest.mark.parametrize(
    "text",
    ["i: id[seq] in vocab => embed(i, vocab -> dim)", "i: id[seq] in vocab => embed(i, vocab -> (heads, head_dim))"],
)
def test_specs_read_trained_tables_with_it(text: str) -> None:
    program = elaborate(text)
    graph = module(program)
    given = arguments(graph, inputs(program))
    made = optimise(graph, (*BASIC_PASSES, Pass("tables", read_tables, "")))
    assert [node.target for node in made.graph.nodes if node.target in (tables.embedding, tables.read_rows)]
    want, want_gradients = gradients(graph, given)
    got, got_gradients = gradients(made, given)
    assert_equal(got[0], want[0], "result", 0)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-12)
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    frozen = optimise(graph, (*BASIC_PASSES, Pass("tables", read_tables, "")))
    assert not [node for node in frozen.graph.nodes if node.target in (tables.embedding, tables.read_rows)]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_no_spills_at_real_size(target: str) -> None:
    for made in compile_ahead(scatter_kernels(4096, torch.bfloat16), [target]):
        assert problems(made) == [], made.kernel
