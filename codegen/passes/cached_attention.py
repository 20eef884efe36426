"""Attention of decoding graphs goes to generated kernels, over the caches as they are.

    y = caches.attend_step(q, k, v, keys, values, lengths, band_mask(..), columns, is_even, scale, 0)
        ->  y = attention_caches.attend_step(q, k, v, keys, values, lengths, columns, scale, None, 0)

The band takes the place of the mask, which no kernel needs. Of an extension, which rows are read and where the new ones
are left is a call of its own, made once for all layers with one band.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..functions import caches
from ..gpu import attention_caches
from ..gpu.formula import is_known
from ..origin import inherit
from .matching import is_call, node_at


def use_cached_attention(module: fx.GraphModule) -> None:
    rows: dict[tuple[Any, Any], fx.Node] = {}
    for node in list(module.graph.nodes):
        if is_call(node, caches.attend_step):
            q, k, v, keys, values, position, mask, columns, _, scale, high = node.args
            # Without a mask every slot in use is read.
            low = node_at(node, 6).args[1] if is_call(mask, caches.band_mask) else None
            node.args = (q, k, v, keys, values, position, columns, scale, low, high)
            node.target = attention_caches.attend_step
        elif is_call(node, caches.attend_extend):
            q, k, v, keys, values, offsets, lengths, scale, low, high = node.args
            if (low, high) not in rows:
                # The band says how many slots a cache has, so that any layer's will do.
                with module.graph.inserting_before(node):
                    made = module.graph.call_function(attention_caches.extend_rows, (offsets, lengths, keys, low, high))
                rows[low, high] = inherit(made, node)
            node.args = (q, k, v, keys, values, offsets, rows[low, high], scale, low, high)
            node.target = attention_caches.attend_extend
        elif is_call(node, caches.attend_general) and all(e is None or is_known(e) for e in _formulas(node)):
            node.target = attention_caches.attend_general


def _formulas(node: fx.Node) -> tuple[Any, Any]:
    """The mask and the score of a call of functions/caches.attend_general."""
    return node.args[11], node.args[14]
