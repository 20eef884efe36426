"""How evenly tables are read (memory_layers.md 7.5, check 10)."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.small_models import checked
from weft.runtime.model import Model
from weft.runtime.table_usage import Reads, distance_to_uniform, uniform_floor, usage


@pytest.mark.parametrize(
    ("share", "floor", "used"),
    [(1 / 16, 2.81, None), (1 / 4, 1.55, None), (1, 0.57, 0.633), (4, 0.133, 0.982), (16, 0.032, None)],
    ids=str,
)
def test_floors_of_even_reads(share: float, floor: float, used: float | None) -> None:
    """The sheet's table, by formula and by drawing."""
    entries = 1 << 16
    reads = int(share * entries)
    assert uniform_floor(reads, entries) == pytest.approx(floor, abs=0.006)
    drawn = torch.randint(entries, (reads,), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=entries)
    found = usage(Reads(counts, counts.double()))
    assert found.kl == pytest.approx(found.floor, abs=0.01)
    assert found.reads == reads
    if used is not None:
        assert found.used == pytest.approx(used, abs=0.003)


def test_floor_is_smooth() -> None:
    assert uniform_floor(51_000, 1000) == pytest.approx(uniform_floor(49_900, 1000), rel=0.05)
    assert uniform_floor(0, 1000) == 0.0


def test_a_point_mass() -> None:
    counts = torch.zeros(1000, dtype=torch.int64)
    counts[7] = 50
    found = usage(Reads(counts, counts * 0.5))
    assert found.kl == pytest.approx(math.log(1000))
    assert found.kl_weights == pytest.approx(math.log(1000))
    assert (found.used, found.top) == (0.001, (1, 1, 1))


def test_top_rows() -> None:
    counts = torch.tensor([50, 0, 40, 9, 1])
    assert usage(Reads(counts, counts.double())).top == (1, 2, 3)
    nothing = usage(Reads(counts * 0, counts.double() * 0))
    assert (nothing.reads, nothing.kl, nothing.top) == (0, 0.0, (0, 0, 0))
    assert distance_to_uniform(torch.ones(9)) == pytest.approx(0.0, abs=1e-12)


TABLES = """
size dim = 4
size entries = 9
size heads = 2
size top = 3
axis seq
shared table: real[entries, dim] = normal(1.0)

block look(x: real[seq, dim]) -> real[seq, dim]:
    s = linear(x, dim -> (heads, entries))
    found = topk(s, over=entries, k=top)
    return bag(table, found.index, weight=sum(found.score, over=heads), over=(heads, top))

model m(x: real[seq, dim]) -> real[seq, dim]:
    x = x + look(x) as first
    return x + look(x) as second

objective o(x: real[seq, dim]):
    loss square = sum(m(x)^2, over=dim)
"""


def test_reads_of_all_readers_are_counted() -> None:
    model = Model(checked(TABLES), torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    sums, reads = model.loss_and_reads(None, (x, offsets))
    assert set(reads) == {"table"}
    assert int(reads["table"].counts.sum()) == 2 * 5 * 2 * 3
    (one,), (other,) = sums.values(), model.loss(None, (x, offsets)).values()
    assert torch.equal(one[0], other[0])
    weights = {path: weight.detach() for path, weight in model.by_path()}
    counts, summed = torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.float64)
    for call in ("first", "second"):
        found = (x @ weights[f"{call}.s.linear.weight"].reshape(18, 4).T).reshape(5, 2, 9).topk(3, -1)
        # The weight has no heads: each of them reads with the sum over both.
        weight = found.values.sum(1, keepdim=True).expand(5, 2, 3)
        counts += torch.bincount(found.indices.flatten(), minlength=9)
        summed.index_add_(0, found.indices.flatten(), weight.flatten().abs())  # a weight may be negative, as PEER's
        x = x + (weights["table"][found.indices] * weight[..., None]).sum((1, 2))
    assert torch.equal(reads["table"].counts, counts)
    torch.testing.assert_close(reads["table"].weights, summed)
    assert json.dumps(usage(reads["table"]).to_json(), allow_nan=False)
