"""Rotary positions written as a turn of halves (or of neighbours) become one function over tables made once per graph.

    a, b = halves(x);  stack(a cos - b sin, b cos + a sin) back in place      ->   rope(x, cos, sin)

The angle is any value `[rows, pairs]`: all layers that use the same one share the tables.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..cpu.rowwise import rope, rope_pairs, tables_of_angles, turns_of_angles
from ..functions import packing
from ..origin import inherit
from .matching import arguments, bare, both_orders, is_call, products, replace, sums

TABLE_INDEX = (slice(None), None, slice(None))


@dataclass(frozen=True)
class _Turn:
    x: fx.Node
    angle: fx.Node
    neighbours: bool


def recognise_rotary(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        turn = _turn(node)
        if turn is None:
            continue
        with graph.inserting_before(node):
            make = turns_of_angles if turn.neighbours else tables_of_angles
            tables = inherit(graph.call_function(make, (turn.angle,)), node)
            function = rope_pairs if turn.neighbours else rope
            if turn.neighbours:
                args: tuple[Any, ...] = (turn.x, tables)
            else:
                parts = [inherit(graph.call_function(operator.getitem, (tables, i)), node) for i in (0, 1)]
                args = (turn.x, *parts)
            new = inherit(graph.call_function(function, args), node)
        replace(node, new)


def _turn(node: fx.Node) -> _Turn | None:
    """`node` flattens the pairs back into the head's axis."""
    flattened = arguments(node, torch.flatten)
    if flattened is None or len(flattened) != 3 or flattened[1:] != (2, 3):
        return None
    inner = flattened[0]
    permuted = arguments(inner, torch.permute)
    if permuted is not None and tuple(permuted[1]) == (0, 1, 3, 2):
        inner, neighbours = permuted[0], False
    else:
        neighbours = True
    stacked = arguments(inner, torch.stack)
    if stacked is None or stacked[1] != -1 or len(stacked[0]) != 2:
        return None
    first, second = (_unexpanded(part) for part in stacked[0])
    return _matched(first, second, neighbours)


def _unexpanded(node: Any) -> Any:
    node = bare(node)
    return bare(node.args[0]) if is_call(node, packing.expand) else node


def _matched(first: Any, second: Any, neighbours: bool) -> _Turn | None:
    """first = a cos - b sin, second = b cos + a sin."""
    difference = arguments(first, operator.sub)
    if difference is None:
        return None
    for a, cos in products(difference[0]):
        angle = _table(cos, torch.cos)
        if angle is None:
            continue
        for b, sin in products(difference[1]):
            if _table(sin, torch.sin) is angle and _is_sum(second, (b, cos), (a, sin)):
                x = _halves(a, b, neighbours)
                if x is not None:
                    return _Turn(x, angle, neighbours)
    return None


def _table(node: Any, function: Any) -> fx.Node | None:
    """The angle of `cos(angle)[:, None, :]`."""
    indexed = arguments(node, operator.getitem)
    if indexed is None or indexed[1] != TABLE_INDEX:
        return None
    inner = arguments(indexed[0], function)
    return inner[0] if inner is not None else None


def _is_sum(node: Any, left: tuple[Any, Any], right: tuple[Any, Any]) -> bool:
    return any(
        any(pair == left for pair in products(one)) and any(pair == right for pair in both_orders(other, operator.mul))
        for one, other in sums(node)
    )


def _halves(a: Any, b: Any, neighbours: bool) -> fx.Node | None:
    """x, when a and b are its two halves (or its even and odd entries)."""
    first, second = arguments(a, torch.select), arguments(b, torch.select)
    if first is None or second is None or first[0] is not second[0]:
        return None
    dim = -1 if neighbours else -2
    if first[1:] != (dim, 0) or second[1:] != (dim, 1):
        return None
    split = arguments(first[0], torch.unflatten)
    if split is None or split[1] != 2 or len(split[2]) != 2 or split[2][1 if neighbours else 0] != 2:
        return None
    return split[0]
