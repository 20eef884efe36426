"""Few keys, segments and gradients of weights on a CPU, against the reference functions in float64: values and every
gradient."""

import pytest
import torch

from tests.test_cpu_functions import DTYPES, TOLERANCE, assert_close, compare
from weft.codegen.cpu import segments
from weft.codegen.cpu.attention import packed_attention, plan_documents
from weft.codegen.cpu.few_keys import few_keys_attention, own_rows_attention
from weft.codegen.cpu.linear import weight_gradient
from weft.codegen.functions import attention, cuts

# The segment of each row: rows of none first, between and last; segments that no row reads.
NUMBERS = {
    "all": [0, 0, 0, 1, 2, 2],
    "gaps": [-1, 0, 0, -1, 2, 2, 2, 5, -1, -1],
    "nobody": [-1, -1],
    "many": sorted([*range(20)] * 3),
    "no rows": [],
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("segment_count", [0, 6, 20])
@pytest.mark.parametrize("name", NUMBERS)
def test_spread(name, segment_count, dtype):
    number = torch.tensor(NUMBERS[name], dtype=torch.int64)
    if len(number) and number.max() >= segment_count:
        number = number.clamp(max=-1) if not segment_count else number.clamp(max=segment_count - 1)
    p = torch.randn(segment_count, 2, 3, dtype=torch.float64)
    compare(lambda p: segments.spread(p, number), lambda p: cuts.spread(p, number), [p], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value_width", [4, 7])
@pytest.mark.parametrize("keys", [1, 2, 5])
@pytest.mark.parametrize("name", [None, "gaps", "many"])
def test_few_keys(name, keys, value_width, dtype):
    number = None if name is None else torch.tensor(NUMBERS[name] * (1 if name == "many" else 4)).sort().values
    rows = 40 if number is None else len(number)
    key_rows = rows if number is None else 20
    q = torch.randn(rows, 1, 3, 4, dtype=torch.float64)
    k = torch.randn(key_rows, keys, 3, 4, dtype=torch.float64)
    v = torch.randn(key_rows, keys, 3, value_width, dtype=torch.float64)

    def formula(q, k, v):
        read = (k, v) if number is None else (cuts.spread(k, number), cuts.spread(v, number))
        return attention.attend_static(q, *read, 0.7)

    compare(lambda q, k, v: few_keys_attention(q, k, v, 0.7, number), formula, [q, k, v], dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [[1], [3, 1, 4, 1, 5], [0, 2, 0, 7, 0], [0, 0], []], ids=str)
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_rows_of_a_segment(lengths, groups, dtype):
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rows = int(bounds[-1])
    inputs = [torch.randn(len(lengths), 6, 4), torch.randn(rows, groups, 4), torch.randn(rows, groups, 4)]
    inputs = [x.double() for x in inputs]
    plan = plan_documents(range(len(lengths) + 1), bounds, causal=False)
    formula = lambda q, k, v: packed_attention(q, k, v, plan, 0.7) + 0 * (q.sum() + k.sum() + v.sum())  # noqa: E731
    compare(lambda q, k, v: own_rows_attention(q, k, v, bounds, 0.7), formula, inputs, dtype)


def test_large_scores_of_rows():
    """The largest score of a segment is taken off before its exponential."""
    q, k = torch.full((2, 1, 1), 100.0), torch.tensor([50.0, 40.0, -50.0])[:, None, None]
    got = own_rows_attention(q, k, k, torch.tensor([0, 2, 3], dtype=torch.int32), 1.0)
    assert got.flatten().tolist() == [50.0, -50.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 5, 300])
@pytest.mark.parametrize("added", [False, True])
def test_gradient_of_a_weight(rows, added, dtype):
    dy, x = torch.randn(rows, 7).to(dtype), torch.randn(rows, 3).to(dtype)
    total = torch.randn(7, 3, dtype=torch.promote_types(dtype, torch.float32)) if added else None
    want = dy.double().T @ x.double() + (0 if total is None else total.double())
    got = weight_gradient(dy, x, total)
    assert total is None or got is total
    assert_close("gradient", got, want, TOLERANCE[dtype])
