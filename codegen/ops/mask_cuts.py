"""Masks that read cuts: which cuts, and the shape `same(patch)` that makes segments examples of their own."""

from __future__ import annotations

from ...dsl.axes import Axis, Cut
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.masks import BadMask
from ...dsl.masks import Arithmetic, Both, Compare, Either, Formula, Mask, Not, Position, SegmentIndex, Side, Term
from ...dsl.opdef import OpCall
from ...dsl.program import Value
from ...dsl.record import record
from ..lowering import LowerContext


@record
class MaskCut:
    """A cut that a mask reads, or an owner of rows. `inputs`: how many of the node's inputs say where its segments
    are."""

    axis: Axis
    along: Axis
    inputs: int


def mask_cuts(
    call: OpCall, mask: Mask, along: Axis, query_rows: Axis | None
) -> tuple[tuple[MaskCut, ...], tuple[Value, ...]]:
    """The cuts of a mask, and what made them. Each side that reads one runs along the cut or along the axis it cuts."""
    found: dict[Axis, MaskCut] = {}
    made: list[Value] = []
    for side, axis in dict.fromkeys(_reads(mask.formula)):
        rows = query_rows if side == "query" else along
        grouped = axis.kind.parent if isinstance(axis.kind, Cut) else _nested_in(axis, (along, query_rows))
        if grouped is None:
            what = f"a mask that compares rows of {axis.name}, which is no cut and owns no rows here,"
            raise call.fail(NotBuiltYet(call.at("mask"), what))
        if rows is not axis and rows is not grouped and (rows is None or axis not in rows.ancestors):
            place = "lie along no ordered axis" if rows is None else f"lie along {rows.name}"
            what = f"`{side}({axis.name})`: the {'queries' if side == 'query' else 'keys'} {place}"
            relation = "is cut from" if isinstance(axis.kind, Cut) else "owns the rows of"
            raise call.fail(BadMask(mask.span or call.at("mask"), what, f"{axis.name} {relation} {grouped.name}"))
        if axis not in found:
            segmented = call.segmented(axis)
            values = () if segmented is None else segmented.values
            found[axis] = MaskCut(axis, grouped, len(values))
            made += values
    return tuple(found.values()), tuple(made)


def _nested_in(owner: Axis, sides: tuple[Axis | None, ...]) -> Axis | None:
    """The first side whose rows belong to rows of `owner`."""
    return next((rows for rows in sides if rows is not None and owner in rows.ancestors), None)


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
            if cut is not None and ctx.groups_by(cut, queries, keys):
                return cut, None
        case Both(left, right):
            cut, rest = same_segment(left, queries, keys, ctx)
            if cut is not None:
                return cut, right if rest is None else Both(rest, right)
            cut, rest = same_segment(right, queries, keys, ctx)
            if cut is not None:
                return cut, left if rest is None else Both(left, rest)
    return None, formula


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
