"""Nodes nobody reads go away. Arguments of the graph stay, as its signature; so do calls that write to a cache, and
those that tell a decoder which of its stages run."""

from __future__ import annotations

from torch import fx

from ..functions import open_cuts


def drop_dead_code(module: fx.GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        stays = getattr(node.target, "writes_to_arguments", False) or node.target is open_cuts.closing
        if not node.users and node.op not in ("placeholder", "output") and not stays:
            module.graph.erase_node(node)
