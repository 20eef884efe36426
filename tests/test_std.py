"""The standard library against torch's own functions, and missing rows through a loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests import op_samples
from tests.op_samples import LENGTHS


def run(text: str, dtype: torch.dtype = torch.float64, training: bool = False):
    """The result of a sample, its inputs and its weights by path."""
    program = op_samples.elaborate(text)
    graph = op_samples.module(program, dtype)
    values = op_samples.inputs(program, dtype=dtype)
    result = graph(*op_samples.arguments(graph, values))[0]
    weights = dict(zip((weight.path for weight in program.weights), graph.parameters(), strict=True))
    return result, values, weights


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_rms_norm() -> None:
    found, (x,), weights = run("x: real[seq, dim] => rms_norm(x, eps=1e-3)")
    close(found, functional.rms_norm(x, (5,), weights["rms_norm.gain"], 1e-3))


def test_rms_norm_over_two_axes_is_one_norm() -> None:
    found, (x,), weights = run("x: real[seq, heads, dim] => rms_norm(x, over=(heads, dim))")
    close(found, functional.rms_norm(x, (4, 5), weights["rms_norm.gain"], 1e-6))


def test_layer_norm() -> None:
    found, (x,), weights = run("x: real[seq, dim] => layer_norm(x)")
    close(found, functional.layer_norm(x, (5,), weights["layer_norm.gain"], weights["layer_norm.bias"], 1e-5))


def test_unit() -> None:
    found, (x,), _ = run("x: real[seq, dim] => unit(x)")
    close(found, functional.normalize(x, dim=-1))


def test_unit_of_nothing_has_a_gradient() -> None:
    """A row that attends to no key is all zeros."""
    graph = op_samples.module(op_samples.elaborate("x: real[seq, dim] => unit(x)"))
    x = torch.zeros(sum(LENGTHS["seq"]), 5, dtype=torch.float64, requires_grad=True)
    found = graph(*op_samples.arguments(graph, [x]))[0]
    found.sum().backward()
    assert not found.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_tanh", lambda x: functional.gelu(x, approximate="tanh")),
    ],
)
def test_activations(name: str, function) -> None:
    found, (x,), _ = run(f"x: real[seq, dim] => {name}(x)")
    close(found, function(x))


def test_swiglu() -> None:
    found, (x,), weights = run("x: real[seq, dim] => swiglu(x, ffn)")
    gate, up, down = (weights[f"swiglu.{name}.linear.weight"] for name in ("gate", "up", "down"))
    close(found, functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down))


def test_mlp() -> None:
    found, (x,), weights = run("x: real[seq, dim] => mlp(x, ffn)")
    up, down = ((weights[f"mlp.{name}.linear.weight"], weights[f"mlp.{name}.linear.bias"]) for name in ("up", "down"))
    close(found, functional.linear(functional.gelu(functional.linear(x, *up)), *down))


@pytest.mark.parametrize(("name", "halves"), [("rope", True), ("rope_interleaved", False)])
def test_rope_turns_pairs(name: str, halves: bool) -> None:
    found, (x,), _ = run(f"x: real[seq, heads, four] => {name}(x, along=seq, theta=100)")
    position = torch.cat([torch.arange(n) for n in LENGTHS["seq"]]).double()
    angle = position[:, None] * 100.0 ** (-torch.arange(2).double() / 2)
    pairs = x.reshape(-1, 4, 2, 2).transpose(-1, -2) if halves else x.reshape(-1, 4, 2, 2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    )
    close(found, (turned.transpose(-1, -2) if halves else turned).reshape(x.shape))


def test_cross_entropy_and_z_loss() -> None:
    found, (x, i), _ = run("x: real[seq, vocab], i: id[seq] in vocab => cross_entropy(x, i) + 0.01 * z_loss(x)")
    close(found, functional.cross_entropy(x, i, reduction="none") + 0.01 * torch.logsumexp(x, -1) ** 2)


def test_entropy() -> None:
    found, (x,), _ = run("x: real[seq, vocab] => entropy(x)")
    close(found, torch.distributions.Categorical(logits=x).entropy())


def test_losses_are_computed_wide() -> None:
    """bf16 logits lose nothing more on their way to the loss than one rounding."""
    text = "x: real[seq, vocab], i: id[seq] in vocab => cross_entropy(x, i)"
    found, (x, i), _ = run(text, torch.bfloat16)
    expected = functional.cross_entropy(x.double(), i, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)


def test_missing_targets_are_passed_on_and_left_out() -> None:
    found, (x, i), _ = run("x: real[seq, vocab], i: id[seq] in vocab => mean(cross_entropy(x, next(i)), over=seq)")
    start = 0
    for example, rows in enumerate(LENGTHS["seq"]):
        logits, ids = x[start : start + rows], i[start : start + rows]
        start += rows
        if rows < 2:
            assert found[example] == 0
        else:
            close(found[example], functional.cross_entropy(logits[:-1], ids[1:]))


def test_dropout_is_the_identity_outside_training() -> None:
    found, (x,), _ = run("x: real[seq, dim] => dropout(x, 0.5)")
    assert torch.equal(found, x)


def attention_by_torch(q_in, k_in, weights, prefix: str, heads: int, kv_heads: int, width: int, causal: bool):
    q = functional.linear(q_in, weights[f"{prefix}.q.linear.weight"]).unflatten(-1, (heads, width)).transpose(0, 1)
    k, v = (
        functional.linear(k_in, weights[f"{prefix}.{part}.linear.weight"])
        .unflatten(-1, (kv_heads, width))
        .transpose(0, 1)
        for part in ("k", "v")
    )
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return functional.linear(mixed.transpose(0, 1).flatten(1), weights[f"{prefix}.out.weight"])


def test_self_attention() -> None:
    call = "self_attention(x, along=seq, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mask=causal)"
    found, (x,), weights = run(f"x: real[seq, dim] => {call}")
    wanted = [attention_by_torch(p, p, weights, "self_attention", 4, 2, 3, True) for p in x.split(LENGTHS["seq"])]
    close(found, torch.cat(wanted))


def test_cross_attention() -> None:
    call = "cross_attention(x, y, along=other, heads=heads, head_dim=head_dim)"
    found, (x, y), weights = run(f"x: real[seq, dim], y: real[other, ffn] => {call}")
    parts = zip(x.split(LENGTHS["seq"]), y.split(LENGTHS["other"]), strict=True)
    # Nothing to look at gives 0.
    wanted = [
        attention_by_torch(p, m, weights, "cross_attention", 4, 4, 3, False) if len(m) else torch.zeros_like(p)
        for p, m in parts
    ]
    close(found, torch.cat(wanted))
