"""The segments of packed rows numbered on a GPU, as registered operators. Flags lie 32 to a word (`cuts.packed`).

On a CPU without Triton's interpreter the functions of codegen/functions/cuts.py run instead, which say what this means.

Letters in shapes: N rows, B examples, P segments, M rows that are in one, W words.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functions.cuts import before as before_by_torch
from ..functions.cuts import begins, bounds_inside, cut_offsets, first_rows, own, packed, rows_inside, unpacked
from ..functions.cuts import bounds as bounds_by_torch
from ..functions.cuts import capped as flags_capped
from ..functions.cuts import closed as closed_by_torch
from ..functions.packing import row_example
from .segments import launches

# Rows of a program, and words of flags or examples that it counts at a time.
BLOCK_N = 1024
BLOCK_W = 512
WARPS = 4
# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)


class Scan(NamedTuple):
    """int32. Numbers of segments along rows, -1 for none: a row's own; the last that ended at or before it, the one
    before its own (`[0]` where they were not asked for). `bounds` of segments, counted in `rows`: those that are in
    one (`[0]` without gaps: all are)."""

    own: Tensor  # [N]
    closed: Tensor  # [N]
    before: Tensor  # [N]
    bounds: Tensor  # [P + 1]
    rows: Tensor  # [M]


def scan(ends: Tensor, inside: Tensor | None, offsets: Tensor, rows: Tensor, closed: bool, before: bool) -> Scan:
    """`ends [W]`: a segment ends after a row. `inside [W]`: a row is in a segment; None: every row is. `offsets
    [B + 1]`, `rows [N, ...]`. Waits for the device once, to learn how many segments there are."""
    return Scan(*_scan(ends, inside, offsets, rows.shape[0], closed, before))


def capped(ends: Tensor, offsets: Tensor, rows: Tensor, at_most: int) -> Tensor:
    """int32 [W]: `ends [W]`, and a flag after every `at_most` rows of a segment."""
    return _capped(ends, offsets, rows.shape[0], at_most)


def flags_of(words: Tensor, rows: Tensor) -> Tensor:
    """bool [N]: what was packed, for `rows [N, ...]`."""
    return unpacked(words, rows.shape[0])


# -- the operators -----------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{LIBRARY}::scan", mutates_args=())
def _scan(
    ends: Tensor, inside: Tensor | None, offsets: Tensor, rows: int, closed: bool, before: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not launches(ends):
        made = scan_by_torch(ends, inside, offsets, ends.new_empty(rows), closed, before)
        return made.own, made.closed, made.before, made.bounds, made.rows
    number, last, earlier, members = (
        ends.new_empty(rows if is_made else 0) for is_made in (True, closed, before, inside is not None)
    )
    bounds, counts = ends.new_empty(rows + 1), ends.new_empty(2)
    if not rows:
        return number, last, earlier, bounds.zero_(), members
    _kernels().scan_cuts[(-(-rows // BLOCK_N),)](
        ends, ends if inside is None else inside, offsets, number, last, earlier, bounds, members, counts,
        rows, offsets.shape[0] - 1, HAS_GAPS=inside is not None, CLOSED=closed, BEFORE=before, BLOCK_N=BLOCK_N,
        BLOCK_W=BLOCK_W, num_warps=WARPS,
    )  # fmt: skip
    segments, in_one = counts.tolist()
    return number, last, earlier, bounds[: segments + 1], members if inside is None else members[:in_one]


@_scan.register_fake
def _(
    ends: Tensor, inside: Tensor | None, offsets: Tensor, rows: int, closed: bool, before: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    bounds = context.new_dynamic_size(min=1)
    members = 0 if inside is None else context.new_dynamic_size()
    sizes = (rows, rows if closed else 0, rows if before else 0, bounds, members)
    number, last, earlier, first, of_segments = (ends.new_empty(size) for size in sizes)
    return number, last, earlier, first, of_segments


@torch.library.custom_op(f"{LIBRARY}::capped", mutates_args=())
def _capped(ends: Tensor, offsets: Tensor, rows: int, at_most: int) -> Tensor:
    if not launches(ends):
        return capped_by_torch(ends, offsets, ends.new_empty(rows), at_most)
    made = torch.empty_like(ends)
    if rows:
        grid = (-(-rows // BLOCK_N),)
        _kernels().cap_cuts[grid](
            ends, offsets, made, rows, offsets.shape[0] - 1, at_most, BLOCK_N=BLOCK_N, num_warps=WARPS
        )
    return made


@_capped.register_fake
def _(ends: Tensor, offsets: Tensor, rows: int, at_most: int) -> Tensor:
    return torch.empty_like(ends)


# -- what they mean ----------------------------------------------------------------------------------------------------


def scan_by_torch(
    ends: Tensor, inside: Tensor | None, offsets: Tensor, rows: Tensor, closed: bool, before: bool
) -> Scan:
    """`scan`, function by function."""
    example = row_example(offsets, rows)
    flags, there = flags_of(ends, rows), None if inside is None else flags_of(inside, rows)
    first = first_rows(flags, there, example)
    number, first_of_each = own(first, there), begins(first)
    members, bounds = ends.new_empty(0), bounds_by_torch(first_of_each, number)
    if there is not None:
        members = rows_inside(there)
        bounds = bounds_inside(first_of_each, members)
    place = first, there, example, cut_offsets(first, offsets)
    last = closed_by_torch(flags, *place) if closed else ends.new_empty(0)
    earlier = before_by_torch(*place) if before else ends.new_empty(0)
    return Scan(*(made.to(torch.int32) for made in (number, last, earlier, bounds, members)))


def capped_by_torch(ends: Tensor, offsets: Tensor, rows: Tensor, at_most: int) -> Tensor:
    """`capped`, of flags."""
    return packed(flags_capped(flags_of(ends, rows), row_example(offsets, rows), at_most))


def _kernels() -> Any:
    # Here, because a model on a CPU has cuts too, without Triton.
    from . import cut_scan_kernels

    return cut_scan_kernels
