"""Decoding graphs for calls whose rows all have one tag: what is in them, and that they give what the whole graph
does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from tests import lmfusion_models, test_decode_pictures
from tests.small_models import model
from tests.test_arms_of_examples import START, WHOLE, WHOLE_ARMS, of_examples
from tests.test_decode_pictures import HYBRID, PARTS, between
from tests.test_decode_routing import BODIES, HEAD
from tests.test_decode_routing import rows as routed_rows
from weft.codegen.cpu.cached_attention import attend_cached, plan_cached
from weft.codegen.cpu.masked_attention import plan_mask
from weft.codegen.decode_stages import modules
from weft.codegen.functions import caches, selections
from weft.codegen.lower import lower, signature
from weft.codegen.phases import Phase, in_phase
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.runtime.decoder import Decoder
from weft.runtime.model import Model
from weft.runtime.packed import pack

TEXT, IMAGE = Phase((("kind", 0),), alone=True), Phase((("kind", 1),), alone=True)
LAYERS = 2
SELECTING = {value for name, value in vars(selections).items() if callable(value) and not name.startswith("_")}


@pytest.fixture(scope="module", params=[REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
def lmfusion(request: Any) -> Decoder:
    return Decoder(lmfusion_models.model(layers=LAYERS, passes=request.param))


def calls(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def targets(module: fx.GraphModule) -> set[Any]:
    return {node.target for node in calls(module)}


def weights(module: fx.GraphModule) -> set[str]:
    return {str(node.target).removeprefix("weights.") for node in module.graph.find_nodes(op="get_attr")}


def products(module: fx.GraphModule) -> int:
    """Those that a tower of a layer has: linears along rows of the text."""
    tower = ("layer_",)
    linears = [node for node in calls(module) if node.target is functional.linear]
    return sum(str(node.args[1]).startswith(tower) for node in linears)


# -- what is in a graph ----------------------------------------------------------------------------


def test_a_word_reads_no_weight_of_pictures(lmfusion: Decoder) -> None:
    (graph,) = modules(lmfusion.graphs.derived.in_phase("step", TEXT))
    kept = {path for path, _ in lmfusion.model.by_path() if ".text." in path}
    assert weights(graph) == kept | {"embed.weight", "head.weight"}
    (whole,) = modules(lmfusion.graphs.derived.step)
    assert weights(whole) == {path for path, _ in lmfusion.model.by_path()}
    assert products(graph) == 7 * LAYERS
    assert products(whole) == 2 * 7 * LAYERS


def test_a_picture_reads_no_weight_of_words_and_has_no_mask(lmfusion: Decoder) -> None:
    (graph,) = modules(lmfusion.graphs.derived.in_phase("extend", IMAGE))
    of_words = {path for path, _ in lmfusion.model.by_path() if ".text." in path} | {"embed.weight", "head.weight"}
    assert weights(graph) == {path for path, _ in lmfusion.model.by_path()} - of_words
    assert products(graph) == 7 * LAYERS
    attended = [node for node in calls(graph) if node.target is caches.attend_general]
    assert len(attended) == LAYERS
    # low, high, predicate, and what keys would have of it.
    assert all(node.args[9:12] == (None, None, None) and node.args[13] == () for node in attended)


@pytest.mark.parametrize(("form", "phase"), [("step", TEXT), ("extend", IMAGE)], ids=["word", "picture"])
def test_nothing_is_selected_or_masked(lmfusion: Decoder, form: str, phase: Phase) -> None:
    (graph,) = modules(lmfusion.graphs.of(form, phase))
    left = targets(graph) & (SELECTING | {plan_cached, plan_mask, caches.band_mask})
    # The one is a comparison of shapes, the others are what caches of masks and results of no rows hold.
    assert left <= {selections.want_as_many, selections.no_rows, selections.nowhere}
    if lmfusion.model.passes is CPU_PASSES:
        assert attend_cached in targets(graph)


def test_words_by_themselves_are_masked_as_a_band(lmfusion: Decoder) -> None:
    (graph,) = modules(lmfusion.graphs.derived.in_phase("last", Phase(TEXT.tags, alone=False)))
    attended = [node for node in calls(graph) if node.target is caches.attend_general]
    assert [node.args[9:12] for node in attended] == [(None, 0, None)] * LAYERS


def test_several_pictures_keep_their_mask(lmfusion: Decoder) -> None:
    (graph,) = modules(lmfusion.graphs.derived.in_phase("extend", Phase(IMAGE.tags, alone=False)))
    attended = [node for node in calls(graph) if node.target is caches.attend_general]
    assert all(node.args[11] is not None for node in attended)


def test_a_window_is_kept() -> None:
    built = test_decode_pictures.made("(causal or same(picture)) and window(9)", REFERENCE_PASSES)
    (graph,) = modules(Decoder(built).graphs.derived.in_phase("extend", IMAGE))
    attended = [node for node in calls(graph) if node.target is caches.attend_general]
    assert attended
    assert all(node.args[9:12] != (None, None, None) for node in attended)


# -- which graph runs ------------------------------------------------------------------------------


def of_document(one: lmfusion_models.Document, begin: int, end: int) -> dict[str, list[Tensor]]:
    """Rows of a document; pictures as whole as they are there."""
    words, places = one.words, one.places
    pictures = slice(int((places < begin).sum()) // 9, int((places < end).sum()) // 9)
    own = ((words >= begin) & (words < end)).nonzero()[:, 0]
    return {
        "kind": [one.kind[begin:end]],
        "ids": [one.ids[own]],
        "latent": [one.latent[pictures]],
        "time": [one.time[pictures]],
    }


def ran(decoder: Decoder) -> Iterator[Any]:
    return iter(decoder.graphs._made)


def test_what_comes_decides_which_graph_runs(lmfusion: Decoder) -> None:
    """A prompt of words, a picture looked at and kept, a word, and all of it at once."""
    decoder = Decoder(lmfusion.model)
    one = lmfusion_models.document(4, "p", 2)
    _, state = decoder.prefill(of_document(one, 0, 4), capacity=20)
    decoder.look(state, of_document(one, 4, 13))
    _, state = decoder.extend(state, of_document(one, 4, 13))
    logits, state = decoder.step(state, {"kind": torch.tensor([0]), "ids": one.ids[4:5]})
    words = Phase(TEXT.tags, alone=False)
    assert list(ran(decoder)) == [("last", words), ("extend", IMAGE), ("step", TEXT)]
    mixed, _ = decoder.prefill(of_document(one, 0, 14), capacity=20)
    assert list(ran(decoder))[3:] == [("last", None)]
    torch.testing.assert_close(logits, mixed, rtol=1e-12, atol=1e-12)


# -- equal to the whole graph ----------------------------------------------------------------------


def without_phases(decoder: Decoder) -> Decoder:
    return Decoder(decoder.model, phases=False)


def compare(decoder: Decoder, found: Any, want: Any) -> None:
    """Bit for bit before passes; kernels without a mask round otherwise than those with one."""
    for name in found:
        if decoder.model.passes:
            torch.testing.assert_close(found[name], want[name], rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(found[name], want[name]), name


def test_lmfusion_goes_on_as_the_whole_graph_does(lmfusion: Decoder) -> None:
    both = lmfusion, without_phases(lmfusion)
    one = lmfusion_models.document(4, "p", 2, "p", 1)
    states = [decoder.begin(1, 40) for decoder in both]
    for begin, end in ((0, 4), (4, 13), (13, 14), (14, 15), (15, 24), (24, 25)):
        rows = of_document(one, begin, end)
        looked = [decoder.look(state, rows) for decoder, state in zip(both, states, strict=True)]
        compare(lmfusion, *looked)
        results, states = zip(
            *(decoder.extend(state, rows) for decoder, state in zip(both, states, strict=True)), strict=True
        )
        compare(lmfusion, *results)
    for ours, theirs in zip(states[0].caches, states[1].caches, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert ("extend", IMAGE) in ran(lmfusion)
    assert not any(phase for _, phase in ran(both[1]))


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("mask", [HYBRID, "causal or same(picture) or same(clip)", "causal"])
@pytest.mark.parametrize("kind", range(3), ids=["words", "pictures", "sounds"])
def test_three_tags_go_on_as_the_whole_graph_does(kind: int, mask: str, passes: tuple[Pass, ...]) -> None:
    """Sequences of several lengths, one of which gets nothing."""
    decoder = Decoder(test_decode_pictures.made(mask, passes))
    both = decoder, without_phases(decoder)
    given = test_decode_pictures.rows(PARTS)
    begins = [row.index(kind) if kind in row else len(row) for row in PARTS]
    begins[1] = min(begins[1], len(PARTS[1]))
    ends = [min(begin + 1, len(row)) for begin, row in zip(begins, PARTS, strict=True)]
    results = []
    for one in both:
        state = one.begin(len(PARTS), capacity=40)
        if any(begins):
            state = one.extend(state, between(given, [0] * 3, begins))[1]
        looked, (kept, _) = (
            one.look(state, between(given, begins, ends)),
            one.extend(state, between(given, begins, ends)),
        )
        compare(decoder, kept, looked)
        results.append(kept)
    compare(decoder, *results)
    assert ("extend", Phase((("kind", kind),), alone=True)) in ran(decoder)


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("kind", range(3))
def test_rows_whose_tags_bring_nothing_of_their_own(name: str, kind: int, passes: tuple[Pass, ...]) -> None:
    decoder = Decoder(model(HEAD.format(body=BODIES[name]), passes=passes))
    both = decoder, without_phases(decoder)
    mixed, more = routed_rows(0, (5, 1, 3)), routed_rows(1, (4, 1, 2))
    more["kind"] = [torch.full_like(own, kind) for own in more["kind"]]
    step = {"kind": torch.full((3,), kind), "ids": torch.tensor([1, 2, 3])}
    results = []
    for one in both:
        state = one.extend(one.begin(3, 20), mixed)[1]
        extended, state = one.extend(state, more)
        results.append({"extended": extended, "step": one.step(state, step)[0]})
    compare(decoder, *results)
    assert {("extend", Phase((("kind", kind),), alone=False)), ("step", Phase((("kind", kind),), alone=True))} <= set(
        ran(decoder)
    )


@pytest.mark.parametrize("arms", WHOLE_ARMS)
@pytest.mark.parametrize("worth", range(3))
def test_a_tag_per_example_with_one_value(arms: str, worth: int) -> None:
    """Any graph may be folded: here that of a whole pass, whose other arms are gone."""
    members = zip(("r8", "r16", "r32"), WHOLE_ARMS[arms], strict=True)
    body = "match worth:\n" + "".join(f"        {name}:\n            {arm}\n" for name, arm in members) + "    return y"
    built: Model = model(WHOLE.format(body=body) + START)
    given = of_examples(worth=(worth,) * 5)
    graph = lower(built.program, built, torch.float64)
    folded = in_phase(graph, built.program, Phase((("worth", worth),), alone=False))
    shape = signature(graph)
    arguments = pack(shape, (), given, torch.float64).arguments(shape)
    for found, want in zip(folded(*arguments), graph(*arguments), strict=True):
        assert torch.equal(found, want)
    others = {path for path in weights(graph) if not any(f"{name}." in path for name in (("r8", "r16", "r32")[worth],))}
    assert not weights(folded) & others
