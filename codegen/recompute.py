"""Turns of loops that are computed again in the backward instead of being remembered.

    n = norm(x); s, i = top(q(n), keys); y = bag(values, i, s); z = x + y * gate(n)

    n, q = turn_0(x); s, i = top(q, keys); y = bag(values, i, s); z = turn_1(x, y, n)

A stretch of a turn is all of it that can run without a break, and a module of its own. Of that, autograd keeps what
enters, and runs it again when the backward comes to it. What may run only once (passes/recomputation.py) stays where
it was, between stretches, so nothing here has to know what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from .origin import inherit
from .passes.fuse import VIEWS
from .passes.matching import is_weight
from .passes.recomputation import turn_of
from .stages import Stage

# Steps of a stretch: of one alone nothing lies between what enters and what leaves.
FEWEST = 2


class Turn(torch.nn.Module):
    """A stretch of a graph whose values are not kept for the backward. Draws are functions of a counter, so there is
    no state of a generator to go back to."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *values: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.body(*values)
        return checkpoint(self.body, *values, use_reentrant=False, preserve_rng_state=False)


def recompute_turns(module: fx.GraphModule) -> fx.GraphModule:
    """Changes the module, whose nodes are marked, in place. Those of stages are cut out within their stage, because
    only there weights are at hand as a whole."""
    for part in list(module.children()):
        if isinstance(part, Stage):
            recompute_turns(part.body)
    graph = module.graph
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    home: dict[fx.Node, int] = {}
    for number, (stretch, in_turn) in enumerate(_in_stretches(steps)):
        for node in stretch:
            graph.output_node().prepend(node)
            if in_turn:
                home[node] = number
    _take_in_weights(graph, home)
    stretches: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in home:
            stretches.setdefault(home[node], []).append(node)
    for count, stretch in enumerate(stretches.values()):
        _cut_out(module, f"turn_{count}", stretch)
    for node in reversed(list(graph.nodes)):
        if is_weight(node) and not node.users:
            graph.erase_node(node)
    graph.lint()
    module.recompile()
    return module


def _in_stretches(steps: Sequence[fx.Node]) -> Iterator[tuple[list[fx.Node], bool]]:
    """All steps, in an order in which they can run: stretches of a turn, and what runs once. Both stand about where
    they stood."""
    left = dict.fromkeys(steps)
    ends = {turn_of(node): node for node in steps}
    while left:
        first = next(iter(left))
        turn = turn_of(first)
        if turn is None:
            stretch = [first]
        else:
            stretch = _stretch(list(left), turn, ends[turn])
            needed = _needed(left, stretch)
            for node in needed:
                del left[node]
            yield needed, False
        for node in stretch:
            del left[node]
        yield stretch, sum(node.target not in VIEWS for node in stretch) >= FEWEST and turn is not None


def _stretch(left: Sequence[fx.Node], turn: int, end: fx.Node) -> list[fx.Node]:
    """From the first step that is left, what of its turn waits for nothing that waits for the stretch itself, nor for
    another turn."""
    taken: dict[fx.Node, None] = {}
    later: set[fx.Node] = set()
    for node in left:
        reads = node.all_input_nodes
        if any(read in later for read in reads):
            later.add(node)
        elif turn_of(node) == turn:
            taken[node] = None
        elif turn_of(node) is not None or any(read in taken for read in reads):
            later.add(node)
        if node is end:
            break
    return list(taken)


def _needed(left: dict[fx.Node, None], stretch: Sequence[fx.Node]) -> list[fx.Node]:
    """What runs once and has to run before a stretch, in order."""
    inside, wanted = set(stretch), set()
    waiting = list(stretch)
    while waiting:
        for read in waiting.pop().all_input_nodes:
            if read in left and read not in inside and read not in wanted:
                wanted.add(read)
                waiting.append(read)
    return [node for node in left if node in wanted]


def _take_in_weights(graph: fx.Graph, home: dict[fx.Node, int]) -> None:
    """What is computed from weights alone, such as their conversion to another type, goes into the only stretch that
    reads it."""
    of_weights: dict[fx.Node, None] = {}
    for node in graph.nodes:
        reads = node.all_input_nodes
        if node.op == "call_function" and reads and all(is_weight(read) or read in of_weights for read in reads):
            of_weights[node] = None
    for node in reversed(of_weights):
        homes = {home.get(user) for user in node.users}
        only = next(iter(homes)) if len(homes) == 1 else None
        if node not in home and only is not None:
            home[node] = only


def _cut_out(module: fx.GraphModule, name: str, stretch: Sequence[fx.Node]) -> None:
    graph, inside = module.graph, set(stretch)
    reads = dict.fromkeys(read for node in stretch for read in node.all_input_nodes)
    given = [read for read in reads if read not in inside and not is_weight(read)]
    made = [node for node in stretch if any(user not in inside for user in node.users)]

    body, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in given:
        copies[node] = body.placeholder(node.name)
    for node in (*filter(is_weight, reads), *stretch):
        copies[node] = body.node_copy(node, lambda read: copies[read])
    results = tuple(copies[node] for node in made)
    body.output(results if len(made) > 1 else results[0])
    cut = fx.GraphModule(torch.nn.Module(), fx.Graph(), class_name=f"{type(module).__name__}_{name}")
    cut.weights = module.weights
    cut.graph = body
    module.add_module(name, Turn(cut))

    last = stretch[-1]
    with graph.inserting_after(last):
        call = inherit(graph.call_module(name, tuple(given)), last)
    found = [call]
    if len(made) > 1:
        with graph.inserting_after(call):
            found = [graph.call_function(operator.getitem, (call, place)) for place in range(len(made))]
    for node, result in zip(made, found, strict=True):
        node.replace_all_uses_with(inherit(result, node), delete_user_cb=lambda user: user not in inside)
    for node in reversed(stretch):
        graph.erase_node(node)
