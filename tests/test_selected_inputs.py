"""Inputs and outputs along selections: words and pictures of one sequence, as LMFusion has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tests.diagnostics import mistakes
from tests.small_models import model
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.codegen.signature import Signature
from weft.runtime.decoder import Decoder
from weft.runtime.errors import InputFault

FUSION = """
enum modality: text, image
size vocab = 7
size dim = 6
size channels = 3
size shown = 4
axis seq
axis word = seq where kind == text
axis spot = seq where kind == image
axis picture cut from spot

model m(kind: modality[seq], ids: id[word] in vocab, latent: real[spot, channels], number: id[spot] in shown):
    segment spot into picture by number
    x = join((embed(ids, vocab -> dim), linear(latent, channels -> dim)), (word, spot) -> seq)
    routed by kind:
        q = linear(x, dim -> dim) |> rope(along=seq)
        k = linear(x, dim -> dim)
    a = attend(q, k, k, over=dim, along=seq, mask={mask})
    routed by kind:
        x = rms_norm(x + linear(a, dim -> dim) as out) as norm
    logits = linear(take(x, seq -> word), dim -> vocab) as head
    noise = linear(take(x, seq -> spot), dim -> channels) as noise
    return (logits, noise)

objective joint(kind: modality[seq], ids: id[word] in vocab, latent: real[spot, channels], number: id[spot] in shown):
    logits, noise = m(kind, ids, latent, number)
    loss text = cross_entropy(logits, take(next(ids, along=seq), seq -> word))
    loss image = mean((noise - latent)^2, over=channels)

init ** = normal(0.5)
"""
HYBRID = FUSION.format(mask="causal or same(picture)")

# The last two pictures touch.
KINDS = ((0, 1, 1, 0, 0, 1), (0, 0, 0), (1, 1, 0, 1, 1, 1))
NUMBERS = ((0, 0, 1), (), (0, 0, 1, 1, 2))


def batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    kinds = [torch.tensor(kind) for kind in KINDS]
    return {
        "kind": kinds,
        "ids": [torch.randint(7, (int((k == 0).sum()),), generator=generator) for k in kinds],
        "latent": [torch.randn(int(k.sum()), 3, dtype=torch.float64, generator=generator) for k in kinds],
        "number": [torch.tensor(number, dtype=torch.int64) for number in NUMBERS],
    }


def by_hand(w: dict[str, Tensor], kind: Tensor, ids: Tensor, latent: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    picture = torch.full_like(kind, 4)
    picture[kind == 1] = number
    x = torch.zeros(len(kind), 6, dtype=torch.float64)
    x[kind == 0] = w["x.embed.weight"][ids]
    x[kind == 1] = latent @ w["x.linear.weight"].T
    tower = lambda name, y: torch.where(  # noqa: E731
        (kind == 0)[:, None], y @ w[f"text.{name}.weight"].T, y @ w[f"image.{name}.weight"].T
    )
    position = torch.arange(len(kind))
    allowed = (position[None] <= position[:, None]) | ((picture[:, None] == picture[None]) & (picture != 4))
    angles = position[:, None] * 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    q, k = tower("q.linear", x), tower("k.linear", x)
    q = torch.cat(
        [q[:, :3] * angles.cos() - q[:, 3:] * angles.sin(), q[:, 3:] * angles.cos() + q[:, :3] * angles.sin()], 1
    )
    scores = (q @ k.T * 6**-0.5).masked_fill(~allowed, float("-inf"))
    x = x + tower("out", torch.softmax(scores, -1) @ k)
    gain = torch.where((kind == 0)[:, None], w["text.norm.gain"], w["image.norm.gain"])
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain
    return x[kind == 0] @ w["head.weight"].T, x[kind == 1] @ w["noise.weight"].T


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
def test_outputs_and_losses(passes: tuple[Pass, ...]) -> None:
    built = model(HYBRID, passes=passes)
    weights: dict[str, Tensor] = dict(built.by_path())
    given = batch()
    found = built(**given)
    logits, noise = found.values()
    text, image, words = [], [], []
    for number in range(len(KINDS)):
        kind, ids, latent, pictures = (given[name][number] for name in ("kind", "ids", "latent", "number"))
        wanted = by_hand(weights, kind, ids, latent, pictures)
        for one, other in zip((logits[number], noise[number]), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        image.append((wanted[1] - latent).square().mean(-1))
        # A word has a target where the next row is a word.
        at_word = (kind == 0).nonzero()[:, 0]
        has_target = [at + 1 < len(kind) and int(kind[at + 1]) == 0 for at in at_word.tolist()]
        for place, has in enumerate(has_target):
            if has:
                words.append(int(ids[place + 1]))
                text.append(wanted[0][place])
    losses = built.loss("joint", **given)
    total, count = losses["text"]
    assert int(count) == len(words) == 3
    torch.testing.assert_close(total, cross_entropy(torch.stack(text), torch.tensor(words), reduction="sum"))
    total, count = losses["image"]
    assert int(count) == 8
    torch.testing.assert_close(total, torch.cat(image).sum())


def test_lengths_must_agree_with_the_tags() -> None:
    given = batch()
    given["ids"][1] = given["ids"][1][:2]
    with pytest.raises(InputFault, match="example 1 has 2 rows of word, but 3 rows of seq have the tag text in kind"):
        model(HYBRID)(**given)


def test_the_signature_keeps_what_it_says() -> None:
    shape = model(HYBRID).signature
    assert [(s.axis, s.parent, s.tag, s.members) for s in shape.selected] == [
        ("word", "seq", "kind", (0,)),
        ("spot", "seq", "kind", (1,)),
    ]
    assert Signature.from_json(shape.to_json()) == shape


def test_looking_ahead_leaks() -> None:
    """Words that see the whole sequence see their targets."""
    assert [error.code for error in mistakes(FUSION.format(mask="causal or same(kind)"))] == ["E401"]
    assert mistakes(HYBRID) == ()


def test_the_tag_of_an_input_is_an_input() -> None:
    text = """
enum modality: text, image
axis seq
axis word = seq where kind == text
model m(sort: modality[seq], x: real[word], y: real[seq]) -> real[word]:
    kind = where(y > 0, sort, text)
    return x + take(y, seq -> word)
"""
    assert [error.code for error in mistakes(text)] == ["E285"]


def test_decoding_takes_the_rows_of_either_kind() -> None:
    """Prefill in parallel, then one row at a time, each with its tag, and with its word or its spot."""
    text = FUSION.format(mask="causal").replace("    segment spot into picture by number\n", "")
    small = model(text.replace(", number: id[spot] in shown", "").replace("latent, number)", "latent)"))
    given = batch(3)
    del given["number"]
    whole = small(**given)
    logits, noise = whole.values()
    decoder = Decoder(small)
    for number, kind in enumerate(given["kind"]):
        begun = 2
        words, spots = int((kind[:begun] == 0).sum()), int(kind[:begun].sum())
        prompt = {
            "kind": [kind[:begun]],
            "ids": [given["ids"][number][:words]],
            "latent": [given["latent"][number][:spots]],
        }
        results, state = decoder.prefill(prompt, capacity=8)
        _compare(results, logits[number], noise[number], words, spots, int(kind[begun - 1]))
        for at in range(begun, len(kind)):
            is_spot = int(kind[at])
            step = {
                "kind": kind[at : at + 1],
                "ids": given["ids"][number][words : words + 1 - is_spot],
                "latent": given["latent"][number][spots : spots + is_spot],
            }
            results, state = decoder.step(state, step)
            words, spots = words + 1 - is_spot, spots + is_spot
            _compare(results, logits[number], noise[number], words, spots, is_spot)


def _compare(results: dict[str, Tensor], logits: Tensor, noise: Tensor, words: int, spots: int, is_spot: int) -> None:
    """The last row's: of the words or of the spots."""
    found = list(results.values())
    assert [len(part) for part in found] == [1 - is_spot, is_spot]
    expected = noise[spots - 1] if is_spot else logits[words - 1]
    torch.testing.assert_close(found[is_spot][0], expected, rtol=0, atol=1e-10)
