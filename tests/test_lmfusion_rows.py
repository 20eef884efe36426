"""Rows of LMFusion in another order, and rows of other documents: what may not change anything (lmfusion.md 9.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from tests.lmfusion_models import PLACES, SIZES, batch, document, model, spec_text
from weft.codegen.cpu.linear import linear
from weft.codegen.functions import selections
from weft.codegen.ops import OPS
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.model import Model
from weft.runtime.packed import pack

# Words before, between and after pictures; a picture first; words alone.
DOCUMENTS = (
    document(4, "p", 2, "p", 1, seed=1),
    document("p", 3, seed=2),
    document(5, seed=3),
    document(2, "p", "p", seed=4),
)


# -- rows of a tower ---------------------------------------------------------------------------------------------------


class _Shuffled(fx.Interpreter):
    """A graph whose towers keep their rows side by side, run with the rows of each in another order.

    Rows are shuffled where they are made; from there on only what puts them into the order of the text, and back, knows
    of it. Where they leave the layers they are as they were. `told`: whether what puts them there knows.
    """

    def __init__(self, graph: fx.GraphModule, told: bool = True) -> None:
        super().__init__(graph)
        self.told = told
        self.orders: dict[int, Tensor] = {}
        self.rows: dict[int, Tensor] = {}
        self.joins = 0

    def order(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(rows)
        return self.orders.setdefault(rows, torch.randperm(rows, generator=generator))

    def moved(self, rows: Tensor) -> Tensor:
        return rows[self.order(len(rows))] if self.told else rows

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is selections.order_of:
            return target(tuple(self.moved(rows) for rows in args[0]))
        if target is selections.take and args[0].is_floating_point():
            return target(args[0], self.moved(args[1]))
        if target is selections.join:
            self.joins += 1
        if target is linear and args[1].shape == (97, 64):  # the head
            args = (args[0][self.order(len(args[0])).argsort()], *args[1:])
        if target is torch.unflatten and args[1:] == (0, (-1, PLACES)):
            args = (args[0][self.order(len(args[0])).argsort()], *args[1:])
        made = super().call_function(target, args, kwargs)
        if target in (functional.embedding, selections.want_as_many):
            return made[self.order(len(made))]
        return made


def test_rows_of_a_tower_may_be_in_any_order() -> None:
    """Rows of several documents, mixed: only their places in the text count, which go with them."""
    built = model(passes=CPU_PASSES)
    graph = built.graph(built.program)
    given = pack(built.signature, (), batch(DOCUMENTS), torch.float64).arguments(built.signature)
    with torch.no_grad():
        want, shuffled = graph(*given), _Shuffled(graph)
        found, wrong = shuffled.run(*given), _Shuffled(graph, told=False).run(*given)
    assert shuffled.joins == 3 * 3  # queries, keys and values of a layer: no other rows leave their tower
    assert {len(order) for order in shuffled.orders.values()} == {17, 45}
    for one, other, third in zip(found, want, wrong, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        assert (third - other).abs().max() > 1e-2


# -- rows of a picture -------------------------------------------------------------------------------------------------

ROPE = "|> rope(along=seq, theta=theta)"
TURNED = """
block turned(x: real[..], at: int[seq]):
    axis side = 2
    axis pair = head_dim / 2
    angle = precise(real(at) * theta^(-2 * real(index(pair)) / size(head_dim)))
    return flatten(turn(unflatten(x, head_dim -> (side, pair)), angle, side), (side, pair) -> head_dim)

model lmfusion("""
PLACED = (
    (ROPE, "|> turned(at)"),
    ("\nmodel lmfusion(", TURNED),
    (
        "    time: int[picture],\n):",
        "    time: int[picture],\n    at: int[seq],\n    given: real[picture, spot, dim],\n):",
    ),
    ("places = flatten(z,", "places = flatten(given,"),
)


def with_places() -> Model:
    """LMFusion that is told where its rows stand, and what the U-Net made of pictures."""
    text = spec_text(*PLACED)
    text = text[: text.index("objective joint")] + text[text.index("init **.image.**") :]
    sizes = {name: size for name, size in SIZES.items() if name not in ("begin", "end")}  # of what is left out
    built = Model(check(Source("lmfusion.weft", text), OPS, "tiny", sizes).value(), torch.float64, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, weight in built.by_path():
            weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return built


def test_rows_of_a_picture_change_places_with_their_positions() -> None:
    """What is made of them changes places as they do, and no word knows of it; without their positions all change."""
    built, one = with_places(), DOCUMENTS[0]
    rows = torch.randn(2, PLACES, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(PLACES, generator=torch.Generator().manual_seed(1))
    at = torch.arange(len(one.kind))
    moved = at.clone()
    moved[one.places] = at[one.places].reshape(2, PLACES)[:, order].flatten()
    with torch.no_grad():
        plain = model()(**one.inputs)["logits"][0]
        z = model().values(("places",), **one.inputs)["places"][0].reshape(2, PLACES, 64)
        same = built.values(("logits",), **one.inputs, at=[at], given=[z])["logits"][0]
        found = built.values(("seen", "logits"), **one.inputs, at=[at], given=[rows])
        other = built.values(("seen", "logits"), **one.inputs, at=[moved], given=[rows[:, order]])
        wrong = built.values(("seen", "logits"), **one.inputs, at=[at], given=[rows[:, order]])
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-12)  # it is LMFusion
    seen = found["seen"][0].reshape(2, PLACES, 64)[:, order].reshape(-1, 64)
    torch.testing.assert_close(other["seen"][0], seen, rtol=0, atol=1e-12)
    torch.testing.assert_close(other["logits"][0], found["logits"][0], rtol=0, atol=1e-12)
    assert (wrong["seen"][0] - seen).abs().max() > 1e-3
    assert (wrong["logits"][0] - found["logits"][0])[4:].abs().max() > 1e-3


# -- rows of another document ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
def test_no_document_knows_of_another(passes) -> None:
    """Everything of one changes, words, latents and times: not a bit of those before it and of those behind it."""
    built = model(passes=passes, layers=2)
    with torch.no_grad():
        base = built(**batch(DOCUMENTS))
        for number, one in enumerate(DOCUMENTS):
            changed = replace(one, ids=(one.ids + 1) % 90, latent=one.latent + 1, time=(one.time + 7) % 99)
            found = built(**batch([*DOCUMENTS[:number], changed, *DOCUMENTS[number + 1 :]]))
            for other in range(len(DOCUMENTS)):
                for name in ("logits", "noise"):
                    now, before = found[name][other], base[name][other]
                    if other != number:
                        assert torch.equal(now, before), (number, other, name)
                    elif now.numel():
                        assert bool((now != before).flatten(1).any(1).all()), (number, name)
