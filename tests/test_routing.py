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


# -- rows that stay sorted -------------------------------------------------------------------------


def calls(text: str, passes: tuple[Pass, ...] = CPU_PASSES) -> list[str]:
    built = model(text, passes=passes)
    return [getattr(node.target, "__name__", "") for node in built.graph(built.program).graph.nodes]


def test_rows_are_joined_for_attention_alone() -> None:
    """Of the rows of a layer, q, k and v are joined, and what attention gives is taken apart; the residual stays."""
    for layers in (1, 3):
        names = calls(TOWERS.replace("layers: int = 2", f"layers: int = {layers}"))
        # q, k and v of each layer, and the result; the input and attention's result for both towers, and positions.
        assert names.count("join") == 3 * layers + 1
        assert names.count("take") == 2 * (layers + 1) + 2


def test_a_residual_outside_the_arms_is_added_per_part() -> None:
    body = """routed by tone:
        x = x + linear(x, dim -> dim) as first
    routed by tone:
        h = linear(x, dim -> dim) as second
    x = x + tanh(h) * 2
    routed by tone:
        x = x + linear(x, dim -> dim) as third
    return x"""
    text = HEAD.format(body=body)
    names = calls(text)
    assert names.count("join") == 1
    assert names.count("take") == 2
    given = rows()
    torch.testing.assert_close(model(text, passes=CPU_PASSES)(**given), model(text)(**given), rtol=1e-10, atol=1e-10)


def test_a_value_that_is_read_whole_stays_whole() -> None:
    body = """routed by tone:
        x = x + linear(x, dim -> dim) as first
    x = x * 2
    y = mean(x, over=seq)
    routed by tone:
        x = x + linear(x, dim -> dim) as second
    return x + y"""
    text = HEAD.format(body=body)
    assert calls(text).count("join") == 2
    given = rows()
    torch.testing.assert_close(model(text, passes=CPU_PASSES)(**given), model(text)(**given), rtol=1e-10, atol=1e-10)
