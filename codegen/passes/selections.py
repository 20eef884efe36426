"""Selections of the largest scores by a partial sort, whose cost does not grow with a full sort's.

top(scores, k)              ->  selection.top(scores, k)
top_pairs(first, second, k) ->  selection.top_pairs(first, second, k)
"""

from __future__ import annotations

from torch import fx

from ..cpu import selection
from ..functions import gathers

_PARTIAL = {gathers.top: selection.top, gathers.top_pairs: selection.top_pairs}


def select_by_partial_sort(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in _PARTIAL:
            node.target = _PARTIAL[node.target]
