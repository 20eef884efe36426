"""A decoding graph in stages: what is computed of segments that close is left out when none does.

    rows: embed, encoder, flags      at every call
    segments: pool, global layers    only if a segment closes in some sequence
    rows: decoder, logits            at every call

A stage of segments begins where rows have been decided to end one. Its results reach later rows through functions
that take None for "nothing closed" (functions/open_cuts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from ..dsl.axes import Axis
from .facts import WORKING
from .functions import open_cuts
from .lower import SIGNATURE, graph_module
from .origin import origin
from .passes.constants import constants
from .weight_tree import WeightTree

_EVERY_CALL, _GIVES_SEGMENTS = "weft_every_call", "weft_gives_segments"


def runs_every_call(node: fx.Node, flag: bool, gives_segments: bool = False) -> fx.Node:
    """Marks a call that runs also when no segment closes (or, with `flag` false, one that does not after all). What
    works on its result does not, if that is of segments."""
    node.meta[_EVERY_CALL], node.meta[_GIVES_SEGMENTS] = flag, gives_segments
    return node


@dataclass(frozen=True)
class Stage:
    """A part of the graph. `inputs` and `outputs` are names of values; `closing` names those that say which rows end a
    segment: without any such row the stage is left out. None: it always runs."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    closing: tuple[str, ...] | None


@dataclass(frozen=True)
class StagedGraph:
    """Stages in order, and the names of the arguments and the results of the whole."""

    stages: tuple[Stage, ...]
    arguments: tuple[str, ...]
    results: tuple[str, ...]

    def forward(self, *arguments: Any) -> tuple[Any, ...]:
        known = dict(zip(self.arguments, arguments, strict=True))
        for stage in self.stages:
            if stage.closing is not None and not any(known[name].shape[0] for name in stage.closing):
                known.update(dict.fromkeys(stage.outputs))
                continue
            given = [known[name] for name in stage.inputs]
            made = stage.module.forward(*given, *constants(stage.module))
            known.update(zip(stage.outputs, made, strict=True))
        return tuple(known[name] for name in self.results)

    def map(self, function: Callable[[fx.GraphModule], fx.GraphModule]) -> StagedGraph:
        """The graph with every stage's module replaced."""
        return replace(self, stages=tuple(replace(stage, module=function(stage.module)) for stage in self.stages))


DecodeGraph = fx.GraphModule | StagedGraph


def modules(graph: DecodeGraph) -> tuple[fx.GraphModule, ...]:
    return tuple(stage.module for stage in graph.stages) if isinstance(graph, StagedGraph) else (graph,)


def map_modules(graph: DecodeGraph, function: Callable[[fx.GraphModule], fx.GraphModule]) -> DecodeGraph:
    return graph.map(function) if isinstance(graph, StagedGraph) else function(graph)


def in_stages(module: fx.GraphModule, cuts: Iterable[Axis]) -> DecodeGraph:
    """The graph of a program with cuts as stages; the graph itself where there are none."""
    segments = frozenset(cuts)
    if not segments:
        return module
    stage_of = _stages(module.graph, segments)
    nodes = [node for node in module.graph.nodes if node in stage_of]
    (given,) = module.graph.output_node().args
    assert isinstance(given, tuple)
    results = [node for node in given if isinstance(node, fx.Node)]
    assert len(results) == len(given), "results are computed"
    closing = [node for node in nodes if node.target is open_cuts.closing]
    stages = []
    for number in range(max(stage_of.values(), default=0) + 1):
        own = [node for node in nodes if stage_of[node] == number]
        if own:
            wanted = set(results)
            # Later stages also look at which rows end a segment.
            wanted.update(node for node in closing if stage_of[node] == number)
            triggers = tuple(node.name for node in closing if stage_of[node] < number)
            stages.append(_stage(module, own, wanted, triggers if number % 2 else None))
    arguments = tuple(node.name for node in module.graph.nodes if node.op == "placeholder")
    return StagedGraph(tuple(stages), arguments, tuple(node.name for node in results))


def _stages(graph: fx.Graph, segments: frozenset[Axis]) -> dict[fx.Node, int]:
    """The stage of each call: even for rows, odd for segments; as early as what it reads allows."""
    stage: dict[fx.Node, int] = {}
    is_of_segments: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        read = [other for other in node.all_input_nodes if other in stage]
        every = node.meta.get(_EVERY_CALL)
        if every is not None:
            odd = not every
        else:
            odd = _plans(node, segments) or any(is_of_segments[r] or _gives_segments(r) for r in read)
        is_of_segments[node] = odd
        earliest = int(odd)
        for other in read:
            earliest = max(earliest, stage[other] + (is_of_segments[other] != odd))
        stage[node] = earliest
    return stage


def _gives_segments(node: fx.Node) -> bool:
    """Whether the result has an entry for each segment that closes, or for each of its rows."""
    return node.target is open_cuts.closing or node.meta.get(_GIVES_SEGMENTS, False)


def _plans(node: fx.Node, segments: frozenset[Axis]) -> bool:
    """Whether a node is a plan of segments: those belong to no expression."""
    known = origin(node)
    return known.node is None and known.type is not None and known.type.rows in segments


def _stage(module: fx.GraphModule, own: list[fx.Node], wanted: set[fx.Node], closing: tuple[str, ...] | None) -> Stage:
    graph = fx.Graph()
    here = set(own)
    made: dict[fx.Node, fx.Node] = {}
    read = dict.fromkeys(other for node in own for other in node.all_input_nodes if other not in here)
    inputs = [node for node in read if node.op != "get_attr"]
    for node in inputs:
        made[node] = graph.placeholder(node.name)
    for node in read:
        if node.op == "get_attr":
            made[node] = graph.get_attr(str(node.target))
    for node in own:
        made[node] = graph.node_copy(node, lambda other: made[other])
    for old, new in made.items():
        new.meta = dict(old.meta)
        if new.op != "placeholder" and new.name != old.name:
            new._rename(old.name)
    outputs = [node for node in own if node in wanted or any(user not in here for user in node.users)]
    output = graph.output(tuple(made[node] for node in outputs))
    output.meta = dict(module.graph.output_node().meta)
    shape, weights = module.meta[SIGNATURE], module.weights
    assert isinstance(weights, WeightTree)
    part = graph_module(graph, weights, shape, shape.name, module.meta[WORKING])
    return Stage(part, tuple(node.name for node in inputs), tuple(node.name for node in outputs), closing)
