"""Specs run twice: the reference graph, and the same graph with its rows fused into generated kernels.

The kernels run in Triton's interpreter (conftest.py asks for it).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx

from weft.codegen.passes.fuse import fuse_rows
from weft.codegen.passes.saved_values import choose_saved_values
from weft.codegen.pipeline import BASIC_PASSES, Pass, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.runtime.kernels import attach_kernels


def fused(graph: fx.GraphModule, fewest: int = 1) -> tuple[fx.GraphModule, list[FusedOp]]:
    """The graph with kernels, and the distinct calls it makes."""
    fuse = Pass("fuse", partial(fuse_rows, fewest=fewest), "")
    made = optimise(graph, (*BASIC_PASSES, fuse, Pass("saved-values", choose_saved_values, "")))
    ops = {node.target.name: node.target for node in made.graph.nodes if isinstance(node.target, FusedOp)}
    attach_kernels(made)
    return made, list(ops.values())


def calls(graph: fx.GraphModule) -> int:
    """How many fused calls a graph with kernels makes."""
    return sum(type(node.target).__name__ == "Fused" for node in graph.graph.nodes)


def gradients(
    graph: fx.GraphModule, arguments: list[Tensor], seed: int = 0
) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """A graph's results, and the gradients of its real arguments and weights for fixed gradients of the results."""
    given = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in arguments]
    for parameter in graph.parameters():
        parameter.grad = None
    results = list(graph(*given))
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for result in results:
        if result.is_floating_point():
            # Drawn for all: a fused call may say that a result has a gradient where all of it is zero.
            weight = torch.randn(result.shape, generator=generator, dtype=torch.float64)
            total = total + (result.to(torch.float64) * weight).sum() if result.requires_grad else total
    if total.requires_grad:
        total.backward()
    found = {f"argument {i}": x.grad for i, x in enumerate(given) if x.requires_grad}
    found |= {name: None if p.grad is None else p.grad.clone() for name, p in graph.named_parameters()}
    return results, found


def assert_equal(got: Tensor | None, want: Tensor | None, name: str, relative: float) -> None:
    """Relative to the largest entry; no gradient at all counts as zeros."""
    if got is None or want is None:
        other = got if want is None else want
        assert other is None or not other.abs().max() > 0, name
        return
    if not want.is_floating_point():
        assert torch.equal(got, want), name
        return
    difference = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
    size = want.double().abs().max().item() if want.numel() else 0.0
    assert difference <= relative * max(size, 1e-30) + 1e-12, f"{name}: off by {difference:.3g} of {size:.3g}"
