"""The operators of SEMANTICS 6 as a toy that runs, to hold the frontier's rules against what really depends on what.

A program is a list of steps over a source of few rows. Values are small numbers; every operator mixes what it reads
with a hash, so that nothing it may read is lost. Flags, tags and lengths of segments are made from values too.
`dependence` runs the program on a source and on others that agree with it up to some row, and notes from which row on
a change is seen. `frontiers` asks the rules. `allowed` says which row a frontier means in that run; a rule is wrong
where something later is seen.

Rows of cuts and selections are compared where both runs have them: that a row exists is seen by what reads it.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from weft.dsl import frontier as rules
from weft.dsl import masks
from weft.dsl.axes import Axis, AxisKind, Cut, Ragged
from weft.dsl.frontier import Frontier, Kind, Segments
from weft.dsl.length import Length
from weft.dsl.source import Source, Span

SPAN = Span(Source("model", ""), 0, 0)
ALPHABET = 8


def axis(name: str, kind: AxisKind | None = None) -> Axis:
    return Axis(name, kind or Ragged(), Length.symbol(name), None, SPAN)


def mix(*parts: object) -> int:
    """Depends on each part; numbers and tuples of numbers only, whose hash is the same in every run."""
    value = hash(parts)
    return (value ^ value >> 17) & 0xFFFFF


# -- one run


@dataclass(frozen=True)
class Pieces:
    """Segments in one run: half-open ranges of rows of the axis they group, and for each row what it may ask of them.

    own     the segment a row is in, None in a gap
    before  how many segments ended before a row
    closed  the last segment that ended at or before a row, -1 for none
    """

    ranges: tuple[tuple[int, int], ...]
    opened: bool  # the last segment did not end with the rows there are
    own: tuple[int | None, ...]
    before: tuple[int, ...]
    closed: tuple[int, ...]


def pieces(ranges: list[tuple[int, int]], rows: int, open_last: bool) -> Pieces:
    own: list[int | None] = [None] * rows
    ended = [0] * (rows + 1)
    for number, (begin, stop) in enumerate(ranges):
        for r in range(begin, stop):
            own[r] = number
        if not (open_last and number == len(ranges) - 1):
            ended[stop - 1] = 1
    before, closed, count = [], [], 0
    for r in range(rows):
        before.append(count)
        count += ended[r]
        closed.append(count - 1)
    return Pieces(tuple(ranges), open_last, tuple(own), tuple(before), tuple(closed))


@dataclass
class Run:
    """What data decides in one run: segments of cuts, rows of selections; and the values of each step."""

    source: tuple[int, ...]
    values: list[list[int]] = field(default_factory=list)
    cuts: dict[Axis, Pieces] = field(default_factory=dict)
    selected: dict[Axis, tuple[int, ...]] = field(default_factory=dict)


# -- programs


@dataclass
class View:
    """What the rules know of the axes, for this source."""

    cuts: dict[Axis, Segments] = field(default_factory=dict)
    tags: dict[Axis, Frontier] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """`run` gives the rows of the result; `rule` its frontier. `level` None: example level."""

    name: str
    level: Axis | None
    inputs: tuple[int, ...]
    run: Callable[[Run], list[int]]
    rule: Callable[[View, list[Frontier]], Frontier]


@dataclass
class Program:
    source: Axis
    steps: list[Step]
    # Rows of an axis that does not change between runs: to rows of the axis where the source's rows are counted.
    fixed: dict[Axis, list[int]]
    places: list[
        int
    ]  # of the source's rows in the axis where they are counted: a whole they are a part of, or their own


def frontiers(program: Program) -> list[Frontier]:
    view = View()
    result: list[Frontier] = []
    for step in program.steps:
        f = step.rule(view, [result[i] for i in step.inputs])
        result.append(rules.settle(f, () if step.level is None else (step.level,), program.source))
    return result


def execute(program: Program, source: tuple[int, ...]) -> Run:
    run = Run(source)
    for step in program.steps:
        run.values.append(step.run(run))
    return run


def dependence(program: Program, base: Run, rng: random.Random, tries: int) -> list[list[int]]:
    """For each step and row, the last source row r such that changes at r and later are seen there; -1 for none."""
    seen = [[-1] * len(values) for values in base.values]
    for r in range(len(base.source) - 1, -1, -1):
        for attempt in range(tries):
            changed = list(base.source)
            changed[r] = (changed[r] + 1 + rng.randrange(ALPHABET - 1)) % ALPHABET
            if attempt % 2:
                for later in range(r + 1, len(changed)):
                    changed[later] = rng.randrange(ALPHABET)
            other = execute(program, tuple(changed))
            for number, (mine, theirs) in enumerate(zip(base.values, other.values, strict=True)):
                marks = seen[number]
                for row, (a, b) in enumerate(zip(mine, theirs, strict=False)):
                    if a != b and marks[row] < r:
                        marks[row] = r
    return seen


def allowed(program: Program, run: Run, level: Axis | None, row: int, f: Frontier) -> int:
    """The last source row that `f` allows at a row of `level`."""
    everything = len(run.source) - 1
    match f.kind:
        case Kind.NONE:
            return -1
        case Kind.ALL:
            return everything
        case Kind.ROW if level is f.axis is program.source:
            return max(-1, min(row + f.shift, everything))
        case Kind.ROW:
            assert level is not None
            bound = place(program, run, level, row) + f.shift
        case Kind.END:
            assert level is not None
            assert f.axis is not None
            bound = t = place(program, run, level, row)
            along = f.axis.kind.parent if isinstance(f.axis.kind, Cut) else None
            if along in run.selected:
                rows = run.selected[along]
                number = run.cuts[f.axis].own[rows.index(t)] if t in rows else None
            else:
                number = run.cuts[f.axis].own[t]
            if number is not None:
                bound = source_ranges(program, run, f.axis)[number][1] - 1
        case _:
            assert level is not None
            assert f.axis is not None
            ranges = source_ranges(program, run, f.axis)
            # A row below the cut's rows is where its parent is.
            number = row if level is f.axis else program.fixed[level][row]
            if f.kind is Kind.FIRST:
                bound = ranges[number][0]
            elif number + f.shift < 0:
                bound = -1
            elif number + f.shift >= len(ranges):
                return everything
            else:
                bound = ranges[number + f.shift][1] - 1
    return bisect_right(program.places, bound) - 1


def place(program: Program, run: Run, level: Axis, row: int) -> int:
    """Where a row of `level` is, in the axis where the source's rows are counted."""
    if level in run.selected:
        return run.selected[level][row]
    if level in program.fixed:
        return program.fixed[level][row]
    return row


def source_ranges(program: Program, run: Run, cut: Axis) -> list[tuple[int, int]]:
    """Segments as ranges of source rows, also where they group rows of a selection."""
    along = cut.kind.parent if isinstance(cut.kind, Cut) else None
    ranges = run.cuts[cut].ranges
    if along is None or along not in run.selected:
        return list(ranges)
    rows = run.selected[along]
    found = [(rows[begin], rows[stop - 1] + 1) for begin, stop in ranges]
    if run.cuts[cut].opened:
        found[-1] = (found[-1][0], len(run.source))  # whether more rows follow is not known before the end
    return found


# -- masks, evaluated as written


def mask_allows(
    formula: masks.Formula | None,
    run: Run,
    keys: tuple[Axis, int],
    queries: tuple[Axis, int],
    captured: tuple[list[int], list[int]],
) -> bool:
    def term(t: masks.Term) -> float | None:
        match t:
            case masks.Literal(value):
                return value
            case masks.Side(side, read):
                at, row = keys if side == "key" else queries
                match read:
                    case masks.Position():
                        return row
                    case masks.Captured():
                        return captured[0 if side == "key" else 1][row] % 2
                    case masks.SegmentIndex(cut, which):
                        if at is cut:
                            return row
                        piece = run.cuts[cut]
                        return piece.closed[row] if which == "closed" else piece.before[row]
            case masks.Arithmetic(operator, left, right):
                a = term(left)
                b = term(right) if right is not None else None
                assert a is not None
                if operator == "abs":
                    return abs(a)
                if b is None:
                    return -a
                return {"+": a + b, "-": a - b, "*": a * b}[operator]

    def in_gap(t: masks.Term) -> bool:
        match t:
            case masks.Side(side, masks.SegmentIndex(cut, "own")):
                at, row = keys if side == "key" else queries
                return at is not cut and run.cuts[cut].own[row] is None
            case _:
                return False

    def holds(f: masks.Formula) -> bool:
        match f:
            case masks.Both(left, right):
                return holds(left) and holds(right)
            case masks.Either(left, right):
                return holds(left) or holds(right)
            case masks.Not(inner):
                return not holds(inner)
            case masks.Compare(operator, left, right):
                if operator == "==" and (in_gap(left) or in_gap(right)):
                    return False
                a, b = term(left), term(right)
                assert a is not None
                assert b is not None
                return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]

    return formula is None or holds(formula)


# -- judging


@dataclass(frozen=True)
class Observed:
    """One run of a program, and for each step and row the last source row that is seen there."""

    program: Program
    run: Run
    seen: list[list[int]]


@dataclass(frozen=True)
class Violation:
    step: int
    row: int
    frontier: Frontier
    allowed: int
    seen: int


def violations(observed: Observed, claimed: list[Frontier] | None = None) -> list[Violation]:
    """Where something later is seen than the frontiers allow; the rules' own unless others are given."""
    program, found = observed.program, []
    for number, f in enumerate(claimed if claimed is not None else frontiers(program)):
        level = program.steps[number].level
        if f.is_all:
            continue
        for row, seen in enumerate(observed.seen[number]):
            bound = allowed(program, observed.run, level, row, f)
            if seen > bound:
                found.append(Violation(number, row, f, bound, seen))
    return found
