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
