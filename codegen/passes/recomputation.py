"""What a backward may compute again: marked here, cut out of the graph by recompute.py.

A node is marked with the turn of the outermost loop that it stands in. Not marked, and so computed once, is

    what no gradient passes through    draws, plans, the order of rows: its number is small, or all turns share it
    what was selected                  sorting is dear, and scores that were computed again might be sorted otherwise
    what is read of a table            an optimiser is told of its readers once, ranks exchange rows once
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.nn import functional

from ...dsl.program import Scope
from ..bags.op import BagOp
from ..cpu import few_scores
from ..cpu import selection as cpu_selection
from ..facts import facts
from ..functions import gathers, row_tables
from ..gpu import selection as gpu_selection
from ..gpu import shared_tables, tables
from ..origin import origin
from .fuse import needs_gradient
from .tables import weight_below

_TURN = "weft_turn"

SELECTIONS: frozenset[Callable[..., Any]] = frozenset({
    gathers.top, gathers.top_pairs, gathers.nearest, few_scores.top, few_scores.top_pairs, cpu_selection.top,
    cpu_selection.top_pairs, gpu_selection.top, gpu_selection.top_pairs,
})  # fmt: skip
# The function, and which operand is what it reads. Of a weight, that is a table.
READERS: dict[Any, int] = {
    functional.embedding: 1, gathers.rows_of_table: 0, gathers.bag: 0, row_tables.embedding: 1,
    row_tables.rows_of_table: 0, row_tables.bag: 0, row_tables.products_of_rows: 0, tables.embedding: 1,
    tables.read_rows: 0, shared_tables.bag: 0, shared_tables.products_of_rows: 0,
}  # fmt: skip


def mark_turns(module: fx.GraphModule) -> None:
    wanted = needs_gradient(module, facts(module))
    numbers: dict[Scope, int] = {}
    for node in module.graph.nodes:
        place = _outermost_turn(origin(node).scope)
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            node.meta[_TURN] = turn_of(node.args[0])  # one of several results stays with the call, whoever reads it
        elif place is not None and node.op == "call_function" and node in wanted and not _is_kept(node):
            node.meta[_TURN] = numbers.setdefault(place, len(numbers))


def turn_of(node: fx.Node) -> int | None:
    """The turn that a node is computed again with; None for one that is computed once."""
    return node.meta.get(_TURN)


def _outermost_turn(scope: Scope) -> Scope | None:
    """The way to the first turn of a loop: a block may be called twice."""
    for depth, frame in enumerate(scope, 1):
        if frame.index is not None:
            return scope[:depth]
    return None


def _is_kept(node: fx.Node) -> bool:
    if node.target in SELECTIONS or isinstance(node.target, BagOp):
        return True
    place = READERS.get(node.target)
    return place is not None and weight_below(node.args[place], may_be_matrix=True)[0] is not None
