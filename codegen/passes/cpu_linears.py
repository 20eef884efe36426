"""What linears read and write on a CPU.

Linears of one input are one product over weights that lie behind one another (cpu/joined.py); a gate and its partner
are then the two halves of one tensor, which `gated_unit` reads and fills with gradients in place.

    gate = linear(x, a); up = linear(x, b); silu(gate) * up    ->    gated_unit(joined_linear(x, a, b))
    linear(x, w)                                               ->    the faster of torch's two matrix libraries
"""

from __future__ import annotations

import operator
from collections import defaultdict

import torch
from torch import fx
from torch.nn import functional

from ..cpu.joined import joined_linear
from ..cpu.linear import linear
from ..cpu.rowwise import gated_unit
from ..functions.adjoining import lay_out
from ..origin import inherit
from .matching import arguments, bare, is_call, is_weight, node_at, only_reader, products, replace


def join_linears(module: fx.GraphModule) -> None:
    """Groups by input. The data of a group's weights is moved, so that no step has to join them."""
    groups: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in module.graph.nodes:
        if is_call(node, functional.linear) and is_plain_linear(node):
            groups[node_at(node, 0)].append(node)
    kept = [linears for linears in groups.values() if len(linears) > 1]
    for linears in kept:
        weights = [weight_at(module, node_at(node, 1)) for node in linears]
        if weights[0].device.type == "cpu":
            lay_out(weights)
        _join(module, linears)


def is_plain_linear(node: fx.Node) -> bool:
    """Without bias, over a weight straight from the tree."""
    return node.args[2:] in ((), (None,)) and not node.kwargs and is_weight(node.args[1])


def _join(module: fx.GraphModule, linears: list[fx.Node]) -> None:
    graph = module.graph
    sizes = tuple(weight_at(module, node_at(node, 1)).shape[0] for node in linears)
    first = linears[0]
    with graph.inserting_before(first):
        weights = [inherit(graph.get_attr(str(node.target)), node) for node in (node_at(n, 1) for n in linears)]
        joined = inherit(graph.call_function(joined_linear, (first.args[0], *weights)), first)
        parts = inherit(graph.call_function(torch.split, (joined, sizes, -1)), first)
        taken = [graph.call_function(operator.getitem, (parts, i)) for i in range(len(linears))]
    for node, part in zip(linears, taken, strict=True):
        replace(node, inherit(part, node))


def weight_at(module: fx.GraphModule, node: fx.Node) -> torch.nn.Parameter:
    """The parameter a `get_attr` node reads."""
    value: object = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.nn.Parameter)
    return value


ACTIVATIONS = {functional.silu: "silu", functional.gelu: "gelu", torch.sigmoid: "sigmoid", torch.relu: "relu"}


def recognise_gates(module: fx.GraphModule) -> None:
    """After `join_linears`: both factors are halves of one product with two parts of equal size."""
    graph = module.graph
    for node in list(graph.nodes):
        for activated, up in products(node):
            found = _gate(activated, up, node)
            if found is None:
                continue
            joined, name, gate_first = found
            with graph.inserting_before(node):
                new = inherit(graph.call_function(gated_unit, (joined, name, gate_first)), node)
            replace(node, new)
            break


def _gate(activated: object, up: object, node: fx.Node) -> tuple[fx.Node, str, bool] | None:
    if not isinstance(activated, fx.Node) or activated.target not in ACTIVATIONS or only_reader(activated) is not node:
        return None
    is_tanh = activated.kwargs.get("approximate") == "tanh"
    name = "gelu_tanh" if is_tanh else ACTIVATIONS[activated.target]
    gate = bare(activated.args[0])
    first, second = arguments(gate, operator.getitem), arguments(up, operator.getitem)
    if first is None or second is None or first[0] is not second[0]:
        return None
    if not is_call(first[0], torch.split, torch.split_with_sizes):
        return None
    joined, sizes, _ = first[0].args
    if len(sizes) != 2 or sizes[0] != sizes[1] or only_reader(gate) is not activated:
        return None
    return joined, name, first[1] == 0


def choose_linears(module: fx.GraphModule) -> None:
    """Last: what is left of `functional.linear` over unconverted operands goes through cpu/linear.py."""
    for node in module.graph.nodes:
        if is_call(node, functional.linear) and not node.kwargs:
            node.target = linear
