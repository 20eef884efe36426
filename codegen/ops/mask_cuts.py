"""Masks that read cuts: which cuts, and the shape `same(patch)` that makes segments examples of their own."""

from __future__ import annotations

from ...dsl.axes import Axis, Cut, Selected
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.masks import BadMask
from ...dsl.masks import (
    Arithmetic,
    Both,
    Compare,
    Either,
    Formula,
    Mask,
    Not,
    Position,
    SegmentIndex,
    Side,
    Term,
    with_sides,
)
from ...dsl.opdef import OpCall
from ...dsl.program import Value
from ...dsl.record import record
from ..lowering import LowerContext


@record
class MaskCut:
    """A cut that a mask reads, or an owner of rows. `inputs`: how many of the node's inputs say where its segments are;
    if `selected`, the last of them is the tag of the selection that was cut, and `along` is the axis it was selected
    from."""

    axis: Axis
    along: Axis
    inputs: int
    selected: bool = False


def with_shown(call: OpCall, mask: Mask, along: Axis, query_rows: Axis | None) -> Mask:
    """The mask, where an owner of rows that stand among others is read as the cut that those rows are."""

    def shown(side: Side) -> Side:
        rows = query_rows if side.side == "query" else along
        match side.read:
            case SegmentIndex(owner, which) if rows is not None and not isinstance(owner.kind, Cut):
                cut = call.shown_among(rows, owner)
                return side if cut is None else Side(side.side, SegmentIndex(cut, which))
            case _:
                return side

    if mask.formula is None:
        return mask
    return Mask(with_sides(mask.formula, shown), mask.captures, mask.span)


def mask_cuts(
    call: OpCall, mask: Mask, along: Axis, query_rows: Axis | None
) -> tuple[tuple[MaskCut, ...], tuple[Value, ...]]:
    """The cuts of a mask, and what made them. Each side that reads one runs along the cut or along the axis it cuts."""
    found: dict[Axis, tuple[Value, ...]] = {}
    grouped_by: dict[Axis, Axis] = {}
    along_of: dict[Axis, Axis] = {}
    for side, axis in dict.fromkeys(_reads(mask.formula)):
        rows = query_rows if side == "query" else along
        grouped = axis.kind.parent if isinstance(axis.kind, Cut) else _nested_in(axis, (along, query_rows))
        if grouped is None:
            what = f"a mask that compares rows of {axis.name}, which is no cut and owns no rows here,"
            raise call.fail(NotBuiltYet(call.at("mask"), what))
        # Pictures of a text: rows of the text that are in none are in a gap.
        is_whole = isinstance(axis.kind, Cut) and isinstance(grouped.kind, Selected) and rows is grouped.kind.parent
        if is_whole and not _is_compared(mask.formula, axis):
            raise call.fail(NotBuiltYet(call.at("mask"), f"a mask by numbers of {axis.name}, cut from a selection,"))
        if not is_whole and rows is not axis and rows is not grouped and (rows is None or axis not in rows.ancestors):
            place = "lie along no ordered axis" if rows is None else f"lie along {rows.name}"
            what = f"`{side}({axis.name})`: the {'queries' if side == 'query' else 'keys'} {place}"
            relation = "is cut from" if isinstance(axis.kind, Cut) else "owns the rows of"
            raise call.fail(BadMask(mask.span or call.at("mask"), what, f"{axis.name} {relation} {grouped.name}"))
        made = call.segmented(axis)
        found.setdefault(axis, () if made is None else made.values)
        grouped_by.setdefault(axis, grouped)
        if is_whole and axis not in along_of and rows is not None:
            along_of[axis] = rows
            found[axis] = (*found[axis], call.selected(grouped))
    cuts = tuple(
        MaskCut(axis, along_of.get(axis, grouped_by[axis]), len(values), axis in along_of)
        for axis, values in found.items()
    )
    return cuts, tuple(value for values in found.values() for value in values)


def _nested_in(owner: Axis, sides: tuple[Axis | None, ...]) -> Axis | None:
    """The first side whose rows belong to rows of `owner`."""
    return next((rows for rows in sides if rows is not None and owner in rows.ancestors), None)


def _is_compared(formula: Formula | None, cut: Axis) -> bool:
    """Whether a cut is read in `query(cut) == key(cut)` alone."""
    match formula:
        case Both(left, right) | Either(left, right):
            return _is_compared(left, cut) and _is_compared(right, cut)
        case Compare("==", Side(one, SegmentIndex(a, "own")), Side(other, SegmentIndex(b, "own"))) if one != other:
            return a is b or cut not in (a, b)
        case _:
            return all(axis is not cut for _, axis in _reads(formula))


def _reads(formula: Formula | Term | None) -> list[tuple[str, Axis]]:
    match formula:
        case Both(left, right) | Either(left, right) | Compare(_, left, right):
            return _reads(left) + _reads(right)
        case Not(inner):
            return _reads(inner)
        case Arithmetic(_, left, right):
            return _reads(left) + _reads(right)
        case Side(side, SegmentIndex(axis)):
            return [(side, axis)]
        case _:
            return []


def same_segment(
    formula: Formula | None, queries: Axis | None, keys: Axis, ctx: LowerContext
) -> tuple[Axis | None, Formula | None]:
    """A cut without gaps whose segments the mask never leaves, and what else the mask asks. None: there is none."""
    match formula:
        case Compare("==", Side(one), Side(other)) if one != other:
            cut = _compared_cut(formula, queries, keys)
            if cut is not None and not _has_gaps(cut, (queries, keys)) and ctx.groups_by(cut, queries, keys):
                return cut, None
        case Both(left, right):
            cut, rest = same_segment(left, queries, keys, ctx)
            if cut is not None:
                return cut, right if rest is None else Both(rest, right)
            cut, rest = same_segment(right, queries, keys, ctx)
            if cut is not None:
                return cut, left if rest is None else Both(left, rest)
    return None, formula


def _has_gaps(cut: Axis, rows: tuple[Axis | None, ...]) -> bool:
    """Whether rows are asked that were not selected before the cut."""
    return isinstance(cut.kind, Cut) and any(axis not in (cut, cut.kind.parent) for axis in rows)


def _compared_cut(compare: Compare, queries: Axis | None, keys: Axis) -> Axis | None:
    """P, where both sides read which segment of P they are in."""
    read: list[Axis | None] = []
    for side in (compare.left, compare.right):
        assert isinstance(side, Side)
        rows = queries if side.side == "query" else keys
        match side.read:
            case SegmentIndex(axis, which) if which == "own" or axis is rows:
                read.append(axis)
            case Position() if rows is not None and isinstance(rows.kind, Cut) and queries is not keys:
                read.append(rows)
            case _:
                return None
    return read[0] if read[0] is read[1] else None
