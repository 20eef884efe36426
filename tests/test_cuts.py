"""Cuts: which rows form a segment, what is pooled, spread and attended over it, gradients, causality, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.small_models import model
from weft.codegen.functions import cuts, segments
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.render import render
from weft.dsl.source import Source
from weft.runtime.errors import InputFault

WORKED = """
axis seq
axis patch cut from seq
model m(x: real[seq], f: flag[seq]) -> real[seq]:
    segment seq into patch ends where f
    return x + real(index(patch)) + 100 * real(index(patch, closed))
"""

READ = """
size dim = 3
axis seq
axis patch cut from seq
model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
    segment seq into patch ends where f{at_most}
    p = pool(x, seq -> patch, by={by})
    return spread(p, patch -> seq, {which})
"""

GAPS = """
size dim = 3
axis seq
size names = 4
axis line cut from seq
model m(x: real[seq, dim], i: id[seq] in names or none) -> real[seq, dim]:
    segment seq into line by i
    p = pool(x, seq -> line, by={by})
    own = spread(p, line -> seq)
    y = attend(x, x, x, over=dim, along=seq, mask=same(line))
    return own + 10 * y + 1000 * real(index(line))
"""

MASKS = """
size dim = 4
size heads = 2
axis seq
axis patch cut from seq
model m(x: real[seq, heads, dim], f: flag[seq]) -> real[seq, heads, dim]:
    segment seq into patch ends where f
    p = pool(x, seq -> patch, by=max)
    p = p + attend(p, x, x, over=dim, along=seq, mask=same(patch))
    p = p + attend(p, p, p, over=dim, along=patch, mask=causal)
    y = attend(x, p, p, over=dim, along=patch, mask=near(patch, 2))
    z = attend(x, x, x, over=dim, along=seq, mask=causal and same(patch))
    w = attend(x, x, x, over=dim, along=seq, mask=causal or same(patch))
    u = attend(x, x, x, over=dim, along=seq, mask=same(patch) and query(position) < 5)
    return x + y + 2 * z + 3 * w + 4 * u
"""


# What each pool is, of the rows of one segment.
POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda rows: rows.max(0).values,
    "mean": lambda rows: rows.mean(0),
    "sum": lambda rows: rows.sum(0),
    "first": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}


def flags(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool)


def numbers_of(f: Tensor) -> list[int]:
    """The segment of each row, straight from the definition."""
    found, number = [], 0
    for ends in f.tolist():
        found.append(number)
        number += ends
    return found


def capped(f: Tensor, at_most: int | None) -> Tensor:
    """Flags with those that `at most` adds, row by row."""
    found, length = [], 0
    for ends in f.tolist():
        length += 1
        found.append(ends or (at_most is not None and length == at_most))
        length = 0 if found[-1] else length
    return torch.tensor(found, dtype=torch.bool)


def examples(seed: int, shape: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (9, 1, 4, 2)
    xs = [torch.randn(n, *shape, dtype=torch.float64, generator=generator) for n in lengths]
    fs = [torch.rand(n, generator=generator) < 0.4 for n in lengths]
    return xs, fs


# -- where segments are ----------------------------------------------------------------------------


def test_the_worked_example_of_blt() -> None:
    """Lengths 1 1 3 2 (and 1 to come) over 7 bytes: enc_pid 0 1 2 2 2 3 3, dec_pid 0 1 1 1 2 2 3."""
    small = model(WORKED)
    (out,) = small(x=[torch.zeros(7)], f=[flags(1, 1, 0, 0, 1, 0, 1)])
    assert (out % 100).tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert ((out / 100).floor()).tolist() == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("by", ["max", "mean", "sum", "first", "last"])
@pytest.mark.parametrize("which", ["own", "before", "closed"])
@pytest.mark.parametrize("at_most", [None, 1, 3])
def test_pool_and_spread_row_by_row(by: str, which: str, at_most: int | None) -> None:
    small = model(READ.format(by=by, which=which, at_most="" if at_most is None else f", at most {at_most}"))
    xs, fs = examples(0, (3,))
    for got, x, f in zip(small(x=xs, f=fs), xs, fs, strict=True):
        ends = capped(f, at_most)
        number = torch.tensor(numbers_of(ends))
        for t in range(len(x)):
            wanted = {"own": int(number[t]), "before": int(number[t]) - 1, "closed": int(ends[: t + 1].sum()) - 1}
            read = wanted[which]
            want = POOLED[by](x[number == read]) if read >= 0 else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(got[t], want)


@pytest.mark.parametrize("by", ["max", "mean", "sum", "first", "last"])
def test_runs_of_an_id_with_gaps(by: str) -> None:
    small = model(GAPS.format(by=by))
    x = torch.randn(8, 3, dtype=torch.float64)
    i = torch.tensor([4, 1, 1, 4, 4, 2, 1, 1])
    (got,) = small(x=[x], i=[i])
    runs = [[1, 2], [5], [6, 7]]
    index = [0, 0, 0, 1, 1, 1, 2, 2]
    for t in range(8):
        run = next((run for run in runs if t in run), None)
        want = torch.full((3,), 1000.0 * index[t], dtype=torch.float64)
        if run is not None:
            rows = x[run]
            want = want + POOLED[by](rows) + 10 * torch.softmax(rows @ x[t] * 3**-0.5, 0) @ rows
        torch.testing.assert_close(got[t], want)


def test_no_segments_at_all() -> None:
    """Every row in a gap."""
    small = model(GAPS.format(by="max"))
    (got,) = small(x=[torch.ones(3, 3, dtype=torch.float64)], i=[torch.full((3,), 4)])
    assert not got.any()


def test_masks_over_segments() -> None:
    small = model(MASKS)
    xs, fs = examples(1, (2, 4))
    for got, x, f in zip(small(x=xs, f=fs), xs, fs, strict=True):
        torch.testing.assert_close(got, masks_by_hand(x, f))


def masks_by_hand(x: Tensor, f: Tensor) -> Tensor:
    number = torch.tensor(numbers_of(f))
    closed = torch.cumsum(f, 0) - 1
    t, j = torch.arange(len(x)), torch.arange(int(number[-1]) + 1)
    p = torch.stack([x[number == k].max(0).values for k in j])
    p = p + attention(p, x, j[:, None] == number)
    p = p + attention(p, p, j[:, None] >= j)
    y = attention(x, p, (j <= closed[:, None]) & (j > closed[:, None] - 2))
    causal, same = t <= t[:, None], number == number[:, None]
    z, w, u = (attention(x, x, seen) for seen in (causal & same, causal | same, same & (t < 5)[:, None]))
    return x + y + 2 * z + 3 * w + 4 * u


def attention(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1).nan_to_num()
    return torch.einsum("hqk,khd->qhd", weights, k)


def test_packed_examples_equal_each_alone() -> None:
    small = model(MASKS)
    xs, fs = examples(2, (2, 4))
    together = small(x=xs, f=fs)
    for got, x, f in zip(together, xs, fs, strict=True):
        torch.testing.assert_close(got, small(x=[x], f=[f])[0])


def test_segments_of_segments() -> None:
    spec = READ.format(by="sum", which="own", at_most="").replace(
        "return spread(p,", NESTED + "    return spread(p + c,"
    )
    small = model(spec.replace("axis patch", "axis chapter cut from patch\naxis patch"))
    xs, fs = examples(6, (3,))
    for got, x, f in zip(small(x=xs, f=fs), xs, fs, strict=True):
        number = torch.tensor(numbers_of(f))
        p = torch.stack([x[number == j].sum(0) for j in range(int(number[-1]) + 1)])
        chapter = torch.tensor(numbers_of(capped(p.sum(1) > 1, 2)))
        c = torch.stack([p[chapter == j].max(0).values for j in range(int(chapter[-1]) + 1)])
        torch.testing.assert_close(got, (p + c[chapter])[number])


NESTED = """segment patch into chapter ends where sum(p, over=dim) > 1, at most 2
    c = spread(pool(p, patch -> chapter, by=max), chapter -> patch)
"""


def test_an_output_along_a_cut() -> None:
    spec = READ.format(by="sum", which="own", at_most="").replace("spread(p, patch -> seq, own)", "p")
    small = model(spec.replace("-> real[seq, dim]", "-> real[patch, dim]"))
    xs, fs = examples(3, (3,))
    for got, x, f in zip(small(x=xs, f=fs), xs, fs, strict=True):
        number = torch.tensor(numbers_of(f))
        torch.testing.assert_close(got, torch.stack([x[number == j].sum(0) for j in range(int(number[-1]) + 1)]))


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_functions_take_no_rows_and_empty_segments(rows: int) -> None:
    ends, example = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int64)
    first = cuts.first_rows(ends, None, example)
    assert len(cuts.begins(first)) == min(rows, 1)
    assert cuts.capped(ends, example, 2).sum() == rows // 2
    assert cuts.cut_offsets(first, torch.tensor([0, 0, rows])).tolist() == [0, 0, min(rows, 1)]
    x = torch.randn(rows, 2, dtype=torch.float64, requires_grad=True)
    # A segment without rows, in front of one with all of them.
    number, bounds = torch.ones(rows, dtype=torch.int64), torch.tensor([0, 0, rows])
    for function in (segments.max_rows, segments.mean_rows, segments.sum_rows):
        pooled = function(x, number, bounds)
        assert pooled[0].tolist() == [0, 0]
        (gradient,) = torch.autograd.grad(pooled.sum(), x)
        assert gradient.isfinite().all()


# -- gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["max", "mean", "sum", "first", "last"])
def test_gradients_of_pools(by: str) -> None:
    small = model(READ.format(by=by, which="closed", at_most=""))
    xs, fs = examples(4, (3,))
    offsets = torch.tensor([0, *torch.cumsum(torch.tensor([len(x) for x in xs]), 0).tolist()], dtype=torch.int32)
    x = torch.cat(xs).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: small(x=(x, offsets), f=(torch.cat(fs), offsets)).values, (x,))


def test_ties_share_the_gradient_of_a_maximum() -> None:
    small = model(READ.format(by="max", which="own", at_most=""))
    x = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    small(x=[x], f=[flags(0, 0, 1)])[0][0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0.5, 1 / 3], [0.5, 0, 1 / 3], [0, 0.5, 1 / 3]]


# -- inputs with a default -------------------------------------------------------------------------

OPTIONAL = """
size dim = 2
axis seq
axis patch cut from seq
model inner(x: real[seq, dim]) -> real[seq, dim]:
    input score: real[seq] = sum(x, over=dim)
    input ends: flag[seq] = score > 0
    segment seq into patch ends where ends
    return spread(pool(x, seq -> patch, by=last), patch -> seq, closed) + score
objective o(x: real[seq, dim]):
    y = inner({call})
    loss size = mean(y^2, over=dim)
"""


def test_an_optional_input_replaces_its_default() -> None:
    small = model(OPTIONAL.format(call="x"))
    x = torch.randn(6, 2, dtype=torch.float64)
    ends = x.sum(1) > 0
    (own,) = small([x])
    torch.testing.assert_close(small([x], ends=[ends])[0], own)
    torch.testing.assert_close(small([x], ends=[ends], score=[x.sum(1)])[0], own)
    (other,) = small([x], score=[x.sum(1) + 1])
    closed = torch.cumsum(x.sum(1) + 1 > 0, 0) - 1
    rows = (x.sum(1) + 1 > 0).nonzero()[:, 0]
    want = torch.stack([x[rows[j]] if j >= 0 else torch.zeros(2, dtype=torch.float64) for j in closed.tolist()])
    torch.testing.assert_close(other, want + (x.sum(1) + 1)[:, None])


def test_an_objective_takes_the_optional_inputs_of_the_model_it_calls() -> None:
    small = model(OPTIONAL.format(call="x"))
    x = torch.randn(6, 2, dtype=torch.float64)
    ends = flags(0, 1, 0, 0, 1, 0)
    got, _ = small.loss("o", [x], ends=[ends])["size"]
    torch.testing.assert_close(got, (small([x], ends=[ends])[0] ** 2).mean(1).sum())


def test_an_optional_input_is_an_argument_of_a_call() -> None:
    small = model(OPTIONAL.format(call="x, ends=position(seq) < 2"))
    x = torch.randn(6, 2, dtype=torch.float64)
    got, _ = small.loss("o", [x])["size"]
    torch.testing.assert_close(got, (small([x], ends=[flags(1, 1, 0, 0, 0, 0)])[0] ** 2).mean(1).sum())
    with pytest.raises(InputFault, match="no input ends"):
        small.loss("o", [x], ends=[flags(1, 1, 0, 0, 0, 0)])


def test_two_calls_of_a_model_cut_twice() -> None:
    """Segments belong to the call: a second call with another input has others."""
    two = OPTIONAL.format(call="x").replace("y = inner(x)", "y = inner(x) + 2 * inner(x * -1)")
    small = model(two)
    x = torch.randn(6, 2, dtype=torch.float64)
    got, _ = small.loss("o", [x])["size"]
    torch.testing.assert_close(got, ((small([x])[0] + 2 * small([-x])[0]) ** 2).mean(1).sum())


# -- causality -------------------------------------------------------------------------------------

CLAIM = """
size dim = 4
size vocab = 5
axis seq
axis patch cut from seq
model m(ids: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(ids, vocab -> dim)
    score = sum(x, over=dim)
    {ends}
    p = pool(x, seq -> patch, by={by})
    y = {read}
    return linear(x + y, dim -> vocab)
objective o(ids: id[seq] in vocab):
    loss text = cross_entropy(m(ids), next(ids))
"""
CUT = "segment seq into patch ends where score > 0"
CAUSAL = {
    "spread closed": (CUT, "max", "spread(p, patch -> seq, closed)"),
    "spread before": (CUT, "max", "spread(p, patch -> seq, before)"),
    "flags of the row before": (
        "segment seq into patch ends where previous(score) > 0", "max", "spread(p, patch -> seq, closed)"
    ),
    "the first row of my own patch": (CUT, "first", "spread(p, patch -> seq, own)"),
    "the patch before mine, as seen from mine": (CUT, "max", "spread(previous(p), patch -> seq, own)"),
    "near closed patches": (CUT, "max", "attend(x, p, p, over=dim, along=patch, mask=near(patch, 3))"),
    "my patch, up to me": (CUT, "max", "attend(x, x, x, over=dim, along=seq, mask=causal and same(patch))"),
}  # fmt: skip
LEAKS = {
    "spread own": (CUT, "max", "spread(p, patch -> seq, own)"),
    "flags of the row after": (
        "segment seq into patch ends where or(next(score), 0) > 0", "max", "spread(p, patch -> seq, closed)"
    ),
    "past the last closed patch": (
        CUT, "max", "attend(x, p, p, over=dim, along=patch, mask=key(index(patch)) <= query(index(patch)))"
    ),
    "the next patch": (CUT, "max", "spread(or(next(p), 0), patch -> seq, closed)"),
    "all of my patch": (CUT, "max", "attend(x, x, x, over=dim, along=seq, mask=same(patch))"),
    "runs of what is predicted": ("segment seq into patch by ids", "max", "spread(p, patch -> seq, closed)"),
}  # fmt: skip


def problems(ends: str, by: str, read: str) -> list[str]:
    result = check(Source("m.weft", CLAIM.format(ends=ends, by=by, read=read)), OPS)
    return [error.code for error in result.problems.errors]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_over_segments_check(name: str) -> None:
    assert problems(*CAUSAL[name]) == []


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_through_segments_are_refused(name: str) -> None:
    assert problems(*LEAKS[name]) == ["E401"]


def test_a_leak_names_its_path() -> None:
    result = check(Source("m.weft", CLAIM.format(ends=CUT, by="max", read="spread(p, patch -> seq, own)")), OPS)
    (error,) = result.problems.errors
    told = render(error.describe(), color=False)
    assert "p sees C (patch) here" in told
    assert "y sees end(patch) here" in told


def test_spread_before_is_another_model_than_spread_closed() -> None:
    xs, fs = examples(5, (3,))
    before, closed = (model(READ.format(by="max", which=w, at_most=""))(x=xs, f=fs) for w in ("before", "closed"))
    assert not torch.equal(before[0], closed[0])


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_see_no_later_row(name: str) -> None:
    """The claim itself: the future of a text changes nothing before it."""
    small = model(CLAIM.format(ends=CAUSAL[name][0], by=CAUSAL[name][1], read=CAUSAL[name][2]))
    ids = torch.randint(5, (12,), generator=torch.Generator().manual_seed(0))
    (whole,) = small([ids])
    for t in (1, 4, 9):
        torch.testing.assert_close(small([ids[:t]])[0], whole[:t])
