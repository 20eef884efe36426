"""Random programs of the toy: selections and attention, and how steps are drawn.

What is drawn does not depend on the rules, so one program serves all variants of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

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
            chosen = axis(f"sel{salt}.{member}", Selected(self.x, f"tag{salt}", (str(member),)))

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
        # A part may also be an input of its own, of which the source knows nothing.
        given = [self.rng.random() < 0.3 for _ in members]

        def run(run: Run) -> list[int]:
            result = [0] * self.rows
            for (chosen, a), constant in zip(members, given, strict=True):
                for number, r in enumerate(run.selected[chosen]):
                    result[r] = mix(salt, int(chosen.name[-1]), number if constant else run.values[a][number])
            return result

        def rule(view: View, ops: list[Frontier]) -> Frontier:
            parts = [rules.NONE if constant else f for f, constant in zip(ops, given, strict=True)]
            return rules.join_selections(self.x, parts, rules.join(*(view.tags[chosen] for chosen, _ in members)))

        return self.add("join", self.x, tuple(a for _, a in members), run, rule)

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

    def attend(self, q: int, k: int, formula: masks.Formula | None = None) -> int:
        salt = self.new_salt()
        queries, keys = self.steps[q].level, self.steps[k].level
        assert queries is not None
        assert keys is not None
        a, b = self.some(keys), self.some(queries)
        assert a is not None
        assert b is not None
        if formula is None and self.rng.random() < 0.95:
            formula = self.formula(keys, queries, 0)
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
        if depth < 2 and draw < 0.15:
            return masks.Both(self.formula(keys, queries, depth + 1), self.formula(keys, queries, depth + 1))
        if depth < 2 and draw < 0.3:
            return masks.Either(self.formula(keys, queries, depth + 1), self.formula(keys, queries, depth + 1))
        if draw < 0.33:
            return masks.Not(self.formula(keys, queries, 3))
        if draw < 0.4:
            key, query = masks.Side("key", masks.Captured(0)), masks.Side("query", masks.Captured(1))
            return masks.Compare("==", key, query)
        readable = [
            cut
            for cut, along in self.cut_axes.items()
            if (keys in (cut, along) and queries in (cut, along) and keys is not queries) or keys is queries is along
        ]
        if readable and draw < 0.9:
            cut = rng.choice(readable)
            key = masks.Side("key", masks.SegmentIndex(cut, rng.choice(("own", "own", "closed"))))
            query = masks.Side("query", masks.SegmentIndex(cut, rng.choice(("own", "closed"))))
            if rng.random() < 0.3:
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
        """One more step at random, or a few that only together say much."""
        weights = [weight for weight, _ in self.actions()]
        actions = [action for _, action in self.actions()]
        levels = self.ordered()
        level = self.rng.choice((self.x, *levels))
        a = self.some(level)
        assert a is not None
        self.rng.choices(actions, weights)[0](a)

    def actions(self) -> list[tuple[int, Callable[[int], object]]]:
        """How often each is drawn, and what it does to a value."""
        cuts, selections, whole = bool(self.cut_axes), bool(self.selections), self.whole is not None
        return [
            (1, lambda a: self.pointwise(a, self.some(self.steps[a].level) or a)),
            (1, self.narrow),
            (2, self.previous),
            (1, self.following),
            (1, self.scan),
            (1, self.conv),
            (1, self.rng.choice((self.reduce, self.sort))),
            (1, self.around_levels),
            (1, lambda a: self.gather(a, self.some(self.rng.choice(self.ordered())) or 0)),
            (5, self.around_masks),
            (2 if len(self.cut_axes) < 3 else 0, lambda a: self.new_cut()),
            (1 if cuts else 0, lambda a: self.up_to_my_segment()),
            (2 if cuts else 0, self.to_a_cut),
            (2 if cuts else 0, self.from_a_cut),
            (3 if cuts else 0, lambda a: self.there_and_back(self.rng.choice(list(self.cut_axes)))),
            (2 if len(self.cut_axes) > 1 else 0, lambda a: self.through_two_cuts()),
            (0 if whole else 1 if not selections else 2, lambda a: self.around_selections()),
            (0 if whole or selections else 1, self.pictures_in_a_text),
            (2 if whole else 0, lambda a: self.to_whole(self.one_of(self.x))),
            (1 if whole else 0, lambda a: self.to_part(self.one_of(self.whole))),
        ]

    def one_of(self, level: Axis | None) -> int:
        """A value at a level that is known to have some."""
        found = self.some(level)
        assert found is not None
        return found

    def around_levels(self, a: int) -> None:
        level = self.steps[a].level
        upper = level.parent if level is not None and self.rng.random() < 0.8 else None
        b = self.some(upper)
        if upper in self.cut_axes and self.rng.random() < 0.5:
            b = self.pool(a, upper)
        if b is not None and self.steps[b].name not in EMPTY and self.steps[b].level is not level:
            self.broadcast(a, b)

    def around_masks(self, a: int) -> None:
        rng, level = self.rng, self.steps[a].level
        assert level is not None
        levels = self.ordered()
        near = [b for b in levels if b is level or self.cut_axes.get(b) is level or self.cut_axes.get(level) is b]
        k = self.one_of(rng.choice(near if rng.random() < 0.9 else levels))
        if rng.random() < 0.25:
            # Constants on both sides show what the mask reads.
            queries, keys = self.steps[a].level, self.steps[k].level
            assert queries is not None
            assert keys is not None
            a, k = self.position(queries), self.position(keys)
        self.attend(a, k)

    def up_to_my_segment(self) -> None:
        cut = self.rng.choice(list(self.cut_axes))
        along = self.cut_axes[cut]
        read = masks.SegmentIndex(cut, self.rng.choice(("own", "own", "closed")))
        key, query = masks.Side("key", masks.SegmentIndex(cut)), masks.Side("query", read)
        formula = masks.Compare(self.rng.choice(("<=", "<=", "<")), key, query)
        self.attend(self.one_of(along), self.one_of(self.rng.choice((cut, along))), formula)

    def to_a_cut(self, a: int) -> None:
        cut = self.rng.choice(list(self.cut_axes))
        fine = self.one_of(self.cut_axes[cut])
        if isinstance(cut.kind, Scaled) and self.rng.random() < 0.5:
            self.conv_strided(fine, cut)
        else:
            self.pool(fine, cut)

    def from_a_cut(self, a: int) -> None:
        cut = self.rng.choice(list(self.cut_axes))
        self.spread(self.one_of(cut), cut) if self.rng.random() < 0.85 else self.index(cut)

    def there_and_back(self, cut: Axis) -> int:
        """To a cut and back: the shortest way to most of the table."""
        coarse = self.pool(self.one_of(self.cut_axes[cut]), cut)
        if self.rng.random() < 0.3:
            coarse = self.previous(coarse)
        return self.spread(coarse, cut)

    def through_two_cuts(self) -> None:
        one, other = self.rng.sample(list(self.cut_axes), 2)
        if self.cut_axes[one] is self.cut_axes[other]:
            self.pointwise(self.there_and_back(one), self.there_and_back(other))

    def pictures_in_a_text(self, a: int) -> None:
        """A cut of a selection, seen along the whole axis and in the other selections."""
        self.select(self.one_of(self.x))
        inside, other = self.rng.sample(list(self.selections), 2)
        cut = self.segment_by_flags(self.take(self.one_of(self.x), inside))
        back = self.spread(self.pool(self.take(self.one_of(self.x), inside), cut), cut)
        joined = self.join_selections([(inside, back), (other, self.take(self.one_of(self.x), other))])
        self.take(self.some(self.x) or joined, self.rng.choice((inside, other)))

    def new_cut(self) -> None:
        rng = self.rng
        along = rng.choice([self.x, self.x, *self.selections]) if self.whole is None else self.whole
        a = self.some(along)
        assert a is not None
        draw = rng.random()
        if along is not self.x:
            (self.segment_by_flags if draw < 0.7 or along is not self.whole else self.segment_by_value)(a)
        elif draw < 0.35:
            self.segment_by_flags(a)
        elif draw < 0.6:
            self.segment_by_value(a)
        elif draw < 0.88:
            self.segment_by_length(self.following(a) if rng.random() < 0.2 else a)
        else:
            self.scaled()

    def around_selections(self) -> None:
        rng = self.rng
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
    setting = rng.choice(("plain", "plain", "plain", "plain", "plain", "nested", "nested", "part", "selected"))
    builder = Builder(rng, rng.randrange(3, 7), setting)
    for _ in range(rng.randrange(4, 11)):
        builder.grow()
    return builder.program


def observe_program(program: Program, rng: random.Random, tries: int = 4) -> Observed:
    """One run on a random source, and what was seen in it."""
    run = execute(program, tuple(rng.randrange(ALPHABET) for _ in program.places))
    return Observed(program, run, dependence(program, run, rng, tries))
