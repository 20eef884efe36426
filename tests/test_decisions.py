"""What a decision reads is not rounded to the working type after the last product of matrices (SEMANTICS 10)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.small_models import checked
from weft.codegen.decisions import with_wide_values
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, Pass, optimise
from weft.dsl.program import Program
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model

HEAD = """
size dim = 64
size four = 4

axis seq

"""
DECISIONS = {
    "topk": """
model m(x: real[seq, dim]) -> real[seq, four]:
    return real(topk(softmax(1.01 * linear(x, dim -> dim), over=dim), over=dim, k=four).index)
""",
    "argmax": """
model m(x: real[seq, dim]) -> real[seq]:
    return real(argmax(5 * tanh(linear(x, dim -> dim) / 5), over=dim))
""",
    "comparison": """
model m(x: real[seq, dim]) -> real[seq, dim]:
    h = linear(x, dim -> dim)
    return real(h - mean(h, over=dim) > h^3 + 0.01)
""",
    "whole numbers": """
model m(x: real[seq, dim]) -> real[seq, dim]:
    return real(int(200 * sigmoid(linear(x, dim -> dim))))
""",
}


def by_hand(name: str, h: Tensor) -> Tensor:
    """From what the linear gives, in float64."""
    h = h.double()
    match name:
        case "topk":
            return torch.sort(torch.softmax(1.01 * h, -1), descending=True, stable=True).indices[..., :4].double()
        case "argmax":
            return torch.tanh(h / 5).argmax(-1).double()
        case "comparison":
            return (h - h.mean(-1, keepdim=True) > h**3 + 0.01).double()
        case _:
            return (200 * torch.sigmoid(h)).trunc()


@pytest.mark.parametrize("passes", [(), CPU_PASSES, GPU_PASSES], ids=["reference", "cpu", "kernels"])
@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_are_those_of_exact_numbers(name: str, passes: tuple[Pass, ...]) -> None:
    """A few in a hundred rows differed where softmax, tanh or a difference was rounded to bfloat16."""
    spec = checked(HEAD + DECISIONS[name])
    model = Model(spec, torch.bfloat16, seed=1, passes=())
    graph = optimise(model.reference(spec.model), passes)
    attach_kernels(graph)
    x = (0.3 * torch.randn(400, 64, generator=torch.Generator().manual_seed(5))).bfloat16()
    (found,) = graph(x, torch.tensor([0, 400], dtype=torch.int32))
    (weight,) = [value for path, value in model.by_path() if path.endswith("weight")]
    # A kernel that streams the product does not round it either.
    products = torch.nn.functional.linear(x, weight), x.double() @ weight.double().T
    differ = torch.stack([found.double() != by_hand(name, h) for h in products]).all(0)
    assert differ.double().mean() <= LEFT[name]


# Of float32 against float64: two whole numbers or two entries that lie closer together than its digits.
LEFT = {"topk": 0.001, "argmax": 0.0, "comparison": 0.0, "whole numbers": 0.001}


def precise(program: Program) -> list[str]:
    made = with_wide_values(program, torch.bfloat16)
    return [node.op.name for node in made.nodes if node.precise]


def test_what_leads_to_a_product_is_rounded_as_ever() -> None:
    """Only what comes behind the last product: not a norm in front of it, nor what else reads the product."""
    spec = checked(
        HEAD
        + """
model m(x: real[seq, dim]) -> real[seq, dim]:
    n = x / sqrt(mean(x^2, over=dim))
    h = n + linear(n, dim -> dim)
    chosen = sigmoid(h) > 0.5
    return where(chosen, exp(h), h)
"""
    )
    assert precise(spec.model) == ["add", "sigmoid", "gt"]
    assert with_wide_values(spec.model, torch.float32) is spec.model


def test_a_product_alone_is_read_as_it_is() -> None:
    """Selections of products keep their kernel, which rounds nothing; comparisons of whole numbers are exact anyway."""
    spec = checked(
        HEAD
        + """
model m(x: real[seq, dim]) -> real[seq]:
    found = topk(linear(x, dim -> dim), over=dim, k=four)
    return sum(where(int(found.index) > 3, found.score, 0), over=four)
"""
    )
    assert precise(spec.model) == []


TIMES = """
size waves = 32
size width = 16

axis picture

model m(time: int[picture]):
    left = cosine_left(time)
    told = time_embedding(real(time), waves, width)
    return left, told
"""


def test_whole_numbers_keep_their_digits() -> None:
    """bfloat16 has no 301, and the sine of an angle that was rounded to its digits says little."""
    spec = checked(TIMES)
    time, offsets = torch.tensor([0, 255, 301, 500, 743, 998]), torch.tensor([0, 6], dtype=torch.int32)
    models = (Model(spec, dtype, seed=3, passes=()) for dtype in (torch.float32, torch.bfloat16))
    (left, told), (few, said) = (model.reference(spec.model)(time, offsets) for model in models)
    torch.testing.assert_close(few, left.bfloat16(), rtol=0, atol=0)
    assert (said - told).abs().max() < 0.02 * told.abs().max()
