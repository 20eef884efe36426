"""Weights that no longer change are handed to a graph as arguments, and what is computed from them alone is computed
once.

    g = weight layer.0.norm.gain; flat = flatten(g); y = rms_norm(x, flat)      ->      y = rms_norm(x, argument)

For decoding steps, where looking a weight up in its tree costs as much as a small operation. The values stand in
`module.meta`, in the order of the arguments they follow; the graph must not be used after the weights have changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..origin import inherit
from .cpu_linears import weight_at
from .matching import is_weight, replace

_KEY = "weft_constants"
_VALUE = "weft_constant"

# Pure functions of shape and type that stand between a weight and its reader.
FOLDED = (torch.flatten, torch.unflatten, torch.permute, torch.Tensor.to)


def constants(module: fx.GraphModule) -> tuple[Any, ...]:
    """What a call of the graph passes after its own arguments."""
    return module.meta.get(_KEY, ())


def constant_value(module: fx.GraphModule, node: object) -> Any:
    """The value of an argument that `add_constant` made; None for anything else."""
    return node.meta.get(_VALUE) if isinstance(node, fx.Node) else None


def add_constant(module: fx.GraphModule, value: Any, source: fx.Node) -> fx.Node:
    """A new last argument of the graph that always has this value."""
    known = constants(module)
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    with module.graph.inserting_after(last):
        node = inherit(module.graph.placeholder(f"constant_{len(known)}"), source)
    node.meta[_VALUE] = value
    module.meta[_KEY] = (*known, value)
    return node


def lift_weights(module: fx.GraphModule) -> None:
    values: dict[fx.Node, torch.Tensor] = {}
    for node in list(module.graph.nodes):
        value = _value(module, node, values)
        if value is not None:
            values[node] = value
    readers = [node for node in module.graph.nodes if node not in values]
    wanted = dict.fromkeys(arg for node in readers for arg in node.all_input_nodes if arg in values)
    for node in wanted:
        replace(node, add_constant(module, values[node], node))


def _value(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> torch.Tensor | None:
    """What a node computes from weights alone; None for everything else."""
    if is_weight(node):
        return weight_at(module, node).detach()
    if node.op != "call_function" or node.target not in FOLDED:
        return None
    if not node.all_input_nodes or any(arg not in values for arg in node.all_input_nodes):
        return None
    args: list[Any] = [values[arg] if isinstance(arg, fx.Node) else arg for arg in node.args]
    function: Any = node.target
    return function(*args, **node.kwargs)
