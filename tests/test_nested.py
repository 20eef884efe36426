"""Nested axes: rows of pictures inside examples. Against each picture alone, in every form a caller may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import weft
from weft.codegen.artifact import compile_to
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.errors import InputFault
from weft.runtime.model import Model

SPEC = """
size channels = 3
size dim = 4
axis picture
axis pixel in picture
axis half = 2
axis spot in picture

block weighed(x: real[picture, dim]) -> real[picture, half, dim]:
    param w: real[half] = normal(1)
    return outer(x, w)

model mixed(x: real[picture, pixel, channels], style: real[picture, dim]) -> real[picture, dim]:
    y = linear(x, channels -> dim) as inward
    z = attend(y + style, y, y, over=dim, along=pixel, mask=same(picture))
    z = z - mean(z, over=pixel)
    s = flatten(weighed(style), (picture, half) -> spot)
    s = s + attend(s, z, z, over=dim, along=pixel, mask=same(picture))
    back = sum(unflatten(s, spot -> (picture, half)), over=half)
    return pool(z, pixel -> picture, by=max) + back + real(length(pixel))

model spots(x: real[picture, pixel, channels], style: real[picture, dim]) -> real[spot, dim]:
    return flatten(weighed(style), (picture, half) -> spot) + mean(linear(x, channels -> dim), over=pixel)

objective noise(x: real[picture, pixel, channels]):
    time = uniform(0, 1, per=picture)
    drawn = normal(like=x)
    loss pixels = mean((time * x + drawn)^2, over=channels)
    loss pictures = mean(mean((time * x + drawn)^2, over=channels), over=pixel)
"""
SIZES = ((5, 2), (1,), (4, 0, 3))


def pictures(seed: int = 0) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in example] for example in SIZES]


def styles() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(example), 4, generator=generator, dtype=torch.float64) for example in SIZES]


def model(text: str = SPEC, **options) -> Model:
    checked = check(Source("nested.weft", text), OPS).value()
    return Model(checked, torch.float64, **options)


def expected(own: Model, x: Tensor, style: Tensor) -> Tensor:
    """`mixed` for one picture, written out."""
    weights = dict(own.by_path())
    inward, w = weights["mixed.inward.weight"], weights["mixed.s.weighed.w"]
    y = x @ inward.T
    z = torch.softmax((y + style) @ y.T / 2, -1) @ y
    z = z - z.mean(0) if len(x) else z
    s = w[:, None] * style
    s = s + (torch.softmax(s @ z.T / 2, -1) @ z if len(x) else 0)
    return (z.amax(0) if len(x) else 0) + s.sum(0) + len(x)


def test_each_picture_is_by_itself() -> None:
    own, x, style = model(), pictures(), styles()
    found = own.run(own.checked.models["mixed"], x, style)
    for example, rows in enumerate(found):
        assert rows.shape == (len(SIZES[example]), 4)
        for number, row in enumerate(rows):
            torch.testing.assert_close(row, expected(own, x[example][number], style[example][number]))


def test_fused_for_a_gpu_is_the_same() -> None:
    own, x, style = model(), pictures(), styles()
    fused = model(passes=GPU_PASSES)
    fused.load_state_dict(own.state_dict())
    mine, theirs = (torch.cat(one.run(one.checked.models["mixed"], x, style)) for one in (own, fused))
    torch.testing.assert_close(mine, theirs)


def test_rows_that_the_graph_makes_come_back_by_picture() -> None:
    own = model()
    found = own.run(own.checked.models["spots"], pictures(), styles())
    assert [[tuple(rows.shape) for rows in example] for example in found] == [[(2, 4)] * len(e) for e in SIZES]


def test_packed_and_listed_inputs_are_the_same() -> None:
    own, x, style = model(), pictures(), styles()
    program = own.checked.models["spots"]
    listed = own.run(program, x, style)
    owners = torch.tensor([0, *torch.tensor([len(e) for e in SIZES]).cumsum(0).tolist()])
    rows = torch.tensor([0, *torch.tensor([n for e in SIZES for n in e]).cumsum(0).tolist()])
    packed = (torch.cat([rows for example in x for rows in example]), owners, rows)
    values, outer, inner = own.run(program, packed, (torch.cat(style), owners))
    assert outer.tolist() == owners.tolist()
    assert inner.tolist() == list(range(0, 13, 2))
    torch.testing.assert_close(values, torch.cat([rows for example in listed for rows in example]))


def test_a_loss_is_the_mean_at_its_level() -> None:
    """Of pixels, and of pictures, one without pixels included."""
    losses = model().loss("noise", x=pictures())
    counts = {name: int(count) for name, (_, count) in losses.items()}
    assert counts == {"pixels": sum(n for e in SIZES for n in e), "pictures": sum(len(e) for e in SIZES)}


def test_draws_do_not_depend_on_the_pack() -> None:
    own, x = model(), pictures()
    whole = own.loss("noise", x=x)
    alone = [own.loss("noise", x=[example], example_ids=(number,)) for number, example in enumerate(x)]
    for name in ("pixels", "pictures"):
        torch.testing.assert_close(sum(part[name][0] for part in alone), whole[name][0])


@pytest.mark.parametrize(
    ("x", "style", "said"),
    [
        (lambda x: x[:2], lambda s: s, "x has 2 examples, style has 3"),
        (lambda x: [x[0][:1], *x[1:]], lambda s: s, "example 0 has 1 rows of picture in x, but 2 in style"),
        (
            lambda x: [torch.cat(example) for example in x],
            lambda s: s,
            "each a list with one entry for each row of picture",
        ),
        (lambda x: (x[0][0], torch.tensor([0, 5])), lambda s: s, "offsets of picture, offsets of pixel"),
    ],
)
def test_wrong_inputs_are_named(x, style, said: str) -> None:
    own = model()
    with pytest.raises(InputFault) as fault:
        own.run(own.checked.models["mixed"], x(pictures()), style(styles()))
    assert said in str(fault.value)


def test_a_model_runs_along_the_nested_axes_of_its_caller() -> None:
    text = """
size channels = 3
axis picture
axis pixel in picture
axis photo
axis dot in photo

model inner(x: real[picture, pixel, channels], style: real[picture, channels]) -> real[picture, pixel, channels]:
    y = linear(x, channels -> channels)
    return attend(y, y, y, over=channels, along=pixel, mask=same(picture)) + style

model outside(z: real[photo, dot, channels], s: real[photo, channels]) -> real[photo, channels]:
    return mean(inner(z, s), over=dot)
"""
    own, x = model(text), pictures()
    style = [torch.randn(len(example), 3, dtype=torch.float64) for example in SIZES]
    inner = own.run(own.checked.models["inner"], x, style)
    outer = own.run(own.checked.models["outside"], x, style)
    for parts, means in zip(inner, outer, strict=True):
        for rows, mean in zip(parts, means, strict=True):
            torch.testing.assert_close(mean, rows.mean(0) if len(rows) else torch.zeros(3, dtype=torch.float64))


def test_rows_of_an_input_are_as_many_as_unflatten_says() -> None:
    text = """
size dim = 3
axis picture
axis spot in picture
axis half = 2

model m(x: real[picture, spot, dim]) -> real[picture, half, dim]:
    return unflatten(x, spot -> (picture, half))
"""
    own = model(text)
    right = [[torch.randn(2, 3, dtype=torch.float64) for _ in range(n)] for n in (2, 1)]
    assert [tuple(rows.shape) for rows in own(right)] == [(2, 2, 3), (1, 2, 3)]
    wrong = [[torch.randn(n, 3, dtype=torch.float64) for n in (1, 3)]]
    with pytest.raises(ValueError, match="owner 0 has 1 rows, not 2"):
        own(wrong)


def test_an_artifact_takes_nested_inputs(tmp_path: Path) -> None:
    spec = tmp_path / "mixed.weft"
    spec.write_text(SPEC, encoding="utf-8")
    checked = check(Source(str(spec), SPEC), OPS).value()
    compile_to(checked, tmp_path / "made", torch.float64)
    own = weft.load(tmp_path / "made", dtype=torch.float64)
    reference = model()
    own.load_state_dict(reference.state_dict())
    x, style = pictures(), styles()
    found = own(x, style)
    for rows, wanted in zip(found, reference.run(reference.checked.models["mixed"], x, style), strict=True):
        torch.testing.assert_close(rows, wanted)
