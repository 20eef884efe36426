"""Sums of rows of tables, and products with rows, go to kernels; who reads one table shares one sum of its gradient.

bag(values, i, w), bag(values, j, u)
    ->  shared = share(values, 2); bag(values, i, w, shared=shared, reader=0), bag(values, j, u, ..., reader=1)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..functions import gathers, row_tables
from ..gpu import shared_tables
from ..origin import inherit
from .matching import is_weight

_KERNELS: dict[Any, Any] = {
    gathers.bag: shared_tables.bag,
    row_tables.bag: shared_tables.bag,
    row_tables.products_of_rows: shared_tables.products_of_rows,
}


def use_bag_kernels(module: fx.GraphModule) -> None:
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _KERNELS and not node.kwargs:
            node.target = _KERNELS[node.target]
            if is_weight(node.args[0]):
                readers.setdefault(node.args[0], []).append(node)
    for table, nodes in readers.items():
        if len(nodes) > 1 and module.get_parameter(str(table.target)).requires_grad:
            _share(module, table, nodes)


def _share(module: fx.GraphModule, table: fx.Node, readers: list[fx.Node]) -> None:
    with module.graph.inserting_after(table):
        shared = inherit(module.graph.call_function(shared_tables.share, (table, len(readers))), table)
    for number, reader in enumerate(readers):
        reader.kwargs = {"shared": shared, "reader": number}
