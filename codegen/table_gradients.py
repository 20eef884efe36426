"""Which tables of a graph have gradients that are summed row by row: their width and type."""

from __future__ import annotations

from math import prod

import torch
from torch import fx

from .facts import facts
from .gpu import tables
from .rowwise.fused import FusedOp

# Which operand is the table.
_READERS = {tables.embedding: 1, tables.read_rows: 0}


def tables_added(module: fx.GraphModule) -> dict[tuple[int, torch.dtype], list[fx.Node]]:
    """Entries and type of the rows that are added up, with the nodes they belong to; before kernels are attached."""
    found: dict[tuple[int, torch.dtype], list[fx.Node]] = {}
    known = None
    for node in module.graph.nodes:
        op = node.target
        if isinstance(op, FusedOp) and op.derivative is not None:
            for gathered in (g for g in op.derivative.gathered if not g.in_runs):
                made = op.derivative.program.results[gathered.rows]
                found.setdefault((made.dims[-1] if made.dims else 1, made.dtype), []).append(node)
        elif op in _READERS:
            known = known or facts(module)
            table = known.get(node.args[_READERS[op]])
            if table is not None:
                found.setdefault((prod(table.dims[1:]), table.dtype), []).append(node)
    return found
