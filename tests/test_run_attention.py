"""Attention of segments to their own rows, in Triton's interpreter: results, gradients and bytes; where it is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.counted_memory import counted
from tests.fused_models import assert_equal, gradients
from tests.test_rows_of_segments import graphs
from tests.test_segment_kernels import LIMITS, SIZES, plans
from weft.codegen.functions.attention import attend_packed
from weft.codegen.gpu import run_attention, segments
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.run_attention import MOST_ROWS, attend_runs
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.run_attention_text import RunAttention, run_attention_kernels, run_attention_work, run_attentions
from weft.runtime.ahead_of_time import compile_ahead, problems
from weft.runtime.kernels import attach_kernels

EACH_TYPE = pytest.mark.parametrize("dtype", LIMITS, ids=str)
# Queries of a segment, heads, entries of q and k, of v.
SHAPES = {"one query": (1, 2, 4, 4), "odd": (3, 3, 5, 7), "many heads": (2, 40, 16, 16), "wide": (2, 1, 130, 3)}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
SEGMENTS = SIZES | {"longer": (MOST_ROWS, MOST_ROWS + 1, 3 * MOST_ROWS + 2, 0, 1)}


def operands(sizes: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    queries, heads, width, v_width = shape
    generator = torch.Generator().manual_seed(len(sizes) + width)
    rows, runs = sum(sizes), len(sizes)
    shapes = (runs, queries, heads, width), (rows, heads, width), (rows, heads, v_width)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """By what the language says: segments are examples, queries of a segment are heads."""
    runs, queries, heads, width = q.shape
    alone = torch.arange(runs + 1, dtype=torch.int32)
    by_head = q.transpose(1, 2).reshape(runs, heads * queries, width)
    out = attend_packed(by_head, k, v, alone, bounds, scale)
    return out.reshape(runs, heads, queries, v.shape[2]).transpose(1, 2)


def compare(ours: Callable[..., Tensor], given: tuple[Tensor, ...], bounds: Tensor, scale: float, limit: float) -> None:
    """Results and gradients, against float64."""
    near = [x.clone().requires_grad_() for x in given]
    exact = [x.double().requires_grad_() for x in given]
    got, want = ours(*near, bounds, scale), reference(exact[0], exact[1], exact[2], bounds, scale)
    assert got.dtype == given[0].dtype
    assert got.shape == want.shape
    assert_equal(got, want, "result", limit)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(got.dtype)
    got.backward(grad)
    want.backward(grad.double())
    for name, x, truth in zip("qkv", near, exact, strict=True):
        assert x.grad is not None
        wanted = torch.zeros_like(truth) if truth.grad is None else truth.grad
        assert_equal(x.grad, wanted, f"gradient of {name}", 2.5 * limit)


@EACH_TYPE
@EACH_SHAPE
@pytest.mark.parametrize("sizes", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_against_float64(sizes: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _, bounds = plans(sizes)
    compare(attend_runs, operands(sizes, shape, dtype), bounds, 0.4, LIMITS[dtype])


@EACH_TYPE
@pytest.mark.parametrize("sizes", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_the_same_without_kernels(sizes: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "interprets", lambda: False)
    _, bounds = plans(sizes)
    compare(attend_runs, operands(sizes, SHAPES["odd"], dtype), bounds, 0.4, LIMITS[dtype])


def test_rows_of_any_layout() -> None:
    """Keys and values as parts of wider rows, queries with their heads in front."""
    sizes = SEGMENTS["longer"]
    _, bounds = plans(sizes)
    q, k, v = operands(sizes, (2, 3, 8, 8), torch.float32)
    want = attend_runs(q, k, v, bounds, 0.3)
    both = torch.cat([k, v], 1)
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(attend_runs(turned, both[:, :3], both[:, 3:], bounds, 0.3), want)
    assert torch.equal(attend_runs(q, k.mT.contiguous().mT, v, bounds, 0.3), want)


def test_large_scores_do_not_overflow() -> None:
    sizes = SEGMENTS["longer"]
    _, bounds = plans(sizes)
    q, k, v = operands(sizes, SHAPES["odd"], torch.float32)
    compare(attend_runs, (100 * q, 100 * k, v), bounds, 1.0, 1e-4)


def test_operators() -> None:
    sizes = (2, 0, 1)
    _, bounds = plans(sizes)
    q, k, v = (x.requires_grad_() for x in operands(sizes, (2, 1, 2, 3), torch.float64))
    torch.autograd.gradcheck(lambda q, k, v: attend_runs(q, k, v, bounds, 0.5), (q, k, v), fast_mode=True)
    torch.library.opcheck(run_attention._attend, (q, k, v, bounds, 0.5))
    do = torch.randn(*q.shape[:3], 3, dtype=torch.float64)
    torch.library.opcheck(run_attention._backward, (do, q.detach(), k.detach(), v.detach(), bounds, 0.5))


def test_every_row_is_read_and_written_once() -> None:
    sizes = (4, 3, 5, 4) * 4
    _, bounds = plans(sizes)
    q, k, v = (x.requires_grad_() for x in operands(sizes, (2, 16, 64, 64), torch.bfloat16))
    with counted() as launched:
        attend_runs(q, k, v, bounds, 0.125).backward(torch.ones_like(q))
    forward, backward = launched
    moved = [sum(t.read + t.written for t in launch.arguments.values()) for launch in launched]
    assert (forward.kernel, backward.kernel) == ("attend_runs", "attend_runs_backward")
    # Bounds are read by each block of heads, and twice.
    assert moved[0] <= 1.02 * (2 * q.nbytes + k.nbytes + v.nbytes)
    assert moved[1] <= 1.02 * (3 * q.nbytes + 2 * k.nbytes + 2 * v.nbytes)


# -- where graphs have it ----------------------------------------------------------------------------------------------

CUT = "x: real[seq, dim], q: real[seq, two, heads, dim], k: real[seq, heads, dim], f: flag[seq]"
OWN = "attend(p, k, k, over=dim, along=seq, mask=same(patch))"
TEXTS = {
    "slots": (
        f"{CUT}; segment seq into patch ends where f; p = pool(q, seq -> patch, by=mean); "
        f"r = pool(k, seq -> patch, by=max) => {OWN} * 2"
    ),
    "one query": (
        f"{CUT}; segment seq into patch ends where f; p = pool(k, seq -> patch, by=mean); q = sum(q, over=two) => {OWN}"
    ),
    "shared keys": (
        f"{CUT}; segment seq into patch ends where f; p = pool(q, seq -> patch, by=mean) => "
        "attend(p, x, x, over=dim, along=seq, mask=same(patch), scale=0.7)"
    ),
}
LENGTHS = {"seq": (0, 1, 21, 9), "other": (1, 0, 2, 1)}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_against_float64(text: str, dtype: torch.dtype) -> None:
    exact, wide, graph, arguments = graphs(text, 5, LENGTHS, dtype)
    want, want_gradients = gradients(exact, wide)
    made = optimise(graph, GPU_PASSES)
    attach_kernels(made)
    targets = [node.target for node in made.graph.nodes]
    assert attend_runs in targets
    assert attend_packed not in targets
    assert attend not in targets
    got, got_gradients = gradients(made, arguments)
    limit = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert_equal(got[0], want[0], "result", limit)
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 2.5 * limit)


def test_slots_are_read_and_written_where_they_lie() -> None:
    """No turn of queries before the kernel, and none of results behind it."""
    _, _, graph, _ = graphs(TEXTS["slots"], 5, LENGTHS, torch.float32)
    made = optimise(graph, GPU_PASSES)
    assert torch.permute not in [node.target for node in made.graph.nodes]
    ((key, nodes),) = run_attentions(made).items()
    assert (key.queries, key.width, key.v_width, len(nodes)) == (2, 5, 5, 1)


OTHERS = {
    "less than the patch": TEXTS["slots"].replace("same(patch)", "same(patch) and query(position) < 5"),
    "along patches": TEXTS["slots"].replace(OWN, "attend(r, r, r, over=dim, along=patch)"),
    "rows in no patch": (
        TEXTS["one query"].replace("f: flag[seq]", "i: id[seq] in vocab or none").replace("ends where f", "by i")
    ),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS.keys())
def test_other_attention_is_left_to_kernels_for_any_length(text: str) -> None:
    _, _, graph, _ = graphs(text, 5, LENGTHS, torch.float32)
    made = optimise(graph, GPU_PASSES)
    assert not run_attentions(made)
    assert attend in [node.target for node in made.graph.nodes]


# -- as others see them ------------------------------------------------------------------------------------------------

# BLT 1B: 16,384 bytes in 4,096 patches.
ROWS, PATCHES = 16384, 4096
BLT = RunAttention(2, 16, 64, 64, 0.125, torch.bfloat16)


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
@pytest.mark.parametrize("made", [BLT, RunAttention(4, 20, 64, 64, 0.125, torch.bfloat16)], ids=["1b", "8b"])
def test_no_spills_at_real_size(made: RunAttention, target: str) -> None:
    for compiled in compile_ahead(list(run_attention_kernels(made)), [target]):
        assert problems(compiled) == [], compiled.kernel


def test_planned_bytes_of_patches_are_the_least() -> None:
    """Queries 16.8 MB, keys and values 33.6 MB each: each is moved once, and so are their gradients."""
    row, slots = ROWS * 1024 * 2, PATCHES * 2 * 1024 * 2
    forward, backward = (run_attention_work(BLT, text.name, ROWS, PATCHES) for text in run_attention_kernels(BLT))
    assert forward.bytes <= 1.01 * (2 * slots + 2 * row)
    assert backward.bytes <= 1.01 * (3 * slots + 4 * row)
