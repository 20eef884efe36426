"""Group norms written as formulas become torch's own, which passes over a picture once.

c = u - mean(u);  c * rsqrt(mean(c^2) + eps) * gain + bias       with u = x taken apart into groups
-> group_norm(x, gain, bias, groups, eps)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..cpu.group_norm import group_norm
from ..functions.statics import mean_static
from ..origin import inherit
from .matching import arguments, is_number, is_weight, only_reader, products, replace, sums

# Of [.., places, groups, members], those that a norm is over; and how their mean is brought back to that shape.
_OVER = (-3, -1)
_BACK = (None, slice(None, None, None), None)


@dataclass(frozen=True)
class _Norm:
    """`x` [.., places, width]; `last` is the node whose readers get the result."""

    x: fx.Node
    gain: fx.Node
    bias: fx.Node
    groups: int
    eps: float
    last: fx.Node


def recognise_group_norms(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        norm = _group_norm(node)
        if norm is None:
            continue
        with graph.inserting_before(norm.last):
            new = graph.call_function(group_norm, (norm.x, norm.gain, norm.bias, norm.groups, norm.eps))
        replace(norm.last, inherit(new, norm.last))


def _group_norm(node: fx.Node) -> _Norm | None:
    for scaled, bias in sums(node):
        if not is_weight(bias):
            continue
        for flat, gain in products(scaled):
            merged = arguments(flat, torch.flatten)
            if merged is None or not is_weight(gain) or only_reader(flat) is None or merged[2] != merged[1] + 1:
                continue
            found = _standardised(merged[0])
            if found is not None:
                x, groups, eps = found
                return _Norm(x, gain, bias, groups, eps, node)
    return None


def _standardised(node: Any) -> tuple[fx.Node, int, float] | None:
    """x, groups and eps of `c * rsqrt(mean(c^2) + eps)`, where c is x in groups without their mean."""
    for centred, scale in products(node):
        root = arguments(_spread(scale), torch.rsqrt)
        for variance, eps in sums(root[0]) if root is not None else ():
            squares = _mean(variance)
            if squares is None or not is_number(eps) or arguments(squares, operator.pow) != (centred, 2):
                continue
            difference = arguments(centred, operator.sub)
            if difference is None or _mean(_spread(difference[1])) is not difference[0]:
                continue
            parts = arguments(difference[0], torch.unflatten)
            if parts is not None and len(parts[2]) == 2:
                return parts[0], parts[2][0], float(eps)
    return None


def _mean(node: Any) -> Any:
    """What a mean over places and the members of each group is of."""
    averaged = arguments(node, mean_static)
    return averaged[0] if averaged is not None and tuple(averaged[1]) == _OVER else None


def _spread(node: Any) -> Any:
    """A mean brought back to the shape that it is of, without what brings it back."""
    indexed = arguments(node, operator.getitem)
    is_back = indexed is not None and isinstance(indexed[1], tuple) and indexed[1][-3:] == _BACK
    return indexed[0] if indexed is not None and is_back else None
