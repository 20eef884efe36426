"""Grids and what works on them, against torch's own modules in float64: values, gradients, weights by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import weft
from tests import op_samples
from tests.torch_unet import Attention, ResnetBlock, UNet, torch_name
from weft.codegen.functions import places
from weft.codegen.ops import OPS
from weft.dsl.check import check, read_source
from weft.dsl.source import Source
from weft.runtime.model import Model

UNET = Path(__file__).parent.parent / "specs" / "unet.weft"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def as_torch(x: Tensor, height: int, width: int) -> Tensor:
    """`[N, places, channels]` as `[N, channels, height, width]`."""
    return x.unflatten(1, (height, width)).movedim(-1, 1)


def as_ours(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def checked(text: str):
    return check(Source("pictures.weft", text), OPS)


# -- functions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (1, 3)])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (5, 1), (1, 2), (3, 2), (4, 2), (2, 2), (3, 3)])
def test_conv_is_torchs(sides: tuple[int, int], size: int, stride: int) -> None:
    """Torch's padding of (size - 1) // 2 on each side, where that gives every place."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2, math.prod(sides), 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    target = tuple(-(-side // stride) for side in sides)
    before = (size - 1) // 2
    found = places.conv(x, weight, bias, sides, target, stride, before)
    # Enough zeros behind for the last window; torch then has the same windows or more.
    padded = functional.pad(as_torch(x, *sides), (before, size + stride, before, size + stride))
    expected = functional.conv2d(padded, weight, bias, stride)[:, :, : target[0], : target[1]]
    close(found, as_ours(expected))
    if size % 2 and (stride == 1 or size == 3):
        close(found, as_ours(functional.conv2d(as_torch(x, *sides), weight, bias, stride, before)))
    grad = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, weight), grad),
        torch.autograd.grad(as_ours(expected), (x, weight), grad),
        strict=True,
    ):
        close(mine, theirs)


def test_causal_conv_along_static_places_sees_nothing_behind() -> None:
    x, weight = torch.randn(1, 7, 2, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    found = places.conv(x, weight, None, (7,), (7,), 1, 3)
    expected = functional.conv1d(functional.pad(x.transpose(1, 2), (3, 0)), weight).transpose(1, 2)
    close(found, expected)


@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (3, 2)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_pool_and_spread_are_torchs(sides: tuple[int, int], scale: int) -> None:
    x = torch.randn(2, math.prod(sides), 3, dtype=torch.float64)
    picture = as_torch(x, *sides)
    rounded = {"kernel_size": scale, "ceil_mode": True}
    close(places.pool(x, 1, sides, "max", scale), as_ours(functional.max_pool2d(picture, **rounded)))
    mean = functional.avg_pool2d(picture, **rounded, count_include_pad=False)
    close(places.pool(x, -2, sides, "mean", scale), as_ours(mean))
    total = functional.avg_pool2d(picture, **rounded, divisor_override=1)
    close(places.pool(x, 1, sides, "sum", scale), as_ours(total))
    close(places.pool(x, 1, sides, "first", scale), as_ours(picture[:, :, ::scale, ::scale]))
    coarse = places.pool(x, 1, sides, "first", scale)
    target = tuple(-(-side // scale) for side in sides)
    wide = functional.interpolate(as_torch(coarse, *target), scale_factor=scale, mode="nearest")
    close(places.spread(coarse, 1, target, sides, scale), as_ours(wide[:, :, : sides[0], : sides[1]]))


def test_last_of_a_square_at_the_edge_is_the_last_there_is() -> None:
    x = torch.arange(15.0).reshape(1, 15, 1)
    assert places.pool(x, 1, (3, 5), "last", 2).flatten().tolist() == [6, 8, 9, 11, 13, 14]


# -- blocks ------------------------------------------------------------------------------------------------------------

BLOCK = """
size channels = 8
size out = 12
size told = 6
axis picture
axis cell = grid(4, 3)
"""


def block(text: str):
    """A model of one expression over pictures, its inputs and its weights by path, without the model's first parts."""
    parameters, result = text.split(" => ")
    source = f"{BLOCK}\nmodel m({parameters}):\n    return {result}\n"
    program = checked(source).value().models["m"]
    graph = op_samples.module(program)
    lengths = {"picture": (2, 0, 3)}
    values = op_samples.inputs(program, lengths)
    for value in values:
        value.requires_grad_()
    found = graph(*op_samples.arguments(graph, values, lengths))[0]
    names = [weight.path.partition(".")[2] for weight in program.weights]
    return found, values, dict(zip(names, graph.parameters(), strict=True))


def load(module: nn.Module, weights: Mapping[str, Tensor], name) -> nn.Module:
    """The torch module with our weights, each under its name there; every one of both is used."""
    own = module.double().state_dict()
    # A bias per head and entry is one list there.
    given = {name(path): weight.detach() for path, weight in weights.items()}
    shaped = {key: tensor.reshape(own[key].shape) if key.endswith("bias") else tensor for key, tensor in given.items()}
    module.load_state_dict(shaped, strict=True)
    return module


def same_gradients(found: Tensor, expected: Tensor, values: list[Tensor]) -> None:
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mine = torch.autograd.grad(found, values, grad, retain_graph=True)
    theirs = torch.autograd.grad(expected, values, grad, retain_graph=True)
    for one, other in zip(mine, theirs, strict=True):
        close(one, other)


def test_group_norm() -> None:
    found, (x,), weights = block("x: real[picture, cell, channels] => group_norm(x, cell, 4)")
    norm = load(nn.GroupNorm(4, 8), weights, lambda path: path.replace("gain", "weight"))
    expected = as_ours(norm(as_torch(x, 4, 3)))
    close(found, expected)
    same_gradients(found, expected, [x])


@pytest.mark.parametrize("out", ["out", "channels"])
def test_resnet(out: str) -> None:
    text = f"x: real[picture, cell, channels], t: real[picture, told] => resnet(x, t, cell, {out}, 4)"
    found, (x, t), weights = block(text)
    names = {"gain": "weight", "time_projection": "time_emb_proj", "shortcut": "conv_shortcut"}

    def name(path: str) -> str:
        return ".".join(names.get(part, part) for part in path.split("."))

    module = load(ResnetBlock(8, 12 if out == "out" else 8, 6, 4), weights, name)
    expected = as_ours(module(as_torch(x, 4, 3), t))
    close(found, expected)
    same_gradients(found, expected, [x, t])


def test_picture_attention() -> None:
    found, (x,), weights = block("x: real[picture, cell, channels] => picture_attention(x, cell, 4, 2)")

    def name(path: str) -> str:
        first, _, last = path.partition(".")
        places = {"norm": "group_norm", "out": "to_out"}
        return f"{places.get(first, 'to_' + first)}.{last.replace('linear.', '').replace('gain', 'weight')}"

    module = load(Attention(8, 4, 2), weights, name)
    expected = as_ours(module(as_torch(x, 4, 3)))
    close(found, expected)
    same_gradients(found, expected, [x])


def test_cosine_schedule() -> None:
    """The table of the LMFusion sheet, and the clipped last step, by the definition through betas."""
    steps = 1000
    fall = [math.cos((s / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for s in range(steps + 1)]
    left, product = [], 1.0
    for now, after in pairwise(fall):
        product *= 1 - min(1 - after / now, 0.999)
        left.append(product)
    source = "axis picture\nmodel m(t: int[picture]) -> real[picture]:\n    return cosine_left(t)\n"
    graph = op_samples.module(checked(source).value().models["m"])
    found = graph(torch.arange(steps), torch.tensor([0, steps], dtype=torch.int32))[0]
    torch.testing.assert_close(found, torch.tensor(left, dtype=torch.float64), rtol=1e-9, atol=1e-15)
    sheet = {
        0: 0.99996, 100: 0.972, 250: 0.846, 500: 0.492, 750: 0.143, 900: 0.0236, 990: 2.0e-4, 998: 2.4e-6, 999: 2.4e-9
    }  # fmt: skip
    assert found[list(sheet)].tolist() == pytest.approx(list(sheet.values()), rel=0.02)
    logs = {0: 10.1, 100: 3.53, 250: 1.70, 500: -0.03, 750: -1.79, 900: -3.72, 990: -8.5, 998: -12.9, 999: -19.8}
    assert (found / (1 - found)).log()[list(logs)].tolist() == pytest.approx(list(logs.values()), rel=6e-3, abs=5e-3)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_cosine_schedule_in_closed_form(dtype: torch.dtype, most: float) -> None:
    """f((t + 1) / T) / f(0) at every t but the last, whose step is clipped, and to a part of itself: of the last steps
    little is left."""
    source = "axis picture\nmodel m(t: int[picture]) -> real[picture]:\n    return cosine_left(t)\n"
    graph = op_samples.module(checked(source).value().models["m"], dtype)
    found = graph(torch.arange(1000), torch.tensor([0, 1000], dtype=torch.int32))[0]
    f = [math.cos((s / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in range(1000)]
    want = torch.tensor([*(one / f[0] for one in f[1:]), 0.001 * f[-1] / f[0]], dtype=torch.float64)
    assert want[998] == pytest.approx(2.43e-6, rel=0.01)
    torch.testing.assert_close(found.double(), want, rtol=most, atol=0)


# -- the whole ---------------------------------------------------------------------------------------------------------

SHAPES = [
    pytest.param({}, (4, 64, 32, (1, 2), (False, True), 2, 8, 16, 64), 8, id="tiny"),
    pytest.param(
        {"side": 12, "levels": 3, "mult": (1, 2, 3), "attentive": (False, True, True), "blocks": 1, "base": 16},
        (4, 64, 16, (1, 2, 3), (False, True, True), 1, 8, 16, 64),
        12,
        id="three-levels",
    ),
    pytest.param({"levels": 1, "side": 5}, (4, 64, 32, (1,), (False,), 2, 8, 16, 64), 5, id="one-level"),
    # Latents of 8 x 32 x 32 and the layout of 0.27 B: widths alone are smaller.
    pytest.param(
        {"size": "8b", "dim": 48, "base": 8, "groups": 4, "head_size": 16, "time_width": 24},
        (8, 48, 8, (1, 4), (False, True), 2, 4, 16, 24),
        32,
        id="published",
    ),
]


@pytest.mark.parametrize(("overrides", "shape", "side"), SHAPES)
def test_unet_is_torchs(overrides: dict, shape: tuple, side: int) -> None:
    """One text for any depth: a loop over families of axes, kept values and widths."""
    size, *sizes = {"size": "tiny", **overrides}.items()
    model: Any = weft.load(UNET, size=size[1], overrides=dict(sizes), dtype=torch.float64)
    theirs = UNet(*shape).double()
    torch.manual_seed(0)
    weights: dict[str, torch.nn.Parameter] = dict(model.by_path())
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.randn(weight.shape, dtype=torch.float64) * weight[0].numel() ** -0.5)
    load(theirs, weights, lambda path: torch_name(path, shape[5]))
    pictures = [torch.randn(n, side * side, shape[0], dtype=torch.float64) for n in (2, 1)]
    times = [torch.tensor([3, 71]), torch.tensor([99])]
    found = torch.cat(model(pictures, times))
    expected = as_ours(theirs(as_torch(torch.cat(pictures), side, side), torch.cat(times)))
    assert expected.abs().max() > 0.1
    assert found.shape == (3, side * side, shape[0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    grad = torch.randn(found.shape, dtype=torch.float64)
    found.backward(grad)
    expected.backward(grad)
    named = dict(theirs.named_parameters())
    for path, weight in weights.items():
        expected = named[torch_name(path, shape[5])].grad
        assert expected is not None
        torch.testing.assert_close(weight.grad, expected.reshape(weight.shape), rtol=1e-8, atol=1e-8)


def test_published_size() -> None:
    """The construction of the sheet: down 75.5 M, up 188.1 M, times 2.1 M, 265.6 M in all."""
    weights = check(read_source(UNET), OPS, size="8b").value().weights
    counts: dict[str, int] = dict.fromkeys(("down", "up", "t"), 0)
    for path, weight in weights.items():
        counts[path.partition(".")[0]] += math.prod(weight.shape)
    assert {part: round(count / 1e6, 1) for part, count in counts.items()} == {"down": 75.5, "up": 188.1, "t": 2.1}
    assert sum(counts.values()) == 265_626_504


def test_the_time_and_what_is_kept_matter() -> None:
    model = weft.load(UNET, size="tiny")
    picture = [torch.randn(1, 64, 4)]
    with torch.no_grad():
        early, late = (model(picture, [torch.tensor([t])])[0] for t in (3, 90))
    assert not torch.allclose(early, late)


BETWEEN = """
use unet(blocks = 1): told, down, up, cell, spot, channels, dim

size tiny: heads = 4
size head_dim = dim / heads

axis picture
axis token in picture

model painter(latent: real[picture, cell, channels], time: int[picture]) -> real[picture, cell, channels]:
    t = told(real(time)) as times
    z, kept = down(latent, t)
    x = flatten(z, (picture, spot) -> token)
    q = linear(rms_norm(x), dim -> (heads, head_dim))
    x = x + linear(attend(q, q, q, over=head_dim, along=token, mask=same(picture)), (heads, head_dim) -> dim) as out
    return up(unflatten(x, token -> (picture, spot)), kept, t)

objective noise(latent: real[picture, cell, channels]):
    time = uniform_int(0, 100, per=picture)
    drawn = normal(like=latent)
    found = painter(noised(latent, drawn, cosine_left(time, 100)), time)
    loss noise = mean((found - drawn)^2, over=(cell, channels))

init **.out.weight = normal(0.1)
"""


def test_a_transformer_between_the_halves() -> None:
    """As LMFusion has it: pictures become rows of a sequence and come back, beside what the way down kept."""
    painter = Model(check(Source("painter.weft", BETWEEN), OPS, size="tiny").value(), torch.float64)
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(n, 64, 4, generator=generator, dtype=torch.float64) for n in (2, 1)]
    times = [torch.tensor([3, 50]), torch.tensor([9])]
    with torch.no_grad():
        found = painter(pictures, times)
        # A picture sees no other, in its example or elsewhere.
        for example, number in ((0, 0), (0, 1), (1, 0)):
            alone = painter([pictures[example][number : number + 1]], [times[example][number : number + 1]])[0]
            torch.testing.assert_close(found[example][number : number + 1], alone)


def test_the_noise_of_few_pictures_is_learned() -> None:
    """The objective falls when it is trained on four pictures, and goes on from the same bits."""
    checked = check(read_source(UNET), OPS, size="tiny", overrides={"base": 16, "blocks": 1}).value()

    def trained(steps: int) -> list[float]:
        model = Model(checked, torch.float32)
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        pictures = [torch.randn(n, 64, 4, generator=torch.Generator().manual_seed(n)) for n in (1, 3)]
        found = []
        for step in range(steps):
            total, count = model.loss("noise", latent=pictures, seed=3, step=step)["noise"]
            optimiser.zero_grad()
            (total / count).backward()
            optimiser.step()
            found.append((total / count).item())
        return found

    losses = trained(60)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
    assert trained(5) == losses[:5]
