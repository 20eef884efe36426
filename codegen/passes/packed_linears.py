"""For decoding on a CPU: linears over copies of their weights in the order in which a few rows read them fastest.

    q = linear(x, a); k = linear(x, b)      ->      q, k = split(packed(x))

The copies are made when the pass runs and are constants of the graph (constants.py), which must not be used after the
weights have changed.
"""

from __future__ import annotations

import operator
from collections import defaultdict

import torch
from torch import fx
from torch.nn import functional

from ..cpu.packed_linear import PackedLinear
from ..origin import inherit
from .constants import add_constant
from .cpu_linears import is_plain_linear, weight_at
from .matching import is_call, node_at, replace


def pack_linears(module: fx.GraphModule) -> None:
    groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if is_call(node, functional.linear) and is_plain_linear(node):
            groups[node_at(node, 0)].append(node)
    for linears in groups.values():
        _pack(module, linears)


def _pack(module: fx.GraphModule, linears: list[fx.Node]) -> None:
    graph, first = module.graph, linears[0]
    weights = [weight_at(module, node_at(node, 1)) for node in linears]
    joined = weights[0] if len(weights) == 1 else torch.cat([weight.detach() for weight in weights])
    packed = add_constant(module, PackedLinear(joined), first)
    with graph.inserting_before(first):
        result = inherit(graph.call_function(operator.call, (packed, first.args[0])), first)
        if len(linears) == 1:
            replace(first, result)
            return
        sizes = tuple(weight.shape[0] for weight in weights)
        parts = inherit(graph.call_function(torch.split_with_sizes, (result, sizes, -1)), first)
        taken = [graph.call_function(operator.getitem, (parts, i)) for i in range(len(linears))]
    for node, part in zip(linears, taken, strict=True):
        replace(node, inherit(part, node))
