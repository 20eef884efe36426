"""How far the result of each operator may look, given its operands: one function per row of the table in SEMANTICS 6.

Where rows form segments by data, which rows form mine is data too: `Segments.ends` is the frontier of the flags "a
segment ends after me". It is `none` where segments do not depend on the source (nested and scaled axes, or flags made
from something else). Masks and `attend` are in `reach`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .axes import Axis, Cut, Scaled, Selected
from .frontier_elements import (
    ALL,
    NONE,
    Frontier,
    Kind,
    all_apart,
    apart,
    counted_in,
    end,
    ends,
    fine_axis,
    first,
    is_part_of,
    is_run_of,
    is_unbroken,
    join,
    last,
    leq,
    on_level,
    owner_of,
    row,
    selects,
    touches,
)
from .record import record


@record
class Segments:
    """A cut as one source sees it.

    axis    the cut: its rows are the segments
    along   the axis whose rows are grouped
    gaps    some rows may be in no segment; then whether a row is in one is known at the row itself
    ends    F of "a segment ends after this row", at rows of `along`; none: segments do not depend on the source
    inside  a selection of `along` that holds all rows of all segments
    """

    axis: Axis
    along: Axis
    gaps: bool = False
    ends: Frontier = NONE
    inside: Axis | None = None

    @property
    def member(self) -> Frontier:
        """F of "which segment am I in": the ends before this row, and with gaps the row itself."""
        f = previous(self.ends, 1)
        return join(f, row(self.along)) if self.gaps and not f.is_none else f

    @property
    def extent(self) -> Frontier:
        """F, at a segment, of which rows it has."""
        return last(self.axis, max(0, self.ends.shift)) if self.ends.kind is Kind.ROW else self.ends

    @property
    def start(self) -> Frontier:
        """F, at a segment, of where it starts: the ends before its first row."""
        if self.ends.kind is not Kind.ROW:
            return self.ends
        if self.ends.shift > 1:
            return last(self.axis, self.ends.shift - 1)
        return first(self.axis) if self.gaps or self.ends.shift == 1 else last(self.axis, -1)


def segments(
    cut: Axis, ends: Frontier | None = None, along: Axis | None = None, gaps: bool = False, inside: Axis | None = None
) -> Segments:
    """The segments of a cut. `ends` is what `segment_by_flags` or `segment_by_value` gave for this source.

    Where nobody says, segments of a `cut` count as data known at each row; those of nested and scaled axes are given.
    """
    grouped = fine_axis(cut)
    if along is None:
        assert grouped is not None, f"the axis whose rows {cut.name} groups is not known"
        along = grouped
    if ends is None:
        ends, gaps = (row(along), True) if isinstance(cut.kind, Cut) else (NONE, gaps)
    if inside is None and grouped is not None and selects(grouped):
        inside = grouped
    # Seen from the whole axis, rows that were not selected are gaps.
    return Segments(cut, along, gaps or (inside is not None and inside is not along), ends, inside)


def segment_by_flags(flags: Frontier) -> Frontier:
    """`segment X into P ends where flags`: becomes `Segments.ends`, which spoils what is read through P if above t."""
    return flags if flags.kind in (Kind.NONE, Kind.ROW) else ALL


def segment_by_value(x: Frontier) -> Frontier:
    """`segment X into P by x` is `ends where next(x) != x`."""
    return segment_by_flags(following(x, 1))


def segment_by_lengths(x: Frontier) -> Frontier:
    """Segments whose first row says how long they are, as rows of a nested axis inside another; rows may be in none."""
    return x if x.kind is Kind.NONE or (x.kind is Kind.ROW and x.shift <= 0) else ALL


def segment_index(cut: Segments, which: str = "own") -> Frontier:
    """`index(P)` at a row of the axis."""
    return cut.ends if which == "closed" else cut.member


def row_number(cut: Segments) -> Frontier:
    """`position(P)`, draws and whatever else has rows along P without reading any: that there is such a row is data."""
    return cut.start


# -- along an axis


def previous(f: Frontier, k: int, along: Axis | None = None) -> Frontier:
    """`previous(x, k)`: f(t - k). `along` only has to be given where the value has other rows as well."""
    if f.axis is None or k == 0 or (along is not None and not touches(f, along)):
        return f
    match f.kind:
        case Kind.ROW if along is None or is_part_of(along, f.axis):
            return row(f.axis, f.shift - k)
        case Kind.FIRST if along is None or on_level(along, f.axis):
            return last(f.axis, -k)
        case Kind.LAST if along is None or on_level(along, f.axis):
            return last(f.axis, f.shift - k)
        case _:
            return so_far(f, along)


def so_far(f: Frontier, along: Axis | None = None) -> Frontier:
    """F of a value that reads rows up to its own: elements are monotone, so the last row read has the latest.

    All but one: rows between two rows of a segment may be in no segment where a cut groups the rows of a selection, and
    has no owner.
    """
    if f.kind is not Kind.END or f.axis is None or all(is_unbroken(cut) for cut in f.cuts):
        return f
    grouped = fine_axis(f.axis)
    if grouped is None or not selects(grouped) or (along is not None and is_part_of(along, grouped)):
        return f
    return ALL


def following(f: Frontier, k: int, along: Axis | None = None) -> Frontier:
    """`next(x, k)` and `shift(x, -k)`: f(t + k)."""
    if f.axis is None or k == 0 or (along is not None and not touches(f, along)):
        return f
    match f.kind:
        case Kind.ROW if along is None or is_run_of(along, f.axis):
            return row(f.axis, f.shift + k)
        case Kind.FIRST if along is None or along is f.axis:
            return last(f.axis, k)
        case Kind.LAST if along is None or along is f.axis:
            # That there is such a segment is known no earlier than at its first row, whatever is read there.
            return last(f.axis, max(0, f.shift) + k)
        case Kind.LENGTH:
            return f
        case _:
            return ALL


def scan(f: Frontier, along: Axis, backward: bool = False) -> Frontier:
    """A scan reads its own row and those before it, or those after it."""
    return reduce_over_axis(f, along, keep=True) if backward else so_far(f, along)


def conv(f: Frontier, along: Axis, reach: int = 0) -> Frontier:
    """1-D convolution that reads up to `reach` rows ahead; 0: causal, less: only rows before."""
    return so_far(following(f, reach, along) if reach >= 0 else previous(f, -reach, along), along)


def conv_strided(f: Frontier, cut: Segments, reach: int = 0) -> Frontier:
    """1-D convolution to the scaled axis `cut.axis`; reads up to `reach` rows past the last of its own rows."""
    match f.kind:
        case Kind.ROW if touches(f, cut.along):
            divisor = cut.axis.kind.divisor if isinstance(cut.axis.kind, Scaled) else 1
            beyond = max(0, reach + f.shift)
            return last(cut.axis, -(-beyond // divisor))
        case Kind.NONE:
            return NONE
        case _:
            return reduce_over_axis(f, cut.along, keep=True)


def reduce_over_axis(f: Frontier, axis: Axis, keep: bool = False) -> Frontier:
    """Reductions, softmax, norms, sorts, grid convolutions, backward scans over `axis`: all its rows are read.

    Over a nested axis the rows of one parent are read, unless the result keeps the axis (`keep`) and the operator runs
    across parents.
    """
    if not touches(f, axis):
        return f
    if axis.parent is not None and not keep:
        return pool(f, Segments(axis.parent, axis), "sum")
    return ALL


def contract(f: Frontier, axes: Iterable[Axis]) -> Frontier:
    """`linear`, `dot`: the contracted axes are reduced over."""
    for axis in axes:
        f = reduce_over_axis(f, axis)
    return f


def gather_by_data(table: Frontier, index: Frontier, axis: Axis) -> Frontier:
    """`x[index]`, `bag`: any row of the axis that `index` replaces may be read."""
    return join(reduce_over_axis(table, axis, keep=True), index)


def to_example(f: Frontier) -> Frontier:
    """Read at example level, or along an axis that has nothing to do with the source."""
    return NONE if f.is_none else ALL


def length_of(axis: Axis) -> Frontier:
    """`length(X)` reveals where X ends: all, if X is the axis of the source."""
    return Frontier(Kind.LENGTH, axis)


# -- to cuts and back


def pool(f: Frontier, cut: Segments, by: str) -> Frontier:
    """`pool(x, X -> P, by)`. What it reads, and where the segment starts and ends."""
    if f.kind is Kind.ROW and f.axis is not None and is_part_of(cut.axis, f.axis):
        return join(f, cut.ends)  # the source has one row per segment, and so has the result
    if by == "first":
        return join(cut.start, _at_first(f, cut))
    return join(cut.extent, _at_last(f, cut))


def _at_last(f: Frontier, cut: Segments) -> Frontier:
    match f.kind:
        case Kind.NONE:
            return NONE
        case Kind.ROW if touches(f, cut.along):
            return last(cut.axis, max(0, f.shift))
        case Kind.END if f.cuts == (cut.axis,) or all_apart((*f.cuts, cut.axis)):
            # The last row of a segment is in none of another cut.
            return last(cut.axis)
        case Kind.END if _is_within(cut, f.cuts):
            return f
        case _:
            return ALL


def _is_within(cut: Segments, others: Iterable[Axis]) -> bool:
    """Whether the rows of a segment are nested in one row, of those that other cuts group: in one segment of theirs."""
    grouped = [fine_axis(other) for other in others]
    owner = cut.axis if cut.along.parent is cut.axis else None
    return owner is not None and all(axis is not None and is_part_of(axis, owner) for axis in grouped)


def _at_first(f: Frontier, cut: Segments) -> Frontier:
    match f.kind:
        case Kind.ROW if touches(f, cut.along) and f.shift <= 0:
            # The row before the first is the last of the segment before, unless it is in a gap.
            tiled = f.axis is cut.along and not cut.gaps
            return last(cut.axis, -1) if f.shift < 0 and tiled else first(cut.axis)
        case _:
            return _at_last(f, cut)


def spread(f: Frontier, cut: Segments, which: str = "own") -> Frontier:
    """`spread(p, P -> X, which)`: at t, the element of the segment read, and which segment that is."""
    if f.kind is Kind.ROW and f.axis is not None and is_part_of(cut.axis, f.axis):
        moved = previous(f, 1, cut.axis) if which == "before" else f
        return join(moved, segment_index(cut, which))
    match which:
        case "own":
            return join(cut.member, _read_own(f, cut))
        case "before":
            return join(cut.member, _read_own(previous(f, 1, cut.axis), cut))
        case "closed":
            return join(cut.ends, _read_closed(f, cut))
        case _:
            raise AssertionError(which)


def _read_own(f: Frontier, cut: Segments) -> Frontier:
    match f.kind:
        case Kind.NONE:
            return NONE
        case Kind.FIRST if f.axis is cut.axis:
            return row(cut.along)
        case Kind.LAST if f.axis is cut.axis and f.shift == 0:
            return end(cut.axis, cut.inside)
        case Kind.LAST if f.axis is cut.axis and f.shift < 0:
            return row(cut.along, -1)
        case Kind.END if _is_within(cut, f.cuts):
            return f
        case _:
            return ALL


def _read_closed(f: Frontier, cut: Segments) -> Frontier:
    match f.kind:
        case Kind.NONE:
            return NONE
        case Kind.FIRST if f.axis is cut.axis:
            return row(cut.along)
        case Kind.LAST if f.axis is cut.axis and f.shift <= 0:
            return row(cut.along, -1 if f.shift < 0 else 0)
        case _:
            return ALL


# -- selections


def shown_rows(f: Frontier, cut: Axis, parts: bool) -> Frontier:
    """`flatten(z, (picture, spot) -> place)` with places selected from other rows, and back (`parts`). All rows of a
    picture are there together, so what one knows of its own picture is known at the end of its segment."""
    owner, along = owner_of(cut), fine_axis(cut)
    assert owner is not None
    assert along is not None
    if not parts:
        is_own = f.kind in (Kind.ROW, Kind.LAST) and f.axis is owner and f.shift <= 0
        return end(cut, along) if is_own else _unless_none(f)
    match f.kind:
        case Kind.END if f.cuts == (cut,):
            return last(owner)
        case Kind.ROW if f.shift <= 0 and touches(f, along):
            return last(owner)
        case _:
            return _unless_none(f)


def _unless_none(f: Frontier) -> Frontier:
    return NONE if f.is_none else ALL


def take(f: Frontier, to: Axis, tag: Frontier = NONE) -> Frontier:
    """`take(x, X -> W)`. Rows of W are in the gaps of a cut that lies in another selection of the same tag.

    `tag` decides which rows of X are rows of W, read at those rows.
    """
    if not tag.is_none and not (isinstance(to.kind, Selected) and leq(tag, row(to.whole))):
        return ALL
    f = join(f, tag)
    if f.kind is not Kind.END or f.inside is None or not isinstance(to.kind, Selected):
        return f
    if not f.others:
        return row(to.kind.parent) if apart(f.inside, to) else f
    lie_in = {cut: fine_axis(cut) for cut in f.cuts}
    met = [cut for cut, inside in lie_in.items() if inside is None or not apart(inside, to)]
    return ends(met) if met else row(to.kind.parent)


def join_selections(to: Axis, parts: Iterable[Frontier], tag: Frontier = NONE) -> Frontier:
    """`join(X, W: a, V: b)` and `concat` to a joined axis: rows are counted in the whole axis."""
    return join(tag, *(counted_in(f, to) for f in parts))


def rename(f: Frontier, old: Axis, new: Axis) -> Frontier:
    """`rename(x, a -> b)`: row t of a is row t of b."""
    return replace(f, axis=new) if f.kind is Kind.ROW and f.axis is old else f
