"""`score=` of `attend`: a formula of each score, between the product of query and key and the softmax."""

from __future__ import annotations

import pytest
import torch

from tests.diagnostics import codes, mistakes
from tests.small_models import model, tokens
from tests.test_decode import compare_everywhere
from weft.codegen.pipeline import CPU_PASSES

HEAD = "size dim = 8\nsize heads = 2\nsize vocab = 11\naxis hd = dim / heads\naxis seq\n"
CAPPED = (
    HEAD
    + """
option cap: real = 5.0

block capped(score: real) -> real:
    return cap * tanh(score / cap)

block bent(score: real) -> real:
    return where(score > 0, maximum(score, 0.3), score^2)

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = unflatten(linear(x, dim -> dim) as query, dim -> (heads, hd))
    y = attend(q, q, q, over=hd, along=seq, mask=causal and window(3), score=capped, bias=sum(x, over=dim))
    z = attend(q, q, q, over=hd, along=seq, mask=causal, score=bent)
    return flatten(y + z, (heads, hd) -> dim) |> linear(dim -> vocab) as head

init ** = normal(1.0)
"""
)
LENGTHS = (9, 4, 1, 12)


def test_scores_are_what_the_block_makes_of_them() -> None:
    small = model(CAPPED)
    weights = dict(small.named_parameters())
    given = tokens(LENGTHS, 11)
    for ids, found in zip(given, small(given), strict=True):
        x = weights["embed.weight"][ids]
        q = (x @ weights["query.weight"].T).view(-1, 2, 4)
        row = torch.arange(len(ids))
        causal = row <= row[:, None]
        near = causal & ((row - row[:, None]).abs() < 3)
        scores = torch.einsum("qhd,khd->hqk", q, q) / 2
        capped = 5 * torch.tanh(scores / 5) + x.sum(-1)
        bent = torch.where(scores > 0, scores.clamp(min=0.3), scores**2)
        parts = [
            torch.einsum("hqk,khd->qhd", torch.softmax(s.masked_fill(~mask, -torch.inf), -1), q)
            for s, mask in ((capped, near), (bent, causal))
        ]
        torch.testing.assert_close(found, torch.stack(parts).sum(0).reshape(-1, 8) @ weights["head.weight"].T)


def test_decoding_applies_them_too() -> None:
    compare_everywhere(model(CAPPED), {"tokens": tokens(LENGTHS, 11)})
    compare_everywhere(
        model(CAPPED, torch.float32, passes=CPU_PASSES), {"tokens": tokens(LENGTHS, 11)}, tolerance=1e-4
    )


CALL = """
model m(x: real[seq, dim], n: int) -> real[seq, dim]:
    return attend(x, x, x, over=dim, along=seq, mask=causal, score=made)
"""


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("block made(s: real) -> real:\n    param cap: real\n    return s * cap\n", "E901"),
        ("block made(s: real) -> real:\n    return s * real(int(s))\n", "E901"),
        ("block made(s: real) -> flag:\n    return s > 0\n", "E201"),
        ("block made(s: real) -> real:\n    return s + t\n", "E301"),
        ("block made(s: real, t: real) -> real:\n    return s + t\n", "E311"),
        ("block made(s: real[hd]) -> real:\n    return sum(s, over=hd)\n", "E254"),
        ("size made = 4\n", "E312"),
    ],
)  # fmt: skip
def test_what_is_no_formula_of_a_score_is_refused(block: str, code: str) -> None:
    assert codes(HEAD + block + CALL) == [code]


def test_the_checker_alone_makes_no_nodes_of_it() -> None:
    """The block's operators are in the formula, not in the program."""
    assert mistakes(CAPPED.lstrip()) == ()
    assert "tanh" not in [node.op.name for node in model(CAPPED).program.nodes]
