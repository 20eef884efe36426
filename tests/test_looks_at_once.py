"""Looks of a `generate` program that do not wait for one another are one call of the model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.looks_in_turn import apart, one_by_one
from tests.small_models import model
from tests.test_answers import BEGIN, SPEC, spec
from weft.codegen.pipeline import CPU_PASSES, REFERENCE_PASSES
from weft.dsl.generation import Action, Generation, Look, Looks, Repeat
from weft.runtime.answer import answer, generation_of
from weft.runtime.decoder import Decoder
from weft.runtime.model import Model
from weft.runtime.new_rows import Part

PROMPTS = [[1, 2, 3, BEGIN], [4, 5], [6, BEGIN, 7, 8], [BEGIN, 9, BEGIN]]


def forms(actions: Sequence[Action]) -> list[object]:
    """What is done, in order: names of actions, and of those that are one call how many looks."""
    found: list[object] = []
    for action in actions:
        match action:
            case Looks(looks):
                found.append(len(looks))
            case Repeat():
                found.append(forms(action.body))
            case _:
                found.append(type(action).__name__)
    return found


def pictures(subject: Model, generation: Generation, prompts: Sequence[Sequence[Part]], begin: int | None) -> Tensor:
    found = answer(subject, generation, prompts, 0, begin=begin, seed=[3, 5, 7, 9][: len(prompts)])
    return torch.stack([row.values["latent"] for one in found for row in one.rows])


@pytest.mark.parametrize("passes", [REFERENCE_PASSES, CPU_PASSES], ids=["reference", "cpu"])
@pytest.mark.parametrize("begin", [None, 37], ids=["no mark", "a mark"])
def test_pictures_are_those_of_looks_in_turn(passes, begin: int | None) -> None:
    """Of requests with prompts of several lengths, and a second picture behind the first; to rounding."""
    subject = model(SPEC, passes=passes)
    guided = generation_of(subject, guide=1.55, taken=3)
    assert forms(one_by_one(guided).events[0].body) != forms(guided.events[0].body)
    found, expected = (pictures(subject, one, PROMPTS, begin) for one in (guided, one_by_one(guided)))
    assert len(found) == 4
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_one_call_for_all_requests_and_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests fire, so that six sequences are looked at; the fourth is not among them."""
    subject, seen = model(SPEC), []
    look = Decoder.look

    def counted(decoder: Decoder, state, rows):
        results = look(decoder, state, rows)
        seen.append((state.size, len(results["noise"])))
        return results

    monkeypatch.setattr(Decoder, "look", counted)
    guided = generation_of(subject, guide=1.55, taken=5)
    prompts = [[1, 2, BEGIN], [4, 5], [6, BEGIN], [BEGIN]]
    pictures(subject, guided, prompts, 37)
    assert seen == [(6, 6)] * 5
    seen.clear()
    pictures(subject, one_by_one(guided), prompts, 37)
    # The requests with the one that does not fire, and the empty prompt three times.
    assert seen == [(4, 3), (3, 3)] * 5


BODIES = {
    # A look that reads what another gave, and one that does not, with a step between them.
    "a result between": (
        """
a = m(latent=x, time=400).noise
b = m(latent=a, time=300, prompt=none).noise
append(latent=a + b, time=0)
""",
        ["Compute", "Look", "Look", "Compute", "Append", "Append"],
    ),
    "inputs of their own": (
        """
a = m(latent=x, time=400).noise
y = 0.5 * x
b = m(latent=y, time=300, prompt=none).noise
append(latent=a + b, time=0)
""",
        ["Compute", 2, "Compute", "Append", "Append"],
    ),
    "a step with some of both": (
        """
a = m(latent=x, time=400).noise
c = 0.1 * a
y = 0.5 * x
d = c + y
b = m(latent=tanh(y), time=300, prompt=none).noise
append(latent=d + b, time=0)
""",
        ["Compute", 2, "Compute", "Append", "Append"],
    ),
    "a look nobody reads": (
        """
a = m(latent=x, time=400).noise
b = m(latent=x, time=300, prompt=none).noise
append(latent=a, time=0)
""",
        ["Compute", "Look", "Append", "Append"],
    ),
    "the empty prompt first": (
        """
b = m(latent=x, time=400, prompt=none).noise
a = m(latent=x, time=400).noise
append(latent=2 * a - b, time=0)
""",
        ["Compute", 2, "Compute", "Append", "Append"],
    ),
    "rows kept between": (
        """
a = m(latent=x, time=400, prompt=none).noise
append(latent=x, time=0)
b = m(latent=x, time=400).noise
append(latent=a + b, time=0)
""",
        ["Compute", "Look", "Append", "Look", "Compute", "Append", "Append"],
    ),
    "two behind one prompt": (
        """
a = m(latent=x, time=400).noise
b = m(latent=x, time=300).noise
c = m(latent=x, time=300, prompt=none).noise
append(latent=a + b - c, time=0)
""",
        ["Compute", "Look", 2, "Compute", "Append", "Append"],
    ),
    "rows of another kind": (
        """
a = m(latent=x, time=400).noise
b = max(m(ids=3, prompt=none).logits)
append(latent=a + b, time=0)
""",
        ["Compute", "Look", "Look", "Compute", "Append", "Append"],
    ),
    "rows kept, and looks again": (
        """
a = 0.1 * m(latent=x, time=400).noise + 0.1 * m(latent=x, time=400, prompt=none).noise
append(latent=a, time=0)
append(3)
b = 0.1 * m(latent=a, time=400).noise + 0.1 * m(latent=a, time=400, prompt=none).noise
append(latent=b, time=0)
""",
        ["Compute", 2, "Compute", "Append", "Append", 2, "Compute", "Append", "Append"],
    ),
    "words at once": (
        """
a = max(m(ids=3).logits)
b = max(m(ids=4, prompt=none).logits)
append(latent=x * a - b, time=0)
""",
        ["Compute", 2, "Compute", "Append", "Append"],
    ),
}


@pytest.mark.parametrize(("body", "order"), BODIES.values(), ids=BODIES)
def test_what_waits_for_a_result_stays_in_order(body: str, order: list[object]) -> None:
    lines = "\n".join("        " + line for line in ["x = normal(per=(cell, dim))", *body.strip().split("\n")])
    subject = model(spec(f"generate g():\n    on token == begin:\n{lines}\n        append(end)\n"))
    program = generation_of(subject)
    assert forms(program.events[0].body) == order
    found, expected = (pictures(subject, one, PROMPTS[:3], 37) for one in (program, one_by_one(program)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(isinstance(action, Look) for action in apart(program.events[0].body) if "Look" in type(action).__name__)
