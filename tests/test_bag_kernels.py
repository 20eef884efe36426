"""Kernels over bags of rows, in Triton's interpreter: sums, products, gradients of weights and of tables, against
float64; readers that share a table; how they compile and what they move."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.counted_memory import allocated, counted
from tests.fused_models import assert_equal
from weft.codegen.bag_text import BagCall, backward_kernels, bag_work, forward_kernels
from weft.codegen.functions import row_tables
from weft.codegen.gpu import bags, scatter, shared_tables
from weft.codegen.scatter_text import scatter_kernels
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.runtime.lazy_rows import LazyRows
from weft.runtime.rows_behind import RowSettings

# Of the largest entry: sums of float32, rounded once.
LIMITS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}
EACH_TYPE = pytest.mark.parametrize("dtype", LIMITS, ids=str)
# Lines, rows that each reads, entries of a row, rows of the table.
SIZES = [(5, 63, 60, 500), (63, 1, 63, 7), (1, 60, 500, 63), (17, 8, 1, 1), (0, 4, 8, 3), (3, 0, 8, 3)]
EACH_SIZE = pytest.mark.parametrize("sizes", SIZES, ids=str)


def lists(lines: int, n: int, count: int) -> Tensor:
    """Ids of which some repeat in a line, and one is in every line that reads several."""
    index = torch.randint(count, (lines, n), generator=torch.Generator().manual_seed(lines + n))
    if n > 2:
        index[:, 1] = count // 2
        index[:, 2] = index[:, 0]
    return index


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaves(*given: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Twice the same, as they are and in float64."""
    return [x.clone().requires_grad_() for x in given], [x.double().clone().requires_grad_() for x in given]


def plain_bag(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    read = table[index]
    return (read if weight is None else read * weight[..., None]).sum(-2)


def plain_products(table: Tensor, index: Tensor, x: Tensor) -> Tensor:
    return (table[index] * x[:, None]).sum(-1)


def check_gradients(got: list[Tensor], want: list[Tensor], limit: float) -> None:
    for one, two in zip(got, want, strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert one.grad.dtype == one.dtype
        assert_equal(one.grad, two.grad, "gradient", limit)


@EACH_TYPE
@EACH_SIZE
def test_bags(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    lines, n, width, count = sizes
    index = lists(lines, n, count)
    (table, weight), (table_, weight_) = leaves(random(count, width, dtype=dtype), random(lines, n, dtype=dtype))
    got, want = shared_tables.bag(table, index, weight), plain_bag(table_, index, weight_)
    assert (got.dtype, got.shape) == (dtype, want.shape)
    assert_equal(got, want, "sums", LIMITS[dtype])
    grad = random(lines, width, seed=2, dtype=dtype)
    got.backward(grad)
    want.backward(grad.double())
    check_gradients([table, weight], [table_, weight_], LIMITS[dtype])
    again = shared_tables.bag(table.detach(), index, weight.detach())
    assert torch.equal(got, again)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=str)
@EACH_SIZE
def test_bags_are_those_of_torch(sizes: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    """Check 3: torch's embedding_bag, and a sum of what is gathered, one read after another."""
    lines, n, width, count = sizes
    index, table = lists(lines, n, count), random(count, width, dtype=dtype)
    if lines and n > 2:
        assert all(len(line.unique()) < n for line in index), "no id repeats in a line"
    for weight in (random(lines, n, dtype=dtype), None):
        with counted() as launches:
            got = bags.bag_op(table, index, weight)
        assert launches or not index.numel()
        of_torch = torch.zeros(lines, width, dtype=dtype)
        if n:  # torch has none of no reads
            of_torch = torch.nn.functional.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
        gathered = torch.zeros(lines, width, dtype=dtype)
        for read in range(n):
            row = table[index[:, read]]
            gathered += row if weight is None else weight[:, read, None] * row
        assert_equal(got, of_torch, "sums by embedding_bag", limit)
        assert_equal(got, gathered, "sums of what is gathered", limit)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=str)
@EACH_SIZE
def test_gradients_of_tables_are_sparse_products(sizes: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    """Check 5: index_add of all terms, and a product with the matrix [rows, lines] of weights, in CSR; of the kernels,
    and of the CPU's sums by sorted rows."""
    lines, n, width, count = sizes
    index, weight, grad = lists(lines, n, count), random(lines, n, dtype=dtype), random(lines, width, dtype=dtype)
    terms = (weight[..., None] * grad[:, None]).flatten(0, 1)
    added = torch.zeros(count, width, dtype=dtype).index_add_(0, index.flatten(), terms)
    line = torch.arange(lines).repeat_interleave(n)
    places = torch.stack([index.flatten(), line])
    matrix = torch.sparse_coo_tensor(places, weight.flatten(), (count, lines), check_invariants=True)
    product = matrix.coalesce().to_sparse_csr() @ grad
    for got in (bags.add_op(index, weight, grad, count), row_tables.add_factors([(index, weight, grad)], count)):
        assert got.dtype == dtype
        assert_equal(got, added, "sums by index_add", limit)
        assert_equal(got, product, "the sparse product", limit)


@EACH_TYPE
@EACH_SIZE
def test_products(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    lines, n, width, count = sizes
    index = lists(lines, n, count)
    (table, x), (table_, x_) = leaves(random(count, width, dtype=dtype), random(lines, width, seed=3, dtype=dtype))
    got, want = shared_tables.products_of_rows(table, index, x), plain_products(table_, index, x_)
    assert (got.dtype, got.shape) == (dtype, want.shape)
    assert_equal(got, want, "products", LIMITS[dtype])
    grad = random(lines, n, seed=2, dtype=dtype)
    got.backward(grad)
    want.backward(grad.double())
    check_gradients([table, x], [table_, x_], LIMITS[dtype])


def test_entries_with_axes_weights_of_another_type_and_none() -> None:
    table, index = random(9, 4, 3, dtype=torch.bfloat16), lists(6, 5, 9).reshape(2, 3, 5)
    weight = random(2, 3, 5, dtype=torch.float32)
    got = shared_tables.bag(table, index, weight)
    want = (table.double()[index] * weight.double()[..., None, None]).sum(2)
    assert got.shape == (2, 3, 4, 3)
    assert_equal(got, want, "sums", 4e-3)
    assert_equal(shared_tables.bag(table, index, None), table.double()[index].sum(2), "sums", 4e-3)


@pytest.mark.parametrize("programs", [1, 40, 10_000])
def test_few_lines_share_their_lists(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "PROGRAMS", programs)
    index, table, weight = lists(2, 128, 300), random(300, 70, dtype=torch.float32), random(2, 128)
    splits, per_split = bags.splits_of(2, 128)
    assert (splits - 1) * per_split < 128 <= splits * per_split
    assert splits == {1: 1, 40: 16, 10_000: 16}[programs]
    with counted() as launches:
        got = bags.bag_op(table, index, weight.float())
    assert [launch.kernel for launch in launches] == ["sum_bags", *(["join_bags"] if splits > 1 else [])]
    assert_equal(got, plain_bag(table.double(), index, weight), "sums", 1e-6)


@EACH_TYPE
def test_a_row_that_all_lines_read(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """More hits than a program adds, in parts whose number does not grow without end."""
    monkeypatch.setattr(scatter, "MOST_TILES", 4)
    index = torch.full((400, 3), 2)
    index[7, 1] = 0
    weight, lines = random(400, 3, dtype=dtype), random(400, 20, seed=4, dtype=dtype)
    got = bags.add_op(index, weight, lines, 4)
    terms = weight.double()[..., None] * lines.double()[:, None]
    want = torch.zeros(4, 20, dtype=torch.float64).index_add_(0, index.flatten(), terms.flatten(0, 1))
    size = torch.zeros_like(want).index_add_(0, index.flatten(), terms.abs().flatten(0, 1))
    assert ((got.double() - want).abs() <= LIMITS[dtype] * size + 1e-30).all()
    assert torch.equal(got, bags.add_op(index, weight, lines, 4))


# -- shared tables -----------------------------------------------------------------------------------------------------


def test_readers_share_one_sum() -> None:
    """Lists of different lengths and of both kinds of readers; one sort and one pass over the table."""
    (table, a, b, x), wide = leaves(random(40, 24), random(5, 6), random(5, 3, seed=2), random(5, 24, seed=3))
    table_, a_, b_, x_ = wide
    i, j = lists(5, 6, 40), lists(5, 3, 40)
    shared = shared_tables.share(table, 3)
    made = (
        shared_tables.bag(table, i, a, shared=shared, reader=0),
        shared_tables.bag(table, j, b, shared=shared, reader=1),
        shared_tables.products_of_rows(table, i, x, shared=shared, reader=2),
    )
    want = plain_bag(table_, i, a_), plain_bag(table_, j, b_), plain_products(table_, i, x_)
    with counted() as launches:
        sum((y.sin().sum() for y in made), torch.zeros(())).backward()
    sum((y.sin().sum() for y in want), torch.zeros(())).backward()
    check_gradients([table, a, b, x], wide, 1e-14)
    assert [launch.kernel for launch in launches].count("sum_runs") == 1


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("reads", [shared_tables.bag, row_tables.bag], ids=["kernels", "CPU"])
def test_readers_add_up_to_the_last_bit(dtype: torch.dtype, reads: Callable[..., Tensor]) -> None:
    """Check 7: of numbers whose sums are exact, three readers' gradient is that of three tables, in whatever order."""
    table = random(20, 24, dtype=dtype)
    index = [lists(6, n, 20) for n in (5, 3, 7)]

    def numbers(*shape: int, seed: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) / 4

    weight, grad = (
        [numbers(*i.shape, seed=j) for j, i in enumerate(index)],
        [numbers(6, 24, seed=9 + j) for j in range(3)],
    )
    shared_table = table.clone().requires_grad_()
    given = {"shared": shared_tables.share(shared_table, 3)} if reads is shared_tables.bag else {}
    made = [reads(shared_table, index[j], weight[j], **given, **({"reader": j} if given else {})) for j in range(3)]
    torch.autograd.backward(made, grad)
    apart = [table.clone().requires_grad_() for _ in range(3)]
    torch.autograd.backward([reads(apart[j], index[j], weight[j]) for j in range(3)], grad)
    want = torch.zeros(20, 24, dtype=torch.float64)
    for j in range(3):
        terms = weight[j].double()[..., None] * grad[j].double()[:, None]
        want.index_add_(0, index[j].flatten(), terms.flatten(0, 1))
    parts = torch.stack([one.grad for one in apart if one.grad is not None])
    assert shared_table.grad is not None
    assert ((parts != 0).sum(0) == 3).any(), "no entry that all three read"
    torch.testing.assert_close(shared_table.grad, parts.sum(0), rtol=0, atol=0)
    torch.testing.assert_close(shared_table.grad, want.to(dtype), rtol=0, atol=0)


def test_a_pass_that_leaves_readers_out() -> None:
    """Readers that it does not reach, and gradients that it does not ask for, are not added to those of another."""
    table, index, weight = random(9, 4).requires_grad_(), lists(5, 3, 9), random(5, 3).requires_grad_()
    shared = shared_tables.share(table, 2)
    first, second = (shared_tables.bag(table, index, weight, shared=shared, reader=r) for r in (0, 1))
    torch.autograd.grad(first.sum() + second.sum(), weight, retain_graph=True)
    (got,) = torch.autograd.grad(second.square().sum(), table, retain_graph=True)
    plain = table.detach().requires_grad_()
    (want,) = torch.autograd.grad(plain_bag(plain, index, weight.detach()).square().sum(), plain)
    assert_equal(got, want, "gradient of one", 1e-14)
    (both,) = torch.autograd.grad(first.square().sum() + second.square().sum(), table)
    assert_equal(both, 2 * want, "gradient of both", 1e-14)


def test_frozen_tables_and_no_gradients() -> None:
    table, index, weight = random(9, 4), lists(5, 3, 9), random(5, 3).requires_grad_()
    shared = shared_tables.share(table, 2)
    shared_tables.bag(table, index, weight, shared=shared, reader=1).sum().backward()
    assert_equal(weight.grad, table[index].sum(-1), "gradient", 1e-14)
    with torch.no_grad():
        assert not shared_tables.bag(table.requires_grad_(), index, None).requires_grad


@EACH_TYPE
def test_an_optimiser_gets_rows(dtype: torch.dtype) -> None:
    """Lazy tables: the rows that have a gradient and it, from the lists of all readers at once."""
    table = torch.nn.Parameter(random(50, 12, dtype=dtype))
    rows = LazyRows(table, RowSettings((0.9, 0.95), 1e-8, 0.1))
    rows._row_sums = bags.RowSums  # as on a GPU
    setattr(table, row_tables.ATTRIBUTE, rows)
    shared = shared_tables.share(table, 2)
    i, j, weight, x = lists(6, 4, 20), lists(6, 3, 20), random(6, 4, dtype=dtype), random(6, 12, dtype=dtype)
    first = shared_tables.bag(table, i, weight, shared=shared, reader=0)
    second = shared_tables.products_of_rows(table, j, x, shared=shared, reader=1)
    (first.sum() + second.sum()).backward()
    assert table.grad is None
    plain = table.detach().double().requires_grad_()
    (plain_bag(plain, i, weight.double()).sum() + plain_products(plain, j, x.double()).sum()).backward()
    assert plain.grad is not None
    with counted() as launches:
        found = list(rows._gradient())
    assert [launch.kernel for launch in launches if launch.kernel == "sum_runs"] == ["sum_runs"]
    assert torch.equal(torch.cat([ids for ids, _ in found]), torch.unique(torch.cat([i.flatten(), j.flatten()])))
    assert_equal(rows.dense_gradient(), plain.grad, "gradient", LIMITS[dtype])


# -- checks of memory_layers.md 9 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_columns_on_several_ranks(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 8: each rank sums its columns for the tokens of all ranks. Results and the table's gradient are the same
    bits, gradients of weights are sums of the ranks'. A mean over ranks with unequal tokens is the gradient of sums
    over g times it."""
    monkeypatch.setattr(bags, "PROGRAMS", 1)  # lists in one part, however many columns there are
    tokens = (5, 1, 9, 2)[:ranks]
    index, table, weight = lists(sum(tokens), 6, 30), random(30, 64), random(sum(tokens), 6)
    scale = torch.cat([torch.full((count, 1), 1 / (ranks * count), dtype=torch.float64) for count in tokens])
    grad = random(sum(tokens), 64, seed=5) * scale
    whole = [bags.bag_op(table, index, weight), bags.add_op(index, weight, grad, 30)]
    parts = [[], []]
    of_weight = torch.zeros_like(weight)
    for columns in torch.arange(64).split(64 // ranks):
        own, its = table[:, columns].contiguous(), grad[:, columns].contiguous()
        parts[0].append(bags.bag_op(own, index, weight))
        parts[1].append(bags.add_op(index, weight, its, 30))
        of_weight += bags.products_op(own, index, its, torch.float64)
    assert torch.equal(torch.cat(parts[0], 1), whole[0])
    assert torch.equal(torch.cat(parts[1], 1), whole[1])
    plain, factors = table.clone().requires_grad_(), weight.clone().requires_grad_()
    results = (plain_bag(plain, index, factors) * random(sum(tokens), 64, seed=5)).sum(1)
    torch.stack([part.mean() for part in results.split(tokens)]).mean().backward()
    assert_equal(whole[1], plain.grad, "table", 1e-14)
    assert_equal(of_weight, factors.grad, "weights", 1e-14)


def test_where_the_table_lies(tmp_path: Path) -> None:
    """Check 16: one checkpoint, summed by kernels, by the CPU's bag, and from a file mapped into memory."""
    torch.save(random(400, 96, dtype=torch.bfloat16), tmp_path / "values.pt")
    resident = torch.load(tmp_path / "values.pt")
    mapped = torch.load(tmp_path / "values.pt", mmap=True)
    index, weight = lists(7, 128, 400), torch.softmax(random(7, 128), -1).bfloat16()
    by_kernel = shared_tables.bag(resident, index, weight)
    exact = plain_bag(resident.double(), index, weight.double())
    for other in (row_tables.bag(resident, index, weight), row_tables.bag(mapped, index, weight), by_kernel):
        step = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
        assert ((other.double() - exact).abs() <= step).all()
        assert ((other.double() - by_kernel.double()).abs() <= step).all()
    assert torch.equal(row_tables.bag(resident, index, weight), row_tables.bag(mapped, index, weight))


def test_what_is_read_is_never_stored() -> None:
    """Check 14: not in forward or backward, by kernels."""
    lines, n, width = 6, 64, 512
    (table, weight), _ = leaves(random(8, width, dtype=torch.float32), random(lines, n, dtype=torch.float32))
    index = lists(lines, n, 8)
    with allocated() as memory:
        shared_tables.bag(table, index, weight).sum().backward()
    assert memory.largest < lines * n * width * 4 / 4


# -- operators ---------------------------------------------------------------------------------------------------------


def test_operators() -> None:
    index = lists(4, 3, 7)
    table, weight, x = (y.requires_grad_() for y in (random(7, 5), random(4, 3), random(4, 5)))
    torch.autograd.gradcheck(lambda t, w: bags.bag_op(t, index, w), (table, weight))
    torch.autograd.gradcheck(lambda t, x: bags.products_op(t, index, x, torch.float64), (table, x))
    torch.library.opcheck(bags.bag_op, (table, index, weight))
    torch.library.opcheck(bags.bag_op, (table, index, None))
    torch.library.opcheck(bags.products_op, (table, index, x, torch.float64))
    torch.library.opcheck(bags.add_op, (index, weight.detach(), x.detach(), 7))


def test_operators_compiled_and_exported() -> None:
    index = lists(6, 4, 11)
    table, weight = random(11, 6).requires_grad_(), random(6, 4).requires_grad_()

    def run(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        shared = shared_tables.share(table, 2)
        y = shared_tables.bag(table, index, weight, shared=shared, reader=0)
        return y + shared_tables.bag(table, index, weight.sin(), shared=shared, reader=1)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(run(table, index, weight).sin().sum(), (table, weight))
    got = torch.autograd.grad(compiled(table, index, weight).sin().sum(), (table, weight))
    for one, two in zip(got, want, strict=True):
        assert_equal(one, two, "gradient", 1e-12)

    class Module(torch.nn.Module):
        def forward(self, table, index, weight):
            return run(table, index, weight)

    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Module(), (table, index, weight), dynamic_shapes=(None, {0: rows}, {0: rows}))
    more = torch.cat([index, index]), torch.cat([weight, weight])
    assert_equal(exported.module()(table, *more), run(table, *more), "result", 1e-12)


def test_the_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    index, table, weight, x = lists(9, 5, 8), random(8, 6), random(9, 5), random(9, 6)

    def all_three() -> tuple[Tensor, ...]:
        return (
            bags.bag_op(table, index, weight),
            bags.products_op(table, index, x, torch.float32),
            bags.add_op(index, weight, x, 8),
        )

    want = all_three()
    monkeypatch.setattr(bags, "interprets", lambda: False)
    for got, one in zip(all_three(), want, strict=True):
        assert_equal(got, one, "result", 1e-7 if one.dtype == torch.float32 else 1e-14)


# -- as others see them ------------------------------------------------------------------------------------------------

# 1.3B with a million values (memory_layers.md 6): 32,768 tokens, four heads of 32, bfloat16.
REAL = BagCall(False, 128, 1024**2, 2048, torch.bfloat16, torch.bfloat16)
TOKENS = 32768


def test_planned_bytes_at_real_size() -> None:
    (forward,), (backward,) = forward_kernels(REAL, TOKENS), backward_kernels(REAL, TOKENS)
    assert (forward.name, backward.name) == ("sum_bags", "multiply_bags")
    assert 17.2e9 <= bag_work(REAL, "sum_bags", TOKENS).read <= 1.01 * 17.2e9
    assert bag_work(REAL, "sum_bags", TOKENS).written == TOKENS * 4096
    assert bag_work(REAL, "sum_bags", TOKENS).vector == TOKENS * 0.524288e6
    one = [kernel.name for kernel in forward_kernels(REAL, 1)]
    assert one == ["sum_bags", "join_bags"]


@pytest.mark.parametrize("is_products", [False, True])
@pytest.mark.parametrize("lines", [3, 300])
def test_planned_bytes_are_those_that_move(is_products: bool, lines: int) -> None:
    call = BagCall(is_products, 16, lines * 16, 40, torch.float32, torch.float32)
    index = torch.randperm(lines * 16).reshape(lines, 16)
    table = random(lines * 16, 40, dtype=torch.float32)
    other = random(lines, 40 if is_products else 16, dtype=torch.float32).requires_grad_()
    function = shared_tables.products_of_rows if is_products else shared_tables.bag
    with counted() as launches:
        function(table, index, other).sum().backward()
    texts = (*forward_kernels(call, lines), *backward_kernels(call, lines))
    assert [launch.kernel for launch in launches] == [text.name for text in texts]
    for launch in launches:
        planned = bag_work(call, launch.kernel, lines)
        read = sum(touched.distinct_read for touched in launch.arguments.values())
        assert read == planned.read, launch.kernel
        assert sum(touched.written for touched in launch.arguments.values()) == planned.written


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_no_spills_at_real_size(target: str) -> None:
    texts = [*forward_kernels(REAL, 1), *backward_kernels(REAL, 1)]
    texts += scatter_kernels(REAL.width, REAL.dtype, REAL.weight)
    for made in compile_ahead(texts, [target]):
        assert problems(made) == [], made.kernel
