"""One function per operator of the toy: what it computes, and the rule that is asked about it."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.frontier_model import Pieces, Program, Run, Step, View, axis, mix, pieces
from weft.dsl import frontier as rules
from weft.dsl.axes import Axis, Cut, Joined, Nested, Scaled, Selected
from weft.dsl.frontier import Frontier

_DULL = ("position", "length")
EMPTY = ("given", "scaled", "segment_by_flags", "segment_by_value", "segment_by_length", "select")


class Operators:
    """A program under construction, and one function per operator that adds a step."""

    def __init__(self, rng: random.Random, rows: int, setting: str) -> None:
        self.rng = rng
        self.steps: list[Step] = []
        self.fixed: dict[Axis, list[int]] = {}
        self.salt = 0
        self.cut_axes: dict[Axis, Axis] = {}  # a cut, and the axis whose rows it groups
        self.selections: dict[Axis, int] = {}  # a selection, and the step that made its rows
        self.rows = rows
        self.whole: Axis | None = None
        places = list(range(rows))
        if setting == "part":
            # The source is a part of a joined axis: `line = 1 + x + after`, or without the row in front.
            self.x, other = axis("x"), axis("other")
            front, tail = rng.randrange(2), rng.randrange(3)
            places = [front + r for r in range(rows)]
            self.whole = axis("whole", Joined((*((1,) if front else ()), self.x, *((other,) if tail else ()))))
            self.fixed[self.whole] = list(range(front + rows + tail))
        elif setting == "selected":
            # The source is on a selection, whose rows are given.
            self.whole = axis("whole")
            self.x = axis("x", Selected(self.whole, "given", ("x",)))
            places = sorted(rng.sample(range(rows + 3), rows))
            self.fixed[self.whole] = list(range(rows + 3))
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
        if self.whole is not None:
            self.fixed[self.x] = places
        self.add("source", self.x, (), lambda run: list(run.source), lambda view, ops: rules.row(self.x))
        self.position(self.x)
        for a in self.fixed:
            if a is not self.x and a is not self.whole:
                self.position(a)
        if setting == "nested":
            self.given_segments(next(iter(self.cut_axes)))
        self.places = places
        if self.whole is not None:
            self.to_whole(0)
        self.program = Program(self.x, self.steps, self.fixed, places)

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
        return (
            max(self.rng.choice(found), self.rng.choice(found)) if self.rng.random() < 0.7 else self.rng.choice(found)
        )

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

    # Parts of the source's axis

    def to_whole(self, a: int) -> int:
        """`concat` to the joined axis, or `join` of selections; the other rows are constant."""
        salt, whole = self.new_salt(), self.whole
        assert whole is not None

        def run(run: Run) -> list[int]:
            result = [salt] * len(self.fixed[whole])
            for r, v in zip(self.places, run.values[a], strict=True):
                result[r] = v
            return result

        return self.add("whole", whole, (a,), run, lambda view, ops: rules.join_selections(whole, ops))

    def to_part(self, a: int) -> int:
        def run(run: Run) -> list[int]:
            return [run.values[a][r] for r in self.places]

        return self.add("part", self.x, (a,), run, lambda view, ops: rules.take(ops[0], self.x))

    # Segments

    def given_segments(self, cut: Axis) -> Axis:
        """Lengths that are given: the parent of a nested axis."""
        sizes = []
        while sum(sizes) < self.rows:
            sizes.append(min(self.rng.randrange(1, 4), self.rows - sum(sizes)))
        begins = [sum(sizes[:n]) for n in range(len(sizes))]
        fixed = pieces([(b, b + n) for b, n in zip(begins, sizes, strict=True)], self.rows, False)
        return self.cut_step("given", cut, (), lambda run: fixed, lambda ops: rules.NONE)

    def scaled(self) -> Axis:
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
    ) -> Axis:
        along = self.cut_axes[cut]

        def run_it(run_: Run) -> list[int]:
            run_.cuts[cut] = run(run_)
            return []

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            # Seen as the program walks: the value is empty, the frontier is that of the ends.
            view.cuts[cut] = rules.segments(cut, ends(ops), along, gaps)
            return rules.NONE

        self.add(name, None, inputs, run_it, rule)
        self.position(cut)
        return cut

    def segment_by_flags(self, a: int) -> Axis:
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

    def segment_by_value(self, a: int) -> Axis:
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

    def segment_by_length(self, a: int) -> Axis:
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
