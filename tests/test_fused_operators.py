"""Fused calls as operators of torch: registered, compiled, exported, recomputed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests import op_samples
from tests.fused_models import assert_equal, fused
from weft.codegen.gpu import fused as gpu_fused
from weft.codegen.gpu.fused import Fused

FORMULAS = {
    "norm": "x: real[seq, dim], h: real[seq, dim]; n = x * rsqrt(mean(x^2, over=dim) + 0.001) => h + n",
    "several results": "x: real[seq, heads, dim]; s = softmax(x, over=dim) => s * logsumexp(x, over=dim)",
    "no gradient": "x: real[seq, dim] => floor(x) + ceil(x)",
}


def call_of(text: str) -> tuple[Fused, list[torch.Tensor]]:
    program = op_samples.elaborate(text)
    graph = op_samples.module(program)
    made, _ = fused(graph, fewest=2)
    (node,) = [node for node in made.graph.nodes if isinstance(node.target, Fused)]
    given = op_samples.inputs(program)
    by_name = dict(zip([n.name for n in made.graph.nodes if n.op == "placeholder"], given, strict=False))
    return node.target, [by_name[str(arg)] for arg in node.args]


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS.keys())
def test_opcheck(text: str) -> None:
    call, operands = call_of(text)
    given = [x.clone().requires_grad_() for x in operands]
    torch.library.opcheck(call.operator, call.arguments(given))


@pytest.mark.parametrize("text", FORMULAS.values(), ids=FORMULAS.keys())
def test_compiled_whole(text: str) -> None:
    """One graph, no break; gradients through it."""
    call, operands = call_of(text)

    def run(*given: torch.Tensor) -> torch.Tensor:
        return 2 * call(*given)

    given = [x.clone().requires_grad_() for x in operands]
    want = run(*given)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got = compiled(*given)
    assert_equal(got, want, "result", 1e-12)
    if want.requires_grad:
        want_gradients = torch.autograd.grad(want.sum(), given)
        for one, two in zip(torch.autograd.grad(got.sum(), given), want_gradients, strict=True):
            assert_equal(one, two, "gradient", 1e-12)


def test_exported_with_any_number_of_rows() -> None:
    call, operands = call_of(FORMULAS["norm"])

    class Module(torch.nn.Module):
        def forward(self, x, h):
            return call(x, h)

    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Module(), tuple(operands), dynamic_shapes=({0: rows}, {0: rows}))
    more = [torch.cat([x, x]) for x in operands]
    assert_equal(exported.module()(*more), call(*more), "result", 1e-12)


def test_recomputed() -> None:
    call, operands = call_of(FORMULAS["norm"])
    given = [x.clone().requires_grad_() for x in operands]
    want = torch.autograd.grad(call(*given).square().sum(), given)
    result = checkpoint(lambda *x: call(*x).square().sum(), *given, use_reentrant=False)
    for one, two in zip(torch.autograd.grad(result, given), want, strict=True):
        assert_equal(one, two, "gradient", 0)


def test_gradcheck() -> None:
    call, operands = call_of(FORMULAS["norm"])
    torch.autograd.gradcheck(call, [x.clone().requires_grad_() for x in operands])


def test_same_on_a_cpu_without_kernels() -> None:
    """What the operator does where nothing can be launched: the nodes it stands for."""
    call, operands = call_of(FORMULAS["norm"])
    assert_equal(call(*operands), call.meaning(*operands), "result", 1e-12)
    given = [x.clone().requires_grad_() for x in operands]
    want = torch.autograd.grad(call(*given).sum(), given)
    got = call._by_torch(tuple(operands), (torch.ones_like(operands[0]),))
    for owner, one in zip(call._owned, got, strict=True):
        assert_equal(one, want[owner], f"gradient of {owner}", 1e-12)


def test_gradients_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a compiled graph calls a fused call on a CPU: nodes by torch, and their gradients."""
    monkeypatch.setattr(gpu_fused, "INTERPRETED", False)
    made, _ = fused(op_samples.module(op_samples.elaborate("x: real[seq, dim] => softmax(x, over=dim) * x")))
    (call,) = [node.target for node in made.graph.nodes if isinstance(node.target, Fused)]
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad((x.softmax(-1) * x).sin().sum(), x)
    for run in (call.operator, torch.compile(call, backend="aot_eager", fullgraph=True)):
        (got,) = torch.autograd.grad(run(x).sin().sum(), x)
        torch.testing.assert_close(got, want)
