"""Elements of the causal frontier, their order, and the axes they are about (SEMANTICS 6).

For one source x with ordered axis X, each value has one element, read at each of its rows:

    rows of X           none, t+k, end(P) (last row of my segment in cut P, my own row in a gap), all
    rows of a cut P     none, B (first row of my segment), C+k (last row of the segment k after mine), all
    example level,      none, all
    unrelated axes

C+k past the last segment is the last row of x; before the first segment it is nothing. Every element is monotone in
the row.

`t+k` carries the axis whose rows it counts: X itself, the whole axis X is a part of, or the axis X was renamed to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from enum import Enum

from .axes import Axis, Cut, Joined, Scaled, Selected
from .record import record


class Kind(Enum):
    NONE = "none"
    ROW = "t"
    END = "end"
    FIRST = "B"
    LAST = "C"
    ALL = "all"
    LENGTH = "length"  # depends on how many rows `axis` has; `settle` makes it none or all


@record
class Frontier:
    """One element. `axis` is what ROW counts along, else the cut.

    Of END: `inside` is the selection with the cut's rows; `others` are further cuts, no two of which have a row in
    common (pictures and sounds of one text): the last row of the segment that a row is in, whosever it is.
    """

    kind: Kind
    axis: Axis | None = None
    shift: int = 0
    inside: Axis | None = None
    others: tuple[Axis, ...] = ()

    @property
    def cuts(self) -> tuple[Axis, ...]:
        """The cuts of END."""
        return () if self.axis is None else (self.axis, *self.others)

    @property
    def is_none(self) -> bool:
        return self.kind is Kind.NONE

    @property
    def is_all(self) -> bool:
        return self.kind is Kind.ALL

    def __str__(self) -> str:
        shift = f"{self.shift:+d}" if self.shift else ""
        name = self.axis.name if self.axis is not None else ""
        match self.kind:
            case Kind.ROW:
                return f"t{shift}"
            case Kind.FIRST | Kind.LAST:
                return f"{self.kind.value}{shift} ({name})"
            case Kind.END | Kind.LENGTH:
                names = ", ".join((name, *(other.name for other in self.others)))
                return f"{self.kind.value}({names})"
            case _:
                return self.kind.value


NONE = Frontier(Kind.NONE)
ALL = Frontier(Kind.ALL)


def row(axis: Axis, k: int = 0) -> Frontier:
    """`t+k`."""
    return Frontier(Kind.ROW, axis, k)


def end(cut: Axis, inside: Axis | None = None) -> Frontier:
    """`end(P)`."""
    return Frontier(Kind.END, cut, 0, inside)


def ends(cuts: Iterable[Axis]) -> Frontier:
    """`end(P, Q)`, of cuts with owners."""
    axis, *others = sorted(dict.fromkeys(cuts), key=lambda cut: (cut.span.start, cut.name))
    return Frontier(Kind.END, axis, 0, fine_axis(axis), tuple(others))


def first(cut: Axis) -> Frontier:
    """`B`."""
    return Frontier(Kind.FIRST, cut)


def last(cut: Axis, k: int = 0) -> Frontier:
    """`C+k`."""
    return Frontier(Kind.LAST, cut, k)


# -- how axes lie in each other


def is_part_of(part: Axis, whole: Axis) -> bool:
    """Rows of `part` are rows of `whole` in the same order: the same axis, a selection of it, or a part of it."""
    if part is whole:
        return True
    if isinstance(part.kind, Selected) and is_part_of(part.kind.parent, whole):
        return True
    return isinstance(whole.kind, Joined) and any(isinstance(p, Axis) and is_part_of(part, p) for p in whole.kind.parts)


def selects(axis: Axis) -> bool:
    """Rows of the axis are some of another's, with others between them."""
    return isinstance(axis.kind, Selected) and axis.kind.group is None


def is_run_of(part: Axis, whole: Axis) -> bool:
    """As `is_part_of`, and the rows are neighbours in `whole` too."""
    if part is whole:
        return True
    if isinstance(part.kind, Selected) and part.kind.group is not None:
        return is_run_of(part.kind.parent, whole)  # whole examples
    return isinstance(whole.kind, Joined) and any(isinstance(p, Axis) and is_run_of(part, p) for p in whole.kind.parts)


def is_below(axis: Axis, other: Axis) -> bool:
    """Each row of `axis` belongs to a row of `other` or of something `other` is a part of."""
    return any(is_part_of(parent, other) for parent in axis.ancestors)


def fine_axis(cut: Axis) -> Axis | None:
    """The axis whose rows a cut groups; None for the parent of a nested axis, which does not know its children."""
    return cut.kind.parent if isinstance(cut.kind, Cut | Scaled) else None


def is_unbroken(cut: Axis) -> bool:
    """Rows of one segment have no others between them, wherever they are counted."""
    return owner_of(cut) is not None


def owner_of(cut: Axis) -> Axis | None:
    """The axis whose rows have segments of a cut for rows of theirs."""
    return cut.kind.owner if isinstance(cut.kind, Cut) else None


def _whole_of(cut: Axis) -> Axis:
    along = fine_axis(cut)
    return cut if along is None else along.whole


def all_apart(cuts: Iterable[Axis]) -> bool:
    """Cuts with owners whose segments have no row in common, as they lie in selections by different tags."""
    distinct = tuple(dict.fromkeys(cuts))
    lies_in = [fine_axis(cut) for cut in distinct]
    if not all(is_unbroken(cut) for cut in distinct):
        return False
    pairs = itertools.combinations(lies_in, 2)
    return all(a is not None and b is not None and apart(a, b) for a, b in pairs)


def apart(left: Axis, right: Axis) -> bool:
    """Selections by different values of one tag."""
    a, b = left.kind, right.kind
    if not isinstance(a, Selected) or not isinstance(b, Selected):
        return False
    # Two tags of one name are two tags: those of arms are told apart by their values.
    return a.parent is b.parent and a.tag == b.tag and a.by is b.by and not set(a.members) & set(b.members)


def on_level(axis: Axis, cut: Axis) -> bool:
    """Rows of `axis` are segments of `cut`, or some of them."""
    return is_part_of(axis, cut)


def counted_in(f: Frontier, whole: Axis) -> Frontier:
    """`t+k` of a part, with the rows of the whole counted (the whole has at least as many in between)."""
    if f.kind is not Kind.ROW or f.axis is None or f.axis is whole or not is_part_of(f.axis, whole):
        return f
    if f.shift <= 0 or is_run_of(f.axis, whole):
        return row(whole, f.shift)
    return ALL


# -- order


def leq(left: Frontier, right: Frontier) -> bool:
    """`left` allows no more than `right`, at every row where both can be read."""
    if left == right or left.is_none or right.is_all:
        return True
    if left.axis is None or right.axis is None:
        return False
    match left.kind, right.kind:
        case Kind.ROW, Kind.ROW:
            left = counted_in(left, right.axis)
            return left.axis is right.axis and left.shift <= right.shift
        case Kind.ROW, Kind.END:
            return left.shift <= 0
        case Kind.END, Kind.END:
            return set(left.cuts) <= set(right.cuts)
        case Kind.FIRST, Kind.LAST:
            return left.axis is right.axis and right.shift >= 0
        case Kind.LAST, Kind.FIRST:
            return left.axis is right.axis and left.shift < 0
        case Kind.LAST, Kind.LAST:
            return left.axis is right.axis and left.shift <= right.shift
        case _:
            return False


def join(*frontiers: Frontier) -> Frontier:
    """The smallest element that allows what each allows: pointwise operators, `linear`, arms of `match` and its tag."""
    result = NONE
    for f in frontiers:
        result = _join(result, f)
    return result


def _join(left: Frontier, right: Frontier) -> Frontier:
    if Kind.LENGTH in (left.kind, right.kind):
        # Not known until `settle` meets the source; anything else beside it may only make it worse.
        other = right if left.kind is Kind.LENGTH else left
        return (left if left.kind is Kind.LENGTH else right) if other.is_none or other == left else ALL
    if left.kind is Kind.ROW and right.kind is Kind.ROW and left.axis is not None and right.axis is not None:
        left, right = counted_in(left, right.axis), counted_in(right, left.axis)
    if leq(left, right):
        return right
    if leq(right, left):
        return left
    if left.kind is Kind.END and right.kind is Kind.END and all_apart((*left.cuts, *right.cuts)):
        return ends((*left.cuts, *right.cuts))
    # A value on a cut beside one on its rows: the gather that brings it there is inserted, so the join is where
    # it happens.
    for fine, coarse in ((left, right), (right, left)):
        if fine.kind in (Kind.ROW, Kind.END) and coarse.kind in (Kind.FIRST, Kind.LAST):
            return _join(fine, brought_down(coarse, fine.axis if fine.kind is Kind.ROW else None))
    return ALL


def brought_down(f: Frontier, rows: Axis | None) -> Frontier:
    """`B` and `C+k` read at a row of the segment; without `rows` at least `t` is said by `end` of the same cut."""
    assert f.axis is not None
    if f.kind is Kind.LAST and f.shift > 0:
        return ALL
    if rows is None or (f.kind is Kind.LAST and f.shift == 0):
        return end(f.axis)
    return row(rows)


def least(frontiers: Iterable[Frontier]) -> Frontier:
    """Of bounds that all hold, the smallest; where two do not compare, the first (either is sound)."""
    best = ALL
    for f in frontiers:
        if leq(f, best):
            best = f
    return best


def touches(f: Frontier, axis: Axis) -> bool:
    """Rows of `axis` are rows at which `f` differs. Work along any other axis leaves `f` as it is."""
    if f.axis is None:
        return False
    match f.kind:
        case Kind.ROW:
            return is_part_of(axis, f.axis) or is_part_of(f.axis, axis) or is_below(axis, f.axis)
        case Kind.FIRST | Kind.LAST:
            return on_level(axis, f.axis) or is_below(axis, f.axis)
        case Kind.END:
            # Which rows they are is not kept, so any ordered axis that is not the cut's own may be the one.
            return axis.is_ordered or fine_axis(f.axis) is axis
        case _:
            return False


# -- fitting a result to its value


def settle(f: Frontier, axes: tuple[Axis, ...], source: Axis | None) -> Frontier:
    """`f` as read by a value with these axes: what was contracted, reduced or left behind becomes all."""
    if f.axis is None:
        return f if source is not None or f.is_none else ALL
    levels = tuple(dict.fromkeys(a for axis in axes for a in (axis, *axis.ancestors)))
    own = f.axis
    match f.kind:
        case Kind.LENGTH:
            return ALL if source is not None and _related(own, source) else NONE
        case Kind.ROW:
            for axis in levels:
                if axis is not own and is_part_of(own, axis):
                    return counted_in(f, axis)
            return f if any(is_part_of(axis, own) for axis in levels) else ALL
        case Kind.FIRST | Kind.LAST:
            below = source is not None and any(is_below(axis, own) and _related(axis, source) for axis in axes)
            rows = source if below else None
            if rows is not None:
                return brought_down(f, rows)
            return f if any(on_level(axis, own) for axis in levels) else ALL
        case _:
            if source is None:
                return ALL
            if owner_of(own) is not None and any(axis.whole is _whole_of(own) for axis in levels):
                return f  # rows among which the segments stand, whatever the source is
            return f if any(_related(axis, source) for axis in levels) else ALL


def _related(axis: Axis, source: Axis) -> bool:
    """Whether the length of `axis` says something about that of the source's axis, or their rows can be matched."""
    fine = fine_axis(axis)
    parts = axis.kind.parts if isinstance(axis.kind, Joined) else ()
    return (
        is_part_of(axis, source)
        or is_part_of(source, axis)
        or axis in source.ancestors
        or (fine is not None and _related(fine, source))
        or (isinstance(axis.kind, Selected) and _related(axis.kind.parent, source))
        or any(isinstance(part, Axis) and _related(part, source) for part in parts)
    )
