"""Group norms on a CPU: found in the graph whatever their shape, and equal to the formula, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.small_models import model
from weft.codegen.cpu.group_norm import group_norm
from weft.codegen.functions import selections
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES

SPEC = """
size width = 12
axis picture
axis cell = grid(3, 4)
model m(x: real[picture, cell, width]) -> real[picture, cell, width]:
    {body}
init ** = normal(1)
"""
BODIES = {
    "alone": "return group_norm(x, cell, 3)",
    "one group": "return group_norm(x, cell, 1, eps=0.1)",
    "with an activation": "return x + silu(group_norm(x, cell, 4))",
}


def _both(body: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    x = torch.randn(5, 12, 12, dtype=dtype, generator=torch.Generator().manual_seed(1))
    found = []
    for passes in (REFERENCE_PASSES, CPU_PASSES):
        subject = model(SPEC.format(body=body), dtype=dtype, passes=passes)
        given = x.clone().requires_grad_()
        result = subject((given, torch.tensor([0, 2, 5], dtype=torch.int32))).values
        gradients = torch.autograd.grad((result * result.detach().cos()).sum(), [given, *subject.parameters()])
        found.append([result.detach(), *gradients])
    return found[0], found[1]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_it_is_found_and_equals_the_formula(body: str) -> None:
    subject = model(SPEC.format(body=body), passes=CPU_PASSES)
    called = [node.target for node in subject.graph(subject.program).graph.nodes]
    assert called.count(group_norm) == 1
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        for expected, found in zip(*_both(body, dtype), strict=True):
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "body",
    [
        "return standardise(linear(x, width -> width), over=(cell, width))",
        "return group_norm(x, cell, 3) * mean(x, over=width) + 1.0",
        "return standardise(linear(x, width -> width), over=width)",
    ],
)
def test_other_formulas_mean_what_they_say(body: str) -> None:
    for expected, found in zip(*_both(body, torch.float64), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_taken_and_joined_have_their_gradients() -> None:
    x = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(0, 2, dtype=torch.float64, requires_grad=True)
    left, right = torch.tensor([0, 3, 6]), torch.tensor([1, 2, 4, 5])
    order = selections.order_of((left, torch.tensor([], dtype=torch.int64), right))

    def routed(x: Tensor, y: Tensor) -> Tensor:
        return selections.join((selections.take(x, left) * 2, y, selections.take(x, right).exp()), order)

    assert torch.equal(routed(x, y)[left], 2 * x[left])
    assert gradcheck(routed, (x, y))
