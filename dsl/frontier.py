"""The causal frontier: how far into a source the rows of a value may look (SEMANTICS 6).

The elements and their order are in `frontier_elements`, one rule per operator in `frontier_rules`, masks and `attend`
in `reach`; this is the name under which an op reads them. An op's `frontier` is one call:

    frontier=frontier.row_wise
    frontier=lambda node, operands: frontier.previous(operands[0], node.attrs.k, node.attrs.along)
    frontier=lambda node, operands: frontier.reduce_over_axis(operands[0], node.attrs.over)

A rule that groups rows by a cut needs `ends`: the frontier of the value the `segment` node makes. An operator that
does so has that value among its inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .frontier_elements import (
    ALL,
    NONE,
    Frontier,
    Kind,
    counted_in,
    end,
    first,
    join,
    last,
    least,
    leq,
    row,
    settle,
    touches,
)
from .frontier_rules import (
    Segments,
    contract,
    conv,
    conv_strided,
    following,
    gather_by_data,
    join_selections,
    length_of,
    pool,
    previous,
    reduce_over_axis,
    rename,
    row_number,
    scan,
    segment_by_flags,
    segment_by_lengths,
    segment_by_value,
    segment_index,
    segments,
    shown_rows,
    spread,
    take,
    to_example,
)
from .reach import (
    AllOf,
    AnyOf,
    Difference,
    Everything,
    IndexDifference,
    Reach,
    Same,
    attend,
    attend_keys,
    reach_of,
)

if TYPE_CHECKING:
    from .program import Node

__all__ = [
    "ALL", "NONE", "AllOf", "AnyOf", "Difference", "Everything", "Frontier", "IndexDifference", "Kind", "Reach", "Same",
    "Segments", "attend", "attend_keys", "contract", "conv", "conv_strided", "counted_in", "end", "first", "following",
    "gather_by_data", "join", "join_selections", "last", "least", "length_of", "leq", "no_data", "pool", "previous",
    "reach_of", "reduce_over_axis", "rename", "row", "row_number", "row_wise", "scan", "segment_by_flags",
    "segment_by_lengths", "segment_by_value", "segment_index", "segments", "settle", "shown_rows", "spread", "take",
    "to_example", "touches",
]  # fmt: skip


def row_wise(node: Node, operands: tuple[Frontier, ...]) -> Frontier:
    """The rule of pointwise operators, `linear` over static axes, `embed`, `where`, gathers down: row by row."""
    return join(*operands)


def no_data(node: Node, operands: tuple[Frontier, ...]) -> Frontier:
    """The rule of `position` along an axis that is given, and of draws."""
    return NONE
