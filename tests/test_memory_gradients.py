"""The backward of a memory layer: against finite differences, and against the closed form (memory_layers.md 3.1)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.memory_models import alone, ends, fill, weights_of
from weft.codegen.pipeline import CPU_PASSES, Pass, optimise
from weft.runtime.model import Model

LENGTHS = (5, 8)  # 13 tokens, as the sheet has it
# Few slots, so that tokens and heads read the same ones.
SMALL = {"dim": 8, "width": 5, "half": 4, "lookups": 2, "top": 3, "key": 4}
EACH_PASSES = pytest.mark.parametrize("passes", [(), CPU_PASSES], ids=["plain", "fast"])


def layer(passes: tuple[Pass, ...], choices: dict[str, object] | None = None) -> tuple[Model, torch.fx.GraphModule]:
    model = alone({**SMALL, **(choices or {})})
    fill(model, 4)
    return model, optimise(model.reference(), passes)


def tokens(width: int) -> Tensor:
    return torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@EACH_PASSES
@pytest.mark.parametrize("choices", [{}, {"experts": True, "gated": False}], ids=["Memory+", "PEER"])
def test_gradients_of_a_layer_are_those_of_differences(passes: tuple[Pass, ...], choices: dict[str, object]) -> None:
    """Check 4: of the input and of every weight, keys, query and tables among them. Each against all outputs in a
    random direction, as one after another they take a minute; torch's own bounds are wide there."""
    model, graph = layer(passes, choices)
    given = dict(graph.named_parameters())
    paths = {weight: path for path, weight in weights_of(model).items()}
    tables = ["values", "readers"] if choices else ["values"]
    assert {"layer_1.keys", "layer_1.query.weight", *tables} <= {paths[weight] for weight in given.values()}
    x, offsets = tokens(SMALL["dim"]).requires_grad_(), ends(*LENGTHS)

    def output(x: Tensor, *weights: Tensor) -> Tensor:
        (y,) = torch.func.functional_call(graph, dict(zip(given, weights, strict=True)), (x, offsets))
        return y

    weights = [weight.detach().clone().requires_grad_() for weight in given.values()]
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(output, (x, *weights), atol=1e-8, rtol=1e-6, fast_mode=True)


def closed_form(weights: dict[str, Tensor], x: Tensor, of_out: Tensor) -> dict[str, Tensor]:
    """Section 3.1, by its letters: gradients of everything, from that of the output. No autograd."""
    keys, table = weights["layer_1.keys"], weights["values"]
    w1, b1 = weights["layer_1.gate.weight"], weights["layer_1.gate.bias"]
    w2 = weights["layer_1.out.weight"]
    h, _, n, c = keys.shape
    k, count = SMALL["top"], len(x)
    wq, bq = weights["layer_1.query.weight"].reshape(-1, x.shape[1]), weights["layer_1.query.bias"].reshape(-1)
    q = (x @ wq.T + bq).reshape(count, h, 2, c)
    side = torch.einsum("thsc,hsnc->thsn", q, keys)
    z, slot = (side[:, :, 0, :, None] + side[:, :, 1, None, :]).flatten(2).topk(k, -1)
    w = z.exp() / z.exp().sum(-1, keepdim=True)
    read = table[slot]  # [T, h, k, v]
    y = (w[..., None] * read).sum((1, 2))
    u = x @ w1.T + b1
    sigma = 1 / (1 + (-u).exp())
    m = u * sigma

    t = of_out @ w2
    of_y = t * m
    of_u = t * y * sigma * (1 + u * (1 - sigma))
    of_w = torch.einsum("thkv,tv->thk", read, of_y)
    of_table = torch.zeros_like(table)
    of_side = torch.zeros_like(side)
    of_z = w * (of_w - (w * of_w).sum(-1, keepdim=True))
    assert of_z.sum(-1).abs().max() < 1e-13
    for token in range(count):
        for head in range(h):
            for r in range(k):
                s = int(slot[token, head, r])
                of_table[s] += w[token, head, r] * of_y[token]
                of_side[token, head, 0, s // n] += of_z[token, head, r]
                of_side[token, head, 1, s % n] += of_z[token, head, r]
    of_keys = torch.einsum("thsn,thsc->hsnc", of_side, q)
    of_q = torch.einsum("thsn,hsnc->thsc", of_side, keys).reshape(count, -1)
    return {
        "x": of_q @ wq + of_u @ w1,
        "values": of_table,
        "layer_1.keys": of_keys,
        "layer_1.query.weight": of_q.T @ x,
        "layer_1.query.bias": of_q.sum(0),
        "layer_1.gate.weight": of_u.T @ x,
        "layer_1.gate.bias": of_u.sum(0),
        "layer_1.out.weight": of_out.T @ (y * m),
        "layer_1.out.bias": of_out.sum(0),
    }


@EACH_PASSES
def test_gradients_of_a_layer_are_the_closed_form(passes: tuple[Pass, ...]) -> None:
    """Within 1.4e-14 of numbers of size 1, as the sheet measured it; slots that two heads or two tokens read."""
    model, graph = layer(passes)
    x = tokens(SMALL["dim"]).requires_grad_()
    (y,) = graph(x, ends(*LENGTHS))
    of_out = torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    y.backward(of_out)
    weights = weights_of(model)
    want = closed_form({path: weight.detach() for path, weight in weights.items()}, x.detach(), of_out)
    assert want.keys() == {"x", *weights}
    for path, found in {"x": x.grad, **{path: weight.grad for path, weight in weights.items()}}.items():
        assert found is not None
        wanted = want[path].reshape(found.shape)
        assert wanted.abs().max() > 0.01, path
        assert (found - wanted).abs().max() <= 1.4e-14 * max(1.0, float(wanted.abs().max())), path
