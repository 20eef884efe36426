"""Attention of segments to their own rows alone goes to a kernel that takes a segment at a time.

    q = reshape(permute(x, (0, 2, 1, 3)), (-1, heads * slots, D))        x [segments, slots, heads, D]
    y = attend_packed(q, k, v, each_alone(begins), bounds, scale)
    z = permute(reshape(y, (-1, heads, slots, V)), (0, 2, 1, 3))
        ->  z = attend_runs(x, k, v, bounds, scale)

The kernel reads queries wherever their heads lie, so that they are not put in order before it, nor results after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..facts import Fact, facts
from ..functions import cuts
from ..functions.attention import attend_packed
from ..gpu.run_attention import MOST_QUERIES, WIDEST, attend_runs
from ..origin import inherit
from .matching import is_call

_TURN = (0, 2, 1, 3)


def use_run_attention(module: fx.GraphModule) -> None:
    known = facts(module)
    for node in list(module.graph.nodes):
        if _sees_its_segment_alone(node):
            _use_kernel(module, node, known)


def _sees_its_segment_alone(node: fx.Node) -> bool:
    if not is_call(node, attend_packed) or len(node.args) != 6:
        return False
    # Bounds of a decoding step are those of segments that close in it, whose rows do not tile what there is.
    is_own = is_call(node.args[3], cuts.each_alone) and is_call(node.args[4], cuts.bounds)
    return is_own and all(value is None for value in node.kwargs.values())


def _use_kernel(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Fact]) -> None:
    q, k, v, _, bounds, scale = node.args
    assert isinstance(q, fx.Node)
    assert isinstance(k, fx.Node)
    assert isinstance(v, fx.Node)
    if not {q, k, v} <= known.keys():
        return
    (heads, width), (key_heads, _), (_, v_width) = (known[operand].dims for operand in (q, k, v))
    queries = heads // key_heads
    if queries > MOST_QUERIES or max(width, v_width) > WIDEST:
        return
    graph = module.graph
    with graph.inserting_before(node):
        x = _in_place(q, (queries, key_heads, width), known)
        if x is None:
            split = inherit(graph.call_function(torch.unflatten, (q, 1, (key_heads, queries))), q)
            x = inherit(graph.call_function(torch.permute, (split, _TURN)), q)
        y = inherit(graph.call_function(attend_runs, (x, k, v, bounds, scale)), node)
        for reader in _turned_back(node, (key_heads, queries, v_width)):
            reader.replace_all_uses_with(y)
        turned = inherit(graph.call_function(torch.permute, (y, _TURN)), node)
        flat = inherit(graph.call_function(torch.reshape, (turned, (-1, heads, v_width))), node)
    node.replace_all_uses_with(flat)


def _in_place(q: fx.Node, dims: tuple[int, ...], known: dict[fx.Node, Fact]) -> fx.Node | None:
    """`[segments, slots, heads, D]` that was only put in the order of heads."""
    if not is_call(q, torch.reshape) or not is_call(q.args[0], torch.permute):
        return None
    turn = q.args[0]
    assert isinstance(turn, fx.Node)
    x, order = turn.args
    fact = known.get(x) if isinstance(x, fx.Node) else None
    fits = fact is not None and fact.level is not None and fact.dims == dims
    return x if fits and isinstance(x, fx.Node) and _order(order) == _TURN else None


def _turned_back(node: fx.Node, dims: tuple[int, ...]) -> list[fx.Node]:
    """Readers that put a result back into the order of slots, through nothing but its reshape."""
    found = []
    for split in node.users:
        shape = split.args[1] if is_call(split, torch.reshape) and len(split.args) == 2 else ()
        if isinstance(shape, tuple | list) and len(shape) == 4 and tuple(shape[1:]) == dims:
            found += [
                reader for reader in split.users if is_call(reader, torch.permute) and _order(reader.args[1]) == _TURN
            ]
    return found


def _order(given: Any) -> tuple[int, ...]:
    return tuple(given) if isinstance(given, tuple | list) else ()
