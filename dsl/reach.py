"""Which keys a mask lets a query see, as bounds, and what `attend` may look at because of it (SEMANTICS 5 and 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil, floor

from . import masks
from .axes import Axis
from .frontier_elements import ALL, NONE, Frontier, is_part_of, join, least, on_level, row, touches
from .frontier_rules import (
    Segments,
    following,
    pool,
    previous,
    reduce_over_axis,
    segment_index,
    segments,
    so_far,
    spread,
)
from .record import record


@record
class Everything:
    """No bound: every row of the same example."""


@record
class Difference:
    """`position(key) - position(query) <= most`."""

    most: int


@record
class Same:
    """The key's segment is the query's; in a gap nothing."""

    cut: Segments


@record
class IndexDifference:
    """`index(key) - index(query, which) <= most`, with segments of one cut."""

    cut: Segments
    which: str
    most: int


@record
class AllOf:
    bounds: tuple[Bound, ...]


@record
class AnyOf:
    bounds: tuple[Bound, ...]


Bound = Everything | Difference | Same | IndexDifference | AllOf | AnyOf


@record
class Reach:
    """Which keys along `keys` a query along `queries` may see.

    `reads` are the indexes the mask looks at: a cut, and `own` or `closed`.
    """

    keys: Axis
    queries: Axis | None
    bound: Bound = Everything()
    reads: tuple[tuple[Segments, str], ...] = ()


def attend(queries: Frontier, keys: Iterable[Frontier], reach: Reach, captured: Iterable[Frontier] = ()) -> Frontier:
    """`attend`, `nearest`, `best`: `keys` are keys, values and the key side of bias and score.

    `captured` is what the mask reads, and counts on both sides. Of a cut, it reads the index, on the side whose rows
    the cut groups.
    """
    captured = tuple(captured)
    result = join(queries, *captured, *(attend_keys(f, reach) for f in (*keys, *captured)))
    for cut, which in reach.reads:
        read = segment_index(cut, which)
        if is_part_of(reach.keys, cut.along):
            result = join(result, attend_keys(read, reach))
        if reach.queries is not None and is_part_of(reach.queries, cut.along):
            result = join(result, read)
    return result


def attend_keys(f: Frontier, reach: Reach) -> Frontier:
    """The keys and values of `attend`, and what its mask, bias and score capture on the key side.

    The queries, and what is captured on their side, are joined to this as they are.
    """
    match reach.bound:
        case AllOf(bounds):
            return least(attend_keys(f, replace(reach, bound=bound)) for bound in bounds)
        case AnyOf(bounds):
            return join(*(attend_keys(f, replace(reach, bound=bound)) for bound in bounds))
        case Difference(most):
            return _keys_by_difference(f, reach, most)
        case Same(cut):
            return _keys_of_segment(f, reach, cut)
        case IndexDifference(cut, which, most):
            return _keys_by_index(f, reach, cut, which, most)
        case Everything():
            return reduce_over_axis(f, reach.keys, keep=True)


def _keys_by_difference(f: Frontier, reach: Reach, most: int) -> Frontier:
    if not touches(f, reach.keys) or f.axis is None:
        return f
    if reach.queries is not reach.keys:
        return ALL  # row numbers of two axes say nothing about where their rows are
    if most > 0:
        return following(f, most, reach.keys)
    return so_far(previous(f, -most, reach.keys), reach.keys)


def _keys_of_segment(f: Frontier, reach: Reach, cut: Segments) -> Frontier:
    on_segments = reach.queries is not None and on_level(reach.queries, cut.axis)
    if not on_segments and not _has_index(reach.queries, cut):
        return reduce_over_axis(f, reach.keys, keep=True)
    if on_level(reach.keys, cut.axis):
        return f if on_segments else spread(f, cut, "own")
    pooled = pool(f, cut, "last") if is_part_of(reach.keys, cut.along) else reduce_over_axis(f, reach.keys, keep=True)
    return pooled if on_segments else spread(pooled, cut, "own")


def _has_index(axis: Axis | None, cut: Segments) -> bool:
    """Whether rows of `axis` are rows the cut groups, so that `index` of them is what `spread` reads."""
    return axis is not None and is_part_of(axis, cut.along)


def _keys_by_index(f: Frontier, reach: Reach, cut: Segments, which: str, most: int) -> Frontier:
    on_segments = reach.queries is not None and on_level(reach.queries, cut.axis)
    moved = following if most > 0 else previous
    if not on_segments and not _has_index(reach.queries, cut):
        return reduce_over_axis(f, reach.keys, keep=True)
    if cut.gaps and most >= 0 and which == "own" and not on_segments:
        # A row in a gap has the index of the segment to come, which is known nowhere before it.
        return NONE if f.is_none and cut.ends.is_none else ALL
    if on_level(reach.keys, cut.axis):
        if on_segments:
            return moved(f, abs(most), cut.axis)
        return spread(moved(f, abs(most), cut.axis), cut, which)
    if not is_part_of(reach.keys, cut.along):
        return reduce_over_axis(f, reach.keys, keep=True)
    # Rows of segments up to the query's: f is monotone, so the last of them counts.
    pooled = moved(pool(f, cut, "last"), abs(most), cut.axis)
    if on_segments:
        return pooled
    return spread(pooled, cut, which)


# -- from the formula of a mask


def reach_of(
    mask: masks.Mask | None, keys: Axis, queries: Axis | None, cuts: Mapping[Axis, Segments] | None = None
) -> Reach:
    """What a mask allows. `cuts`: how the source sees the cuts it reads; one not given counts as known at each row."""
    if mask is None or mask.formula is None:
        return Reach(keys, queries)
    reading = _Reading(keys, queries, dict(cuts or {}), {})
    bound = reading.bound(mask.formula)
    return Reach(keys, queries, bound, tuple(reading.reads.values()))


_FLIPPED = {"<": ">=", ">=": "<", ">": "<=", "<=": ">", "==": "!=", "!=": "=="}
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}

# What a side reads, as far as bounds go: its row number, or a segment's number.
_Read = masks.Position | masks.SegmentIndex
_Linear = dict[tuple[str, _Read], float]


@record
class _Reading:
    keys: Axis
    queries: Axis | None
    cuts: dict[Axis, Segments]
    reads: dict[tuple[Axis, str], tuple[Segments, str]]

    def bound(self, formula: masks.Formula, positive: bool = True) -> Bound:
        match formula:
            case masks.Both(left, right) | masks.Either(left, right):
                parts = (self.bound(left, positive), self.bound(right, positive))
                return AllOf(parts) if isinstance(formula, masks.Both) == positive else AnyOf(parts)
            case masks.Not(inner):
                return self.bound(inner, not positive)
            case masks.Compare(operator, left, right):
                return self.compare(operator if positive else _FLIPPED[operator], left, right)

    def compare(self, operator: str, left: masks.Term, right: masks.Term) -> Bound:
        a, b = self.linear(left), self.linear(right)
        if a is not None and b is not None:
            return self.difference(operator, *a, *b)
        # abs(a) < w bounds a on both sides; abs(a) > w on neither.
        for term, other, way in ((left, b, operator), (right, a, _MIRRORED[operator])):
            if isinstance(term, masks.Arithmetic) and term.operator == "abs" and other is not None:
                inner = self.linear(term.left)
                if way in ("<", "<=", "==") and inner is not None and not other[0]:
                    way = "<=" if way == "==" else way
                    opposite = {read: -c for read, c in inner[0].items()}, -inner[1]
                    return AllOf((self.difference(way, *inner, *other), self.difference(way, *opposite, *other)))
        return Everything()

    def difference(self, operator: str, left: _Linear, above: float, right: _Linear, below: float) -> Bound:
        """The bound of `left + above OPERATOR right + below`, when that is about one key row and one query row."""
        terms = dict(left)
        for read, c in right.items():
            terms[read] = terms.get(read, 0) - c
        terms = {read: c for read, c in terms.items() if c}
        constant = above - below
        if operator in (">", ">="):
            terms, constant = {read: -c for read, c in terms.items()}, -constant
            operator = _MIRRORED[operator]
        if operator == "!=" or len(terms) != 2:
            return Everything()
        (first, one), (second, other) = terms.items()
        if first[0] == second[0] or one != -other:
            return Everything()
        key, query = (first, second) if first[0] == "key" else (second, first)
        scale = terms[key]
        if operator == "==":
            constant, scale = constant / scale, 1
        elif scale < 0:
            return Everything()  # only keeps keys from being too early
        limit = -constant / scale
        most = ceil(limit) - 1 if operator == "<" else floor(limit)
        return self.rows(key[1], query[1], most, operator == "==" and limit == 0)

    def rows(self, key: _Read, query: _Read, most: int, exact: bool) -> Bound:
        key, query = self.as_index(key, self.keys), self.as_index(query, self.queries)
        if isinstance(key, masks.Position) and isinstance(query, masks.Position):
            return Difference(most)
        if not isinstance(key, masks.SegmentIndex) or not isinstance(query, masks.SegmentIndex):
            return Everything()
        if key.axis is not query.axis or key.which != "own":
            return Everything()
        cut = self.cut(key.axis)
        return Same(cut) if exact and query.which == "own" else IndexDifference(cut, query.which, most)

    def as_index(self, read: _Read, side: Axis | None) -> _Read:
        """The row number of a side that runs along a cut is the index of its own row."""
        if isinstance(read, masks.Position) and side in self.cuts:
            return masks.SegmentIndex(side) if self.keys is not self.queries else read
        if isinstance(read, masks.SegmentIndex) and read.axis is side:
            return replace(read, which="own")
        return read

    def cut(self, axis: Axis) -> Segments:
        if axis not in self.cuts:
            along = next(side for side in (self.keys, self.queries) if side is not None and side is not axis)
            self.cuts[axis] = segments(axis, row(along), along, gaps=True)
        return self.cuts[axis]

    def linear(self, term: masks.Term) -> tuple[_Linear, float] | None:
        match term:
            case masks.Literal(value):
                return {}, float(value)
            case masks.Side(side, masks.SegmentIndex(axis, which) as read):
                if axis is not (self.keys if side == "key" else self.queries):
                    self.reads[axis, which] = self.cut(axis), which
                return {(side, read): 1.0}, 0.0
            case masks.Side(side, masks.Position() as read):
                return {(side, read): 1.0}, 0.0
            case masks.Arithmetic("+" | "-" as operator, left, right):
                a = self.linear(left)
                b = self.linear(right) if right is not None else None
                if a is None or (right is not None and b is None):
                    return None
                if b is None:
                    return {read: -c for read, c in a[0].items()}, -a[1]
                sign = 1 if operator == "+" else -1
                terms = dict(a[0])
                for read, c in b[0].items():
                    terms[read] = terms.get(read, 0) + sign * c
                return terms, a[1] + sign * b[1]
            case masks.Arithmetic("*", left, right) if isinstance(right, masks.Literal):
                by = right.value
                a = self.linear(left)
                return None if a is None else ({read: c * by for read, c in a[0].items()}, a[1] * by)
            case masks.Arithmetic(_, left, right):
                # What is under an abs is read too, even where it gives no bound.
                self.linear(left)
                if right is not None:
                    self.linear(right)
                return None
            case _:
                return None
