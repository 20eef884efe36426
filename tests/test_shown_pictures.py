"""Rows flattened into a selection: whose they are, what masks make of that, and what may be known of it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.small_models import checked, model
from weft.codegen.ops import OPS
from weft.codegen.pipeline import CPU_PASSES, GPU_PASSES, REFERENCE_PASSES
from weft.dsl import frontier
from weft.dsl.causality import frontiers
from weft.dsl.check import check
from weft.dsl.errors.weights import BadWeightMap
from weft.dsl.format import format_text
from weft.dsl.frontier import Frontier, Kind
from weft.dsl.source import Source
from weft.runtime.errors import InputFault
from weft.runtime.verify import NotCompared, verify

HEAD = """
size dim = 4
size vocab = 9
axis seq
axis side = 2
axis spot = 2
axis picture
enum modality: text, image
axis word = seq where kind == text
axis place = seq where kind == image
"""
PARAMETERS = "kind: modality[seq], ids: id[word] in vocab, latent: real[picture, spot, dim]"
TOGETHER = """    words = embed(ids, vocab -> dim) as embed
    places = flatten(linear(latent, dim -> dim) as first, (picture, spot) -> place)
    x = join((words, places), (word, place) -> seq)
"""
LAST = "init ** = normal(0.6)\n"


def spec(body: str, head: str = HEAD, parameters: str = PARAMETERS, together: str = TOGETHER) -> str:
    return f"{head}\nmodel m({parameters}):\n{together}{body}\n{LAST}"


# Tags; three rows for each clip of sound.
W, P, S = [0], [1] * 2, [2] * 3


def tags(*runs: list[int]) -> Tensor:
    return torch.tensor([tag for run in runs for tag in run], dtype=torch.int64)


def given(*kinds: Tensor, dim: int = 4, seed: int = 0) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def real(*size: int) -> Tensor:
        return torch.randn(*size, dim, dtype=torch.float64, generator=generator)

    counts = [[int((kind == tag).sum()) for tag in range(3)] for kind in kinds]
    made = {
        "kind": list(kinds),
        "ids": [torch.randint(9, (words,), generator=generator) for words, _, _ in counts],
        "latent": [real(rows // 2, 2) for _, rows, _ in counts],
    }
    return {**made, "noise": [real(rows // 3, 3) for _, _, rows in counts]} if any(c[2] for c in counts) else made


def owners_of(kind: Tensor) -> Tensor:
    """A number for each picture and each clip; -1 for words."""
    numbers = []
    for tag, each in ((1, 2), (2, 3)):
        count = (kind == tag).cumsum(0).sub(1).div(each, rounding_mode="floor")
        numbers.append(torch.where(kind == tag, count + 100 * tag, -1))
    return torch.maximum(*numbers)


def sees(x: Tensor, allow: Tensor) -> Tensor:
    """Attention of one head with a mask; a row that sees none gets zeros."""
    found = scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=allow | ~allow.any(1, keepdim=True))[0]
    return torch.where(allow.any(1, keepdim=True), found, 0)


KINDS = (tags(W, W, P, W), tags(P, P, W), tags(W, W), tags(P), tags(W, P, P, P, W, P))


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES, GPU_PASSES], ids=["reference", "cpu", "gpu"])
@pytest.mark.parametrize(
    "mask", ["causal or same(picture)", "same(picture)", "causal and same(picture)", "same(picture) or window(2)"]
)
def test_masks_by_owner(mask: str, passes) -> None:
    built = model(spec(f"    y = attend(x, x, x, over=dim, along=seq, mask={mask})\n    return x, y"), passes=passes)
    found: Any = built(**given(*KINDS))
    for number, kind in enumerate(KINDS):
        at, owner, x = torch.arange(len(kind)), owners_of(kind), found["x"][number]
        causal, same = at[None] <= at[:, None], (owner[:, None] == owner[None]) & (owner[:, None] >= 0)
        allow = {
            "causal or same(picture)": causal | same,
            "same(picture)": same,
            "causal and same(picture)": causal & same,
            "same(picture) or window(2)": same | ((at[:, None] - at[None]).abs() < 2),
        }[mask]
        torch.testing.assert_close(found["y"][number], sees(x, allow), rtol=1e-9, atol=1e-10)


def test_rows_come_back_to_their_pictures() -> None:
    body = """    back = unflatten(take(x, seq -> place), place -> (picture, spot))
    return linear(back, dim -> dim) as out"""
    built = model(spec(body))
    inputs = given(*KINDS)
    weights = dict(built.by_path())
    for found, latent in zip(built(**inputs), inputs["latent"], strict=True):
        torch.testing.assert_close(found, latent @ weights["first.weight"].T @ weights["out.weight"].T)


def test_along_the_places_alone() -> None:
    """Both sides are places, of which a picture's are neighbours whatever stands between pictures."""
    body = """    y = attend(places, places, places, over=dim, along=place, mask=same(picture))
    return places, y"""
    found: Any = model(spec(body))(**given(*KINDS))
    for places, y in zip(found["places"], found["y"], strict=True):
        owner = torch.arange(len(places)) // 2
        torch.testing.assert_close(y, sees(places, owner[:, None] == owner[None]))


# -- more owners, more tags --------------------------------------------------------------------------------------------

SOUNDS = (
    HEAD.replace("text, image", "text, image, sound")
    + """axis clip
axis beat = 3
axis tick = seq where kind == sound
"""
)
SOUND_PARAMETERS = PARAMETERS + ", noise: real[clip, beat, dim]"
SOUND_TOGETHER = TOGETHER.replace(
    "    x = join((words, places), (word, place) -> seq)\n",
    "    ticks = flatten(linear(noise, dim -> dim) as second, (clip, beat) -> tick)\n"
    "    x = join((words, places, ticks), (word, place, tick) -> seq)\n",
)
SOUND_KINDS = (tags(W, S, P, W, S, S), tags(S, W, P), tags(W, W), tags(P, P, S))


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize(
    "mask", ["causal or same(picture) or same(clip)", "causal or same(clip)", "same(picture) or same(clip)"]
)
def test_two_owners_in_one_text(mask: str, passes) -> None:
    body = f"""    y = attend(x, x, x, over=dim, along=seq, mask={mask})
    routed by kind:
        y = y + linear(y, dim -> dim) as tower
    a = unflatten(take(y, seq -> place), place -> (picture, spot))
    b = unflatten(take(y, seq -> tick), tick -> (clip, beat))
    return x, y, a, b"""
    built = model(spec(body, SOUNDS, SOUND_PARAMETERS, SOUND_TOGETHER), passes=passes)
    found: Any = built(**given(*SOUND_KINDS))
    weights = dict(built.by_path())
    for number, kind in enumerate(SOUND_KINDS):
        at, owner, x = torch.arange(len(kind)), owners_of(kind), found["x"][number]
        allow = at[None] <= at[:, None] if "causal" in mask else torch.zeros(len(kind), len(kind), dtype=torch.bool)
        for name, first in (("picture", 100), ("clip", 200)):
            if f"same({name})" in mask:
                mine = (owner >= first) & (owner < first + 100)
                allow = allow | ((owner[:, None] == owner[None]) & mine[:, None])
        y = sees(x, allow)
        towers = torch.stack([y + y @ weights[f"{tag}.tower.weight"].T for tag in ("text", "image", "sound")])
        y = towers[kind, at]
        torch.testing.assert_close(found["y"][number], y, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found["a"][number].flatten(0, 1), y[kind == 1], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found["b"][number].flatten(0, 1), y[kind == 2], rtol=1e-9, atol=1e-10)


BLOCKS = {
    "in a block": """    x = mixed(x)
    return x""",
    "in a loop": """    for turn in 0 .. 2:
        x = x + attend(x, x, x, over=dim, along=seq, mask=causal or same(picture))
    return x""",
    "among rows of pictures too": """    tiles = flatten(latent, (picture, spot) -> tile)
    own = attend(tiles, tiles, tiles, over=dim, along=tile, mask=same(picture))
    more = flatten(unflatten(own, tile -> (picture, spot)), (picture, spot) -> place)
    x = x + join((0 * words, more), (word, place) -> seq)
    return attend(x, x, x, over=dim, along=seq, mask=causal or same(picture))""",
    "back at their pictures": """    back = unflatten(take(x, seq -> place), place -> (picture, spot))
    return mean((back - latent)^2, over=(spot, dim))""",
    "no mask asks": """    return x + previous(x)""",
    "beside arms": """    match kind:
        text:
            x = tanh(x)
        image:
            x = x + linear(x, dim -> dim)
    return attend(x, x, x, over=dim, along=seq, mask=causal or same(picture))""",
}
BLOCK = """block mixed(x: real[seq, dim]) -> real[seq, dim]:
    return x + attend(x, x, x, over=dim, along=seq, mask=causal or same(picture))
"""


@pytest.mark.parametrize("name", BLOCKS)
def test_wherever_they_are_asked_for(name: str) -> None:
    """Every way to run it agrees, and every example is what it is alone."""
    text = spec(
        BLOCKS[name], HEAD + "axis tile in picture\n" * ("tile" in BLOCKS[name]) + BLOCK * (name == "in a block")
    )
    inputs = given(*KINDS)
    want = model(text)(**inputs)
    for passes in (CPU_PASSES, GPU_PASSES):
        for one, other in zip(model(text, passes=passes)(**inputs), want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    for number in range(len(KINDS)):
        alone = model(text)(**{key: [values[number]] for key, values in inputs.items()})[0]
        torch.testing.assert_close(alone, want[number])


def test_verify_draws_tags_in_runs() -> None:
    for text in (spec(BLOCKS["in a loop"]), spec("    return x", SOUNDS, SOUND_PARAMETERS, SOUND_TOGETHER)):
        parts = [part for part in verify(checked(text), torch.float64) if not isinstance(part, NotCompared)]
        assert parts
        assert all(part.is_ok for part in parts)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tags(W, [1], W, [1]), "example 0: the 2 rows of seq with the tag image in kind of row 0 of picture are not"),
        (tags(W, P, [1]), "example 0 has 1 rows of picture with 2 rows of seq each, but 3 have the tag image in kind"),
    ],
)
def test_rows_of_no_picture(kind: Tensor, message: str) -> None:
    inputs = {**given(tags(W, P) if len(kind) > 2 else kind), "kind": [kind]}
    inputs["ids"] = [torch.zeros(int((kind == 0).sum()), dtype=torch.int64)]
    with pytest.raises(InputFault, match=message):
        model(spec("    return x + previous(x)"))(**inputs)


# -- what may be known -------------------------------------------------------------------------------------------------

SEEN_HEAD = """
size d = 3
axis seq
axis piece in seq
axis spot = 2
axis picture
enum modality: text, image
axis word = seq where kind == text
axis place = seq where kind == image
block shown(x: real[picture, d]) -> real[picture, spot, d]:
    return linear(x, d -> (spot, d)) as wide

model m(a: real[seq, d], kind: modality[seq], tint: real[picture, d]) -> real[seq, d]:
    tints = flatten(shown(tint), (picture, spot) -> place)
    y = a + join((0 * take(a, seq -> word), tints), (word, place) -> seq)
"""
BACK = "    y = join((take(y, seq -> word), flatten({z}, (picture, spot) -> place)), (word, place) -> seq)"
APART = "z = unflatten(take(y, seq -> place), place -> (picture, spot))\n"
# Steps, with what they make of t, the frontier of a.
STEPS = {
    APART + BACK.format(z="z"): "end(picture)",
    APART + BACK.format(z="z + mean(z, over=spot)"): "end(picture)",
    APART + BACK.format(z="z * tint"): "end(picture)",
    APART + BACK.format(z="z + mean(z, over=picture)"): "all",
    APART + BACK.format(z="previous(z)"): "end(picture)",
    APART + BACK.format(z="attend(z, z, z, over=d, along=spot)"): "end(picture)",
    "y = attend(y, y, y, over=d, along=seq, mask=causal or same(picture))": "end(picture)",
    "y = attend(y, y, y, over=d, along=seq, mask=causal or same(picture))\n    "
    "y = mean(flatten(stack((y, 2 * y), over=spot), (seq, spot) -> piece) * y, over=piece)": "end(picture)",
    "y = attend(y, y, y, over=d, along=seq, mask=causal or same(picture))\n    "
    "parts = flatten(stack((y, 2 * y), over=spot), (seq, spot) -> piece)\n    "
    "parts = attend(parts, parts, parts, over=d, along=piece, mask=same(seq))\n    "
    "y = mean(parts, over=piece)": "end(picture)",
    "y = y + attend(y, y, y, over=d, along=seq, mask=causal and same(picture))": "t",
    "y = attend(y, y, y, over=d, along=seq, mask=causal)": "t",
    "y = y + previous(y)": "t",
    "routed by kind:\n        y = linear(y, d -> d)": "t",
}
SEEN_KIND = (0, 1, 1, 0, 1, 1, 1, 1, 0)


def seen_text(*steps: str) -> str:
    """Each weight with a name of its own; what is flattened makes the segments that a mask asks for."""
    lines = [f"    {step}".replace("linear(y, d -> d)", f"linear(y, d -> d) as mix{i}") for i, step in enumerate(steps)]
    body = "\n".join(line.replace("z", f"z{i}") for i, line in enumerate(lines))
    return SEEN_HEAD + body + "\n    return y\ninit ** = normal(0.7)\n"


@cache
def seen_programs() -> tuple[tuple[str, str | None], ...]:
    import random

    rng = random.Random(3)
    found: list[tuple[str, str | None]] = [(seen_text(step), said) for step, said in STEPS.items()]
    found += [(seen_text(*(rng.choice(list(STEPS)) for _ in range(rng.randint(2, 4)))), None) for _ in range(40)]
    return tuple(found)


@cache
def observed(text: str) -> frozenset[tuple[int, int]]:
    """(r, t) where some change of row r of a changes row t of the result."""
    built = model(text)
    generator = torch.Generator().manual_seed(2)
    a, tint = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (len(SEEN_KIND), 3))
    rest = {"kind": [torch.tensor(SEEN_KIND)], "tint": [tint]}
    base, found = built(a=[a], **rest)[0], set()
    for row in range(len(SEEN_KIND)):
        other = a.clone()
        other[row] = 2 * torch.randn(3, dtype=torch.float64, generator=generator)
        changed = (built(a=[other], **rest)[0] - base).abs().amax(1) > 1e-12
        found |= {(row, t) for t in changed.nonzero()[:, 0].tolist()}
    return frozenset(found)


LAST_ROWS = (0, 2, 2, 3, 5, 5, 7, 7, 8)


def violations(f: Frontier, pairs: frozenset[tuple[int, int]]) -> set[tuple[int, int]]:
    match f.kind:
        case Kind.ALL:
            return set()
        case Kind.NONE:
            return set(pairs)
        case Kind.ROW:
            return {(r, t) for r, t in pairs if r > t + f.shift}
        case _:
            assert f.kind is Kind.END
            return {(r, t) for r, t in pairs if r > LAST_ROWS[t]}


def seen(program) -> Frontier:
    (source,) = (value for value in program.inputs if value.name == "a")
    return frontiers(program, source)[program.outputs[0][1]]


@pytest.mark.parametrize(("text", "said"), seen_programs())
def test_programs_see_what_is_said_and_no_more(text: str, said: str | None) -> None:
    f = seen(checked(text).model)
    assert said is None or str(f) == said
    assert not violations(f, observed(text)), str(f)


WEAK = {
    "flatten": lambda node, given: frontier.row(node.inputs[1].type.rows) if node.inputs[1:] else given[0],
    "unflatten": lambda node, given: frontier.NONE,
    "attend": lambda node, given: frontier.join(*given),
}


@pytest.mark.parametrize("op", WEAK)
def test_a_weaker_rule_is_caught(op: str) -> None:
    caught = 0
    for text, _ in seen_programs():
        program = checked(text).model
        nodes = tuple(
            replace(node, op=replace(node.op, frontier=WEAK[op])) if node.op.name == op else node
            for node in program.nodes
        )
        caught += bool(violations(seen(replace(program, nodes=nodes)), observed(text)))
    assert caught > 0


def test_a_picture_that_knows_itself_is_no_leak_and_a_word_that_does_is() -> None:
    """Words are predicted; a word that reads the whole of a picture before it ends is refused."""
    text = (
        spec("    x = attend(x, x, x, over=dim, along=seq, mask={mask})\n    return x")
        + """
objective o(kind: modality[seq], ids: id[word] in vocab, latent: real[picture, spot, dim]):
    scores = linear(take(m(kind, ids, latent), seq -> word), dim -> vocab) as head
    loss text = cross_entropy(scores, take(next(ids, along=seq), seq -> word))
"""
    )
    checked(text.replace("{mask}", "causal or same(picture)"))
    problems = check(Source("m.weft", text.replace("{mask}", "window(2) or same(picture)")), OPS).problems
    assert [error.code for error in problems.errors] == ["E401"]


# -- the language ------------------------------------------------------------------------------------------------------


def test_new_is_formatted() -> None:
    text = 'weights huggingface:\n    tensor  "a.*"= layer.*.x\n    new   image.** ,head.weight   # ours\n'
    once = format_text(Source("m.weft", text))
    assert "    new image.**, head.weight  # ours\n" in once
    assert format_text(Source("m.weft", once)) == once


MAP = """
size dim = 4
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    x = linear(x, dim -> dim) as old
    return linear(x, dim -> dim) as fresh
weights huggingface:
    tensor "old" = old.weight
    {line}
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("new fresh.weight, fresher.**", "`fresher.**` is the path of no weight"),
        ("new fresh.**, old.**", "`old.weight` is new, so no tensor holds it"),
        ('new fresh.**\n    tensor "two" = fresh.weight', "`fresh.weight` is new, so no tensor holds it"),
        ('tensor "two" = fresh.weight, old.weight', "`old.weight` is mapped twice, to `old` and `two`"),
    ],
)
def test_new_weights_that_are_none(line: str, message: str) -> None:
    problems = check(Source("m.weft", MAP.format(line=line)), OPS).problems
    assert problems.errors
    assert message in [error.what for error in problems.errors if isinstance(error, BadWeightMap)]
