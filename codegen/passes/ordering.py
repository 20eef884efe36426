"""Nodes in an order in which they can run, after a pass put new ones in."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from torch import fx

from ..graph_context import CompilerBug


def put_in_order(module: fx.GraphModule, what: str) -> None:
    """Operands first, otherwise in the order the nodes stand in. `what` was done, where it made a circle."""
    graph = module.graph
    place = {node: number for number, node in enumerate(graph.nodes)}
    waiting = {node: len(set(node.all_input_nodes)) for node in graph.nodes}
    ready = [(place[node], node) for node, count in waiting.items() if not count]
    heapify(ready)
    order: list[fx.Node] = []
    while ready:
        _, node = heappop(ready)
        order.append(node)
        for user in node.users:
            waiting[user] -= 1
            if not waiting[user]:
                heappush(ready, (place[user], user))
    if len(order) != len(place):
        raise CompilerBug(f"{what} made a circle")
    for node in order:
        if node.op not in ("placeholder", "output"):
            graph.output_node().prepend(node)


def pull_operands(module: fx.GraphModule, what: str) -> None:
    """What a node needs and comes later is moved in front of it; all else keeps its order."""
    graph = module.graph
    order: dict[fx.Node, None] = {}
    for root in list(graph.nodes):
        stack, waiting = [root], set()
        while stack:
            node = stack[-1]
            missing = [operand for operand in node.all_input_nodes if operand not in order]
            if node in order or not missing:
                order.setdefault(node)
                stack.pop()
            elif node in waiting:
                raise CompilerBug(f"{what} made a circle")
            else:
                waiting.add(node)
                stack += reversed(missing)
    for node in order:
        if node.op not in ("placeholder", "output"):
            graph.output_node().prepend(node)
