"""Nodes nobody reads go away. Arguments of the graph stay: they are its signature."""

from __future__ import annotations

from torch import fx


def drop_dead_code(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            module.graph.erase_node(node)
