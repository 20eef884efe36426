"""The frontier's rules against what really depends on what, and weakened ones, each of which must be caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from tests.frontier_model import SPAN, Program, axis, frontiers, violations
from tests.frontier_programs import observe_program, random_program
from weft.dsl import frontier as rules
from weft.dsl import frontier_elements, frontier_rules, masks, reach
from weft.dsl.axes import Axis, Cut, Joined, Nested, Scaled, Selected
from weft.dsl.frontier import ALL, NONE, Frontier, Kind, Segments, end, first, last, row
from weft.dsl.length import Length

PROGRAMS = 1000
TRIED = 2500  # programs a weakened rule may take to be caught
MODULES = (rules, frontier_elements, frontier_rules, reach)

X = axis("x")
P, Q = axis("p", Cut(X)), axis("q", Cut(X))
TILES = Segments(P, X, ends=row(X))
GAPS = replace(TILES, gaps=True)
GIVEN = Segments(P, X)


# -- against the model


def test_no_value_sees_more_than_its_frontier() -> None:
    rng = random.Random(1)
    for number in range(PROGRAMS):
        program = random_program(rng)
        observed = observe_program(program, rng)
        found = violations(observed)
        assert not found, f"program {number}: {[step.name for step in program.steps]}: {found[0]}"


@dataclass(frozen=True)
class Weakened:
    """A rule that claims too little: in place of a function, or of a property of a class."""

    name: str
    make: Callable[[Any], Any]
    owner: type | None = None

    @contextmanager
    def in_place(self) -> Iterator[None]:
        places = [self.owner] if self.owner is not None else [m for m in MODULES if hasattr(m, self.name)]
        original = getattr(places[0], self.name)
        weak = property(self.make(original.fget)) if self.owner is not None else self.make(original)
        with pytest.MonkeyPatch.context() as patch:
            for place in places:
                patch.setattr(place, self.name, weak)
            yield


def earlier(f: Frontier) -> Frontier:
    """One row less, where the element has a shift."""
    return replace(f, shift=f.shift - 1) if f.kind in (Kind.ROW, Kind.LAST) else f


def lowered(name: str, when: Callable[[Frontier], bool], to: Callable[[Any, Frontier], Frontier]) -> Weakened:
    """A function whose results of one kind are lower; `to` gets the arguments and the result."""

    def make(rule: Callable[..., Frontier]) -> Callable[..., Frontier]:
        def weak(*args: Any, **kwargs: Any) -> Frontier:
            f = rule(*args, **kwargs)
            return to(args, f) if when(f) else f

        return weak

    return Weakened(name, make)


def is_kind(kind: Kind) -> Callable[[Frontier], bool]:
    return lambda f: f.kind is kind


def argument(number: int) -> Callable[[Any], Any]:
    """In place of the rule: one of its arguments."""
    return lambda rule: lambda *args, **kwargs: args[number]


WEAKENED = {
    "join keeps the first operand": Weakened("join", lambda rule: lambda *fs: fs[0] if fs else NONE),
    "end(P) joined with end(Q) stays": Weakened(
        "_join", lambda rule: lambda a, b: a if a.kind is b.kind is Kind.END else rule(a, b)
    ),
    "t+1 joined with end(P) stays": Weakened(
        "leq", lambda rule: lambda a, b: (a.kind is Kind.ROW and b.kind is Kind.END) or rule(a, b)
    ),
    "C gathered down is t": lowered("brought_down", is_kind(Kind.END), lambda args, f: row(args[1] or X)),
    "previous moves a row more": lowered("previous", is_kind(Kind.ROW), lambda args, f: earlier(f)),
    "previous moves a segment more": lowered(
        "previous", lambda f: f.kind is Kind.LAST and f.shift < 0, lambda args, f: earlier(f)
    ),
    "next does not move": Weakened("following", argument(0)),
    "next does not move on a cut": lowered(
        "following", lambda f: f.kind is Kind.LAST and f.shift > 0, lambda args, f: replace(f, shift=f.shift - 1)
    ),
    "next on a cut forgets that the segment must be there": Weakened(
        "following",
        lambda rule: lambda f, k, *rest: (
            replace(f, shift=f.shift + k) if f.kind is Kind.LAST and f.shift < 0 else rule(f, k, *rest)
        ),
    ),
    "next on a selection moves one row": Weakened(
        "is_run_of", lambda rule: frontier_elements.is_part_of
    ),
    "a backward scan is a scan": Weakened("scan", argument(0)),
    "a centred convolution is causal": Weakened("conv", argument(0)),
    "a strided convolution stays in its rows": lowered(
        "conv_strided", lambda f: f.kind is Kind.LAST and f.shift > 0, lambda args, f: replace(f, shift=0)
    ),
    "a reduction reads its own row": Weakened("reduce_over_axis", argument(0)),
    "a reduction over a nested axis reads less": lowered(
        "reduce_over_axis", is_kind(Kind.LAST), lambda args, f: earlier(f)
    ),
    "a gather reads where its index is": Weakened("gather_by_data", argument(1)),
    "segments end where flags are, whatever they are made of": Weakened(
        "segment_by_flags", lambda rule: lambda f: rule(f) if not f.is_all else NONE
    ),
    "flags of t+1 are flags of t": Weakened(
        "segment_by_flags", lambda rule: lambda f: replace(f, shift=min(0, f.shift)) if f.kind is Kind.ROW else rule(f)
    ),
    "segments by value end at t": Weakened("segment_by_value", argument(0)),
    "lengths of t+1 are lengths of t": Weakened(
        "segment_by_lengths", lambda rule: lambda f: f if f.kind is Kind.ROW else rule(f)
    ),
    "which segment is mine is not data": Weakened("member", lambda rule: lambda self: NONE, Segments),
    "in a gap, it is known a row before": Weakened(
        "member", lambda rule: lambda self: frontier_rules.previous(self.ends, 1), Segments
    ),
    "which segment is mine is known a row before": Weakened(
        "member", lambda rule: lambda self: earlier(rule(self)), Segments
    ),
    "where a segment ends is not data": Weakened("extent", lambda rule: lambda self: NONE, Segments),
    "where a segment starts is not data": Weakened("start", lambda rule: lambda self: NONE, Segments),
    "where a segment starts, known before a gap": Weakened(
        "start", lambda rule: lambda self: rule(replace(self, gaps=False)), Segments
    ),
    "the closed segment is known a row before": Weakened(
        "segment_index", lambda rule: lambda cut, which="own": earlier(rule(cut, which))
    ),
    "the last of a segment is before it": lowered("_at_last", is_kind(Kind.LAST), lambda args, f: earlier(f)),
    "the first of a segment is the last before": lowered(
        "_at_first", is_kind(Kind.FIRST), lambda args, f: replace(f, kind=Kind.LAST, shift=-1)
    ),
    "spread own of C is t": lowered("_read_own", is_kind(Kind.END), lambda args, f: row(args[1].along)),
    "spread own of C is t-1": lowered("_read_own", is_kind(Kind.END), lambda args, f: row(args[1].along, -1)),
    "spread own of B is t-1": lowered(
        "_read_own", lambda f: f == row(X) or (f.kind is Kind.ROW and f.shift == 0), lambda args, f: earlier(f)
    ),
    "spread own of C-1 is t-2": lowered(
        "_read_own", lambda f: f.kind is Kind.ROW and f.shift == -1, lambda args, f: earlier(f)
    ),
    "spread own of later segments is end(P)": lowered(
        "_read_own", lambda f: f.is_all, lambda args, f: end(args[1].axis) if args[0].kind is Kind.LAST else f
    ),
    "spread closed of C is t-1": lowered("_read_closed", is_kind(Kind.ROW), lambda args, f: earlier(f)),
    "spread closed does not read the ends": Weakened(
        "spread", lambda rule: lambda f, cut, which="own": rule(f, replace(cut, ends=NONE), which)
    ),
    "take lowers every end(P)": lowered("take", is_kind(Kind.END), lambda args, f: row(args[1].kind.parent)),
    "take forgets the tag": Weakened("take", lambda rule: lambda f, to, tag=NONE: rule(f, to)),
    "join forgets the tag": Weakened("join_selections", lambda rule: lambda to, parts, tag=NONE: rule(to, parts)),
    "rows of a selection count as rows of the whole": Weakened(
        "counted_in",
        lambda rule: lambda f, whole: (
            row(whole, f.shift) if f.kind is Kind.ROW and f.axis is not None and f.shift > 0 else rule(f, whole)
        ),
    ),
    "a window is a row shorter": Weakened(
        "_keys_by_difference", lambda rule: lambda f, r, most: rule(f, r, most - 1)
    ),
    "a window does not look ahead": Weakened(
        "_keys_by_difference", lambda rule: lambda f, r, most: rule(f, r, min(0, most))
    ),
    "positions of two axes compare": Weakened(
        "_keys_by_difference", lambda rule: lambda f, r, most: rule(f, replace(r, queries=r.keys), most)
    ),
    "same(P) is causal": Weakened(
        "_keys_of_segment", lambda rule: lambda f, r, cut: reach.attend_keys(f, replace(r, bound=rules.Difference(0)))
    ),
    "index(P) <= is a segment less": Weakened(
        "_keys_by_index", lambda rule: lambda f, r, cut, which, most: rule(f, r, cut, which, most - 1)
    ),
    "index(P) in a gap is the last one": Weakened(
        "_keys_by_index", lambda rule: lambda f, r, cut, which, most: rule(f, r, replace(cut, gaps=False), which, most)
    ),
    "or is and": Weakened(
        "attend_keys",
        lambda rule: lambda f, r: (
            rule(f, replace(r, bound=rules.AllOf(r.bound.bounds))) if isinstance(r.bound, rules.AnyOf) else rule(f, r)
        ),
    ),
    "no mask is causal": Weakened(
        "attend_keys",
        lambda rule: lambda f, r: (
            rule(f, replace(r, bound=rules.Difference(0))) if isinstance(r.bound, rules.Everything) else rule(f, r)
        ),
    ),
    "a mask does not read the index": Weakened(
        "attend", lambda rule: lambda q, keys, r, captured=(): rule(q, keys, replace(r, reads=()), captured)
    ),
    "attend does not read its queries": Weakened(
        "attend", lambda rule: lambda q, keys, r, captured=(): rule(NONE, keys, r, captured)
    ),
}  # fmt: skip


@cache
def _programs() -> list[tuple[Program, list[Frontier]]]:
    rng = random.Random(2)
    programs = [random_program(rng) for _ in range(TRIED)]
    return [(program, frontiers(program)) for program in programs]


@pytest.mark.parametrize("what", WEAKENED)
def test_a_weakened_rule_is_caught(what: str) -> None:
    weakened = WEAKENED[what]
    for number, (program, sound) in enumerate(_programs()):
        with weakened.in_place():
            weak = frontiers(program)
        if weak == sound:
            continue
        observed = observe_program(program, random.Random(number))
        assert not violations(observed)
        if violations(observed, weak):
            return
    pytest.fail(f"nothing shows that it is wrong when {what}")


# -- the order


ELEMENTS = (
    NONE,
    *(row(X, k) for k in (-2, -1, 0, 1)),
    end(P),
    end(Q),
    first(P),
    *(last(P, k) for k in (-2, -1, 0, 1)),
    ALL,
)


def test_leq_is_an_order_and_join_a_bound() -> None:
    for a in ELEMENTS:
        assert rules.leq(a, a)
        for b in ELEMENTS:
            joined = rules.join(a, b)
            assert joined == rules.join(b, a)
            assert a == b or not (rules.leq(a, b) and rules.leq(b, a))
            if rules.leq(a, b):
                assert joined == b
            elif a.kind is b.kind or {a.kind, b.kind} == {Kind.ROW, Kind.END}:
                assert rules.leq(a, joined)
                assert rules.leq(b, joined)
            for c in ELEMENTS:
                assert not (rules.leq(a, b) and rules.leq(b, c)) or rules.leq(a, c)


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (NONE, "none"), (ALL, "all"), (row(X), "t"), (row(X, -1), "t-1"), (row(X, 2), "t+2"), (end(P), "end(p)"),
        (first(P), "B (p)"), (last(P), "C (p)"), (last(P, -1), "C-1 (p)"),
    ],
)  # fmt: skip
def test_text(f: Frontier, text: str) -> None:
    assert str(f) == text


# -- the table, one row each: what is given, what comes out


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rules.join(row(X, 1), end(P)), ALL),
        (rules.join(end(P), end(Q)), ALL),
        (rules.join(row(X, -1), last(P)), end(P)),
        (rules.previous(row(X, 1), 2), row(X, -1)),
        (rules.previous(end(P), 1), end(P)),
        (rules.previous(first(P), 1), last(P, -1)),
        (rules.following(row(X, -1), 1), row(X)),
        (rules.following(last(P), 1), last(P, 1)),
        (rules.following(last(P, -2), 1), last(P, 1)),
        (rules.following(end(P), 1), ALL),
        (rules.segment_by_flags(end(Q)), ALL),
        (rules.segment_by_value(row(X)), row(X, 1)),
        (rules.segment_by_lengths(row(X, 1)), ALL),
        (rules.pool(row(X), TILES, "sum"), last(P)),
        (rules.pool(row(X, 1), TILES, "sum"), last(P, 1)),
        (rules.pool(end(P), TILES, "last"), last(P)),
        (rules.pool(end(Q), TILES, "last"), ALL),
        (rules.pool(NONE, TILES, "sum"), last(P)),
        (rules.pool(NONE, GIVEN, "sum"), NONE),
        (rules.pool(row(X), TILES, "first"), first(P)),
        (rules.pool(row(X, -1), TILES, "first"), last(P, -1)),
        (rules.pool(row(X, -1), GAPS, "first"), first(P)),
        (rules.spread(last(P), TILES), end(P)),
        (rules.spread(first(P), TILES), row(X)),
        (rules.spread(last(P, -1), TILES), row(X, -1)),
        (rules.spread(last(P, -1), GAPS), row(X)),
        (rules.spread(last(P, 1), TILES), ALL),
        (rules.spread(NONE, TILES), row(X, -1)),
        (rules.spread(NONE, GIVEN), NONE),
        (rules.spread(last(P), TILES, "before"), row(X, -1)),
        (rules.spread(last(P), TILES, "closed"), row(X)),
        (rules.spread(last(P, 1), TILES, "closed"), ALL),
        (rules.spread(last(P), replace(TILES, ends=ALL)), ALL),
        (rules.segment_index(TILES), row(X, -1)),
        (rules.segment_index(TILES, "closed"), row(X)),
        (rules.scan(row(X), X, backward=True), ALL),
        (rules.conv(row(X), X, 2), row(X, 2)),
        (rules.reduce_over_axis(row(X), X), ALL),
        (rules.gather_by_data(NONE, row(X), X), row(X)),
        (rules.gather_by_data(row(X), NONE, X), ALL),
        (rules.to_example(row(X, -5)), ALL),
        (rules.row_number(TILES), last(P, -1)),
    ],
)
def test_table(found: Frontier, expected: Frontier) -> None:
    assert found == expected


def test_work_along_another_axis_changes_nothing() -> None:
    slot = Axis("slot", X.kind, Length.number(3), 3, SPAN)
    for f in (NONE, row(X), end(P), last(P), ALL):
        assert rules.reduce_over_axis(f, slot) == f
        assert rules.previous(f, 1, slot) == f
        assert rules.attend_keys(f, rules.Reach(slot, X)) == f


def test_length_is_all_of_its_own_axis() -> None:
    other = axis("other")
    for along, source, expected in ((X, X, ALL), (X, other, NONE), (axis("talk", Joined((X, other))), X, ALL)):
        assert rules.settle(rules.length_of(along), (), source) == expected


def test_what_leaves_its_axis_is_all() -> None:
    token = Axis("token", X.kind, Length.number(4), 4, SPAN)
    dim = Axis("dim", X.kind, Length.number(8), 8, SPAN)
    assert rules.settle(row(token), (token, dim), token) == row(token)
    assert rules.settle(row(token), (dim,), token) == ALL
    assert rules.settle(last(P), (P, dim), X) == last(P)
    assert rules.settle(last(P), (), X) == ALL


def test_take_lowers_where_rows_are_in_gaps() -> None:
    word, spot = axis("word", Selected(X, "kind", ("text",))), axis("spot", Selected(X, "kind", ("image",)))
    picture = axis("picture")
    rows = axis("pixel", Nested(picture))
    assert rules.take(end(picture, spot), word) == row(X)
    assert rules.take(end(picture, spot), spot) == end(picture, spot)
    assert rules.take(end(P), word) == end(P)
    assert rules.reduce_over_axis(row(rows), rows) == last(picture)


# -- masks as they are written in the standard library

KEY, QUERY = masks.Side("key", masks.Position()), masks.Side("query", masks.Position())
CAUSAL = masks.Compare("<=", KEY, QUERY)


def window(w: int) -> masks.Formula:
    return masks.Compare("<", masks.Arithmetic("abs", masks.Arithmetic("-", QUERY, KEY)), masks.Literal(w))


def same(cut: Axis) -> masks.Formula:
    return masks.Compare("==", masks.Side("query", masks.SegmentIndex(cut)), masks.Side("key", masks.SegmentIndex(cut)))


def near(cut: Axis, w: int) -> masks.Formula:
    query, key = masks.Side("query", masks.SegmentIndex(cut, "closed")), masks.Side("key", masks.SegmentIndex(cut))
    low = masks.Arithmetic("-", query, masks.Literal(w))
    return masks.Both(masks.Compare("<", low, key), masks.Compare("<=", key, query))


DOCUMENTS = masks.Compare("==", masks.Side("query", masks.Captured(0)), masks.Side("key", masks.Captured(0)))


@pytest.mark.parametrize(
    ("formula", "keys", "f", "expected"),
    [
        (None, X, row(X), ALL),
        (CAUSAL, X, row(X), row(X)),
        (masks.Compare("<", KEY, QUERY), X, row(X), row(X, -1)),
        (masks.Not(masks.Compare(">", KEY, QUERY)), X, row(X), row(X)),
        (window(3), X, row(X), row(X, 2)),
        (masks.Both(CAUSAL, window(3)), X, row(X), row(X)),
        (masks.Both(CAUSAL, DOCUMENTS), X, row(X), row(X)),
        (DOCUMENTS, X, row(X), ALL),
        (same(P), X, row(X), end(P)),
        (same(P), X, row(X, 1), ALL),
        (masks.Either(CAUSAL, same(P)), X, row(X), end(P)),
        (masks.Both(CAUSAL, same(P)), X, row(X), row(X)),
        (near(P, 4), P, last(P), row(X)),
        (same(P), P, last(P), end(P)),
        (CAUSAL, P, last(P), ALL),
    ],
)
def test_masks(formula: masks.Formula | None, keys: Axis, f: Frontier, expected: Frontier) -> None:
    mask_reach = rules.reach_of(masks.Mask(formula), keys, X, {P: TILES})
    assert rules.attend(NONE, (f,), mask_reach) == expected


def test_segments_of_which_nobody_says_anything_are_data() -> None:
    assert rules.spread(NONE, rules.segments(P)) == row(X)
    assert rules.spread(NONE, rules.segments(axis("half", Scaled(X, 2)))) == NONE


def test_a_cut_that_is_not_given_counts_as_known_at_each_row() -> None:
    found = rules.reach_of(masks.Mask(masks.Both(CAUSAL, same(P))), X, X)
    assert rules.attend(NONE, (row(X, -3),), found) == row(X)
