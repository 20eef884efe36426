"""`routed by`, `match`, selected axes: each arm runs on the rows that have its tag, and on no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from tests.small_models import checked, model
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.dsl.program import Program
from weft.runtime.draws import Draws
from weft.runtime.model import Model

# A layer of two towers that meet in attention, as in LMFusion: pictures see themselves whole.
TOWERS = """
size dim = 8
size heads = 4
size kv_heads = 2
size ffn = 12
size pictures = 3
option layers: int = 2
axis head_dim = dim / heads
enum modality: text, image
axis seq

block layer(x: real[seq, dim], kind: modality[seq], picture: id[seq] in pictures or none) -> real[seq, dim]:
    routed by kind:
        h = rms_norm(x) as attention_norm
        q = linear(h, dim -> (heads, head_dim)) |> rope(along=seq)
        k = linear(h, dim -> (kv_heads, head_dim)) |> rope(along=seq)
        v = linear(h, dim -> (kv_heads, head_dim))
    a = attend(q, k, v, over=head_dim, along=seq, group=heads -> kv_heads, mask=causal or same(picture))
    routed by kind:
        x = x + linear(a, (heads, head_dim) -> dim) as out
        x = x + swiglu(rms_norm(x) as ffn_norm, ffn)
    return x

model towers(x: real[seq, dim], kind: modality[seq], picture: id[seq] in pictures or none) -> real[seq, dim]:
    for layer in 0 .. layers:
        x = layer(x, kind, picture)
    return x

init **.weight = normal(0.4)
init **.gain = normal(1)
"""

# Pictures that touch, and examples of one kind alone.
KINDS = ((0, 1, 1, 0, 0, 1, 1, 1, 1, 0), (0, 0, 0), (1, 1), (1, 0))
PICTURES = ((3, 0, 0, 3, 3, 1, 1, 2, 2, 3), (3, 3, 3), (0, 0), (2, 3))


def batch(dim: int = 8, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(len(k), dim, dtype=torch.float64, generator=generator) for k in KINDS]
    return (
        xs,
        [torch.tensor(k, dtype=torch.int64) for k in KINDS],
        [torch.tensor(p, dtype=torch.int64) for p in PICTURES],
    )


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x * x).mean(-1, keepdim=True).add(1e-6).sqrt() * gain


def turned(x: Tensor) -> Tensor:
    """Rotary positions of `[rows, heads, D]`, halves apart."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x), dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def tower(w: dict[str, Tensor], at: str, x: Tensor) -> tuple[Tensor, ...]:
    """q, k and v of every row, by the weights of one tag."""
    h = norm(x, w[f"{at}.attention_norm.gain"])
    q, k, v = (linear(h, w[f"{at}.{name}.linear.weight"]).reshape(len(x), -1, 2) for name in "qkv")
    return turned(q), turned(k), v


def after(w: dict[str, Tensor], at: str, x: Tensor, a: Tensor) -> Tensor:
    x = x + linear(a, w[f"{at}.out.weight"])
    f = norm(x, w[f"{at}.ffn_norm.gain"])
    gate, up = (linear(f, w[f"{at}.swiglu.{name}.linear.weight"]) for name in ("gate", "up"))
    return x + linear(silu(gate) * up, w[f"{at}.swiglu.down.linear.weight"])


def chosen(kind: Tensor, text: Tensor, image: Tensor) -> Tensor:
    return torch.where((kind == 0).reshape(-1, *(1,) * (text.dim() - 1)), text, image)


def by_hand(w: dict[str, Tensor], x: Tensor, kind: Tensor, picture: Tensor, layers: int = 2) -> Tensor:
    """Both towers on every row of one example, one chosen by a mask; attention with a dense mask."""
    position = torch.arange(len(x))
    same = (picture[:, None] == picture[None]) & (picture[:, None] != 3)
    allowed = (position[None] <= position[:, None]) | same
    for number in range(layers):
        text, image = (f"layer.{number}.layer.{tag}" for tag in ("text", "image"))
        both = zip(tower(w, text, x), tower(w, image, x), strict=True)
        q, k, v = (chosen(kind, one, other) for one, other in both)
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) * 2**-0.5
        weighed = torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1)
        a = torch.einsum("hqk,khd->qhd", weighed, v.repeat_interleave(2, 1)).reshape(len(x), -1)
        x = chosen(kind, after(w, text, x, a), after(w, image, x, a))
    return x


def weights_of(built: Model) -> dict[str, Tensor]:
    return dict(built.by_path())


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
def test_two_towers_are_both_towers_and_a_choice(passes: tuple[Pass, ...]) -> None:
    """Outputs, and the gradients of every weight and of the rows."""
    built = model(TOWERS, passes=passes)
    weights = weights_of(built)
    xs, kinds, pictures = batch()
    given = [x.clone().requires_grad_() for x in xs]
    found = torch.cat(built(given, kinds, pictures))
    copies: dict[str, Tensor] = {path: nn.Parameter(weight.detach().clone()) for path, weight in weights.items()}
    leaves = [x.clone().requires_grad_() for x in xs]
    expected = torch.cat([by_hand(copies, *example) for example in zip(leaves, kinds, pictures, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    at = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (found * at).sum().backward()
    (expected * at).sum().backward()
    for path, weight in weights.items():
        torch.testing.assert_close(weight.grad, copies[path].grad, rtol=1e-9, atol=1e-9, msg=path)
    for row, leaf in zip(given, leaves, strict=True):
        torch.testing.assert_close(row.grad, leaf.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("only", [0, 1])
def test_a_batch_without_rows_of_a_tag(only: int) -> None:
    """Its tower has a gradient, which is zero."""
    built = model(TOWERS)
    xs, kinds, pictures = batch()
    kinds = [torch.full_like(kind, only) for kind in kinds]
    found = torch.cat(built(xs, kinds, pictures))
    expected = torch.cat([by_hand(weights_of(built), *each) for each in zip(xs, kinds, pictures, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.square().sum().backward()
    other = ("image", "text")[only]
    for path, weight in weights_of(built).items():
        assert weight.grad is not None, path
        assert bool(weight.grad.any()) == (f".{other}." not in path), path


def test_each_row_runs_through_one_tower() -> None:
    """The products of a routed model cost what those of the same model without tags cost, whatever the tags are."""
    plain = TOWERS.replace("    routed by kind:\n", "").replace("\n        ", "\n    ")
    plain = plain.replace("    x = layer(x", "        x = layer(x")
    counted = []
    for text in (plain, TOWERS):
        built = model(text, passes=CPU_PASSES)
        xs, kinds, pictures = batch()
        with FlopCounterMode(display=False) as counter:
            torch.cat(built(xs, kinds, pictures)).sum().backward()
        counts = counter.get_flop_counts()["Global"]
        counted.append({op: count for op, count in counts.items() if "mm" in str(op)})
    assert counted[0] == counted[1] != {}


def test_the_rows_of_a_tag_are_found_once() -> None:
    """Whatever the number of layers: one search and one order."""
    graph = model(TOWERS, passes=CPU_PASSES).graph(checked_program(layers=2))
    names = [getattr(node.target, "__name__", "") for node in graph.graph.nodes]
    assert names.count("rows_of") == 2
    assert names.count("order_of") == 1


# -- what statements mean --------------------------------------------------------------------------

HEAD = """
size dim = 4
size wide = 3
enum modality: text, image, sound
enum mood: plain, loud
axis seq
axis half = 2
model m(x: real[seq, dim], kind: modality[seq], tone: mood[seq], c: real[dim]) -> real[seq, dim]:
    {body}
init ** = normal(0.5)
"""

Made = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor], Tensor]


def pick(tag: Tensor, *choices: Tensor) -> Tensor:
    """One of several values of each row."""
    stacked = torch.stack([choice.expand(choices[0].shape) for choice in choices])
    return stacked[tag, torch.arange(len(tag))]


def three(w: dict[str, Tensor], path: str, x: Tensor, kind: Tensor, tags: tuple[str, ...] = ()) -> Tensor:
    tags = tags or ("text", "image", "sound")
    return pick(kind, *(linear(x, w[path.format(tag)]) for tag in tags))


BODIES: dict[str, tuple[str, Made]] = {
    "a new name": (
        """routed by kind:
        y = linear(x, dim -> dim)
    return y * 2""",
        lambda w, x, kind, tone, c: 2 * three(w, "{}.y.linear.weight", x, kind),
    ),
    "arms of several tags, and other work in each": (
        """match kind:
        text, sound:
            y = linear(tanh(x), dim -> dim) + c
        image:
            y = x * real(position(seq))
    return y""",
        lambda w, x, kind, tone, c: torch.where(
            (kind == 1)[:, None],
            x * torch.arange(len(x))[:, None],
            linear(x.tanh(), w["text_or_sound.y.linear.weight"]) + c,
        ),
    ),
    "a name that some arms rebind keeps its rows in the others": (
        """match kind:
        text:
            x = linear(x, dim -> dim)
        image:
            y = x
        sound:
            x = 3 * x
    return x""",
        lambda w, x, kind, tone, c: pick(kind, linear(x, w["text.linear.weight"]), x, 3 * x),
    ),
    "numbers, parameters and values per example": (
        """match kind:
        text:
            param w: real[dim]
            a = 2
            b = w
        image:
            a = 3
            b = c
        sound:
            a = 4
            b = c * 1
    z = real(a) * x
    match kind:
        text:
            param v: real[dim]
            y = v * 1
        image, sound:
            y = c * 1
    return z + y + b""",
        lambda w, x, kind, tone, c: (
            pick(kind, 2 * x, 3 * x, 4 * x)
            + pick(kind, w["text.v"].expand(x.shape), c, c)
            + pick(kind, w["text.w"].expand(x.shape), c, c)
        ),
    ),
    "flags, ids and records": (
        """routed by tone:
        s = linear(x, dim -> wide)
        best = topk(s, over=wide, k=half)
        loud = s > 0
    return x + sum(best.score, over=half) + real(sum(int(best.index), over=half)) + sum(real(loud), over=wide)""",
        lambda w, x, kind, tone, c: _best(w, x, tone),
    ),
    "matches in matches, blocks and loops": (
        """routed by kind:
        for turn in 0 .. 2:
            x = x + tanh(linear(x, dim -> dim))
            match tone:
                plain:
                    x = x * 2
                loud:
                    x = linear(x, dim -> dim) as loud
        x = layer_norm(x)
    return x""",
        lambda w, x, kind, tone, c: _nested(w, x, kind, tone),
    ),
    "one tag twice, in and out": (
        """routed by kind:
        x = linear(x, dim -> dim)
        match kind:
            text:
                x = x + 1
            image, sound:
                x = linear(x, dim -> dim) as again
    return x""",
        lambda w, x, kind, tone, c: _twice(w, x, kind),
    ),
    "families": (
        """routed by tone:
        for i in 0 .. 2:
            kept[i] = linear(x, dim -> dim)
    return kept[0] * kept[1]""",
        lambda w, x, kind, tone, c: (
            three(w, "{}.i.0.linear.weight", x, tone, ("plain", "loud"))
            * three(w, "{}.i.1.linear.weight", x, tone, ("plain", "loud"))
        ),
    ),
    "rows that are missing": (
        """later = next(x)
    routed by kind:
        y = or(linear(x, dim -> dim) + later, 2)
        z = later * 2
    return y + or(z, 5)""",
        lambda w, x, kind, tone, c: _missing(w, x, kind),
    ),
}


def _best(w: dict[str, Tensor], x: Tensor, tone: Tensor) -> Tensor:
    s = three(w, "{}.s.linear.weight", x, tone, ("plain", "loud"))
    found = s.topk(2, -1)
    extra = found.values.sum(-1) + found.indices.sum(-1) + (s > 0).sum(-1)
    return x + extra[:, None]


def _nested(w: dict[str, Tensor], x: Tensor, kind: Tensor, tone: Tensor) -> Tensor:
    made = []
    for tag in ("text", "image", "sound"):
        y = x
        for turn in range(2):
            y = y + linear(y, w[f"{tag}.turn.{turn}.linear.weight"]).tanh()
            y = pick(tone, y * 2, linear(y, w[f"{tag}.turn.{turn}.loud.loud.weight"]))
        centred = y - y.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        made.append(y * w[f"{tag}.layer_norm.gain"] + w[f"{tag}.layer_norm.bias"])
    return pick(kind, *made)


def _twice(w: dict[str, Tensor], x: Tensor, kind: Tensor) -> Tensor:
    text = linear(x, w["text.linear.weight"]) + 1
    rest = [
        linear(linear(x, w[f"{t}.linear.weight"]), w[f"{t}.image_or_sound.again.weight"]) for t in ("image", "sound")
    ]
    return pick(kind, text, *rest)


def _missing(w: dict[str, Tensor], x: Tensor, kind: Tensor) -> Tensor:
    later = torch.cat([x[1:], x.new_zeros(1, x.shape[1])])
    y, z = three(w, "{}.y.linear.weight", x, kind) + later, later * 2
    y[-1], z[-1] = 2, 5
    return y + z


def rows(seed: int = 3, lengths: tuple[int, ...] = (7, 1, 4)) -> dict[str, list[Tensor] | Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": [torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in lengths],
        "kind": [torch.randint(3, (n,), generator=generator) for n in lengths],
        "tone": [torch.randint(2, (n,), generator=generator) for n in lengths],
        "c": torch.randn(len(lengths), 4, dtype=torch.float64, generator=generator),
    }


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", BODIES)
def test_arms(name: str, passes: tuple[Pass, ...]) -> None:
    body, made = BODIES[name]
    built = model(HEAD.format(body=body), passes=passes)
    given = rows()
    found = built(**given)
    w = weights_of(built)
    for number, example in enumerate(found):
        x, kind, tone = (given[part][number] for part in ("x", "kind", "tone"))
        torch.testing.assert_close(example, made(w, x, kind, tone, given["c"][number]), rtol=1e-9, atol=1e-9)


def checked_program(**options: object) -> Program:
    return checked(TOWERS, **options).model


# -- a tag per example -----------------------------------------------------------------------------

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


# -- weights of towers -----------------------------------------------------------------------------


def test_frozen_towers_pass_gradients_on() -> None:
    """`freeze .. where` takes the weights of an arm from training; what stands before them still learns."""
    text = TOWERS + "\ninit layer.*.**.image.** = copy(layer.*.**.text.**)\nfreeze layer where kind == text\n"
    built = model(text)
    weights = weights_of(built)
    frozen = {path for path, weight in weights.items() if not weight.requires_grad}
    assert frozen == {path for path in weights if ".text." in path} != set()
    for path, weight in weights.items():
        torch.testing.assert_close(weight, weights[path.replace(".image.", ".text.")])
    # A picture, then text that reads it: the loss of the text reaches the picture's weights through the text's.
    x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kind, picture = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 0, 3, 3, 3])
    (found,) = built([x], [kind], [picture])
    found[2:].square().sum().backward()
    last = "layer.1.layer.image."
    for path, weight in weights.items():
        if path in frozen:
            assert weight.grad is None, path
        # What the picture's rows do after their last keys and values is read by nobody.
        elif not path.startswith(last) or path.removeprefix(last).split(".")[0] in ("attention_norm", "k", "v"):
            assert weight.grad is not None, path
            assert weight.grad.any(), path


def test_patterns_speak_of_towers() -> None:
    text = TOWERS + "\ninit **.text.**.weight = zeros\nfreeze layer.0.layer.image\n"
    weights = model(text).weights
    assert {path for path, weight in weights.items() if weight.frozen} == {
        path for path in weights if path.startswith("layer.0.layer.image.")
    }
    assert {path for path, weight in weights.items() if weight.init.kind == "zeros"} == {
        path for path in weights if ".text." in path and path.endswith(".weight")
    }
