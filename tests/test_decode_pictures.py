"""Derived decoding where rows come with what owns them: pictures among words, looked at before they are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.small_models import model
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.dsl.diagnostics import SpecErrors
from weft.runtime.decoder import Decoder
from weft.runtime.errors import GenerateFault
from weft.runtime.model import Model

SPEC = """
size dim = 8
size vocab = 7
enum modality: text, image, sound
axis seq
axis word = seq where kind == text
axis place = seq where kind == image
axis beat = seq where kind == sound
axis picture
axis cell = grid(3, 2)
axis clip
axis tick = 2

model m(
    kind: modality[seq],
    ids: id[word] in vocab,
    latent: real[picture, cell, dim],
    time: int[picture],
    wave: real[clip, tick, dim],
):
    z = conv(latent, cell -> cell, dim -> dim, size=3) + real(time) * 0.1
    words = embed(ids, vocab -> dim)
    places = flatten(z, (picture, cell) -> place)
    beats = flatten(wave, (clip, tick) -> beat)
    x = join((words, places, beats), (word, place, beat) -> seq)
    for layer in 0 .. 2:
        routed by kind:
            q = linear(x, dim -> dim) |> rope(along=seq)
            k = linear(x, dim -> dim) |> rope(along=seq)
        mixed = attend(q, k, x, over=dim, along=seq, mask={mask})
        routed by kind:
            x = x + linear(mixed, dim -> dim) as out
    logits = linear(take(x, seq -> word), dim -> vocab) as head
    noise = z + unflatten(take(x, seq -> place), place -> (picture, cell))
    heard = unflatten(take(x, seq -> beat), beat -> (clip, tick)) * 2
    return {results}

init ** = normal(0.5)
"""
HYBRID = "causal or same(picture)"
MASKS = (HYBRID, "causal or same(picture) or same(clip)", "(causal or same(picture)) and window(9)", "causal")
WORD, PICTURE, SOUND = 0, 1, 2
EACH = {WORD: 1, PICTURE: 6, SOUND: 2}
# What each of three sequences is made of, part by part.
PARTS = tuple(
    tuple({"w": WORD, "p": PICTURE, "s": SOUND}[letter] for letter in row) for row in ("wwpwsswppw", "wswww", "pwpwww")
)


def made(mask: str, passes: tuple[Pass, ...]) -> Model:
    return model(text(mask), passes=passes)


def text(mask: str, results: str = "logits, noise, heard") -> str:
    return SPEC.format(mask=mask, results=results)


def rows(parts: tuple[tuple[int, ...], ...], seed: int = 0) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "kind": [torch.tensor([kind for kind in row for _ in range(EACH[kind])]) for row in parts],
        "ids": [torch.randint(7, (row.count(WORD),), generator=generator) for row in parts],
        "latent": [normal(row.count(PICTURE), 6, 8) for row in parts],
        "time": [torch.randint(9, (row.count(PICTURE),), generator=generator) for row in parts],
        "wave": [normal(row.count(SOUND), 2, 8) for row in parts],
    }


def between(given: dict[str, list[Tensor]], begins: list[int], ends: list[int]) -> dict[str, list[Tensor]]:
    """The rows of parts `begins` to `ends` of each sequence."""
    cut: dict[str, list[Tensor]] = {name: [] for name in given}
    for i, row in enumerate(PARTS):
        before, upto = row[: begins[i]], row[: ends[i]]
        spans = {"kind": (sum(EACH[k] for k in before), sum(EACH[k] for k in upto))}
        spans |= {
            name: (before.count(k), upto.count(k)) for name, k in (("ids", WORD), ("latent", PICTURE), ("wave", SOUND))
        }
        spans["time"] = spans["latent"]
        for name, (begin, end) in spans.items():
            cut[name].append(given[name][i][begin:end])
    return cut


def packed(results: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.cat(list(value)) for name, value in results.items()}


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("mask", MASKS)
def test_parts_one_after_another_equal_one_pass(mask: str, passes: tuple[Pass, ...]) -> None:
    """Sequences go on with one part each: a word, a picture, a sound, or nothing more."""
    subject, given = made(mask, passes), rows(PARTS)
    decoder = Decoder(subject)
    with torch.no_grad():
        whole = subject(**given)
    state = decoder.begin(len(PARTS), capacity=40)
    got: dict[str, list[list[Tensor]]] = {name: [[] for _ in PARTS] for name in whole}
    for turn in range(max(map(len, PARTS))):
        begins = [min(turn, len(row)) for row in PARTS]
        ends = [min(turn + 1, len(row)) for row in PARTS]
        new = between(given, begins, ends)
        results, state = decoder.extend(state, new)
        for name, slot in (("logits", "ids"), ("noise", "latent"), ("heard", "wave")):
            for i, part in enumerate(results[name].split([len(part) for part in new[slot]])):
                got[name][i].append(part)
    for name, value in whole.items():
        for i, expected in enumerate(value):
            torch.testing.assert_close(torch.cat(got[name][i]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [HYBRID, "(causal or same(picture)) and window(9)"])
def test_what_is_looked_at_leaves_no_trace(mask: str) -> None:
    subject, given = made(mask, REFERENCE_PASSES), rows(PARTS)
    decoder = Decoder(subject)
    first, second, third = [2, 2, 2], [3, 2, 3], [5, 4, 5]
    state = decoder.extend(decoder.begin(3, capacity=40), between(given, [0] * 3, first))[1]
    for seed in range(2):
        looked = rows(PARTS, seed=seed + 5)
        before = decoder.look(state, between(looked, first, second))
        assert before["noise"].shape == (2, 6, 8)
    seen = decoder.look(state, between(given, first, second))
    kept, state = decoder.extend(state, between(given, first, second))
    for name in kept:
        assert torch.equal(seen[name], kept[name])
    after = decoder.extend(state, between(given, second, third))[0]
    with torch.no_grad():
        whole = subject(**between(given, [0] * 3, third))
    expected = torch.cat([value[-n:] for value, n in zip(whole["logits"], (1, 2, 2), strict=True)])
    torch.testing.assert_close(after["logits"], expected, rtol=1e-12, atol=1e-12)


def test_a_step_is_a_word() -> None:
    subject, given = made(HYBRID, CPU_PASSES), rows(PARTS)
    decoder = Decoder(subject)
    with torch.no_grad():
        whole = subject(**given)
    state = decoder.extend(decoder.begin(3, capacity=40), between(given, [0] * 3, [3, 2, 3]))[1]
    step = {
        "kind": torch.tensor([WORD] * 3),
        "ids": torch.stack([given["ids"][0][2], given["ids"][1][1], given["ids"][2][1]]),
    }
    logits, _ = decoder.step(state, step)
    expected = torch.stack([whole["logits"][0][2], whole["logits"][1][1], whole["logits"][2][1]])
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", ["causal or same(picture) or same(clip)", "causal"])
def test_rows_of_the_text_come_whole(mask: str) -> None:
    """A result along the text, whose rows know all of their picture, and one along its places."""
    subject, given = model(text(mask, "x, take(x, seq -> place)"), passes=CPU_PASSES), rows(PARTS)
    decoder = Decoder(subject)
    with torch.no_grad():
        whole = subject(**given)
    state, got = decoder.begin(len(PARTS), capacity=40), []
    for turn in range(max(map(len, PARTS))):
        begins, ends = ([min(at, len(row)) for row in PARTS] for at in (turn, turn + 1))
        new = between(given, begins, ends)
        results, state = decoder.extend(state, new)
        got.append(next(iter(results.values())).split([len(own) for own in new["kind"]]))
    for i, expected in enumerate(next(iter(whole.values()))):
        found = torch.cat([turn[i] for turn in got])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_input_along_rows_that_nothing_takes() -> None:
    """Of words alone, which tags say among pictures: their decoder is told as many as have the tag."""
    subject, given = model(text("causal", "tanh(words)")), rows(PARTS)
    decoder = Decoder(subject)
    with torch.no_grad():
        whole = subject(**given)
    results, _ = decoder.extend(decoder.begin(len(PARTS), capacity=40), given)
    torch.testing.assert_close(results, torch.cat(list(whole)))


def test_pictures_that_see_the_next_are_refused() -> None:
    changed = text(HYBRID).replace("noise = z +", "noise = or_missing(next(z), 0) +")
    with pytest.raises(SpecErrors, match="noise cannot be generated"):
        Decoder(model(changed))


def test_words_that_see_a_picture_to_come_are_refused() -> None:
    with pytest.raises(SpecErrors, match="cannot be generated"):
        Decoder(model(text("none").replace(", mask=none", "")))


@pytest.mark.parametrize(
    "step",
    [
        "z = attend(z, z, z, over=dim, along=picture, mask=causal)",
        "z = z + previous(z)",
        "z = z * real(position(picture))",
        "z = z |> rope(along=picture, over=dim)",
    ],
)
def test_pictures_that_read_or_count_those_before_are_refused(step: str) -> None:
    """A call has the pictures that are new, and nothing is kept of those before."""
    changed = text(HYBRID).replace("    words = embed", f"    {step}\n    words = embed")
    with pytest.raises(GenerateFault, match="reads or counts rows of picture"):
        Decoder(model(changed))
