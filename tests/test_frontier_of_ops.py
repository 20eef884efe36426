"""The causality rules of the operators against what their lowerings read: rows are changed one at a time."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
import torch

from tests import op_samples, small_models
from tests.op_samples import SAMPLES, Sample
from weft.dsl import frontier
from weft.dsl.axes import Axis, Scaled
from weft.dsl.causality import frontiers
from weft.dsl.frontier import Frontier, Kind
from weft.dsl.program import Program, Value

TRIES = 3  # changes of each row


def rows_along_seq(program: Program) -> list[Value]:
    return [value for value in program.inputs if value.type.rows is not None and value.type.rows.name == "seq"]


def reached(program: Program, source: Value) -> set[tuple[int, int]]:
    """(r, t) for every row r of the source that some row t of the result depends on, in an example of five rows."""
    graph = op_samples.module(program)
    lengths = op_samples.alone(1)
    values = op_samples.inputs(program, lengths)
    number = program.inputs.index(source)
    base = graph(*op_samples.arguments(graph, values, lengths))[0]
    generator = torch.Generator().manual_seed(3)
    found: set[tuple[int, int]] = set()
    for row in range(lengths["seq"][0]):
        for _ in range(TRIES):
            changed = list(values)
            changed[number] = values[number].clone()
            other = op_samples.draw(source, lengths, torch.float64, generator)[row]
            changed[number][row] = 3 * other if other.is_floating_point() else other
            result = graph(*op_samples.arguments(graph, changed, lengths))[0]
            different = (result != base).reshape(len(base), -1).any(1)
            found |= {(row, t) for t in different.nonzero().flatten().tolist()}
    return found


def segment_ends(program: Program, cut: Axis) -> list[int]:
    """The last row of each row's segment in that example; a row in a gap itself."""
    graph = op_samples.module(program)
    lengths = op_samples.alone(1)
    if isinstance(cut.kind, Scaled):
        rows, by = lengths["seq"][0], cut.kind.divisor
        return [min(t // by * by + by, rows) - 1 for t in range(rows)]
    made = op_samples.values_of(graph, op_samples.arguments(graph, op_samples.inputs(program, lengths), lengths))
    ends, inside = op_samples.flags_of_cut(program, made, cut.name)
    return [
        next((r for r in range(t, len(ends)) if ends[r] or (r + 1 < len(ends) and not inside[r + 1])), len(ends) - 1)
        if inside[t]
        else t
        for t in range(len(ends))
    ]


def violations(f: Frontier, found: set[tuple[int, int]], last: list[int] | None = None) -> set[tuple[int, int]]:
    """Of pairs (r, t), those that a frontier does not allow. `last` row of each row's segment, for `end`."""
    match f.kind:
        case Kind.ALL:
            return set()
        case Kind.ROW:
            return {(r, t) for r, t in found if r - t > f.shift}
        case Kind.END if last is not None:
            return {(r, t) for r, t in found if r > last[t]}
        case _:
            return found


def result_along_seq(program: Program) -> bool:
    rows = program.outputs[0][1].type.rows
    return rows is not None and rows.name == "seq"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
def test_no_operator_reads_more_than_its_rule_says(sample: Sample) -> None:
    program = op_samples.elaborate(sample.text)
    if not result_along_seq(program):
        return
    for source in rows_along_seq(program):
        f = frontiers(program, source)[program.outputs[0][1]]
        pairs = reached(program, source)
        if f.kind is Kind.END and f.axis is not None:
            last = segment_ends(program, f.axis)
            assert all(r <= last[t] for r, t in pairs), f"{source.name} is said to be seen up to {f}"
            assert sample.op.name != "pool" or any(r > t for r, t in pairs), "the sample shows nothing"
        else:
            assert not violations(f, pairs), f"{source.name} is said to be seen up to {f}"


# What each does to `a`: a value along seq, of which t is known at t when a is the source.
EXPRESSIONS = {
    "previous(a)": "t-1",
    "previous(a, 2, first=p)": "t-2",
    "or(next(a), 0)": "t+1",
    "or(next(next(a)), p)": "t+2",
    "or(shift(a, -2), 0)": "t+2",
    "or(shift(a, 1), 0)": "t-1",
    "tanh(linear(a, d -> d))": "t",
    "a + real(length(seq))": "all",
    "a * real(position(seq))": "t",
    "a + mean(a, over=seq)": "all",
    "a * mean(next(a), over=seq)": "all",
    "softmax(a, over=seq)": "all",
    "softmax(a, over=d)": "t",
    "rms_norm(a)": "t",
    "rope(a, along=seq)": "t",
    "attend(a, a, a, over=d, along=seq)": "all",
    "attend(a, a, a, over=d, along=seq, mask=causal)": "t",
    "attend(a, a, a, over=d, along=seq, mask=window(2))": "t+1",
    "attend(a, a, a, over=d, along=seq, mask=causal and window(2))": "t",
    "attend(a, a, a, over=d, along=seq, mask=causal or window(2))": "t+1",
    "attend(p, a, a, over=d, along=seq, mask=key(position) < 9) + a": "all",
    "conv(a, seq -> seq, d -> d, size=3, pad=causal)": "t",
    "conv(a, seq -> seq, d -> d, size=3)": "t+1",
    "conv(a, seq -> seq, d -> d, size=4)": "t+2",
    "conv(previous(a), seq -> seq, d -> d, size=3)": "t",
    "spread(pool(a, seq -> pair), pair -> seq, own)": "end(pair)",
    "spread(pool(a, seq -> pair), pair -> seq, closed)": "t",
    "spread(pool(a, seq -> pair), pair -> seq, before)": "t-1",
    "spread(conv(a, seq -> pair, d -> d, size=3, stride=2), pair -> seq, closed)": "t",
    "spread(conv(a, seq -> pair, d -> d, size=5, stride=2), pair -> seq, closed)": "all",
    "spread(conv(a, seq -> pair, d -> d, size=5, stride=2), pair -> seq, before)": "end(pair)",
    "attend(a, a, a, over=d, along=seq, mask=key(position) <= query(position) + 1)": "t+1",
    "attend(a, a, a, over=d, along=seq, mask=not key(position) > query(position))": "t",
    "attend(a, a, a, over=d, along=seq, mask=causal or key(position) < query(n))": "all",
    "attend(a, a, a, over=d, along=seq, mask=causal and key(i) == query(i))": "t",
    "attend(a, a, a, over=d, along=seq, mask=causal, bias=sum(a, over=d))": "t",
    "attend(a, k, k, over=d, along=other)": "t",
    "attend(previous(a), previous(a), previous(a), over=d, along=seq, mask=causal)": "t-1",
    "where(a > 0, a, previous(a))": "t",
    "table[wrap(int(sum(a, over=d) * 3), v)]": "t",
    "table[wrap(int(sum(a, over=(seq, d)) * 3), v)] + a": "all",
    "straight_through(round(a), previous(a)) * 1.5": "t",
    "mean(or(next(a), 0), over=d) * a": "t+1",
}
HEAD = """
size d = 4
size v = 5
axis seq
axis pair = seq / 2
axis other
model m(a: real[seq, d], p: real[d], n: int, i: int[seq], k: real[other, d], table: real[v, d]) -> real[seq, d]:
"""


def bodies() -> list[tuple[str, str | None]]:
    """Each expression by itself with what it sees, and random ones of several."""
    result: list[tuple[str, str | None]] = [
        (f"    return {text if 'table' not in text else text + ' + 0 * a'}", seen) for text, seen in EXPRESSIONS.items()
    ]
    rng = random.Random(4)
    for _ in range(60):
        lines, name = [], "a"
        for number in range(rng.randint(2, 4)):
            text = rng.choice(list(EXPRESSIONS))
            text = re.sub(r"\ba\b", lambda _, choices=("a", name): rng.choice(choices), text)
            name = f"y{number}"
            lines.append(f"    {name} = {text}")
        result.append(("\n".join([*lines, f"    return {name} + 0.5 * a"]), None))
    return result


# Rows of the example, and of each the last row of its pair.
ROWS = 6
LAST_OF_PAIR = [min(t // 2 * 2 + 1, ROWS - 1) for t in range(ROWS)]


def observed(body: str) -> set[tuple[int, int]]:
    """(r, t) for every row r of `a` that some row t of the result depends on."""
    model = small_models.model(HEAD + body + "\n")
    generator = torch.Generator().manual_seed(5)
    rows = ROWS

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    a, i = draw(rows, 4), torch.randint(2, (rows,), generator=generator)
    rest = ([draw(4)], [torch.tensor(2)], [i], [draw(3, 4)], [draw(5, 4)])
    base = model([a], *rest)[0]
    found: set[tuple[int, int]] = set()
    for row in range(rows):
        changed = a.clone()
        changed[row] = 2 * draw(4)
        different = (model([changed], *rest)[0] != base).any(1)
        found |= {(row, t) for t in different.nonzero().flatten().tolist()}
    return found


def seen_of(program: Program) -> Frontier:
    (source,) = (value for value in program.inputs if value.name == "a")
    return frontiers(program, source)[program.outputs[0][1]]


@pytest.mark.parametrize(("body", "seen"), bodies())
def test_models_see_what_is_said_and_no_more(body: str, seen: str | None) -> None:
    f = seen_of(small_models.checked(HEAD + body + "\n").model)
    assert seen is None or str(f) == seen
    assert not violations(f, observed(body), LAST_OF_PAIR)


def ahead() -> list[str]:
    # That a length depends on how many rows there are is not seen by changing one; and of what leaves the axis, the
    # walk itself says that it sees all.
    others = ("length", "mean(", "over=(seq", "attend(p", "seq -> pair")
    return [
        body for body, seen in bodies() if seen in ("t+1", "t+2", "all") and not any(text in body for text in others)
    ]


@pytest.mark.parametrize("body", ahead())
def test_a_rule_that_forgets_other_rows_is_caught(body: str) -> None:
    """Were every operator said to work row by row, a changed row would show that it does not."""
    program = small_models.checked(HEAD + body + "\n").model
    nodes = tuple(replace(node, op=replace(node.op, frontier=frontier.row_wise)) for node in program.nodes)
    weak = seen_of(replace(program, nodes=nodes))
    # A new node makes the same values, so the walk goes on as before.
    assert str(weak) in ("none", "t")
    assert violations(weak, observed(body), LAST_OF_PAIR)
