"""Reference attention against its definition, written out with loops."""

from __future__ import annotations

import math

import pytest
import torch

from weft.codegen.functions.attention import attend_packed, attend_static

CAUSAL = ("<=", ("key", "position"), ("query", "position"))


def offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def by_definition(q, k, v, q_offsets, k_offsets, scale, allow, bias=None):
    """One query and one head at a time."""
    result = torch.zeros(len(q), q.shape[1], v.shape[-1], dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for example in range(len(q_offsets) - 1):
        queries = range(int(q_offsets[example]), int(q_offsets[example + 1]))
        keys = range(int(k_offsets[example]), int(k_offsets[example + 1]))
        for row in queries:
            seen = [r for r in keys if allow(row - queries.start, r - keys.start, row, r)]
            for head in range(q.shape[1]):
                scores = [float(scale * q[row, head] @ k[r, head // group]) for r in seen]
                if bias is not None:
                    scores = [
                        s + float(bias[r, min(head, bias.shape[1] - 1)]) for s, r in zip(scores, seen, strict=True)
                    ]
                total = sum(math.exp(s) for s in scores)
                for s, r in zip(scores, seen, strict=True):
                    result[row, head] += math.exp(s) / total * v[r, head // group]
    return result


def tensors(rows: int, keys: int, heads: int, key_heads: int):
    generator = torch.Generator().manual_seed(0)

    def make(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return make(rows, heads, 3), make(keys, key_heads, 3), make(keys, key_heads, 2)


CASES = {
    "all keys": ({}, lambda i, j, row, r: True),
    "causal": ({"high": 0}, lambda i, j, row, r: j <= i),
    "strictly before": ({"high": -1}, lambda i, j, row, r: j < i),
    "window": ({"low": -1, "high": 1}, lambda i, j, row, r: abs(i - j) < 2),
    "ahead": ({"low": 2}, lambda i, j, row, r: j >= i + 2),
    "predicate": ({"predicate": CAUSAL}, lambda i, j, row, r: j <= i),
    "both": (
        {"predicate": ("or", CAUSAL, ("not", ("<", ("key", "position"), ("number", 3)))), "low": -2},
        lambda i, j, row, r: (j <= i or j >= 3) and j - i >= -2,
    ),
    "arithmetic": (
        {
            "predicate": (
                "==",
                ("abs", ("-", ("query", "position"), ("*", ("number", 2), ("key", "position")))),
                ("number", 1),
            )
        },
        lambda i, j, row, r: abs(i - 2 * j) == 1,
    ),
}


@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("case", CASES)
def test_masks(case: str, heads: tuple[int, int]) -> None:
    given, allow = CASES[case]
    q_offsets, k_offsets = offsets(0, 4, 1, 5, 0), offsets(2, 4, 0, 3, 0)
    q, k, v = tensors(10, 9, *heads)
    found = attend_packed(q, k, v, q_offsets, k_offsets, 0.7, **given)
    torch.testing.assert_close(found, by_definition(q, k, v, q_offsets, k_offsets, 0.7, allow), rtol=1e-12, atol=1e-12)


CAPTURED = ("==", ("query", torch.tensor([0, 1, 0, 1, 1, 1, 0])), ("key", torch.tensor([3, 0, 1, 1, 1, 0, 0])))


@pytest.mark.parametrize("given", [{"low": -1, "high": 0}, {"predicate": CAPTURED}, {"q_position": torch.arange(7)}])
def test_one_graph_computes_the_same(given: dict) -> None:
    """Compiled whole and exported, for other examples than those it was traced with; gradients too."""
    at, other = offsets(4, 0, 3), offsets(1, 5, 1)
    leaves = [x.requires_grad_() for x in (*tensors(7, 7, 4, 2), torch.randn(7, 1, dtype=torch.float64))]

    def attended(*operands: torch.Tensor) -> torch.Tensor:
        q, k, v, bias, at = operands
        return attend_packed(q, k, v, at, at, 0.7, bias=bias, **given)

    whole = torch.compile(attended, fullgraph=True, backend="aot_eager")
    whole(*leaves, at)
    got, want = whole(*leaves, other), attended(*leaves, other)
    torch.testing.assert_close(got, want)
    slope = torch.randn_like(want)
    for one, two in zip(*(torch.autograd.grad(y, leaves, slope) for y in (got, want)), strict=True):
        torch.testing.assert_close(one, two)

    class Attended(torch.nn.Module):
        def forward(self, q, k, v, bias, at):
            return attended(q, k, v, bias, at)

    exported = torch.export.export(Attended(), (*leaves, at)).module()
    torch.testing.assert_close(exported(*leaves, other), want)


def test_captured_values_are_read_at_their_own_rows() -> None:
    at = offsets(4, 3)
    q, k, v = tensors(7, 7, 2, 2)
    ids = torch.tensor([0, 1, 0, 1, 1, 1, 0])
    other = torch.tensor([3, 0, 1, 1, 1, 0, 0])
    found = attend_packed(q, k, v, at, at, 1.0, predicate=("==", ("query", ids), ("key", other)))
    expected = by_definition(q, k, v, at, at, 1.0, lambda i, j, row, r: ids[row] == other[r])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("columns", [1, 4])
def test_bias_is_added_per_key(columns: int) -> None:
    at = offsets(3, 0, 4)
    q, k, v = tensors(7, 7, 4, 2)
    bias = torch.randn(7, columns, dtype=torch.float64)
    found = attend_packed(q, k, v, at, at, 1.0, high=0, bias=bias)
    expected = by_definition(q, k, v, at, at, 1.0, lambda i, j, row, r: j <= i, bias)
    torch.testing.assert_close(found, expected)


def test_positions_may_be_given() -> None:
    """As in decoding: the queries are the last rows of their examples."""
    q, k, v = tensors(7, 7, 2, 2)
    at, last = offsets(4, 3), torch.tensor([3, 6])
    whole = attend_packed(q, k, v, at, at, 1.0, high=0)
    step = attend_packed(q[last], k, v, offsets(1, 1), at, 1.0, high=0, q_position=torch.tensor([3, 2]))
    torch.testing.assert_close(step, whole[last])


def test_rows_without_keys_give_nothing_and_take_no_gradient() -> None:
    q, k, v = tensors(6, 4, 2, 2)
    q_offsets, k_offsets = offsets(2, 4), offsets(0, 4)
    leaves = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
    result = attend_packed(*leaves, q_offsets, k_offsets, 1.0, high=-2)
    assert (result[:4] == 0).all()
    result.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert q.grad is not None
    assert (q.grad[:4] == 0).all()


def test_gradients() -> None:
    q, k, v = tensors(5, 5, 4, 2)
    bias = torch.randn(5, 1, dtype=torch.float64, requires_grad=True)
    at = offsets(3, 0, 2)
    leaves = (*(x.requires_grad_() for x in (q, k, v)), bias)
    assert torch.autograd.gradcheck(
        lambda q, k, v, b: attend_packed(q, k, v, at, at, 0.5, low=-1, high=0, bias=b), leaves
    )


def test_many_queries_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.codegen.functions import attention

    q, k, v = tensors(9, 9, 2, 2)
    at = offsets(6, 3)
    whole = attend_packed(q, k, v, at, at, 1.0, high=0)
    monkeypatch.setattr(attention, "_SCORES", 25)
    torch.testing.assert_close(attend_packed(q, k, v, at, at, 1.0, high=0), whole)


def test_scores_of_low_precision_are_computed_wide() -> None:
    q, k, v = (x.to(torch.bfloat16) for x in tensors(8, 8, 2, 2))
    at = offsets(8)
    exact = attend_packed(q.double(), k.double(), v.double(), at, at, 1.0, high=0)
    found = attend_packed(q, k, v, at, at, 1.0, high=0)
    assert found.dtype == torch.bfloat16
    # One rounding of the result: half a unit in the last of 8 bits.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_static_axis_is_a_row_of_keys() -> None:
    """Each row's slots as one packed example."""
    rows, queries, keys = 3, 4, 5
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(rows, queries, 4, 3, generator=generator, dtype=torch.float64)
    k = torch.randn(rows, keys, 2, 3, generator=generator, dtype=torch.float64)
    v = torch.randn(rows, keys, 2, 6, generator=generator, dtype=torch.float64)
    found = attend_static(q, k, v, 0.3, high=1)
    packed = attend_packed(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        offsets(*[queries] * rows),
        offsets(*[keys] * rows),
        0.3,
        high=1,
    )
    torch.testing.assert_close(found.flatten(0, 1), packed)
