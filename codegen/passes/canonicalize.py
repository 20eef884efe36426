"""One form for what can be written in several: steps that change nothing go away.

    expand(x, like, (4, 16))  ->  x      to(x, float32)  ->  x      permute(x, (0, 1))  ->  x

for an x that has these sizes, this type, this order already. Later passes rely on it: what is left of these functions
does something.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from ..facts import Fact, facts
from ..functions import packing
from .matching import replace

_MAY_DO_NOTHING = (
    packing.expand, torch.Tensor.to, torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, operator.getitem,
)  # fmt: skip


def canonicalize(module: fx.GraphModule) -> None:
    known = facts(module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        operand = node.args[0]
        if _does_nothing(node, known.get(node), known.get(operand)):
            replace(node, operand)


def _does_nothing(node: fx.Node, result: Fact | None, operand: Fact | None) -> bool:
    if result is None or operand is None:
        return False
    if node.target is torch.permute:
        order = node.args[1]
        return isinstance(order, tuple | list) and list(order) == list(range(len(order)))
    return node.target in _MAY_DO_NOTHING and result == operand
