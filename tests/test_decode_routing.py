"""Derived decoding of routed models: a new row runs its own tower, and equals one full forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.small_models import model
from tests.test_decode import compare_everywhere
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES, Pass
from weft.dsl.diagnostics import SpecErrors
from weft.runtime.decoder import Decoder
from weft.runtime.errors import GenerateFault

HEAD = """
size dim = 6
size vocab = 7
enum modality: text, image, sound
axis seq
axis word = seq where kind == text
axis rest = seq where kind == image
axis noise = seq where kind == sound
axis patch cut from seq
model m(ids: id[seq] in vocab, kind: modality[seq]) -> real[seq, dim]:
    x = embed(ids, vocab -> dim)
    {body}
init ** = normal(0.5)
"""
LAYERS = """for layer in 0 .. 2:
        routed by kind:
            h = rms_norm(x)
            q = linear(h, dim -> dim) |> rope(along=seq)
            k = linear(h, dim -> dim) |> rope(along=seq)
        a = attend(q, k, h, over=dim, along=seq, mask={mask})
        routed by kind:
            x = x + linear(a, dim -> dim) as out
            x = x + swiglu(rms_norm(x) as norm, dim)
    return x"""
BODIES = {
    "towers": LAYERS.format(mask="causal"),
    "towers and a window": LAYERS.format(mask="causal and window(3)"),
    "arms, positions and rows before": """x = x + previous(x, 2)
    match kind:
        text:
            y = x * real(position(seq))
        image, sound:
            y = linear(x, dim -> dim)
    y = attend(y, y, y, over=dim, along=seq, mask=causal and same(ids))
    match kind:
        text, sound:
            x = y
        image:
            match kind:
                image:
                    x = tanh(linear(y + x, dim -> dim))
                text, sound:
                    x = y
    return x""",
    "selected axes": """words = tanh(take(x, seq -> word))
    rests = linear(take(x, seq -> rest), dim -> dim)
    x = join((words, rests, take(x, seq -> noise)), (word, rest, noise) -> seq)
    return x + attend(x, x, x, over=dim, along=seq, mask=causal)""",
    "segments": """segment seq into patch ends where kind == image, at most 3
    routed by kind:
        x = linear(x, dim -> dim) as first
    p = pool(x, seq -> patch, by=max)
    x = x + spread(p, patch -> seq, closed)
    routed by kind:
        x = tanh(linear(x, dim -> dim)) as out
    return x""",
}
LENGTHS = (9, 4, 1, 12)


def rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "ids": [torch.randint(7, (n,), generator=generator) for n in lengths],
        "kind": [torch.randint(3, (n,), generator=generator) for n in lengths],
    }


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", BODIES)
def test_decoding_equals_one_forward(name: str, passes: tuple[Pass, ...]) -> None:
    """Row by row, in chunks, in batches of several lengths, from prompts of every length."""
    small = model(HEAD.format(body=BODIES[name]), passes=passes)
    compare_everywhere(small, rows())


def test_a_step_runs_the_towers_of_its_rows() -> None:
    """The products of a step cost the same whatever the tags are, and what one tower costs."""
    small = model(HEAD.format(body=BODIES["towers"]))
    decoder = Decoder(small)
    counts = set()
    for tags in ((0, 0), (1, 1), (0, 2)):
        state = decoder.begin(2, 4)
        with FlopCounterMode(display=False) as counter:
            decoder.step(state, {"ids": torch.tensor([1, 2]), "kind": torch.tensor(tags)})
        found = counter.get_flop_counts()["Global"]
        counts.add(sum(count for op, count in found.items() if op is torch.ops.aten.mm))
    # Two rows, two layers: q, k, out, gate, up and down, each 6 x 6.
    assert counts == {2 * 2 * 2 * 6 * 36}


def test_a_mask_that_looks_into_a_picture_does_not_decode_row_by_row() -> None:
    text = HEAD.format(body=LAYERS.format(mask="causal or same(ids)"))
    with pytest.raises(SpecErrors, match="E402"):
        Decoder(model(text))


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (
            """words = take(x, seq -> word)
    words = attend(words, words, words, over=dim, along=word, mask=causal)
    x = join((words, take(x, seq -> rest), take(x, seq -> noise)), (word, rest, noise) -> seq)
    return x""",
            "attend",
        ),
        (
            """words = previous(take(x, seq -> word))
    x = join((words, take(x, seq -> rest), take(x, seq -> noise)), (word, rest, noise) -> seq)
    return x""",
            "previous",
        ),
        (
            """words = take(x, seq -> word) * real(position(word))
    x = join((words, take(x, seq -> rest), take(x, seq -> noise)), (word, rest, noise) -> seq)
    return x""",
            "position",
        ),
    ],
)
def test_what_reads_rows_of_a_selection_is_refused(body: str, what: str) -> None:
    """Not computed of the new rows alone, which would be wrong."""
    with pytest.raises(GenerateFault, match=what):
        Decoder(model(HEAD.format(body=body)))


def run(decoder: Decoder, given: dict[str, Any]) -> Any:
    return decoder.prefill(given, capacity=16)
