"""Attention whose mask is a band (causal, a causal window, everything), or intervals that ids tell of, goes to torch's
fused CPU kernel, piece by piece.

    attend_packed(q, k, v, offsets, offsets, scale, low, high)   ->   packed_attention(q, k, v, plan(offsets, band),
    scale)

    attend_packed(.., predicate=causal or same(picture))         ->   masked_attention(.., plan_mask(predicate))

The plan is made once per mask and step; other predicates, biases and other bands keep the reference. Segments whose one
query sees all of their rows have a function of their own: as products of one row they would be slow.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..cpu.attention import packed_attention, plan_documents
from ..cpu.few_keys import own_rows_attention
from ..cpu.masked_attention import masked_attention, plan_mask
from ..functions import cuts
from ..functions.attention import attend_packed
from ..gpu.mask_intervals import says_intervals
from ..origin import inherit
from .matching import is_call, replace

BAND = ("low", "high")


def recognise_bands(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        if not is_call(node, attend_packed) or len(node.args) != 6:
            continue
        q, k, v, q_offsets, k_offsets, scale = node.args
        predicate: Any = node.kwargs.get("predicate")
        if any(value is not None for name, value in node.kwargs.items() if name not in (*BAND, "predicate")):
            continue
        if predicate is not None:
            if q_offsets is k_offsets and says_intervals(predicate):
                _use_plan(graph, node, predicate)
            continue
        causal = _band(node.kwargs.get("low"), node.kwargs.get("high"))
        if causal is None or (causal[0] and q_offsets is not k_offsets):
            continue
        if not causal[0] and is_call(q_offsets, cuts.each_alone):
            with graph.inserting_before(node):
                new = inherit(graph.call_function(own_rows_attention, (q, k, v, k_offsets, scale)), node)
            replace(node, new)
            continue
        with graph.inserting_before(node):
            other = None if q_offsets is k_offsets else k_offsets
            plan = inherit(graph.call_function(plan_documents, (q_offsets, other, *causal)), node)
            new = inherit(graph.call_function(packed_attention, (q, k, v, plan, scale)), node)
        replace(node, new)


def _use_plan(graph: fx.Graph, node: fx.Node, predicate: Any) -> None:
    q, k, v, offsets, _, scale = node.args
    band = node.kwargs.get("low"), node.kwargs.get("high")
    with graph.inserting_before(node):
        plan = inherit(graph.call_function(plan_mask, (offsets, predicate, *band)), node)
        new = inherit(graph.call_function(masked_attention, (q, k, v, plan, offsets, scale, predicate, *band)), node)
    replace(node, new)


def _band(low: object, high: object) -> tuple[bool, int | None] | None:
    """(causal, window) of a band the planner knows."""
    if low is None and high is None:
        return (False, None)
    if high == 0 and low is None:
        return (True, None)
    if high == 0 and isinstance(low, int) and low <= 0:
        return (True, 1 - low)
    return None
