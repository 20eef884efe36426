"""Rows that attend to a few keys of their own, and values of segments at rows, go to functions without products.

    attend_static(q, spread(k, closed), spread(v, closed), scale)   ->   few_keys_attention(q, k, v, scale, closed)
    spread(p, closed)                                               ->   cpu.segments.spread(p, closed)

Masks, biases, changed scores, key heads for several query heads and many keys keep the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..cpu import segments
from ..cpu.few_keys import MOST_KEYS, few_keys_attention
from ..facts import Fact, facts
from ..functions import cuts, packing
from ..functions.attention import attend_static
from ..origin import inherit
from .matching import is_call, replace

# Numbers of segments along rows: they never fall.
_NUMBERS = (cuts.own, cuts.before, cuts.closed)


def read_few_keys(module: fx.GraphModule) -> None:
    known = facts(module)
    for node in list(module.graph.nodes):
        if not is_call(node, attend_static) or len(node.args) != 4 or node.kwargs:
            continue
        q, k, v, scale = node.args
        if not _are_few(*(known.get(operand) for operand in (q, k, v))):
            continue
        key, value = _spread(k, known), _spread(v, known)
        arguments: tuple[Any, ...] = (q, k, v, scale)
        if key is not None and value is not None and key[1] is value[1]:
            arguments = (q, key[0], value[0], scale, key[1])
        with module.graph.inserting_before(node):
            new = inherit(module.graph.call_function(few_keys_attention, arguments), node)
        replace(node, new)


def spread_segments(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if is_call(node, cuts.spread) and is_call(node.args[1], *_NUMBERS):
            node.target = segments.spread


def _are_few(q: Fact | None, k: Fact | None, v: Fact | None) -> bool:
    if q is None or k is None or v is None or not (q.level == k.level == v.level) or q.level is None:
        return False
    if not len(q.dims) == len(k.dims) == len(v.dims) == 3:
        return False
    return q.dims[0] == 1 and 0 < k.dims[0] <= MOST_KEYS and q.dims[1] == k.dims[1]


def _spread(node: Any, known: dict[fx.Node, Fact]) -> tuple[fx.Node, fx.Node] | None:
    """What a value is spread from and by which numbers, through steps that change nothing."""
    while is_call(node, torch.reshape, packing.expand) and known.get(node) == known.get(node.args[0]) is not None:
        node = node.args[0]
    if not is_call(node, cuts.spread) or not is_call(node.args[1], *_NUMBERS):
        return None
    return node.args[0], node.args[1]
