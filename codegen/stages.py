"""A graph in stages, each run within the levels of the weight tree that it reads.

    y = linear(x, layer.0.w); z = relu(y); u = linear(z, layer.1.w)     with layer.0 and layer.1 as levels

    y = stage(layer.0: linear(x, w)); z = relu(y); u = stage(layer.1: linear(z, w))

So that weights which lie on several ranks are in memory as a whole for a stage only (runtime/shards.py hooks onto
`WeightTree.within`). Whatever reads other weights runs within the root. What is computed from weights alone, such as
their conversion to another type, is computed in each stage that reads it: it must not outlive the weights.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import fx

from .passes.matching import is_weight
from .weight_tree import WeightTree

ROOT = "weights."  # what the name of a weight begins with in a graph


class Stage(torch.nn.Module):
    """A stretch of a graph, and the levels that it is run within."""

    def __init__(self, levels: Sequence[WeightTree], body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body
        # A tuple, which is no place for submodules: the levels stay those of the one tree.
        self.levels = tuple(levels)

    def forward(self, *values: Any) -> Any:
        run: Callable[..., Any] = self.body
        for level in self.levels:
            run = partial(level.within, run)
        return run(*values)


def cut_into_stages(module: fx.GraphModule, root: WeightTree, levels: Mapping[str, WeightTree]) -> fx.GraphModule:
    """A module with the same arguments and results. `levels` by path; none is below another."""
    weights = _weights_below(module, levels)
    if not weights:
        return module
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    steps = [node for node in module.graph.nodes if node not in weights and node.op not in ("placeholder", "output")]
    outer = _Part(module, weights)
    outer.take(inputs)
    for place, nodes in _stretches(steps, weights):
        if not place:
            outer.copy(nodes)
            continue
        given, made = _crossing(nodes, weights)
        body = _Part(module, weights)
        body.take(given)
        body.copy(nodes)
        outer.call(Stage([levels[path] for path in sorted(place)], body.finish(made)), given, made)
    results = module.graph.output_node().args[0]
    whole = _Part(module, weights)
    whole.take(inputs)
    whole.call(Stage([root], outer.finish(results)), inputs, results)
    return whole.finish(results)


_Place = frozenset[str]


def _weights_below(module: fx.GraphModule, levels: Mapping[str, WeightTree]) -> dict[fx.Node, _Place]:
    """Weights and what is computed from them alone, with the levels that they belong to."""
    found: dict[fx.Node, _Place] = {}
    for node in module.graph.nodes:
        if is_weight(node):
            path = str(node.target).removeprefix(ROOT)
            found[node] = frozenset(level for level in levels if path.startswith(f"{level}."))
            continue
        read = node.all_input_nodes
        if node.op == "call_function" and read and all(one in found for one in read):
            found[node] = frozenset[str]().union(*(found[one] for one in read))
    return found


def _stretches(steps: Sequence[fx.Node], weights: Mapping[fx.Node, _Place]) -> Iterator[tuple[_Place, list[fx.Node]]]:
    """The steps in order, cut where other levels are read: each stretch from the first reader to the last."""
    wanted = [frozenset[str]().union(*(weights.get(read, ()) for read in node.all_input_nodes)) for node in steps]
    readers = [i for i, place in enumerate(wanted) if place]
    begun = 0
    for place, group in groupby(readers, key=lambda i: wanted[i]):
        of_place = list(group)
        yield frozenset(), list(steps[begun : of_place[0]])
        begun = of_place[-1] + 1
        yield place, list(steps[of_place[0] : begun])
    yield frozenset(), list(steps[begun:])


def _crossing(nodes: Sequence[fx.Node], weights: Mapping[fx.Node, _Place]) -> tuple[list[fx.Node], tuple[fx.Node, ...]]:
    """What a stretch reads of others, and what others read of it."""
    inside = set(nodes)
    read = dict.fromkeys(read for node in nodes for read in node.all_input_nodes)
    given = [node for node in read if node not in inside and node not in weights]
    return given, tuple(node for node in nodes if any(user not in inside for user in node.users))


@dataclass(eq=False)
class _Part:
    """A graph that is being written from nodes of another."""

    module: fx.GraphModule
    weights: Mapping[fx.Node, _Place]
    graph: fx.Graph = field(default_factory=fx.Graph)
    copies: dict[fx.Node, fx.Node] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)

    def take(self, nodes: Sequence[fx.Node]) -> None:
        """Its arguments."""
        for node in nodes:
            self.copies[node] = self.graph.placeholder(node.name)
            self.copies[node].meta = dict(node.meta)

    def copy(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            self.copies[node] = self.graph.node_copy(node, self._copied)

    def _copied(self, node: fx.Node) -> fx.Node:
        if node not in self.copies:
            assert node in self.weights, "read before it is made"
            self.copies[node] = self.graph.node_copy(node, self._copied)
        return self.copies[node]

    def call(self, stage: Stage, given: Sequence[fx.Node], made: Any) -> None:
        """`made`: nodes in tuples, as the stage returns them."""
        name = f"stage_{len(self.stages)}"
        self.stages[name] = stage
        self._unpack(self.graph.call_module(name, tuple(self._copied(node) for node in given)), made)

    def _unpack(self, result: fx.Node, made: Any) -> None:
        if isinstance(made, fx.Node):
            self.copies[made] = result
        elif isinstance(made, tuple | list):
            for place, one in enumerate(made):
                self._unpack(self.graph.call_function(operator.getitem, (result, place)), one)

    def finish(self, results: Any) -> fx.GraphModule:
        self.graph.output(fx.map_arg(results, self._copied))
        finished = fx.GraphModule(torch.nn.Module(), fx.Graph(), class_name=type(self.module).__name__)
        finished.weights = self.module.weights
        for name, stage in self.stages.items():
            finished.add_module(name, stage)
        finished.graph = self.graph
        finished.meta.update(self.module.meta)
        return finished
