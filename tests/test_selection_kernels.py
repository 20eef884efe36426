"""Kernels that select the largest scores, in Triton's interpreter: against all scores in float64, with ties; their
gradients; which graphs have them; how they compile and what they move."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from tests.counted_memory import allocated, counted
from tests.fused_models import assert_equal
from tests.op_samples import arguments, elaborate, inputs, module
from weft.codegen.functions import gathers
from weft.codegen.gpu import selection
from weft.codegen.passes.selection_kernels import use_selection_kernels
from weft.codegen.pipeline import BASIC_PASSES, Pass, optimise
from weft.codegen.selection_text import SelectionCall, selection_kernels, selection_work
from weft.runtime.ahead_of_time import compile_ahead, problems

# Of the largest entry: scores are sums in float32; gradients are rounded once.
SCORES, GRADIENTS = 1e-6, {torch.float32: 1e-6, torch.bfloat16: 8e-3}
EACH_TYPE = pytest.mark.parametrize("dtype", GRADIENTS, ids=str)
# Rows, groups, keys, entries, how many are taken.
SIZES = [(5, 1, 63, 20, 8), (17, 2, 70, 60, 1), (1, 1, 500, 33, 32), (3, 1, 4, 1, 3)]
EACH_SIZE = pytest.mark.parametrize("sizes", SIZES, ids=str)
# Whole numbers, of which many sums are equal.
EACH_KIND = pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])


def random(*shape: int, seed: int, dtype: torch.dtype, ties: bool) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.round().clamp(-1, 1) if ties else x).to(dtype)


def all_scores(x: Tensor, keys: Tensor, scale: float) -> Tensor:
    return scale * torch.einsum("rgd,gnd->rgn", x, keys)


def check(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Same entries, and gradients of scores that differ for each."""
    assert got[0].dtype == torch.float32
    assert torch.equal(got[1], want[1])
    assert_equal(got[0], want[0], "scores", SCORES)
    grad = torch.randn(got[0].shape, generator=torch.Generator().manual_seed(9))
    got[0].backward(grad)
    want[0].backward(grad.double())
    for one, two in zip(ours, theirs, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == one.dtype
        assert_equal(one.grad, two.grad, "gradient", GRADIENTS[one.dtype])


@EACH_TYPE
@EACH_KIND
@EACH_SIZE
def test_largest_scores(sizes: tuple[int, ...], ties: bool, dtype: torch.dtype) -> None:
    rows, groups, entries, width, count = sizes
    ours = [random(rows, groups, width, seed=1, dtype=dtype, ties=ties).requires_grad_(),
            random(groups, entries, width, seed=2, dtype=dtype, ties=ties).requires_grad_()]  # fmt: skip
    theirs = [x.detach().double().requires_grad_() for x in ours]
    (x, keys), (x_, keys_) = ours, theirs
    got = selection.top(x, keys, count, 0.5)
    check(got, gathers.top(all_scores(x_, keys_, 0.5), count), ours, theirs)
    assert all(torch.equal(one, two) for one, two in zip(got, selection.top(x, keys, count, 0.5), strict=True))


@EACH_TYPE
@EACH_KIND
@EACH_SIZE
def test_largest_pairs(sizes: tuple[int, ...], ties: bool, dtype: torch.dtype) -> None:
    """With ties all pairs are looked at, without them those that can be among the largest. Few keys: more pairs are
    taken than a side has."""
    rows, groups, entries, width, count = sizes
    count = 7 if entries == 4 else count
    ours = [random(rows, groups, 2, width, seed=1, dtype=dtype, ties=ties).requires_grad_(),
            random(groups, 2, entries, width, seed=2, dtype=dtype, ties=ties).requires_grad_()]  # fmt: skip
    theirs = [x.detach().double().requires_grad_() for x in ours]
    scores = torch.einsum("rgsd,gsnd->rgsn", *theirs)
    want = gathers.top_pairs(scores[:, :, 0], scores[:, :, 1], count)
    check(selection.top_pairs(ours[0], ours[1], count, 1.0), want, ours, theirs)


def test_sums_that_rounding_makes_equal() -> None:
    """2^24 + 0.25 and 2^24 + 0.5 are one number. The pair (1, 2) has larger ones in front of it on both sides, whose
    slots are higher: it is taken."""
    first, second = torch.tensor([0, 0.25, 0.5]), torch.tensor([0, 2.0**24, 2.0**24])
    keys = torch.stack([first, second])[None, :, :, None]
    got = selection.top_pairs(torch.ones(1, 1, 2, 1), keys, 2, 1.0)
    want = gathers.top_pairs(first[None, None], second[None, None], 2)
    assert torch.equal(got[1], want[1])
    assert want[1].tolist() == [[[4, 5]]]


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite(bad: float) -> None:
    keys = random(1, 40, 1, seed=3, dtype=torch.float32, ties=False)
    keys[0, 7], keys[0, 30] = bad, bad
    x = torch.ones(2, 1, 1)
    got, want = selection.top(x, keys, 5, 1.0), gathers.top(all_scores(x, keys, 1.0), 5)
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0].nan_to_num(7.0), want[0].nan_to_num(7.0))


def test_zeros_of_both_signs_are_equal() -> None:
    keys = torch.tensor([-1.0, -0.0, 0.0, -0.0, -2.0]).reshape(1, 5, 1)
    assert selection.top(torch.ones(1, 1, 1), keys, 3, 1.0)[1].tolist() == [[[1, 2, 3]]]


def test_scores_are_never_stored() -> None:
    rows, entries = 4, 512
    x = random(rows, 1, 2, 8, seed=1, dtype=torch.float32, ties=False).requires_grad_()
    keys = random(1, 2, entries, 8, seed=2, dtype=torch.float32, ties=False).requires_grad_()
    with allocated() as memory:
        selection.top_pairs(x, keys, 4, 1.0)[0].sum().backward()
    # The keys' gradient is as large as the keys.
    assert memory.largest <= keys.numel() * 4 < rows * entries * entries
    with counted() as launches:
        selection.top_pairs(x, keys, 4, 1.0)
    assert sum(touched.written for touched in launches[0].arguments.values()) == rows * 2 * 4 * (4 + 4)


# -- operators ---------------------------------------------------------------------------------------------------------


def test_operators() -> None:
    """In float64, where torch computes them."""
    x, keys = torch.randn(3, 2, 2, 4).double().requires_grad_(), torch.randn(2, 2, 9, 4).double().requires_grad_()
    torch.autograd.gradcheck(lambda x, k: selection.top_pairs(x, k, 3, 0.5)[0], (x, keys))
    torch.autograd.gradcheck(lambda x, k: selection.top(x, k, 3, 0.5)[0], (x[:, :, 0], keys[:, 0]))
    torch.library.opcheck(selection.pairs_op, (x, keys, 3, 0.5))
    torch.library.opcheck(selection.top_op, (x[:, :, 0].detach(), keys[:, 0].detach(), 3, 0.5))
    torch.library.opcheck(selection.pairs_op, (x.detach().float(), keys.detach().float(), 3, 0.5))


def test_operators_compiled() -> None:
    x, keys = torch.randn(3, 2, 2, 4).double().requires_grad_(), torch.randn(2, 2, 9, 4).double().requires_grad_()

    def run(x: Tensor, keys: Tensor) -> Tensor:
        return selection.top_pairs(x, keys, 3, 0.5)[0].softmax(-1).sin()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(run(x, keys).sum(), (x, keys))
    for one, two in zip(torch.autograd.grad(compiled(x, keys).sum(), (x, keys)), want, strict=True):
        assert_equal(one, two, "gradient", 1e-12)


def test_the_same_on_a_cpu_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys = (random(*shape, seed=4, dtype=torch.float32, ties=True) for shape in ((5, 1, 2, 6), (1, 2, 12, 6)))
    want = selection.top_pairs(x, keys, 4, 1.0), selection.top(x[:, :, 0], keys[:, 0], 4, 1.0)
    monkeypatch.setattr(selection, "interprets", lambda: False)
    got = selection.top_pairs(x, keys, 4, 1.0), selection.top(x[:, :, 0], keys[:, 0], 4, 1.0)
    for one, two in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert torch.equal(one, two)


# -- graphs ------------------------------------------------------------------------------------------------------------

SPECS = {
    "x: real[seq, dim], y: real[dim] => topk(linear(x, dim -> vocab), over=vocab, k=three).score": [selection.top],
    "x: real[seq, dim] => topk(linear(x, dim -> (heads, head_dim)), over=head_dim, k=three).score": [],
    "x: real[seq, dim] => topk(x, over=dim, k=three).score": [],
    # The last one taken equals its entry, which another sum of the same products may not.
    "x: real[seq, dim]; s = linear(x, dim -> vocab); t = topk(s, over=vocab, k=three).score"
    " => where(s >= min(t, over=three), s, 0)": [],
}


@pytest.mark.parametrize("text", SPECS)
def test_specs(text: str) -> None:
    program = elaborate(text)
    graph = module(program)
    made = optimise(graph, (*BASIC_PASSES, Pass("selections", use_selection_kernels, "")))
    found = [node.target for node in made.graph.nodes if node.target in (selection.top, selection.top_pairs)]
    assert found == SPECS[text]
    given = arguments(graph, inputs(program))
    for one, two in zip(made(*given), graph(*given), strict=True):
        assert_equal(one, two, "result", 1e-12)


# -- as others see them ------------------------------------------------------------------------------------------------

# 1.3B with a million values: four heads of two sides, 1,024 keys of 512 entries each, 32 taken.
REAL = SelectionCall(True, 8, 1024, 512, 32, 1.0, torch.bfloat16)
WIDEST = SelectionCall(True, 8, 8192, 1024, 64, 1.0, torch.bfloat16)
TOKENS = 32768


def test_planned_bytes_at_real_size() -> None:
    work = selection_work(REAL, "top_scores", TOKENS)
    assert work.matmul == TOKENS * 8.388608e6
    assert work.read == (TOKENS + 1024) * 4096 * 2
    assert work.written == TOKENS * 8 * 32 * 8


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])  # two of four, for time
def test_no_spills_at_real_size(target: str) -> None:
    launched = ((REAL, 1), (REAL, TOKENS), (WIDEST, TOKENS))
    texts = dict.fromkeys(text for call, rows in launched for text in selection_kernels(call, target, rows))
    for made in compile_ahead(list(texts), [target]):
        assert problems(made) == [], made.kernel
