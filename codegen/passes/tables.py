"""Trained tables are read by an operator whose gradient is a sum by sorted ids.

    embedding(ids, table)  ->  tables.embedding(ids, table)

Torch's own gradient adds rows with atomics where ids repeat, in any order. A table that no gradient reaches is read as
it was.
"""

from __future__ import annotations

from torch import fx
from torch.nn import functional

from ..facts import facts
from ..functions import gathers
from ..gpu import tables
from .fuse import needs_gradient

# The function, and which operand is the table.
_READERS = {functional.embedding: (tables.embedding, 1), gathers.rows_of_table: (tables.read_rows, 0)}


def read_tables(module: fx.GraphModule) -> None:
    wanted = needs_gradient(module, facts(module))
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in _READERS or len(node.args) != 2 or node.kwargs:
            continue
        function, place = _READERS[node.target]
        if node.args[place] in wanted:
            node.target = function
