"""Attention over packed rows goes to generated kernels; what each row sees is computed once for all layers.

y = attend_packed(q, k, v, offsets, offsets, scale, high=0)
    ->  seen = seen_rows(offsets, offsets, tokens, tokens, None, 0)
        y = attend(q, k, v, offsets, offsets, scale, high=0, intervals=seen)

A mask by ids keeps its predicate, and its intervals say which tiles need not be looked at: `causal or same(picture)`.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..facts import Fact, facts
from ..functions.attention import attend_packed
from ..gpu.attention import attend
from ..gpu.formula import is_known
from ..gpu.intervals import seen_rows
from ..gpu.mask_intervals import says_intervals, seen_by_mask
from ..origin import inherit
from .matching import is_call


def use_attention_kernels(module: fx.GraphModule) -> None:
    known = facts(module)
    first: dict[str, fx.Node] = {}  # a tensor with the rows of each level, so that layers ask about the same one
    for node, fact in known.items():
        if fact.level is not None:
            first.setdefault(fact.level, node)
    for node in list(module.graph.nodes):
        if is_call(node, attend_packed):
            _use_kernels(module, node, known, first)


def _use_kernels(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Fact], first: dict[str, fx.Node]) -> None:
    score = node.kwargs.get("score", node.args[10] if len(node.args) > 10 else None)
    if score is not None and not is_known(score):
        return  # rounding, say: the reference computes it
    node.target = attend
    if len(node.args) != 6 or node.kwargs.get("q_position") is not None or node.kwargs.get("k_position") is not None:
        return  # a decoding step has few rows, and positions of its own
    q, k, _, q_offsets, k_offsets, _ = node.args
    rows: list[Any] = []
    for operand in (q, k):
        fact = known.get(operand) if isinstance(operand, fx.Node) else None
        rows.append(operand if fact is None or fact.level is None else first[fact.level])
    bounds = node.kwargs.get("low"), node.kwargs.get("high")
    predicate: Any = node.kwargs.get("predicate")
    with module.graph.inserting_before(node):
        if predicate is not None and says_intervals(predicate):
            seen = module.graph.call_function(seen_by_mask, (q_offsets, k_offsets, *rows, predicate, *bounds))
        else:
            seen = module.graph.call_function(seen_rows, (q_offsets, k_offsets, *rows, *bounds))
        inherit(seen, node)
    node.kwargs = {**node.kwargs, "intervals": seen}
