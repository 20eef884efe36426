"""Attention of decoding graphs on a CPU, over caches of all rows: which keys are seen is found once for all layers with
one mask. Without a mask there is nothing to find.

caches.attend_general(q, k, v, keys, values, .., predicate)
    ->  attend_cached(q, k, v, keys, values, plan_cached(.., predicate), ..)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..cpu.cached_attention import attend_cached, plan_cached
from ..functions import caches
from ..origin import inherit
from .matching import is_call


def use_cached_masks(module: fx.GraphModule) -> None:
    plans: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(module.graph.nodes):
        if not is_call(node, caches.attend_general):
            continue
        q, k, v, keys, values, position, offsets, lengths, scale, low, high, predicate, bias, captured, score, _ = (
            node.args
        )
        if bias is not None or score is not None:
            continue
        asked = (offsets, lengths, position, predicate, captured, low, high)
        sees_all = predicate is None and low is None and high is None
        if asked not in plans and not sees_all:
            with module.graph.inserting_before(node):
                plans[asked] = inherit(module.graph.call_function(plan_cached, asked), node)
        node.target = attend_cached
        node.args = (q, k, v, keys, values, plans.get(asked), offsets, lengths, scale)
