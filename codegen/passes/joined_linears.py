"""Linears that read one input become one matrix product.

    q = linear(x, wq); k = linear(x, wk)      ->      both = linear(x, joined(wq, wk)); q, k = split(both)

Accepts linears without bias over weights of equal type. The joined weight is made when the module is called with
`prepare`; until then, and in training, it is a concatenation in the graph. Runs after common subexpressions, which
make the shared input one node.
"""

from __future__ import annotations

import operator
from collections import defaultdict

import torch
from torch import fx
from torch.nn import functional

from ..origin import inherit, origin
from ..weight_tree import WeightTree


def join_linears(module: fx.GraphModule) -> None:
    groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target is functional.linear and _is_plain(node):
            groups[node.args[0]].append(node)
    for linears in groups.values():
        if len(linears) > 1:
            _join(module, linears)


def _is_plain(node: fx.Node) -> bool:
    """`linear(x, weight)` without a bias, where the weight comes straight from the tree."""
    if len(node.args) < 2 or any(value is not None for value in (*node.args[2:], *node.kwargs.values())):
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


def _join(module: fx.GraphModule, linears: list[fx.Node]) -> None:
    graph = module.graph
    sizes = [_rows(module, node.args[1]) for node in linears]
    first = linears[0]
    with graph.inserting_before(first):
        weights = [graph.get_attr(node.args[1].target) for node in linears]
        for new, node in zip(weights, linears, strict=True):
            inherit(new, node.args[1])
        joined = inherit(graph.call_function(torch.cat, (tuple(weights),)), first)
        both = inherit(graph.call_function(functional.linear, (first.args[0], joined)), first)
        parts = inherit(graph.call_function(torch.split, (both, tuple(sizes), -1)), first)
        taken = [graph.call_function(operator.getitem, (parts, i)) for i in range(len(linears))]
    for node, part in zip(linears, taken, strict=True):
        part.meta = dict(node.meta)
        assert origin(part) == origin(node)
        node.replace_all_uses_with(part)
        graph.erase_node(node)


def _rows(module: fx.GraphModule, weight: fx.Node) -> int:
    value: WeightTree | torch.Tensor = module
    for part in str(weight.target).split("."):
        value = getattr(value, part)
    return value.shape[0]
