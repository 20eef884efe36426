"""A few of many scores on a CPU as operators of torch: registered, with shapes, gradients that torch can trace."""

from __future__ import annotations

import torch

from weft.codegen.cpu import few_scores


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_operators() -> None:
    x, keys = draw(5, 2, 4).requires_grad_(), draw(2, 7, 4).requires_grad_()
    torch.library.opcheck(few_scores._top, (x, keys, 3, 0.5))
    x, keys = draw(5, 3, 2, 4).requires_grad_(), draw(3, 2, 7, 4).requires_grad_()
    torch.library.opcheck(few_scores._pairs, (x, keys, 3, 0.5))


def test_narrow_operands_give_wide_scores() -> None:
    x, keys = draw(5, 2, 4).bfloat16(), draw(2, 7, 4).bfloat16()
    torch.library.opcheck(few_scores._top, (x, keys, 3, 1.0))
    assert few_scores.top(x, keys, 3, 1.0)[0].dtype == torch.float32


def test_operators_of_gradients() -> None:
    lists, numbers = torch.tensor([[0, 3, 3], [6, 1, 0]]), draw(2, 3)
    torch.library.opcheck(few_scores._gradient_of_x, (draw(7, 4), lists, numbers))
    torch.library.opcheck(few_scores._gradient_of_keys, (lists, numbers, draw(2, 4), 7))


def test_a_graph_holds_them_whole() -> None:
    """Both ways through one graph: shapes and gradients as without it."""

    def run(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        return few_scores.top(x, keys, 3, 0.5)[0].sin().sum() + few_scores.top_pairs(x, keys[None], 4, 2.0)[0].sum()

    x, keys = draw(5, 2, 4).requires_grad_(), draw(2, 7, 4).requires_grad_()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, keys), (x, keys))
    for one, other in zip(found, torch.autograd.grad(run(x, keys), (x, keys)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
