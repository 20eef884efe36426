"""Reshapes that undo each other go away.

flatten(unflatten(x, -1, (4, 32)), -2)   ->   x
"""

from __future__ import annotations

import torch
from torch import fx

from .matching import is_call, replace


def cancel_reshapes(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if not is_call(node, torch.flatten) or len(node.args) < 2:
            continue
        inner, start = node.args[0], node.args[1]
        if is_call(inner, torch.unflatten) and inner.args[1] == -1 and start == -len(inner.args[2]):
            replace(node, inner.args[0])
