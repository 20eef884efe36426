"""The operators of SEMANTICS 6 as a toy that runs, to hold the frontier's rules against what really depends on what.

A program is a list of steps over a source of few rows. Values are small numbers; every operator mixes what it reads with a hash, so
that nothing it may read is lost. Flags, tags and lengths of segments are made from values too. `dependence` runs the program
on a source and on others that agree with it up to some row, and notes from which row on a change is seen. `frontiers`
asks the rules. `allowed` says which row a frontier means in that run; a rule is wrong where something later is seen.

Rows of cuts and selections are compared where both runs have them: that a row exists is seen by what reads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from weft.dsl import frontier as rules
from weft.dsl import masks
from weft.dsl.axes import Axis, AxisKind, Cut, Joined, Nested, Ragged, Scaled, Selected
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
    # Rows of an axis that does not change between runs: to rows of the source's axis (or of its whole).
    fixed: dict[Axis, list[int]]
    rows: int
    first_row: int  # where the source's rows start in the axis they are counted in


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
    last_row = program.rows - 1
    match f.kind:
        case Kind.NONE:
            return -1
        case Kind.ALL:
            return last_row
        case Kind.ROW:
            assert level is not None
            bound = place(program, run, level, row) + f.shift - program.first_row
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
                bound = last_row
            else:
                bound = ranges[number + f.shift][1] - 1
    return max(-1, min(bound, last_row))


def place(program: Program, run: Run, level: Axis, row: int) -> int:
    """The row of the source's axis (or of the whole it is counted in) where a row of `level` is."""
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
        found[-1] = (found[-1][0], program.rows)  # whether more rows follow is not known before the end
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


# -- making programs


class Builder:
    """Adds random steps. What is drawn does not depend on the rules, so one program serves all variants of them."""

    def __init__(self, rng: random.Random, rows: int, setting: str) -> None:
        self.rng = rng
        self.steps: list[Step] = []
        self.fixed: dict[Axis, list[int]] = {}
        self.salt = 0
        self.cut_axes: dict[Axis, Axis] = {}  # a cut, and the axis whose rows it groups
        self.selections: dict[Axis, int] = {}  # a selection, and the step that made its rows
        self.rows = rows
        first_row = 0
        if setting == "part":
            # The source is a part of a joined axis: `line = 1 + x + after`, or without the row in front.
            self.x, other = axis("x"), axis("other")
            front = rng.randrange(2)
            tail = rng.randrange(3)
            self.whole = axis("whole", Joined((*((1,) if front else ()), self.x, *((other,) if tail else ()))))
            first_row = front
            self.fixed[self.x] = [front + r for r in range(rows)]
            self.fixed[self.whole] = list(range(front + rows + tail))
        elif setting == "nested":
            # The source is on a nested axis, whose parent cuts it with lengths that are given.
            parent = axis("picture")
            self.x = axis("x", Nested(parent))
            self.cut_axes[parent] = self.x
        else:
            self.x = axis("x")
            if rng.random() < 0.3:
                below = axis("below", Nested(self.x))
                self.fixed[below] = [r for r in range(rows) for _ in range(rng.randrange(3))]
        self.add("source", self.x, (), lambda run: list(run.source), lambda view, ops: rules.row(self.x))
        self.position(self.x)
        for a in self.fixed:
            if a is not self.x and not isinstance(a.kind, Joined):
                self.position(a)
        if setting == "nested":
            self.given_segments(next(iter(self.cut_axes)))
        if setting == "part":
            self.to_whole(0)
        self.program = Program(self.x, self.steps, self.fixed, rows, first_row)

    # Small parts

    def add(
        self,
        name: str,
        level: Axis | None,
        inputs: tuple[int, ...],
        run: Callable[[Run], list[int]],
        rule: Callable[[View, list[Frontier]], Frontier],
    ) -> int:
        self.steps.append(Step(name, level, inputs, run, rule))
        return len(self.steps) - 1

    def new_salt(self) -> int:
        self.salt += 1
        return self.salt

    def some(self, *levels: Axis | None) -> int | None:
        """A value at one of these levels; late ones more often, so that programs get deep."""
        found = [n for n, step in enumerate(self.steps) if step.level in levels]
        # Positions depend on nothing (or on too little): rarely the thing to look at.
        telling = [n for n in found if self.steps[n].name not in _DULL]
        found = telling if telling and self.rng.random() < 0.9 else found
        if not found:
            return None
        return max(self.rng.choice(found), self.rng.choice(found)) if self.rng.random() < 0.7 else self.rng.choice(found)

    def ordered(self) -> list[Axis]:
        return list(dict.fromkeys(step.level for step in self.steps if step.level is not None))

    def size(self, run: Run, level: Axis) -> int:
        if level in run.cuts:
            return len(run.cuts[level].ranges)
        if level in run.selected:
            return len(run.selected[level])
        return len(self.fixed[level]) if level in self.fixed else self.rows

    # Operators that keep the rows

    def position(self, level: Axis) -> int:
        salt = self.new_salt()

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            if level in view.cuts:
                return rules.row_number(view.cuts[level])
            return rules.take(rules.NONE, level, view.tags[level]) if level in view.tags else rules.NONE

        return self.add("position", level, (), lambda run: [mix(salt, r) for r in range(self.size(run, level))], rule)

    def pointwise(self, *inputs: int) -> int:
        salt, level = self.new_salt(), self.steps[inputs[0]].level

        def run(run: Run) -> list[int]:
            columns = [run.values[i] for i in inputs]
            return [mix(salt, *cells) for cells in zip(*columns, strict=True)]

        return self.add("pointwise", level, inputs, run, lambda view, ops: rules.join(*ops))

    def narrow(self, a: int) -> int:
        """Keeps two bits, so that equal values, and changes without effect, happen."""
        salt = self.new_salt()
        return self.add(
            "narrow",
            self.steps[a].level,
            (a,),
            lambda run: [mix(salt, v) % 4 for v in run.values[a]],
            lambda view, ops: rules.join(*ops),
        )

    def previous(self, a: int) -> int:
        k, level = self.rng.choice((1, 1, 2)), self.steps[a].level
        assert level is not None

        def run(run: Run) -> list[int]:
            column = run.values[a]
            return [column[r - k] if r >= k else 0 for r in range(len(column))]

        return self.add("previous", level, (a,), run, lambda view, ops: rules.previous(ops[0], k, level))

    def following(self, a: int) -> int:
        k, level = self.rng.choice((1, 1, 2)), self.steps[a].level
        assert level is not None

        def run(run: Run) -> list[int]:
            column = run.values[a]
            return [column[r + k] if r + k < len(column) else 0 for r in range(len(column))]

        return self.add("following", level, (a,), run, lambda view, ops: rules.following(ops[0], k, level))

    def scan(self, a: int) -> int:
        salt, level, backward = self.new_salt(), self.steps[a].level, self.rng.random() < 0.2
        assert level is not None

        def run(run: Run) -> list[int]:
            state, result = 0, []
            for v in reversed(run.values[a]) if backward else run.values[a]:
                state = mix(salt, state, v)
                result.append(state)
            return result[::-1] if backward else result

        return self.add("scan", level, (a,), run, lambda view, ops: rules.scan(ops[0], level, backward))

    def conv(self, a: int) -> int:
        salt, level, reach = self.new_salt(), self.steps[a].level, self.rng.choice((-1, 0, 0, 1, 2))
        assert level is not None

        def run(run: Run) -> list[int]:
            v = run.values[a]
            return [mix(salt, *v[max(0, r + reach - 2) : max(0, r + reach + 1)]) for r in range(len(v))]

        return self.add("conv", level, (a,), run, lambda view, ops: rules.conv(ops[0], level, reach))

    def sort(self, a: int) -> int:
        """A softmax or sort along the rows."""
        salt, level = self.new_salt(), self.steps[a].level
        assert level is not None

        def run(run: Run) -> list[int]:
            everything = tuple(run.values[a])
            return [mix(salt, v, everything) for v in everything]

        return self.add("sort", level, (a,), run, lambda view, ops: rules.reduce_over_axis(ops[0], level, keep=True))

    # Operators between levels

    def reduce(self, a: int) -> int:
        """Over the whole axis, to the parent where the axis has one."""
        salt, level = self.new_salt(), self.steps[a].level
        assert level is not None
        parent = level.parent

        def run(run: Run) -> list[int]:
            if parent is None:
                return [mix(salt, tuple(run.values[a]))]
            if parent in run.cuts:
                return [mix(salt, tuple(run.values[a][b:e])) for b, e in run.cuts[parent].ranges]
            owners = self.fixed[level]
            groups: list[list[int]] = [[] for _ in range(self.rows)]
            for owner, v in zip(owners, run.values[a], strict=True):
                groups[owner].append(v)
            return [mix(salt, tuple(group)) for group in groups]

        return self.add("reduce", parent, (a,), run, lambda view, ops: rules.reduce_over_axis(ops[0], level))

    def length(self, level: Axis) -> int:
        salt = self.new_salt()
        # A row more or less of the source is a change too, but the toy keeps their number; no run can contradict `all`.
        return self.add("length", None, (), lambda run: [salt], lambda view, ops: rules.length_of(level))

    def broadcast(self, a: int, b: int) -> int:
        """A value per example, or of the parent's row, meets a value of a row below."""
        salt, level, upper = self.new_salt(), self.steps[a].level, self.steps[b].level
        assert level is not None

        def run(run: Run) -> list[int]:
            above = run.values[b]
            if upper is None:
                return [mix(salt, v, above[0]) for v in run.values[a]]
            owners = [0 if n is None else n for n in run.cuts[upper].own] if upper in run.cuts else self.fixed[level]
            return [mix(salt, v, above[n]) for v, n in zip(run.values[a], owners, strict=True)]

        return self.add("broadcast", level, (a, b), run, lambda view, ops: rules.join(*ops))

    def gather(self, table: int, index: int) -> int:
        salt, along = self.new_salt(), self.steps[table].level
        assert along is not None

        def run(run: Run) -> list[int]:
            rows = run.values[table]
            return [mix(salt, rows[i % len(rows)], i % len(rows)) if rows else 0 for i in run.values[index]]

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            return rules.gather_by_data(ops[0], ops[1], along)

        return self.add("gather", self.steps[index].level, (table, index), run, rule)

    # Segments

    def given_segments(self, cut: Axis) -> int:
        """Lengths that are given: the parent of a nested axis."""
        sizes = []
        while sum(sizes) < self.rows:
            sizes.append(min(self.rng.randrange(1, 4), self.rows - sum(sizes)))
        begins = [sum(sizes[:n]) for n in range(len(sizes))]
        fixed = pieces([(b, b + n) for b, n in zip(begins, sizes, strict=True)], self.rows, False)
        return self.cut_step("given", cut, (), lambda run: fixed, lambda ops: rules.NONE)

    def scaled(self) -> int:
        divisor = self.rng.choice((2, 2, 3))
        cut = axis("scaled", Scaled(self.x, divisor))
        self.cut_axes[cut] = self.x
        ranges = [(b, min(b + divisor, self.rows)) for b in range(0, self.rows, divisor)]
        fixed = pieces(ranges, self.rows, False)
        return self.cut_step("scaled", cut, (), lambda run: fixed, lambda ops: rules.NONE)

    def cut_step(
        self,
        name: str,
        cut: Axis,
        inputs: tuple[int, ...],
        run: Callable[[Run], Pieces],
        ends: Callable[[list[Frontier]], Frontier],
        gaps: bool = False,
    ) -> int:
        along = self.cut_axes[cut]

        def run_it(run_: Run) -> list[int]:
            run_.cuts[cut] = run(run_)
            return []

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            # Seen as the program walks: the value is empty, the frontier is that of the ends.
            view.cuts[cut] = rules.segments(cut, ends(ops), along, gaps)
            return rules.NONE

        self.add(name, None, inputs, run_it, rule)
        return self.position(cut)

    def segment_by_flags(self, a: int) -> int:
        salt, most = self.new_salt(), self.rng.choice((2, 3, 9))
        along = self.steps[a].level
        assert along is not None
        cut = axis(f"cut{salt}", Cut(along))
        self.cut_axes[cut] = along

        def run(run: Run) -> Pieces:
            values, ranges, begin = run.values[a], [], 0
            for r, v in enumerate(values):
                if mix(salt, v) % 5 < 2 or r - begin == most - 1:
                    ranges.append((begin, r + 1))
                    begin = r + 1
            opened = begin < len(values)
            return pieces(ranges + ([(begin, len(values))] if opened else []), len(values), opened)

        return self.cut_step("segment_by_flags", cut, (a,), run, lambda ops: rules.segment_by_flags(ops[0]))

    def segment_by_value(self, a: int) -> int:
        salt, gaps = self.new_salt(), self.rng.random() < 0.5
        along = self.steps[a].level
        assert along is not None
        cut = axis(f"run{salt}", Cut(along))
        self.cut_axes[cut] = along

        def run(run: Run) -> Pieces:
            ids = [mix(salt, v) % 3 for v in run.values[a]]
            ranges: list[tuple[int, int]] = []
            for r, i in enumerate(ids):
                if gaps and i == 0:
                    continue
                if ranges and ranges[-1][1] == r and ids[r - 1] == i:
                    ranges[-1] = (ranges[-1][0], r + 1)
                else:
                    ranges.append((r, r + 1))
            return pieces(ranges, len(ids), False)

        return self.cut_step("segment_by_value", cut, (a,), run, lambda ops: rules.segment_by_value(ops[0]), gaps)

    def segment_by_length(self, a: int) -> int:
        """Pictures in a text: a row may start a segment, and says how long it is."""
        salt = self.new_salt()
        cut = axis(f"picture{salt}", Cut(self.x))
        self.cut_axes[cut] = self.x

        def run(run: Run) -> Pieces:
            values, ranges, r = run.values[a], [], 0
            while r < len(values):
                n = mix(salt, values[r]) % 4
                if n:
                    ranges.append((r, min(r + n, len(values))))
                r += max(n, 1)
            return pieces(ranges, len(values), False)

        return self.cut_step(
            "segment_by_length", cut, (a,), run, lambda ops: rules.segment_by_lengths(ops[0]), gaps=True
        )

    def index(self, cut: Axis) -> int:
        salt, along, which = self.new_salt(), self.cut_axes[cut], self.rng.choice(("own", "closed"))

        def run(run: Run) -> list[int]:
            return [mix(salt, n) for n in (run.cuts[cut].before if which == "own" else run.cuts[cut].closed)]

        return self.add("index", along, (), run, lambda view, ops: rules.segment_index(view.cuts[cut], which))

    def pool(self, a: int, cut: Axis) -> int:
        salt, by = self.new_salt(), self.rng.choice(("sum", "last", "first", "first"))

        def run(run: Run) -> list[int]:
            values = run.values[a]
            if by == "sum":
                return [mix(salt, tuple(values[b:e])) for b, e in run.cuts[cut].ranges]
            return [mix(salt, values[e - 1] if by == "last" else values[b]) for b, e in run.cuts[cut].ranges]

        return self.add(f"pool {by}", cut, (a,), run, lambda view, ops: rules.pool(ops[0], view.cuts[cut], by))

    def spread(self, a: int, cut: Axis) -> int:
        salt, which = self.new_salt(), self.rng.choice(("own", "own", "before", "closed"))

        def run(run: Run) -> list[int]:
            piece, values = run.cuts[cut], run.values[a]
            numbers = list(piece.closed) if which == "closed" else [-1 if n is None else n for n in piece.own]
            if which == "before":
                numbers = [n - 1 for n in numbers]
            return [mix(salt, values[n]) if n >= 0 else 0 for n in numbers]

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            return rules.spread(ops[0], view.cuts[cut], which)

        return self.add(f"spread {which}", self.cut_axes[cut], (a,), run, rule)

    def conv_strided(self, a: int, cut: Axis) -> int:
        salt, reach = self.new_salt(), self.rng.choice((0, 1, 3))

        def run(run: Run) -> list[int]:
            return [mix(salt, tuple(run.values[a][max(0, b - 1) : e + reach])) for b, e in run.cuts[cut].ranges]

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            return rules.conv_strided(ops[0], view.cuts[cut], reach)

        return self.add("conv strided", cut, (a,), run, rule)

    # Selections and joined axes

    def select(self, a: int) -> None:
        """Two or three selections by one tag, made from a value."""
        salt, members = self.new_salt(), self.rng.choice((2, 3))
        for member in range(members):
            chosen = axis(f"sel{salt}.{member}", Selected(self.x, f"tag{salt}", str(member)))

            def run(run: Run, chosen: Axis = chosen, member: int = member) -> list[int]:
                tags = [mix(salt, v) % members for v in run.values[a]]
                run.selected[chosen] = tuple(r for r, tag in enumerate(tags) if tag == member)
                return []

            def rule(view: View, ops: list[Frontier], chosen: Axis = chosen) -> Frontier:
                view.tags[chosen] = ops[0]
                return rules.NONE

            self.selections[chosen] = self.add("select", None, (a,), run, rule)
            self.position(chosen)

    def take(self, a: int, to: Axis) -> int:
        salt = self.new_salt()

        def run(run: Run) -> list[int]:
            return [mix(salt, run.values[a][r]) for r in run.selected[to]]

        return self.add("take", to, (a,), run, lambda view, ops: rules.take(ops[0], to, view.tags[to]))

    def join_selections(self, members: list[tuple[Axis, int]]) -> int:
        salt = self.new_salt()

        def run(run: Run) -> list[int]:
            result = [0] * self.rows
            for chosen, a in members:
                for r, v in zip(run.selected[chosen], run.values[a], strict=True):
                    result[r] = mix(salt, v)
            return result

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            return rules.join_selections(self.x, ops, rules.join(*(view.tags[chosen] for chosen, _ in members)))

        return self.add("join", self.x, tuple(a for _, a in members), run, rule)

    def to_whole(self, a: int) -> int:
        """`concat` to the joined axis; the other parts are constant."""
        salt, at = self.new_salt(), self.fixed[self.x][0]

        def run(run: Run) -> list[int]:
            result = [salt] * len(self.fixed[self.whole])
            result[at : at + self.rows] = run.values[a]
            return result

        return self.add("concat", self.whole, (a,), run, lambda view, ops: rules.join_selections(self.whole, ops))

    def to_part(self, a: int) -> int:
        at = self.fixed[self.x][0]

        def run(run: Run) -> list[int]:
            return run.values[a][at : at + self.rows]

        return self.add("part", self.x, (a,), run, lambda view, ops: rules.take(ops[0], self.x))

    def neighbour(self, a: int, selection: Axis) -> int:
        """`next(ids, along=seq)` for ids on a selection: at a row of seq, the following row's id, 0 where it is of another."""

        def run(run: Run) -> list[int]:
            result = [0] * (self.rows + 1)
            for r, v in zip(run.selected[selection], run.values[a], strict=True):
                result[r] = v
            return result[1:]

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            return rules.following(rules.join_selections(self.x, ops, view.tags[selection]), 1, self.x)

        return self.add("next along", self.x, (a,), run, rule)

    # Attention

    def attend(self, q: int, k: int) -> int:
        salt = self.new_salt()
        queries, keys = self.steps[q].level, self.steps[k].level
        assert queries is not None
        assert keys is not None
        a, b = self.some(keys), self.some(queries)
        assert a is not None
        assert b is not None
        formula = self.formula(keys, queries, 0) if self.rng.random() < 0.95 else None
        mask = masks.Mask(formula)
        reads_captured = _captures(formula)

        def run(run: Run) -> list[int]:
            result = []
            captured = (run.values[a], run.values[b])
            for row, v in enumerate(run.values[q]):
                seen = tuple(
                    cell
                    for other, cell in enumerate(run.values[k])
                    if mask_allows(formula, run, (keys, other), (queries, row), captured)
                )
                result.append(mix(salt, v, seen))
            return result

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            reach = rules.reach_of(mask, keys, queries, view.cuts)
            result = rules.attend(ops[0], (ops[1],), reach)
            if reads_captured:
                # What is captured has a value on the key's rows and one on the query's; in a spec they are one value.
                result = rules.join(result, rules.attend_keys(ops[2], reach), ops[3])
            return result

        return self.add("attend", queries, (q, k, a, b), run, rule)

    def formula(self, keys: Axis, queries: Axis, depth: int) -> masks.Formula:
        rng = self.rng
        draw = rng.random()
        if depth < 2 and draw < 0.2:
            return masks.Both(self.formula(keys, queries, depth + 1), self.formula(keys, queries, depth + 1))
        if depth < 2 and draw < 0.35:
            return masks.Either(self.formula(keys, queries, depth + 1), self.formula(keys, queries, depth + 1))
        if draw < 0.4:
            return masks.Not(self.formula(keys, queries, 3))
        if draw < 0.5:
            key, query = masks.Side("key", masks.Captured(0)), masks.Side("query", masks.Captured(1))
            return masks.Compare("==", key, query)
        readable = [
            (cut, along)
            for cut, along in self.cut_axes.items()
            if keys in (cut, along) and queries in (cut, along) and keys is not queries or keys is queries is along
        ]
        if readable and draw < 0.85:
            cut, along = rng.choice(readable)
            key = masks.Side("key", masks.SegmentIndex(cut, rng.choice(("own", "own", "closed"))))
            query = masks.Side("query", masks.SegmentIndex(cut, rng.choice(("own", "closed"))))
            if rng.random() < 0.4:
                own = masks.SegmentIndex(cut)
                return masks.Compare("==", masks.Side("key", own), masks.Side("query", own))
        else:
            key, query = masks.Side("key", masks.Position()), masks.Side("query", masks.Position())
        offset = masks.Literal(rng.choice((0, 0, 0, -1, 1, 2)))
        if rng.random() < 0.2:
            distance = masks.Arithmetic("abs", masks.Arithmetic("-", key, query))
            return masks.Compare(rng.choice(("<", "<=", ">")), distance, masks.Literal(rng.choice((1, 2))))
        sides: tuple[masks.Term, masks.Term] = (key, masks.Arithmetic("+", query, offset))
        if rng.random() < 0.3:
            sides = (sides[1], sides[0])
            return masks.Compare(rng.choice((">=", ">", ">=", ">", "<", "==")), *sides)
        return masks.Compare(rng.choice(("<=", "<", "<=", "<", ">=", "==", "!=")), *sides)

    # Any of them

    def grow(self) -> None:
        """One more step at random."""
        rng = self.rng
        levels = self.ordered()
        level = rng.choice((self.x, *levels))
        a = self.some(level)
        assert a is not None
        kind = rng.randrange(26)
        cuts = list(self.cut_axes)
        if kind == 0:
            self.pointwise(a, self.some(level) or a)
        elif kind == 1:
            self.narrow(a)
        elif kind in (2, 3):
            self.previous(a)
        elif kind == 4:
            self.following(a)
        elif kind == 5:
            self.scan(a)
        elif kind == 6:
            self.conv(a)
        elif kind == 7:
            rng.choice((self.reduce, self.sort))(a)
        elif kind == 8:
            uppers = [None, *([level.parent] if level.parent is not None else [])]
            b = self.some(rng.choice(uppers))
            if b is not None and self.steps[b].name not in _EMPTY and self.steps[b].level is not level:
                self.broadcast(a, b)
        elif kind == 9:
            self.gather(a, self.some(rng.choice(levels)) or 0)
        elif kind in (10, 11) and len(cuts) < 3:
            self.new_cut()
        elif kind in (12, 13) and cuts:
            cut = rng.choice(cuts)
            fine = self.some(self.cut_axes[cut])
            assert fine is not None
            if isinstance(cut.kind, Scaled) and rng.random() < 0.5:
                self.conv_strided(fine, cut)
            else:
                self.pool(fine, cut)
        elif kind in (14, 15) and cuts:
            cut = rng.choice(cuts)
            coarse = self.some(cut)
            assert coarse is not None
            self.spread(coarse, cut) if rng.random() < 0.85 else self.index(cut)
        elif kind == 16:
            self.around_selections()
        elif kind == 17 and hasattr(self, "whole"):
            at_whole, at_part = self.some(self.whole), self.some(self.x)
            assert at_whole is not None
            assert at_part is not None
            self.to_whole(at_part) if rng.random() < 0.5 else self.to_part(at_whole)
        elif kind >= 22 and cuts:
            # To a cut and back: the shortest way to most of the table.
            cut = rng.choice(cuts)
            fine = self.some(self.cut_axes[cut])
            assert fine is not None
            coarse = self.pool(fine, cut)
            if rng.random() < 0.3:
                coarse = self.previous(coarse)
            self.spread(coarse, cut)
        elif kind == 21 and rng.random() < 0.3:
            self.length(self.x)
        else:
            near = [b for b in levels if b is level or self.cut_axes.get(b) is level or self.cut_axes.get(level) is b]
            k = self.some(rng.choice(near if rng.random() < 0.9 else levels))
            assert k is not None
            self.attend(a, k)

    def new_cut(self) -> None:
        rng = self.rng
        levels = [self.x, self.x, *self.selections, *([self.whole] if hasattr(self, "whole") else [])]
        along = rng.choice(levels)
        a = self.some(along)
        assert a is not None
        draw = rng.random()
        if hasattr(self, "whole"):
            if along is self.whole:
                (self.segment_by_flags if draw < 0.6 else self.segment_by_value)(a)
        elif along is not self.x or draw < 0.45:
            self.segment_by_flags(a)
        elif draw < 0.65:
            self.segment_by_value(a)
        elif draw < 0.85:
            self.segment_by_length(a)
        else:
            self.scaled()

    def around_selections(self) -> None:
        rng = self.rng
        if hasattr(self, "whole"):
            return
        if not self.selections:
            a = self.some(self.x)
            assert a is not None
            self.select(a)
            return
        draw = rng.random()
        chosen = rng.choice(list(self.selections))
        if draw < 0.5:
            a = self.some(self.x)
            assert a is not None
            self.take(a, chosen)
        elif draw < 0.65:
            a = self.some(chosen)
            assert a is not None
            self.neighbour(a, chosen)
        else:
            assert isinstance(chosen.kind, Selected)
            tag = chosen.kind.tag
            group = [s for s in self.selections if isinstance(s.kind, Selected) and s.kind.tag == tag]
            parts = [(s, self.some(s)) for s in group]
            self.join_selections([(s, a) for s, a in parts if a is not None])


_DULL = ("position", "length")
_EMPTY = ("given", "scaled", "segment_by_flags", "segment_by_value", "segment_by_length", "select")


def _captures(formula: masks.Formula | None) -> bool:
    match formula:
        case masks.Both(left, right) | masks.Either(left, right):
            return _captures(left) or _captures(right)
        case masks.Not(inner):
            return _captures(inner)
        case masks.Compare(_, masks.Side(_, masks.Captured()), _):
            return True
        case _:
            return False


def random_program(rng: random.Random) -> Program:
    setting = rng.choice(("plain",) * 6 + ("nested", "part"))
    builder = Builder(rng, rng.randrange(3, 7), setting)
    for _ in range(rng.randrange(4, 11)):
        builder.grow()
    return builder.program


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


def observe(rng: random.Random, sources: int = 1, tries: int = 4) -> list[Observed]:
    program = random_program(rng)
    result = []
    for _ in range(sources):
        run = execute(program, tuple(rng.randrange(ALPHABET) for _ in range(program.rows)))
        result.append(Observed(program, run, dependence(program, run, rng, tries)))
    return result


def violations(observed: Observed) -> list[Violation]:
    program, found = observed.program, []
    for number, f in enumerate(frontiers(program)):
        level = program.steps[number].level
        if f.is_all:
            continue
        for row, seen in enumerate(observed.seen[number]):
            bound = allowed(program, observed.run, level, row, f)
            if seen > bound:
                found.append(Violation(number, row, f, bound, seen))
    return found
