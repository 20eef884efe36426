"""Tables in slow memory are asked for the rows that a call reads, which are then all of the table that it sees.

    y = bag(values, index, w)       ->      rows, place = tier(index); y = bag(rows, place, w)

Nothing is said of where the table lies: who attached the tier knows (runtime/hot_rows.py).
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional

from ..facts import FACT, Fact, facts
from ..functions import gathers, row_tables
from ..functions.row_tiers import RowTier, row_tier
from ..origin import inherit
from .tables import weight_below

# The function, which operand is the table, and which the index.
_READERS = {
    functional.embedding: (1, 0),
    gathers.rows_of_table: (0, 1),
    gathers.bag: (0, 1),
    row_tables.products_of_rows: (0, 1),
}


def read_from_tiers(module: fx.GraphModule) -> None:
    known = facts(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in _READERS or node.kwargs:
            continue
        place, of_index = _READERS[node.target]
        is_matrix = node.target is functional.embedding
        table, dtype = weight_below(node.args[place], may_be_matrix=is_matrix)
        tier = None if table is None else row_tier(module.get_parameter(str(table.target)))
        index = node.args[of_index]
        if tier is None or table is None or not isinstance(index, fx.Node):
            continue
        with module.graph.inserting_before(node):
            rows, where = _asked(module.graph, tier, index, known[table], known.get(index))
            if is_matrix:
                rows = module.graph.call_function(torch.flatten, (rows, 1))
            if dtype is not None:
                rows = module.graph.call_function(torch.Tensor.to, (rows, dtype))
        for made in {rows, where}:
            inherit(made, node)
        operands = list(node.args)
        operands[place], operands[of_index] = rows, where
        node.args = tuple(operands)


def _asked(
    graph: fx.Graph, tier: RowTier, index: fx.Node, of_table: Fact, of_index: Fact | None
) -> tuple[fx.Node, fx.Node]:
    """Of the rows there are at most as many as the table has."""
    call = graph.call_function(tier, (index,))
    rows, where = (graph.call_function(operator.getitem, (call, number)) for number in (0, 1))
    rows.meta[FACT] = of_table
    if of_index is not None:
        where.meta[FACT] = of_index
    return rows, where
