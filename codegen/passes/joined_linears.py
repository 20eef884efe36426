"""Linears of one input are one product on a GPU, where the weights can lie behind one another (gpu/joined.py).

    q = linear(x, a); k = linear(x, b)      ->      q, k = joined_linears(x, a, b)

It copies nothing: neither weights in a step nor results, whose readers take columns of a wider tensor as they are.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace as replace_fields

import torch
from torch import fx
from torch.nn import functional

from ...dsl.program import Weight
from ..facts import FACT, Fact, facts
from ..functions.adjoining import lay_out
from ..gpu.joined import joined_linears
from ..grouped.op import GroupedOp, weights_of
from ..origin import inherit, mark, origin
from .cpu_linears import is_plain_linear, weight_at
from .matching import is_call, node_at, replace


def join_linears_on_gpu(module: fx.GraphModule) -> None:
    """Groups by input. The data of a group's weights is moved, once; a weight that two groups want stays with the
    first, unless they want the same ones."""
    groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if is_call(node, functional.linear) and is_plain_linear(node):
            groups[node_at(node, 0)].append(node)
    known = facts(module)
    placed: set[torch.nn.Parameter] = set()
    together: set[tuple[str, ...]] = set()
    for linears in groups.values():
        if _targets(linears) not in together:
            wanted = {weight_at(module, node_at(node, 1)): node for node in linears}
            linears = [node for weight, node in wanted.items() if weight not in placed]
            placed.update(wanted)
            weights = [weight_at(module, node_at(node, 1)) for node in linears]
            if len(linears) < 2 or len({weight.dtype for weight in weights}) > 1:
                continue
            lay_out(weights)
            together.add(_targets(linears))
        _join(module, linears, known)


def _targets(linears: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(str(node_at(node, 1).target) for node in linears)


def _join(module: fx.GraphModule, linears: list[fx.Node], known: dict[fx.Node, Fact]) -> None:
    graph, first = module.graph, linears[0]
    with graph.inserting_before(first):
        weights = [inherit(graph.get_attr(str(node.target)), node) for node in (node_at(n, 1) for n in linears)]
        joined = inherit(graph.call_function(joined_linears, (first.args[0], *weights)), first)
        mark(joined, replace_fields(origin(joined), value=None))  # its parts compute values
        taken = [graph.call_function(operator.getitem, (joined, place)) for place in range(len(linears))]
    for node, part in zip(linears, taken, strict=True):
        if node in known:
            part.meta[FACT] = known[node]
        replace(node, inherit(part, node))


def joined_paths(module: fx.GraphModule) -> list[tuple[str, ...]]:
    """The paths of weights that a graph reads as one matrix each."""
    found = []
    for node in module.graph.nodes:
        if is_call(node, joined_linears):
            found.append(_paths(node.args[1:]))
        elif isinstance(node.target, GroupedOp) and node.target.form.pieces > 1:
            weights, pieces = weights_of(node), node.target.form.pieces
            found += [_paths(weights[start : start + pieces]) for start in range(0, len(weights), pieces)]
    return [paths for paths in found if paths]


def _paths(weights: Iterable[object]) -> tuple[str, ...]:
    values = [origin(weight).value for weight in weights if isinstance(weight, fx.Node)]
    return tuple(value.path for value in values if isinstance(value, Weight))
