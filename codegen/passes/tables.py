"""Trained tables are read by functions that know what to do with a gradient of a few rows.

    embedding(ids, table)  ->  tables.embedding(ids, table)         on a GPU: a sum by sorted ids
    bag(table, ids, w)     ->  row_tables.bag(table, ids, w)        anywhere: rows for an optimiser that asks for them

Torch's own gradient adds rows with atomics where ids repeat, in any order. A table that no gradient reaches is read as
it was.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional

from ..facts import facts
from ..functions import gathers, row_tables
from ..gpu import tables
from ..origin import inherit
from .fuse import needs_gradient
from .matching import is_call, node_at, replace

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


# What reads rows, what it becomes, and which operand is the table.
_BY_ROWS = {
    functional.embedding: (row_tables.embedding, 1),
    gathers.rows_of_table: (row_tables.rows_of_table, 0),
    gathers.bag: (row_tables.bag, 0),
}


def read_by_rows(module: fx.GraphModule) -> None:
    """Tables that are weights. A table is converted to the type of the computation after it was read, not before."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in _BY_ROWS or node.kwargs:
            continue
        function, place = _BY_ROWS[node.target]
        table, dtype = weight_below(node.args[place], may_be_matrix=node.target is functional.embedding)
        if table is None or not module.get_parameter(str(table.target)).requires_grad:
            continue
        if not is_read_by_rows(module, table) and node.target is not gathers.bag:
            continue
        operands = tuple(table if i == place else operand for i, operand in enumerate(node.args))
        with module.graph.inserting_before(node):
            read = inherit(module.graph.call_function(function, operands), node)
            if dtype is not None:
                read = inherit(module.graph.call_function(torch.Tensor.to, (read, dtype)), node)
        replace(node, read)


def multiply_rows(module: fx.GraphModule) -> None:
    """`dot(x, table[index])`: of rows that are read for one product each, the products alone are stored."""
    for node in list(module.graph.nodes):
        if not is_call(node, torch.einsum) or len(node.args) != 3:
            continue
        equation = str(node.args[0])
        for x, rows in ((1, 2), (2, 1)):
            read = node.args[rows]
            if not is_call(read, gathers.rows_of_table, row_tables.rows_of_table) or len(read.users) > 1:
                continue
            table, dtype = weight_below(read.args[0])
            if table is None or dtype is not None or not _is_product_of_rows(equation, x == 1):
                continue
            if module.get_parameter(str(table.target)).dim() != 2:
                continue
            with module.graph.inserting_before(node):
                made = module.graph.call_function(row_tables.products_of_rows, (table, read.args[1], node.args[x]))
            replace(node, inherit(made, node))
            break


def _is_product_of_rows(equation: str, x_is_first: bool) -> bool:
    """Whether x has the rows' last axis last, and in front of it the first of theirs, in their order."""
    operands, result = equation.replace(" ", "").split("->")
    first, second = operands.split(",")
    x, rows = (first, second) if x_is_first else (second, first)
    return bool(rows) and rows[-1:] == x[-1:] and rows.startswith(x[:-1]) and result == rows[:-1]


def is_read_by_rows(module: fx.GraphModule, table: fx.Node) -> bool:
    """Whether an optimiser has asked for rows of this weight."""
    return row_tables.step_rows(module.get_parameter(str(table.target))) is not None


def weight_below(node: object, may_be_matrix: bool = False) -> tuple[fx.Node | None, torch.dtype | None]:
    """The weight that is read as it lies, but for its type, and the type it is read in; None: its own.
    `may_be_matrix`: its entries may also be laid out as rows of a matrix."""
    dtype = None
    while isinstance(node, fx.Node) and node.op == "call_function":
        if is_call(node, torch.Tensor.to) and isinstance(node.args[1], torch.dtype):
            dtype = dtype or node.args[1]
        elif not may_be_matrix or not is_call(node, torch.reshape):
            return None, None
        node = node_at(node, 0)
    return (node, dtype) if isinstance(node, fx.Node) and node.op == "get_attr" else (None, None)
