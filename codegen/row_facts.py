"""Facts of plans of rows, and of values moved from one ordered axis to another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .fact import Fact, Reader, level_of
from .functions import counted_rows, cuts, packing, selections, shifts, windows
from .origin import origin


def _row_example(read: Reader) -> Fact | None:
    rows = read.fact(1)
    return None if rows is None or rows.level is None else Fact(rows.level, (), torch.int64)


def _position(read: Reader) -> Fact | None:
    rows = read.fact(1)
    return None if rows is None else Fact(rows.level, (), torch.int64)


def _has_next(read: Reader) -> Fact | None:
    rows = read.fact(0)
    return None if rows is None else Fact(rows.level, (), torch.bool)


def _row_number(read: Reader) -> Fact | None:
    rows = read.fact()
    return None if rows is None or rows.level is None else Fact(rows.level, (), torch.int64)


def _flag_of_rows(read: Reader) -> Fact | None:
    rows = read.fact()
    return None if rows is None or rows.level is None else Fact(rows.level, (), torch.bool)


def _packed(read: Reader) -> Fact | None:
    """Of flags, whose level it keeps: a word for every 32 rows. Nothing reads it but what knows."""
    flags = read.fact()
    return None if flags is None or flags.level is None or flags.dims else replace(flags, dtype=torch.int32)


def _per_segment(read: Reader) -> Fact | None:
    """One number for each segment. Of which cut, only the plan says: what it is made of has other rows, or none."""
    rows = None if (type_ := origin(read.node).type) is None else type_.rows
    return None if rows is None else Fact(rows.name, (), torch.int64)


def _per_owner(read: Reader) -> Fact | None:
    """Offsets without the first: one for each row of the owner, which the plan names."""
    fact = _per_segment(read)
    return None if fact is None else replace(fact, dtype=torch.int32)


def _chosen(read: Reader) -> Fact | None:
    """One number for each chosen row, or example."""
    type_ = origin(read.node).type
    level = None if type_ is None else level_of(type_)
    return None if level is None else Fact(level, (), torch.int64)


def _take(read: Reader) -> Fact | None:
    x, rows = read.fact(0), read.fact(1)
    return None if x is None or rows is None or x.level is None else replace(x, level=rows.level)


def _placed(of: torch.dtype | None, like: int) -> Callable[[Reader], Fact | None]:
    """Rows of a part in their places, with a row for each that argument `like` has."""

    def rule(read: Reader) -> Fact | None:
        x, rows = read.fact(0), read.fact(like)
        if x is None or rows is None:
            return None
        return Fact(rows.level, () if of is not None else x.dims, of or x.dtype)

    return rule


def _join(read: Reader) -> Fact | None:
    parts, order = [read.known.get(part) for part in read.arg(0)], read.fact(1)
    first = parts[0]
    if first is None or order is None:
        return None
    alike = all(part is not None and part.dims == first.dims and part.dtype == first.dtype for part in parts)
    return replace(first, level=order.level) if alike else None


def _spread(read: Reader) -> Fact | None:
    p, number = read.fact(0), read.fact(1)
    return None if p is None or number is None or p.level is None else replace(p, level=number.level)


ROW_RULES: dict[Any, Callable[[Reader], Fact | None]] = {
    packing.row_example: _row_example,
    **dict.fromkeys((cuts.capped, cuts.ends_of_runs, cuts.ends_of_each, cuts.first_rows), _flag_of_rows),
    **dict.fromkeys((cuts.own, cuts.before, cuts.closed, cuts.index, cuts.index_or_next), _row_number),
    selections.nowhere: _row_number,
    cuts.begins: _per_segment,
    cuts.packed: _packed,
    packing.per_owner: _per_owner,
    windows.scaled_row: _row_number,
    **dict.fromkeys((selections.has_tag, selections.in_front), _flag_of_rows),
    **dict.fromkeys((selections.rows_of, selections.order_of, counted_rows.counted), _chosen),
    selections.take: _take,
    selections.placed: _placed(None, 2),
    selections.placed_numbers: _placed(torch.int64, 3),
    selections.placed_flags: _placed(torch.bool, 1),
    selections.places_of: _placed(torch.int64, 1),
    selections.place_of_segment: _placed(torch.int64, 3),
    selections.join: _join,
    cuts.spread: _spread,
    packing.position: _position,
    shifts.has_next: _has_next,
}
