"""Masks that ids tell of, `causal or same(picture)` above all: as intervals, on a CPU in pieces, against dense ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.small_models import model
from weft.codegen.cpu.masked_attention import plan_mask
from weft.codegen.functions.attention import attend_packed
from weft.codegen.functions.masks import Rows, allowed
from weft.codegen.gpu.mask_intervals import Sides, hull, seen_by_mask
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, REFERENCE_PASSES, Pass

NONE = 9  # the id that is none

CAUSAL = ("<=", ("key", "position"), ("query", "position"))


def same(ids: Tensor, none: int | None = NONE) -> tuple:
    equal = ("==", ("query", ids), ("key", ids))
    if none is None:
        return equal
    return ("and", ("and", equal, ("!=", ("query", ids), ("number", none))), ("!=", ("key", ids), ("number", none)))


def documents(seed: int, lengths: tuple[int, ...], pictures: int = 8) -> Tensor:
    """Ids of pictures in every document: runs of text and of pictures, some of which touch."""
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = []
    for length in lengths:
        ids, number = [], 0
        while len(ids) < length:
            run = int(torch.randint(1, max(2, length // 2), (), generator=generator))
            is_picture = bool(torch.rand((), generator=generator) < 0.6) and number < pictures
            ids += [number if is_picture else NONE] * run
            number += is_picture
        found += ids[:length]
    return torch.tensor(found)


def dense(predicate: tuple, offsets: Tensor) -> Tensor:
    """The mask of all pairs, pair by pair from the definition."""
    rows = int(offsets[-1])
    flags = torch.zeros(rows, rows, dtype=torch.bool)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        side = Rows(torch.arange(end - begin), begin, end)
        flags[begin:end, begin:end] = allowed(predicate, side, side)
    return flags


def offsets_of(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


LENGTHS = ((7, 0, 12, 1, 3), (150, 90, 200), (1,), (64, 64))


def masks(ids: Tensor, docs: Tensor) -> dict[str, tuple]:
    near = ("<", ("abs", ("-", ("query", "position"), ("key", "position"))), ("number", 5))
    return {
        "causal or same": ("or", CAUSAL, same(ids)),
        "same or causal": ("or", same(ids), CAUSAL),
        "same": same(docs, None),
        "causal and same": ("and", CAUSAL, same(docs, None)),
        "hybrid in documents": ("and", ("or", CAUSAL, same(ids)), same(docs, None)),
        "window or same": ("or", ("and", CAUSAL, near), same(ids)),
        "strictly before, or same": ("or", ("<", ("key", "position"), ("query", "position")), same(ids, None)),
    }


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", masks(torch.zeros(1), torch.zeros(1)))
def test_intervals_are_the_dense_mask(name: str, lengths: tuple[int, ...]) -> None:
    offsets = offsets_of(lengths)
    rows = int(offsets[-1])
    docs = torch.arange(rows) // 5
    predicate = masks(documents(1, lengths), docs)[name]
    found = hull(predicate, Sides(offsets, offsets, rows, rows))
    expected, at = dense(predicate, offsets), torch.arange(rows)
    assert found.is_exact
    assert all(found.conditions)
    for side, flags in ((found.intervals.queries, expected), (found.intervals.keys, expected.T)):
        inside = (at >= side.low[:, None]) & (at < side.high[:, None])
        assert torch.equal(inside, flags)


def test_pictures_that_touch_stay_apart() -> None:
    ids, offsets = torch.tensor([NONE, 0, 0, 1, 1, NONE]), offsets_of((6,))
    found = hull(("or", CAUSAL, same(ids)), Sides(offsets, offsets, 6, 6)).intervals
    assert found.queries.high.tolist() == [1, 3, 3, 5, 5, 6]
    assert found.keys.low.tolist() == [0, 1, 1, 3, 3, 5]


@pytest.mark.parametrize("seed", range(6))
def test_ids_in_any_order_are_within_their_intervals(seed: int) -> None:
    """They are no intervals, which is noticed; tiles that a kernel skips hold nothing that is seen."""
    generator = torch.Generator().manual_seed(seed)
    lengths = (11, 3, 8)
    offsets = offsets_of(lengths)
    ids = torch.randint(4, (22,), generator=generator)
    predicate = ("or", CAUSAL, same(ids, 3))
    found = hull(predicate, Sides(offsets, offsets, 22, 22))
    assert not all(found.conditions)
    assert plan_mask(offsets, predicate) is None
    rows = torch.zeros(22)
    seen = seen_by_mask(offsets, offsets, rows, rows, predicate)
    expected, at = dense(predicate, offsets), torch.arange(22)
    for side, flags in ((seen.queries, expected), (seen.keys, expected.T)):
        inside = (at >= side.low[:, None]) & (at < side.high[:, None])
        assert not (flags & ~inside).any()


TEXT = """
size dim = 8
size heads = 4
size kv_heads = 2
size pictures = 9
axis seq
axis head_dim = dim / heads
model m(x: real[seq, dim], picture: id[seq] in pictures or none, doc: id[seq] in pictures) -> real[seq, dim]:
    q = linear(x, dim -> (heads, head_dim))
    k = linear(x, dim -> (kv_heads, head_dim))
    y = attend(q, k, k, over=head_dim, along=seq, group=heads -> kv_heads, mask={mask})
    return linear(y, (heads, head_dim) -> dim)
init ** = normal(0.5)
"""
WRITTEN = (
    "causal or same(picture)",
    "(causal or same(picture)) and same(doc)",
    "causal and window(7) or same(picture)",
    "causal and same(doc)",
    "same(picture)",
)


# Kernels run in the interpreter, which is slow.
RUNS = [(CPU_PASSES, lengths) for lengths in LENGTHS] + [(GPU_PASSES, (9, 1, 13))]


@pytest.mark.parametrize("mask", WRITTEN)
@pytest.mark.parametrize(("passes", "lengths"), RUNS, ids=["cpu"] * len(LENGTHS) + ["gpu passes"])
def test_models_agree_with_the_reference(mask: str, lengths: tuple[int, ...], passes: tuple[Pass, ...]) -> None:
    lengths = tuple(length for length in lengths if length)
    ids = documents(3, lengths)
    generator = torch.Generator().manual_seed(0)
    given = {
        "x": list(torch.randn(sum(lengths), 8, dtype=torch.float64, generator=generator).split(list(lengths))),
        "picture": list(ids.split(list(lengths))),
        "doc": [torch.arange(n) * 3 // n for n in lengths],
    }
    results = []
    for chosen in (REFERENCE_PASSES, passes):
        built = model(TEXT.format(mask=mask), passes=chosen)
        x = [row.clone().requires_grad_() for row in given["x"]]
        found = torch.cat(built(x, given["picture"], given["doc"]))
        found.sin().sum().backward()
        results.append([found, *(row.grad for row in x), *(weight.grad for _, weight in built.by_path())])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_picture_costs_no_pairs_it_does_not_see() -> None:
    """Pieces hold the pairs of rows that are seen, and few others."""
    ids = torch.cat([torch.full((100,), NONE), torch.full((256,), 0), torch.full((60,), NONE), torch.full((256,), 1)])
    offsets = offsets_of((672,))
    predicate = ("or", CAUSAL, same(ids))
    plan = plan_mask(offsets, predicate)
    assert plan is not None
    seen = int(dense(predicate, offsets).sum())
    assert sum(p.queries * p.keys for p in plan.pieces) < 1.1 * seen
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(672, 2, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    from weft.codegen.cpu.masked_attention import masked_attention

    torch.testing.assert_close(
        masked_attention(q, k, v, plan, offsets, 0.5, predicate),
        attend_packed(q, k, v, offsets, offsets, 0.5, predicate=predicate),
    )
