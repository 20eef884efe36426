"""Nodes nobody reads go away. Arguments of the graph stay, as its signature; so do calls that write to a cache."""

from __future__ import annotations

from torch import fx


def drop_dead_code(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        writes = getattr(node.target, "writes_to_arguments", False)
        if not node.users and node.op not in ("placeholder", "output") and not writes:
            module.graph.erase_node(node)
