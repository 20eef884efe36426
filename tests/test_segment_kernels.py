"""Kernels over segments, in Triton's interpreter: pools, values of segments at rows, sums over runs, their gradients,
against torch in float64; how they compile and what they move."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.counted_memory import counted
from tests.fused_models import assert_equal
from weft.codegen.functions import cuts
from weft.codegen.functions import segments as reference
from weft.codegen.gpu import segments
from weft.codegen.gpu.segments import BLOCK_T
from weft.codegen.segment_text import pool_kernels, pool_work, spread_kernels, spread_work
from weft.runtime.ahead_of_time import compile_ahead, problems

# Of the largest entry: sums of float32, rounded once.
LIMITS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}
EACH_TYPE = pytest.mark.parametrize("dtype", LIMITS, ids=str)
# Rows of each segment: one, many of a few, none, more than a program holds at a time.
SIZES = {
    "one row": (1,),
    "odd": (3, 1, 7, 2, 5, 1),
    "empty ones": (0, 4, 0, 0, 1, 0),
    "long": (BLOCK_T, BLOCK_T + 1, 5 * BLOCK_T + 3, 1),
    "none": (),
    "all empty": (0, 0),
}
EACH_SIZE = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
POOLS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "max": (segments.max_rows, reference.max_rows),
    "mean": (segments.mean_rows, reference.mean_rows),
    "sum": (segments.sum_rows, reference.sum_rows),
}
EACH_POOL = pytest.mark.parametrize("by", POOLS)


def plans(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The segment of each row, and where segments begin."""
    counts = torch.tensor(sizes, dtype=torch.int64)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(torch.int32)
    return torch.repeat_interleave(torch.arange(len(sizes)), counts), bounds


def rows_of(sizes: tuple[int, ...], width: tuple[int, ...], dtype: torch.dtype, ties: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(len(sizes))
    x = torch.randn(sum(sizes), *width, generator=generator, dtype=torch.float64)
    return (x.mul(2).round().clamp(-1, 1) if ties else x).to(dtype)


def compare(one: Callable[[Tensor], Tensor], two: Callable[[Tensor], Tensor], x: Tensor, limit: float) -> None:
    """Results and gradients of a function in the type of `x` and of another in float64."""
    got_x, want_x = x.clone().requires_grad_(), x.double().clone().requires_grad_()
    got, want = one(got_x), two(want_x)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    assert_equal(got, want, "result", limit)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(x.dtype)
    got.backward(grad)
    want.backward(grad.double())
    assert got_x.grad is not None
    assert_equal(got_x.grad, want_x.grad, "gradient", limit)


@EACH_TYPE
@EACH_SIZE
@EACH_POOL
@pytest.mark.parametrize("width", [(1,), (63,), (2, 3)], ids=str)
def test_pools(by: str, sizes: tuple[int, ...], width: tuple[int, ...], dtype: torch.dtype) -> None:
    number, bounds = plans(sizes)
    ours, theirs = POOLS[by]
    x = rows_of(sizes, width, dtype)
    compare(lambda x: ours(x, number, bounds), lambda x: theirs(x, number, bounds), x, LIMITS[dtype])


@EACH_TYPE
@pytest.mark.parametrize("sizes", [SIZES["odd"], SIZES["long"]], ids=["odd", "long"])
def test_equal_entries_share_the_gradient(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    number, bounds = plans(sizes)
    x = rows_of(sizes, (40,), dtype, ties=True)
    top = reference.max_rows(x, number, bounds)
    assert ((x == top[number]).double().sum(0) > len(sizes)).all(), "no ties"
    compare(
        lambda x: segments.max_rows(x, number, bounds), lambda x: reference.max_rows(x, number, bounds), x,
        LIMITS[dtype],
    )  # fmt: skip


def test_infinite_entries_stay_where_they_belong() -> None:
    number, bounds = plans((2, 3, BLOCK_T + 2))
    x = torch.zeros(len(number), 3)
    x[:2] = float("-inf")
    x[3, 1] = float("inf")
    for by, (ours, theirs) in POOLS.items():
        assert torch.equal(ours(x, number, bounds), theirs(x, number, bounds)), by
    leaf, want = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    segments.max_rows(leaf, number, bounds).backward(grad)
    reference.max_rows(want, number, bounds).backward(grad)
    assert leaf.grad is not None
    assert want.grad is not None
    assert_equal(leaf.grad[2:], want.grad[2:], "gradient", 1e-7)
    assert_equal(leaf.grad[:2], (grad[:1] / 2).expand(2, 3), "gradient of rows that are all -inf", 1e-7)
    # A gradient without end goes to rows that hold the maximum, and leaves no nan in the others.
    leaf.grad = None
    segments.max_rows(leaf, number, bounds).backward(torch.full((3, 3), float("inf")))
    assert leaf.grad is not None
    assert leaf.grad[2:5, 1].tolist() == [0, float("inf"), 0]


def test_wide_rows_and_any_layout() -> None:
    """More entries than a program holds, and rows that are not side by side."""
    number, bounds = plans((4, 1, 9))
    x = torch.randn(2 * segments.BLOCK_E + 5, 14, generator=torch.Generator().manual_seed(1)).T
    assert not x.is_contiguous()
    compare(lambda x: segments.max_rows(x, number, bounds), lambda x: reference.max_rows(x, number, bounds), x, 0)


NUMBERS = {
    "closed": (-1, -1, 0, 0, 0, 1, -1, -1, 2, 3, 3, 3),
    "gaps": (0, -1, -1, 1, 1, -1, 3),
    "none": (-1, -1, -1),
    "no rows": (),
    "long": (*[0] * 30, -1, *[1] * 3, *[4] * 20),
}


@EACH_TYPE
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS.keys())
@pytest.mark.parametrize("width", [(1,), (63,), (2, 3, 5)], ids=str)
def test_spread(numbers: tuple[int, ...], width: tuple[int, ...], dtype: torch.dtype) -> None:
    number = torch.tensor(numbers, dtype=torch.int64 if width == (63,) else torch.int32)
    p = rows_of((6,), width, dtype)
    compare(lambda p: segments.spread(p, number), lambda p: cuts.spread(p, number), p, LIMITS[dtype])


def test_spread_of_no_segments() -> None:
    number = torch.full((4,), -1)
    p = torch.zeros(0, 3, requires_grad=True)
    got = segments.spread(p, number)
    assert torch.equal(got, torch.zeros(4, 3))
    got.sum().backward()
    assert p.grad is not None
    assert p.grad.shape == (0, 3)


def test_runs_over_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that begin and end where programs that look for them do."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.randint(0, 4, (1500,), generator=generator)
    number = torch.repeat_interleave(torch.arange(1500), counts)
    rows = torch.randn(len(number), 3, generator=generator)
    assert len(number) > 2 * segments.BLOCK_N
    want = torch.zeros(1500, 3, dtype=torch.float64).index_add_(0, number, rows.double())
    bounds = segments.find_runs(number, 1500)
    assert_equal(segments.sum_runs(rows, bounds), want, "sums", 1e-6)
    monkeypatch.setattr(segments, "interprets", lambda: False)
    assert torch.equal(segments.find_runs(number, 1500), bounds)
    assert_equal(segments.sum_runs(rows, bounds), want, "sums without kernels", 1e-6)


# -- operators ---------------------------------------------------------------------------------------------------------


@EACH_POOL
def test_operators_of_pools(by: str) -> None:
    number, bounds = plans(SIZES["odd"])
    x = rows_of(SIZES["odd"], (3,), torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x: POOLS[by][0](x, number, bounds), x)
    torch.library.opcheck(segments._pool_op, (x, number, bounds, by))
    dy = torch.randn(len(SIZES["odd"]), 3, dtype=torch.float64)
    torch.library.opcheck(segments._pool_backward, (dy, x.detach() if by == "max" else None, number, bounds, by))


def test_operators_of_spread() -> None:
    number = torch.tensor(NUMBERS["closed"])
    p = rows_of((5,), (3,), torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda p: segments.spread(p, number), p)
    torch.library.opcheck(segments._spread, (p, number))
    torch.library.opcheck(segments._spread_backward, (torch.randn(len(number), 3), number, 5))


def test_operators_compiled_and_exported() -> None:
    number, bounds = plans(SIZES["odd"])
    x = rows_of(SIZES["odd"], (6,), torch.float64).requires_grad_()

    def run(x: Tensor, number: Tensor, bounds: Tensor) -> Tensor:
        return segments.spread(segments.max_rows(x, number, bounds).sin(), number).cos()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    (want,) = torch.autograd.grad(run(x, number, bounds).sum(), x)
    (got,) = torch.autograd.grad(compiled(x, number, bounds).sum(), x)
    assert_equal(got, want, "gradient", 1e-12)

    class Module(torch.nn.Module):
        def forward(self, x, number, bounds):
            return run(x, number, bounds)

    rows, runs = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("runs", min=3, max=4096)
    exported = torch.export.export(
        Module(), (x, number, bounds), dynamic_shapes=({0: rows}, {0: rows}, {0: runs})
    ).module()
    number, bounds = plans(SIZES["long"])
    x = rows_of(SIZES["long"], (6,), torch.float64)
    assert_equal(exported(x, number, bounds), run(x, number, bounds), "result", 1e-12)


@EACH_POOL
def test_the_same_on_a_cpu_without_kernels(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number, bounds = plans(SIZES["empty ones"])
    x = rows_of(SIZES["empty ones"], (5,), torch.float64, ties=True)
    monkeypatch.setattr(segments, "interprets", lambda: False)
    ours, theirs = POOLS[by]
    compare(lambda x: ours(x, number, bounds), lambda x: theirs(x, number, bounds), x, 1e-14)
    numbers = torch.tensor(NUMBERS["gaps"])
    compare(lambda p: segments.spread(p, numbers), lambda p: cuts.spread(p, numbers), x[:5], 1e-14)


# -- as others see them ------------------------------------------------------------------------------------------------

# The 1B shapes of BLT: 16,384 bytes in 4,096 patches, 1,024 entries, bfloat16.
ROWS, SEGMENTS, WIDTH = 16384, 4096, 1024


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_no_spills_at_real_size(target: str) -> None:
    texts = [text for by in POOLS for text in pool_kernels(by, WIDTH, torch.bfloat16)]
    texts += spread_kernels(WIDTH, torch.bfloat16)
    for made in compile_ahead(list(dict.fromkeys(texts)), [target]):
        assert problems(made) == [], made.kernel


@pytest.mark.parametrize("by", POOLS)
def test_planned_bytes_are_those_that_move(by: str) -> None:
    """Counted while they run, at fewer segments of as many rows."""
    sizes = (4, 3, 5, 4) * 8
    number, bounds = plans(sizes)
    x = rows_of(sizes, (WIDTH,), torch.float32).requires_grad_()
    with counted() as launches:
        POOLS[by][0](x, number, bounds).sum().backward()
    assert [launch.kernel for launch in launches] == [text.name for text in pool_kernels(by, WIDTH, torch.float32)]
    for launch in launches:
        planned = pool_work(launch.kernel, by, WIDTH, torch.float32, len(number), len(sizes))
        read = sum(touched.read for touched in launch.arguments.values())
        written = sum(touched.written for touched in launch.arguments.values())
        # Bounds are read for each block of entries, and twice.
        assert planned.read <= read <= 1.02 * planned.read, launch.kernel
        assert planned.written == written, launch.kernel


def test_planned_bytes_of_a_pool_of_patches() -> None:
    """What one pass over the rows takes: 33.6 MB read, 8.4 MB written."""
    forward, backward = (
        pool_work(text.name, "max", WIDTH, torch.bfloat16, ROWS, SEGMENTS)
        for text in pool_kernels("max", WIDTH, torch.bfloat16)
    )
    assert 33.5e6 <= forward.read <= 1.2 * 33.6e6
    assert 8.3e6 <= forward.written <= 1.2 * 8.4e6
    assert backward.read <= 1.2 * (33.6e6 + 8.4e6)
    assert backward.written <= 1.2 * 33.6e6


@pytest.mark.parametrize("numbers", [torch.int32, torch.int64], ids=str)
def test_planned_bytes_of_spread_are_those_that_move(numbers: torch.dtype) -> None:
    number = torch.tensor(NUMBERS["closed"] * 20)
    number = torch.where(number < 0, -1, number + 4 * torch.arange(20).repeat_interleave(12)).to(numbers)
    p = rows_of((80,), (WIDTH,), torch.float32).requires_grad_()
    with counted() as launches:
        segments.spread(p, number).sum().backward()
    assert [launch.kernel for launch in launches] == [text.name for text in spread_kernels(WIDTH, torch.float32)]
    for launch in launches:
        planned = spread_work(launch.kernel, WIDTH, torch.float32, len(number), len(p), numbers)
        moved = sum(touched.distinct_read + touched.written for touched in launch.arguments.values())
        assert 0.5 * planned.bytes <= moved <= 1.1 * planned.bytes, (launch.kernel, planned, moved)
