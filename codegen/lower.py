"""Typed program to torch.fx: the unfused reference graph.

    model m(tokens: id[seq] in vocab) -> real[seq, vocab]      gm(tokens, seq_offsets) -> (output,)
    objective o(tokens: id[seq] in vocab): loss a = ...        gm(tokens, seq_offsets) -> (a_sum, a_count)

Arguments and results are described by `Signature`. Nothing is fused and nothing is shared beyond what the spec says,
except plans (which example a row is in, its position) and weights, which are read once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Cut, Selected
from ..dsl.program import Constant, LossTerm, Node, Program, Value, Weight
from .decisions import with_wide_values
from .facts import WORKING
from .functions import packing
from .graph_context import PER_EXAMPLE, CompilerBug, GraphContext
from .origin import Origin, origin
from .signature import Signature, signature_of
from .weight_tree import WeightTree

SIGNATURE = "weft_signature"


def lower(
    program: Program,
    weights: WeightTree | None = None,
    working: torch.dtype = torch.float32,
    stored: torch.dtype | None = None,
) -> fx.GraphModule:
    """The reference graph of a program.

    `weights` is the tree the graph reads its parameters from (shared with other graphs of the same model); without it
    a tree of uninitialised parameters is made. `working` is the type reals are computed in, `stored` that of the
    weights if it differs.
    """
    stored = stored or working
    program = with_wide_values(program, working)
    context = GraphContext(program.inputs, program.ordered_axes, working, stored)
    results = (value for _, value in program.outputs)
    kept = live_nodes(program, (*results, *loss_values(program.losses)))
    for node in kept:
        context.lower(node, node.op.lower)
    returned: list[Any] = [whole_result(context, value) for _, value in program.outputs]
    for axis in program.born_axes:
        context.under(Origin(axis.span, PER_EXAMPLE))
        returned.append(context.edges(axis))
    for term in program.losses:
        returned += _loss(context, term)
    context.finish(returned)
    signature = signature_of(program, draws=context.draws)
    tree = weights or empty_weights(program.weights, stored)
    return graph_module(context.graph, tree, signature, program.name, working)


def graph_module(
    graph: fx.Graph, weights: WeightTree, signature: Signature, name: str, working: torch.dtype
) -> fx.GraphModule:
    """A module that runs the graph on a tree of weights. The tree is referred to, never copied: graphs of one model
    share it. `working` is the type in which the graph computes reals."""
    graph.lint()
    module = fx.GraphModule(torch.nn.Module(), fx.Graph(), class_name=f"{name}_graph")
    module.weights = weights
    # Set after the tree is there: the constructor would copy each weight it finds into modules of its own.
    module.graph = graph
    module.meta[SIGNATURE] = signature
    module.meta[WORKING] = working
    return module


def signature(module: fx.GraphModule) -> Signature:
    return module.meta[SIGNATURE]


def empty_weights(
    weights: Iterable[Weight], dtype: torch.dtype, device: torch.device | str | None = None
) -> WeightTree:
    """Parameters of the right shapes, not initialised; those that training leaves alone ask for no gradient."""
    tree = WeightTree()
    for weight in weights:
        data = torch.empty(weight.stored_shape, dtype=dtype, device=device)
        tree.add(weight.path, torch.nn.Parameter(data, requires_grad=not weight.frozen))
    return tree


def loss_values(losses: Iterable[LossTerm]) -> tuple[Value, ...]:
    return tuple(value for term in losses for value in (term.value, term.only) if value is not None)


def live_nodes(program: Program, wanted: Iterable[Value]) -> tuple[Node, ...]:
    """The nodes that the wanted values need, in order. A binding nobody reads costs nothing."""
    needed = set(wanted)
    kept: list[Node] = []
    for node in reversed(program.nodes):
        if any(value in needed for value in node.outputs):
            kept.append(node)
            needed.update(node_reads(node))
    return tuple(reversed(kept))


def node_reads(node: Node) -> tuple[Value, ...]:
    """Every value a node depends on: its inputs, and the tags of the arms that it is in."""
    axes = [axis for value in node.outputs for axis in value.type.axes]
    tags: list[Value] = []
    while axes:
        kind = axes.pop().kind
        if isinstance(kind, Selected | Cut):
            axes.append(kind.parent)
        if isinstance(kind, Selected) and kind.by is not None:
            tags.append(kind.by)
    groups = [value.type.group for value in node.outputs]
    while groups:
        group = groups.pop()
        if group is not None:
            tags.append(group.by)
            groups.append(group.parent)
    return (*node.inputs, *tags)


def whole_result(context: GraphContext, value: Value) -> Any:
    """A value as a result of the graph: in its own layout, also when it is a constant or a weight, rounded to the
    working type."""
    context.under(Origin(value.span, value.type))
    if isinstance(value, Constant):
        return context.full(value, (), None)
    if isinstance(value, Weight) and value.outputs:
        return context.aligned(value, value.type.static_axes, None)
    return context.read(value)


def _loss(context: GraphContext, term: LossTerm) -> list[fx.Node]:
    """The sum over the rows that count and their number, so that micro-batches and ranks are added before the
    division."""
    # Precise: a loss is never rounded to the working type before it is added up.
    context.under(Origin(term.span, term.value.type, precise=True))
    rows = term.value.type.rows
    value: Any = (
        context.read(term.value) if not isinstance(term.value, Constant) else context.full(term.value, (), None)
    )
    keep = context.present(term.value)
    if term.only is not None:
        if isinstance(term.only, Constant):
            only: Any = context.full(term.only, (), rows, term.value.type.per_example)
        else:
            only = context.aligned(term.only, (), rows, term.value.type.per_example)
        there = context.present(term.only)
        for flags in (only, there):
            if flags is not None:
                keep = flags if keep is None else context.call(torch.logical_and, keep, flags)
    return [context.call(packing.loss_sum, value, keep), context.call(packing.loss_count, value, keep)]


def graph_text(module: fx.GraphModule) -> str:
    """The graph for people: one line per node with its type and the spec line it serves."""
    rows: list[tuple[str, str, str]] = []
    for node in module.graph.nodes:
        known = origin(node)
        type_ = str(known.type) if known.type is not None and known.value is not None else ""
        place = "" if known.span is None else f"{known.span.source.name}:{known.span.line}"
        rows.append((_line(node), type_, place))
    if not rows:
        raise CompilerBug("a graph without nodes")
    width = min(max(len(row[0]) for row in rows), 96)
    types = max(len(row[1]) for row in rows)
    return "\n".join(f"{line:<{width}}  {type_:<{types}}  {place}".rstrip() for line, type_, place in rows) + "\n"


def _line(node: fx.Node) -> str:
    match node.op:
        case "placeholder":
            return f"{node.name} = argument"
        case "get_attr":
            return f"{node.name} = weight {str(node.target).removeprefix('weights.')}"
        case "output":
            return f"return {_text(node.args[0])}"
        case _:
            arguments = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
            name = getattr(node.target, "__name__", str(node.target))
            return f"{node.name} = {name}({', '.join(arguments)})"


def _text(argument: object) -> str:
    match argument:
        case fx.Node():
            return argument.name
        case tuple() | list():
            return "(" + ", ".join(map(_text, argument)) + ("," if len(argument) == 1 else "") + ")"
        case slice(start=None, stop=None, step=None):
            return ":"
        case _:
            return str(argument)
