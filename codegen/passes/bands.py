"""Attention whose mask is a band (causal, a causal window, everything) goes to torch's fused CPU kernel, piece by
piece.

    attend_packed(q, k, v, offsets, offsets, scale, low, high)   ->   packed_attention(q, k, v, plan(offsets, band),
    scale)

The plan is made once per band and step; masks with predicates, biases and other bands keep the reference. Segments
whose one query sees all of their rows have a function of their own: as products of one row they would be slow.
"""

from __future__ import annotations

from torch import fx

from ..cpu.attention import packed_attention, plan_documents
from ..cpu.few_keys import own_rows_attention
from ..functions import cuts
from ..functions.attention import attend_packed
from ..origin import inherit
from .matching import is_call, replace

BAND = ("low", "high")


def recognise_bands(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        if not is_call(node, attend_packed) or len(node.args) != 6:
            continue
        if any(value is not None for name, value in node.kwargs.items() if name not in BAND):
            continue
        q, k, v, q_offsets, k_offsets, scale = node.args
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


def _band(low: object, high: object) -> tuple[bool, int | None] | None:
    """(causal, window) of a band the planner knows."""
    if low is None and high is None:
        return (False, None)
    if high == 0 and low is None:
        return (True, None)
    if high == 0 and isinstance(low, int) and low <= 0:
        return (True, 1 - low)
    return None
