"""`match` on a tag per example: an arm sees whole examples, and any operator may stand in it."""

from __future__ import annotations

import pytest
import torch

from tests.small_models import model
from tests.test_routing import weights_of
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.runtime.draws import Draws

WHOLE = """
size dim = 4
size vocab = 6
enum ratio: r8, r16, r32
enum modality: text, image
axis seq
axis other
axis patch cut from seq
block mixed(x: real[seq, dim], z: real[other, dim]) -> real[seq, dim]:
    q = linear(x, dim -> dim)
    return x + attend(q, x, x, over=dim, along=seq, mask=causal) + attend(q, z, z, over=dim, along=other)
model m(
    worth: ratio, x: real[seq, dim], z: real[other, dim], c: real[dim], kind: modality[seq], ids: id[seq] in vocab,
) -> real[seq, dim]:
    {body}
"""
START = "init ** = normal(0.5)\n"

# What each arm is for an example of its own: the same text without the `match`.
WHOLE_ARMS: dict[str, tuple[str, str, str]] = {
    "attention, and values per example": (
        "y = mixed(x, z) + linear(c, dim -> dim)",
        "y = x + mean(x, over=seq) + c * real(length(seq))",
        "y = previous(x) + real(position(seq))",
    ),
    "segments": (
        """segment seq into patch ends where mean(x, over=dim) > 0
            p = pool(linear(x, dim -> dim), seq -> patch, by=max) + c
            y = x + spread(p, patch -> seq, own)""",
        """segment seq into patch ends where ids == 2, at most 2
            p = pool(x, seq -> patch)
            p = p + attend(p, p, p, over=dim, along=patch, mask=causal)
            y = spread(p, patch -> seq, closed) * real(index(patch))""",
        "y = x",
    ),
    "matches on rows inside": (
        """routed by kind:
                y = linear(x, dim -> dim) * real(position(seq)) + c""",
        """h = tanh(x)
            match kind:
                text:
                    y = h
                image:
                    y = linear(h, dim -> dim)
            y = y + mean(y, over=seq)""",
        """y = x
            match worth:
                r8, r16:
                    y = mixed(x, z)
                r32:
                    y = y + mean(linear(c, dim -> dim) * x, over=seq)""",
    ),
    "ids, and what an example has": (
        "y = embed(ids, vocab -> dim) * (x + c)",
        "y = x * mean(sum(z, over=other))",
        "y = where(x > mean(x, over=seq), x, c)",
    ),
}


def of_examples(seed: int = 4, worth: tuple[int, ...] = (2, 0, 1, 0, 2, 1, 0)) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    lengths = [int(n) for n in torch.randint(1, 6, (len(worth),), generator=generator)]
    others = [int(n) for n in torch.randint(0, 4, (len(worth),), generator=generator)]
    return {
        "worth": torch.tensor(worth),
        "x": [torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in lengths],
        "z": [torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in others],
        "c": torch.randn(len(worth), 4, dtype=torch.float64, generator=generator),
        "kind": [torch.randint(2, (n,), generator=generator) for n in lengths],
        "ids": [torch.randint(6, (n,), generator=generator) for n in lengths],
    }


def one(given: dict[str, object], number: int) -> dict[str, object]:
    """One example of a batch."""
    return {name: value[number : number + 1] for name, value in given.items()}  # type: ignore[index]


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", WHOLE_ARMS)
def test_arms_of_examples(name: str, passes: tuple[Pass, ...]) -> None:
    """Every example gets what a model of its arm alone gives it, and the weights get the same gradients."""
    tags, arms = ("r8", "r16", "r32"), WHOLE_ARMS[name]
    body = "match worth:\n" + "".join(f"        {t}:\n            {arm}\n" for t, arm in zip(tags, arms, strict=True))
    built = model(WHOLE.format(body=body + "    return y") + START, passes=passes)
    given = of_examples()
    found = built(**given)
    whole = weights_of(built)
    torch.cat(found).sin().sum().backward()
    for tag, arm in zip(tags, arms, strict=True):
        # One arm is made of the same lines, an indentation less.
        text = WHOLE.format(body=arm.replace("\n            ", "\n    ") + "\n    return y")
        alone = model(text + START * any(word in arm for word in ("linear", "mixed", "embed")))
        own = weights_of(alone)
        with torch.no_grad():
            for path, weight in own.items():
                weight.copy_(whole[f"{tag}.{path}"])
        numbers = [i for i, each in enumerate(given["worth"].tolist()) if tags[each] == tag]  # type: ignore[union-attr]
        results = [alone(**one(given, number))[0] for number in numbers]
        for number, expected in zip(numbers, results, strict=True):
            torch.testing.assert_close(found[number], expected, rtol=1e-9, atol=1e-9)
        if own:
            torch.cat(results).sin().sum().backward()
        for path, weight in own.items():
            wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(whole[f"{tag}.{path}"].grad, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", WHOLE_ARMS)
@pytest.mark.parametrize("worth", [(0, 0), (1,), (2, 1)])
def test_an_arm_without_examples(name: str, worth: tuple[int, ...]) -> None:
    """It computes nothing of no rows, and its weights have zero gradients."""
    tags, arms = ("r8", "r16", "r32"), WHOLE_ARMS[name]
    body = "match worth:\n" + "".join(f"        {t}:\n            {arm}\n" for t, arm in zip(tags, arms, strict=True))
    text = WHOLE.format(body=body + "    return y") + START
    given = of_examples(7, worth)
    found = model(text, passes=CPU_PASSES)(**given)
    built = model(text)
    expected = built(**given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not any(x.isnan().any() for x in expected)
    torch.cat(expected).square().sum().backward()
    for path, weight in weights_of(built).items():
        tag = path.split(".")[0]
        assert weight.grad is not None
        assert tags.index(tag) in worth or not weight.grad.any(), path


def test_draws_in_arms_are_those_of_the_rows() -> None:
    """Packing changes nothing, and an arm draws for a row or an example what the whole axis would."""
    head = """
size dim = 3
enum modality: text, image
enum ratio: r8, r16
axis seq
model m(kind: modality[seq], worth: ratio, x: real[seq, dim]) -> real[seq, dim]:
    {body}
"""
    rows = "match kind:\n        text:\n            y = normal(like=x)\n        image:\n            y = x\n    return y"
    examples = """match worth:
        r8:
            y = normal(like=x) + uniform(0, 1)
        r16:
            y = x
    return y"""
    given = {
        "kind": [torch.tensor([0, 1, 0, 0]), torch.tensor([1, 0]), torch.tensor([0])],
        "worth": torch.tensor([1, 0, 0]),
        "x": [torch.zeros(n, 3, dtype=torch.float64) for n in (4, 2, 1)],
    }
    for body in (rows, examples):
        built = model(head.format(body=body))
        whole = built(**given, draws=Draws(5, 1, [10, 11, 12]))
        assert sum(int((x != 0).sum()) for x in whole) == (15 if body is rows else 9)
        for number in range(3):
            alone = built(**one(given, number), draws=Draws(5, 1, [10 + number]))
            assert torch.equal(alone[0], whole[number])
