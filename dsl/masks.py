"""Masks: static predicates over a query row and a key row (SEMANTICS 5).

A mask is a formula of comparisons; each side is written `query(e)` or `key(e)`. The named masks (`causal`, `window`,
...) are definitions in specs/std/masks.weft, so everything here works from the formula, never from a name.
"""

from __future__ import annotations

from collections.abc import Callable

from .axes import Axis
from .program import Value
from .record import record
from .source import Span


@record
class Position:
    """The row number of a side's own row, counted in its example."""


@record
class Captured:
    """A captured value, read at the side's row. `index` counts into `Mask.captures`."""

    index: int


@record
class SegmentIndex:
    """`index(patch)`: which segment of a cut (or which row of a parent axis) the side's row is in. `which`: own or
    closed."""

    axis: Axis
    which: str = "own"


@record
class Side:
    """`query(read)` or `key(read)`; `side` says which."""

    side: str
    read: Position | Captured | SegmentIndex


@record
class Literal:
    value: int | float | bool


@record
class Arithmetic:
    """`operator` is `+`, `-`, `*`, or `abs` and `-` with `right` None."""

    operator: str
    left: Term
    right: Term | None = None


Term = Side | Literal | Arithmetic


@record
class Compare:
    """`operator` is one of `== != < <= > >=`."""

    operator: str
    left: Term
    right: Term


@record
class Both:
    left: Formula
    right: Formula


@record
class Either:
    left: Formula
    right: Formula


@record
class Not:
    inner: Formula


Formula = Compare | Both | Either | Not


@record(eq=False)
class Mask:
    """A formula and the values it captures. `formula` None: every key of the same example."""

    formula: Formula | None
    captures: tuple[Value, ...] = ()
    span: Span | None = None


def with_sides(formula: Formula, change: Callable[[Side], Side]) -> Formula:
    """The formula with what it reads of rows changed."""

    def term(e: Term) -> Term:
        match e:
            case Side():
                return change(e)
            case Arithmetic(operator, left, right):
                return Arithmetic(operator, term(left), None if right is None else term(right))
            case _:
                return e

    match formula:
        case Both(left, right):
            return Both(with_sides(left, change), with_sides(right, change))
        case Either(left, right):
            return Either(with_sides(left, change), with_sides(right, change))
        case Not(inner):
            return Not(with_sides(inner, change))
        case Compare(operator, left, right):
            return Compare(operator, term(left), term(right))


@record
class Distance:
    """`low <= key position - query position <= high`; None: unbounded."""

    low: int | None
    high: int | None

    def meet(self, other: Distance) -> Distance:
        return Distance(_tighter(max, self.low, other.low), _tighter(min, self.high, other.high))

    def hull(self, other: Distance) -> Distance:
        """The smallest range that holds both."""
        low = None if self.low is None or other.low is None else min(self.low, other.low)
        high = None if self.high is None or other.high is None else max(self.high, other.high)
        return Distance(low, high)


ANY_DISTANCE = Distance(None, None)


def _tighter(choose, left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return choose(left, right)


def distance(formula: Formula | None) -> Distance:
    """The range of key position minus query position that a formula cannot exceed, as far as positions alone tell."""
    match formula:
        case Both(left, right):
            return distance(left).meet(distance(right))
        case Either(left, right):
            return distance(left).hull(distance(right))
        case Compare():
            return _compare_distance(formula)
        case _:
            return ANY_DISTANCE


def is_exactly_distance(formula: Formula | None) -> bool:
    """True when the formula says no more than its distance: a plain band such as causal, window or full."""
    match formula:
        case None:
            return True
        case Both(left, right):
            return is_exactly_distance(left) and is_exactly_distance(right)
        case Compare():
            return _compare_distance(formula) != ANY_DISTANCE
        case _:
            return False


def _compare_distance(compare: Compare) -> Distance:
    operator, left, right = compare.operator, compare.left, compare.right
    if operator in (">", ">="):
        operator, left, right = {">": "<", ">=": "<="}[operator], right, left
    if operator not in ("<", "<=", "=="):
        return ANY_DISTANCE
    slack = 1 if operator == "<" else 0
    # abs(a) < w bounds a on both sides.
    if isinstance(left, Arithmetic) and left.operator == "abs" and isinstance(right, Literal):
        inner = _difference(left.left)
        if inner is None or operator == "==":
            return ANY_DISTANCE
        sign, offset = inner
        reach = int(right.value) - slack
        low, high = -reach - offset, reach - offset
        return Distance(low, high) if sign > 0 else Distance(-high, -low)
    difference = _difference(Arithmetic("-", left, right))
    if difference is None:
        return ANY_DISTANCE
    sign, offset = difference
    # sign * (key - query) + offset <= -slack
    bound = -slack - offset
    if operator == "==":
        return Distance(sign * bound, sign * bound)
    return Distance(None, bound) if sign > 0 else Distance(-bound, None)


def _difference(term: Term) -> tuple[int, int] | None:
    """`(sign, c)` when the term is `sign * (key(position) - query(position)) + c` with a whole c; else None."""
    coefficients = _linear(term)
    if coefficients is None:
        return None
    key, query, constant = coefficients
    if key == -query and key in (1, -1) and constant == int(constant):
        return int(key), int(constant)
    return None


def _linear(term: Term) -> tuple[float, float, float] | None:
    match term:
        case Literal(value):
            return (0, 0, float(value))
        case Side("key", Position()):
            return (1, 0, 0)
        case Side("query", Position()):
            return (0, 1, 0)
        case Arithmetic("+" | "-" as operator, left, right) if right is not None:
            a, b = _linear(left), _linear(right)
            if a is None or b is None:
                return None
            sign = 1 if operator == "+" else -1
            return (a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2])
        case Arithmetic("-", inner, None):
            a = _linear(inner)
            return None if a is None else (-a[0], -a[1], -a[2])
        case _:
            return None


def captured_sides(formula: Formula | Term | None) -> frozenset[tuple[str, int]]:
    """Which captured value is read on which side: pairs of `query` or `key`, and the number in `Mask.captures`."""
    match formula:
        case Both(left, right) | Either(left, right) | Compare(_, left, right):
            return captured_sides(left) | captured_sides(right)
        case Not(inner):
            return captured_sides(inner)
        case Arithmetic(_, left, right):
            return captured_sides(left) | captured_sides(right)
        case Side(side, Captured(index)):
            return frozenset({(side, index)})
        case _:
            return frozenset()
