"""Walk a program with the causal frontier: what each value may look at, where a target leaks, whether rows can be
generated.

    objective:  logits = model(tokens)          F(logits | tokens) = t
                cross_entropy(logits, next(tokens))      demands F(logits | tokens) <= t

A claim is made by `next` in an objective and tested where what it gives meets a prediction. Of the values made from a
target:

    targets       made from it row by row without weights (`or(next(x), 0)`): they are what is to be predicted
    codes         made from targets and weights alone (`linear(next(z))`): a leak where a target meets them
    comparisons   made from a target and a prediction: tested once, where they met

Whatever has no weight in it can learn nothing, so its look ahead (a length, a mask of rows that count) does no harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache

from .axes import Axis, Joined
from .diagnostics import Problems
from .errors.causality import NotGenerated, Seen, TargetLeak
from .frontier import ALL, NONE, Frontier, Kind, end, last, leq, row, settle
from .frontier_elements import is_part_of
from .program import Node, Program, Value, Weight
from .record import record
from .source import Span
from .value_type import Flag
from .work import WALKED, went_through


def frontiers(
    program: Program, source: Value, axis: Axis | None = None, work: Problems | None = None
) -> dict[Value, Frontier]:
    """F(value | source) of every value. `axis` is the source's ordered axis, where its type does not say. `work`: those
    of a check, which goes through the nodes. Raises Abandoned at its limit."""
    axis = axis or source.type.rows
    start = ALL if axis is None else row(axis)
    known: dict[Value, Frontier] = dict.fromkeys(_values(program), NONE)
    known[source] = start
    reached = {source}
    silent = _silent(program)
    for node in program.nodes:
        if reached.isdisjoint(node.inputs) and node in silent:
            continue
        found = _of_outputs(node, tuple(known.get(value, NONE) for value in node.inputs))
        for output, f in zip(node.outputs, found, strict=True):
            if output is not source:
                known[output] = f = settle(f, output.type.axes, axis)
                if not f.is_none:
                    reached.add(output)
    if work is not None:
        went_through(work, 1 + len(reached) // WALKED, source.span)
    return known


def makers(program: Program) -> dict[Value, Node]:
    """The node that makes each value; inputs and weights have none."""
    return {output: node for node in program.nodes for output in node.outputs}


def _values(program: Program) -> Iterator[Value]:
    yield from program.inputs
    yield from program.weights
    for node in program.nodes:
        yield from node.outputs


@lru_cache(maxsize=8)
def _silent(program: Program) -> frozenset[Node]:
    """Nodes whose results have nothing of a source where their inputs have nothing of it. Others count rows."""
    return frozenset(
        node for node in program.nodes if all(f.is_none for f in _of_outputs(node, (NONE,) * len(node.inputs)))
    )


def _of_outputs(node: Node, inputs: tuple[Frontier, ...]) -> tuple[Frontier, ...]:
    """What each result of a node has, by its operator's rule, given what its inputs have."""
    found = node.op.frontier(node, inputs)
    return found if isinstance(found, tuple) else (found,) * len(node.outputs)


@record
class Step:
    """One value on a path, the node that made it (None: an input or a weight), and its frontier."""

    value: Value
    node: Node | None
    frontier: Frontier

    @property
    def shown(self) -> tuple[Span, str]:
        """Where to point and what to call it."""
        return (self.value.span, self.value.name) if self.node is None else _place(self.node, self.value.name)


# Blocks of the standard library are shown where they are called.
_LIBRARY = "std/"


def _place(node: Node, name: str) -> tuple[Span, str]:
    place = node.span, name
    for frame in reversed(node.scope):
        if not place[0].source.name.startswith(_LIBRARY):
            break
        place = frame.span, frame.name
    return place


def leak_path(
    program: Program, source: Value, value: Value, bound: Frontier, known: dict[Value, Frontier] | None = None
) -> tuple[Step, ...]:
    """The shortest chain along which more than `bound` of the source enters `value`: from where it enters, to `value`.

    It starts with what is read there while it still keeps the bound, or with the source.
    """
    known = known if known is not None else frontiers(program, source)
    maker = makers(program)
    reader: dict[Value, Value | None] = {value: None}
    queue = deque([value])
    while queue:
        here = queue.popleft()
        node = maker.get(here)
        inputs = () if node is None or here is source else node.inputs
        beyond = [v for v in inputs if not _keeps(known.get(v, NONE), bound)]
        if not beyond:
            opening = [v for v in inputs if not known.get(v, NONE).is_none][:1]
            chain = [*opening, here]
            while (following := reader[chain[-1]]) is not None:
                chain.append(following)
            return tuple(Step(v, maker.get(v), known.get(v, NONE)) for v in chain)
        for v in beyond:
            if v not in reader:
                reader[v] = here
                queue.append(v)
    return ()


def _keeps(f: Frontier, bound: Frontier) -> bool:
    """Whether a value on the way is within the bound. On a cut, what ends before my segment or starts it still is."""
    return leq(f, bound) or f.kind is Kind.FIRST or (f.kind is Kind.LAST and f.shift < 0)


class _Made(Enum):
    """What a value is made of, with respect to targets."""

    OTHER = 0  # nothing of a target, or read across rows: its frontier says what it has seen
    TARGET = 1
    CODE = 2
    COMPARISON = 3


@record
class _Claim:
    """`next(source, shift)`, made by `node`."""

    source: Value
    shift: int
    node: Node

    @property
    def axis(self) -> Axis | None:
        return self.node.outputs[0].type.rows or self.source.type.rows


def check_targets(
    program: Program, targets: Sequence[tuple[Value, int, Node]], problems: Problems, work: Problems | None = None
) -> None:
    """Every prediction that meets a target sees no row of it yet. `targets`: source, k, and the `next` node. `work`: as
    of `frontiers`."""
    if not targets:
        return
    claims = [_Claim(*target) for target in targets]
    learned = _learned(program)
    maker = makers(program)
    known: dict[tuple[Value, Axis | None], dict[Value, Frontier]] = {}
    for claim in claims:
        for source in _origins(claim.source, maker, learned):
            key = (source, source.type.rows or claim.axis)
            if key not in known:
                known[key] = frontiers(program, *key, work)
            _check_claim(program, claim, source, known[key], learned, problems)


def _learned(program: Program) -> set[Value]:
    """Values with a weight in them."""
    result: set[Value] = set(program.weights)
    for node in program.nodes:
        if any(value in result or isinstance(value, Weight) for value in node.inputs):
            result.update(node.outputs)
    return result


def _origins(source: Value, maker: Mapping[Value, Node], learned: set[Value]) -> list[Value]:
    """The source, and what it rewrites: the model may read `tokens` while the target is `next(rename(tokens))`."""
    result = [source]
    while (node := maker.get(result[-1])) is not None and node.op.is_row_wise(node) and result[-1] not in learned:
        rows = [value for value in node.inputs if value.type.rows is not None]
        if len(rows) != 1:
            break
        result.append(rows[0])
    return result


def _check_claim(
    program: Program,
    claim: _Claim,
    source: Value,
    known: dict[Value, Frontier],
    learned: set[Value],
    problems: Problems,
) -> None:
    axis = source.type.rows or claim.axis
    if axis is None:
        return
    if claim.axis is not None and is_part_of(axis, claim.axis):
        axis = claim.axis  # rows are counted in the whole axis
    bound = row(axis, claim.shift - 1)
    made: dict[Value, _Made] = dict.fromkeys(claim.node.outputs, _Made.TARGET)
    for node in program.nodes:
        if made.keys().isdisjoint(node.inputs) or node is claim.node or not node.op.is_row_wise(node):
            continue
        kinds = {made.get(value, _Made.OTHER) for value in node.inputs}
        result = max(kinds, key=lambda kind: kind.value)
        predictions = [v for v in node.inputs if v in learned and made.get(v, _Made.OTHER) is _Made.OTHER]
        if _Made.TARGET in kinds:
            predictions += [v for v in node.inputs if made.get(v) is _Made.CODE]
        if _Made.COMPARISON not in kinds:
            for prediction in predictions:
                f = known.get(prediction, NONE)
                if not f.is_none:
                    result = _Made.COMPARISON
                elif result is _Made.TARGET:
                    result = _Made.CODE
                if not leq(f, bound):
                    problems.add(_leak(program, claim, source, node, prediction, bound, known))
        for output in node.outputs:
            # A flag says which rows count, not what is in them.
            if not isinstance(output.type.kind, Flag):
                made[output] = result


def _leak(
    program: Program,
    claim: _Claim,
    source: Value,
    node: Node,
    prediction: Value,
    bound: Frontier,
    known: dict[Value, Frontier],
) -> TargetLeak:
    path = leak_path(program, source, prediction, bound, known)
    return TargetLeak(
        _place(node, "")[0],
        prediction.name,
        source.name,
        str(known[prediction]),
        str(bound),
        claim.node.span,
        _seen(path),
    )


def _seen(path: Iterable[Step]) -> tuple[Seen, ...]:
    return tuple(Seen(*step.shown, str(step.frontier)) for step in path)


def check_generates(
    program: Program, output: Value, sources: Iterable[Value],
    found: dict[Value, dict[Value, Frontier]] | None = None, work: Problems | None = None,
) -> NotGenerated | None:  # fmt: skip
    """Why rows of `output` cannot be generated one by one; None when they can.

    Only sources along the generated axis ask for it: a prompt in front and inputs on other axes are there at once. An
    output without rows has a result only when all rows are there, so every source it reads is asked about. `found`:
    frontiers by source, for several outputs. `work`: as of `frontiers`.
    """
    found = {} if found is None else found
    for source in sources:
        axis = source.type.rows
        generated = output.type.rows or axis
        if generated is None or axis is None:
            continue
        owner = generated if generated in program.shown else None
        generated, along = program.rows_that_come(generated), program.rows_that_come(axis)
        if not _grows_with(program, along, generated):
            continue
        if source not in found:
            found[source] = frontiers(program, source, axis, work)
        known = found[source]
        bound = row(generated if is_part_of(along, generated) else along) if owner is None else last(owner)
        f = known.get(output, NONE)
        if leq(f, bound) or (owner is not None and leq(f, end(owner))) or _comes_whole(program, f, generated):
            continue
        path = leak_path(program, source, output, bound, known)
        culprit = next((step for step in path if not _keeps(step.frontier, bound)), path[-1])
        at, name = culprit.shown
        return NotGenerated(at, output.name, source.name, str(culprit.frontier), name, _seen(path))
    return None


def _comes_whole(program: Program, f: Frontier, generated: Axis) -> bool:
    """Whether `f` is the end of what a caller gives whole as rows of `generated` come, such as pictures of a text."""
    given = [owner for owner in program.shown if owner in program.ordered_axes]
    whole = {program.shown[owner] for owner in given if program.rows_that_come(owner) is generated}
    return f.kind is Kind.END and whole.issuperset(f.cuts)


def why_not_generated(program: Program, work: Problems | None = None) -> NotGenerated | None:
    """The first reason why a model's outputs cannot be generated row by row; None when they can. `work`: as of
    `frontiers`."""
    found: dict[Value, dict[Value, Frontier]] = {}
    errors = (check_generates(program, output, program.inputs, found, work) for _, output in program.outputs)
    return next((error for error in errors if error is not None), None)


def _grows_with(program: Program, axis: Axis, generated: Axis) -> bool:
    """Whether rows of `axis` appear as rows of `generated` are appended: the same rows, or the last part of them."""
    if axis is generated:
        return True
    for whole in _joined_axes(program, generated):
        parts = [part for part in whole.parts if isinstance(part, Axis)]
        if any(part is axis for part in parts[:-1]):
            return False
    return is_part_of(axis, generated) or is_part_of(generated, axis)


def _joined_axes(program: Program, generated: Axis) -> list[Joined]:
    values = (*program.inputs, *(output for node in program.nodes for output in node.outputs))
    axes = dict.fromkeys((generated, *(axis for value in values for axis in value.type.axes)))
    return [axis.kind for axis in axes if isinstance(axis.kind, Joined)]
