"""Causality of routed programs against what they really read: random specs, rows and tags changed one at a time.

The rules of `take`, `join` and targets along a part are held against a toy as well (test_frontier.py); here they run on
programs that the language makes of `routed by`, `match`, selections, and masks by pictures.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.small_models import checked, model
from weft.dsl import frontier
from weft.dsl.causality import frontiers
from weft.dsl.frontier import Frontier, Kind
from weft.dsl.program import Node, Program

HEAD = """
size d = 3
size n = 9
enum modality: text, image
axis seq
axis word = seq where kind == text
axis spot = seq where kind == image
axis picture cut from spot
model m(a: real[seq, d], kind: modality[seq], number: id[seq] in n) -> real[seq, d]:
    segment spot into picture by take(number, seq -> spot)
    y = a
"""
TAIL = "    return y\ninit ** = normal(0.7)\n"
# Steps of y, with what they make of the frontier of a where it is t before.
STEPS = {
    "routed by kind:\n        y = linear(y, d -> d)": "t",
    "match kind:\n        text:\n            y = tanh(y)\n        image:\n            y = y * real(position(seq))": "t",
    "match kind:\n        text:\n            y = linear(y, d -> d)\n        image:\n            z = y": "t",
    "y = join((take(y, seq -> word), 2 * take(y, seq -> spot)), (word, spot) -> seq)": "t",
    "y = join((previous(take(y, seq -> word)), take(y, seq -> spot)), (word, spot) -> seq)": "t",
    "w = take(y, seq -> word)\n    w = attend(w, w, w, over=d, along=word, mask=causal)\n"
    "    y = join((w, take(y, seq -> spot)), (word, spot) -> seq)": "t",
    "w = take(y, seq -> word)\n    w = w + attend(w, w, w, over=d, along=word)\n"
    "    y = join((w, take(y, seq -> spot)), (word, spot) -> seq)": "all",
    "y = y + mean(take(y, seq -> spot), over=spot)": "all",
    "y = y + 0.1 * real(length(word))": "all",
    "match kind:\n        text:\n            b = 1\n        image:\n            b = 2\n    y = y * real(b)": "t",
    "y = attend(y, y, y, over=d, along=seq, mask=causal)": "t",
    "y = attend(y, y, y, over=d, along=seq, mask=causal or same(picture))": "end(picture)",
    "y = attend(y, y, y, over=d, along=seq, mask=causal and same(picture)) + y": "t",
    "y = y + previous(y)": "t",
    "y = y * real(or(next(take(position(seq), seq -> word), along=seq), 3))": "t",
    "y = y + or(next(take(y, seq -> word), along=seq), 0)": "t+1",
    "p = pool(take(y, seq -> spot), spot -> picture)\n    s = spread(p, picture -> spot)\n"
    "    y = join((take(y, seq -> word), s), (word, spot) -> seq)": "end(picture)",
    "p = pool(take(y, seq -> spot), spot -> picture)\n    s = spread(p, picture -> spot, closed)\n"
    "    y = join((take(y, seq -> word), s), (word, spot) -> seq)": "t",
}
KIND = (0, 1, 1, 1, 0, 1, 0)
NUMBER = (0, 1, 1, 2, 0, 3, 0)


def text_of(steps: tuple[str, ...]) -> str:
    """The steps, each weight with a name of its own."""
    lines = []
    for place, step in enumerate(steps):
        lines.append("    " + step.replace("linear(y, d -> d)", f"linear(y, d -> d) as mix{place}"))
    has_weight = any("linear" in step for step in steps)
    tail = TAIL if has_weight else "    return y\n"
    return HEAD + "\n".join(lines) + "\n" + tail


@cache
def programs() -> tuple[tuple[str, str | None], ...]:
    rng = random.Random(9)
    found: list[tuple[str, str | None]] = [(text_of((step,)), seen) for step, seen in STEPS.items()]
    for _ in range(70):
        found.append((text_of(tuple(rng.choice(list(STEPS)) for _ in range(rng.randint(2, 4)))), None))
    return tuple(found)


@cache
def observed(text: str) -> frozenset[tuple[str, int, int]]:
    """(source, r, t) where some change of row r of a source changes row t of the result."""
    built = model(text)
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(len(KIND), 3, dtype=torch.float64, generator=generator)
    given = {"a": a, "kind": torch.tensor(KIND), "number": torch.tensor(NUMBER)}

    def result(changed: dict[str, Tensor]) -> Tensor:
        return built(**{name: [value] for name, value in changed.items()})[0]

    base, found = result(given), set()
    for row in range(len(KIND)):
        for name in ("a", "kind"):
            other = given[name].clone()
            other[row] = 2 * torch.randn(3, dtype=torch.float64, generator=generator) if name == "a" else 1 - other[row]
            different = (result({**given, name: other}) - base).abs().amax(1) > 1e-12
            found |= {(name, row, t) for t in different.nonzero()[:, 0].tolist()}
    return frozenset(found)


def last_rows() -> list[int]:
    """The last row of the picture that each row is in; of a word itself."""
    found = []
    for t in range(len(KIND)):
        mine = [r for r in range(len(KIND)) if KIND[r] == 1 and NUMBER[r] == NUMBER[t]]
        found.append(max(mine) if KIND[t] == 1 else t)
    return found


def violations(f: Frontier, pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    match f.kind:
        case Kind.ALL:
            return set()
        case Kind.NONE:
            return pairs
        case Kind.ROW:
            return {(r, t) for r, t in pairs if r > t + f.shift}
        case _:
            assert f.kind is Kind.END
            last = last_rows()
            return {(r, t) for r, t in pairs if r > last[t]}


def seen(program: Program, name: str) -> Frontier:
    (source,) = (value for value in program.inputs if value.name == name)
    return frontiers(program, source)[program.outputs[0][1]]


def pairs_of(text: str, name: str) -> set[tuple[int, int]]:
    return {(r, t) for source, r, t in observed(text) if source == name}


@pytest.mark.parametrize(("text", "said"), programs())
def test_programs_see_what_is_said_and_no_more(text: str, said: str | None) -> None:
    program = checked(text).model
    f = seen(program, "a")
    assert said is None or str(f) == said
    assert not violations(f, pairs_of(text, "a")), str(f)
    f = seen(program, "kind")
    # A changed tag moves the ends of pictures, which is more than `end` can be asked of in one run.
    if f.kind is not Kind.END:
        assert not violations(f, pairs_of(text, "kind")), f"of kind: {f}"


def test_the_frontiers_are_not_too_wide() -> None:
    """What is said to be seen is seen, in the programs of one step; how many words there are, of the tags."""
    for step, said in STEPS.items():
        pairs = pairs_of(text_of((step,)), "kind" if "length" in step else "a")
        ahead = max(r - t for r, t in pairs)
        if said == "t":
            assert ahead == 0
        elif said == "t+1":
            assert ahead == 1
        else:
            assert ahead > 0, step


Rule = Callable[[Node, tuple[Frontier, ...]], Frontier]
# Rules that are wrong on purpose: a join that forgets its last part or the tag, a take that keeps nothing.
WEAK: dict[str, Rule] = {
    "join": lambda node, given: given[0],
    "take": lambda node, given: frontier.NONE,
    "join without the tag": lambda node, given: frontier.join(*given[:-1]),
    "take of a whole": lambda node, given: frontier.previous(given[0], 1),
    "attend": lambda node, given: frontier.join(*given),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_weaker_rule_is_caught(name: str) -> None:
    op, weak = name.split(" ")[0], WEAK[name]
    caught = 0
    for text, _ in programs():
        program = checked(text).model
        nodes = tuple(
            replace(node, op=replace(node.op, frontier=weak)) if node.op.name == op else node for node in program.nodes
        )
        changed = replace(program, nodes=nodes)
        for source in ("a", "kind"):
            f = seen(changed, source)
            if not (source == "kind" and f.kind is Kind.END):
                caught += bool(violations(f, pairs_of(text, source)))
    assert caught > 0
