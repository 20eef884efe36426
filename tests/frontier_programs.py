"""Random programs of the toy: selections and attention, and how steps are drawn.

What is drawn does not depend on the rules, so one program serves all variants of them.
"""

from __future__ import annotations

import random

from tests.frontier_model import ALPHABET, Observed, Program, Run, View, axis, dependence, execute, mask_allows, mix
from tests.frontier_operators import EMPTY, Operators
from weft.dsl import frontier as rules
from weft.dsl import masks
from weft.dsl.axes import Axis, Scaled, Selected
from weft.dsl.frontier import Frontier


class Builder(Operators):
    """Adds random steps."""

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
        """`next(ids, along=seq)` for ids on a selection: the following row's id, 0 where that row is not of it."""

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
            cut
            for cut, along in self.cut_axes.items()
            if (keys in (cut, along) and queries in (cut, along) and keys is not queries) or keys is queries is along
        ]
        if readable and draw < 0.85:
            cut = rng.choice(readable)
            key = masks.Side("key", masks.SegmentIndex(cut, rng.choice(("own", "own", "closed"))))
            query = masks.Side("query", masks.SegmentIndex(cut, rng.choice(("own", "closed"))))
            if rng.random() < 0.4:
                own = masks.SegmentIndex(cut)
                return masks.Compare("==", masks.Side("key", own), masks.Side("query", own))
        else:
            key, query = masks.Side("key", masks.Position()), masks.Side("query", masks.Position())
        offset = rng.choice((0, 0, 0, -1, 1, 2))
        if rng.random() < 0.2:
            distance = masks.Arithmetic("abs", masks.Arithmetic("-", key, query))
            return masks.Compare(rng.choice(("<", "<=", ">")), distance, masks.Literal(rng.choice((1, 2))))
        moved = masks.Arithmetic("+", query, masks.Literal(offset)) if offset else query
        sides: tuple[masks.Term, masks.Term] = (key, moved)
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
        kind = rng.randrange(30)
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
            if b is not None and self.steps[b].name not in EMPTY and self.steps[b].level is not level:
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
        elif kind in (16, 26, 27):
            self.around_selections()
        elif kind == 17 and hasattr(self, "whole"):
            at_whole, at_part = self.some(self.whole), self.some(self.x)
            assert at_whole is not None
            assert at_part is not None
            self.to_whole(at_part) if rng.random() < 0.5 else self.to_part(at_whole)
        elif 22 <= kind < 26 and cuts:
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


def observe(rng: random.Random, sources: int = 1, tries: int = 4) -> list[Observed]:
    program = random_program(rng)
    result = []
    for _ in range(sources):
        run = execute(program, tuple(rng.randrange(ALPHABET) for _ in range(program.rows)))
        result.append(Observed(program, run, dependence(program, run, rng, tries)))
    return result
