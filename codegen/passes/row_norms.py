"""RMS norms written as formulas become one function with a short backward; a residual added to one joins it.

x * rsqrt(mean(x^2, trailing axes) + eps) * gain      ->  rms_norm(x, gain, eps)
residual + rms_norm(x, gain, eps)                     ->  add_rms_norm(residual, x, gain, eps)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..cpu.rowwise import add_rms_norm, rms_norm
from ..functions.statics import mean_static
from ..origin import inherit, origin
from .matching import arguments, bare, is_call, is_number, is_weight, only_reader, products, replace, sums


@dataclass(frozen=True)
class _Norm:
    """The parts of a norm; `last` is the node whose readers get the result."""

    x: fx.Node
    gain: fx.Node | None
    eps: float
    dims: int
    last: fx.Node


def recognise_rms_norms(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        norm = _rms_norm(node)
        if norm is not None:
            _put(module, norm)


def join_residuals(module: fx.GraphModule) -> None:
    """After `recognise_rms_norms`. Only where the norm has no other reader: it would be computed twice."""
    for node in list(module.graph.nodes):
        for residual, norm in sums(node):
            if not is_call(norm, rms_norm) or only_reader(norm) is not node or not isinstance(residual, fx.Node):
                continue
            if _shape(residual) == _shape(norm) is not None:
                with module.graph.inserting_before(node):
                    new = module.graph.call_function(add_rms_norm, (node_of(node, residual), *norm.args))
                replace(node, inherit(new, node))
                break


def _shape(node: fx.Node) -> tuple[object, ...] | None:
    """What a node has rows and dimensions of; None where its origin does not tell."""
    type = origin(node).type
    return None if type is None else (type.rows, type.per_example, type.static_axes)


def node_of(reader: fx.Node, operand: fx.Node) -> fx.Node:
    """The argument of `reader` that is `operand` under conversions, as it is read."""
    return next(a for a in reader.args if isinstance(a, fx.Node) and bare(a) is operand)


def _rms_norm(node: fx.Node) -> _Norm | None:
    for x, scale in products(node):
        found = _scale(scale, x)
        if found is None or not isinstance(x, fx.Node):
            continue
        eps, dims = found
        reader = only_reader(node)
        if reader is not None:
            for gain, normed in products(reader):
                if normed is node and is_weight(gain) and _gain_covers(gain, dims):
                    return _Norm(x, gain, eps, dims, reader)
        return _Norm(x, None, eps, dims, node)
    return None


def _scale(scale: Any, x: Any) -> tuple[float, int] | None:
    """eps and the number of dimensions of `rsqrt(mean(x^2) + eps)`, brought back to the shape of x."""
    indexed = arguments(scale, operator.getitem)
    if indexed is None or not isinstance(indexed[1], tuple):
        return None
    root = arguments(indexed[0], torch.rsqrt)
    if root is None:
        return None
    for mean, eps in sums(root[0]):
        averaged = arguments(mean, mean_static)
        if averaged is None or not is_number(eps):
            continue
        square, dims = averaged
        trailing = tuple(range(-len(dims), 0))
        ends_in_ones = indexed[1][-len(dims) :] == (None,) * len(dims) and None not in indexed[1][: -len(dims)]
        if arguments(square, operator.pow) == (x, 2) and tuple(dims) == trailing and ends_in_ones:
            return float(eps), len(dims)
    return None


def _gain_covers(gain: fx.Node, dims: int) -> bool:
    """Whether a weight has exactly the axes that the norm is over."""
    type = origin(gain).type
    return type is not None and len(type.axes) == dims


def _put(module: fx.GraphModule, norm: _Norm) -> None:
    graph, last = module.graph, norm.last
    type = origin(last).type
    sizes = tuple(axis.size for axis in type.static_axes[-norm.dims :]) if type else ()
    with graph.inserting_before(last):
        x, gain = norm.x, norm.gain
        if norm.dims > 1:
            x = inherit(graph.call_function(torch.flatten, (x, -norm.dims)), last)
            gain = gain if gain is None else inherit(graph.call_function(torch.flatten, (gain,)), gain)
        new = inherit(graph.call_function(rms_norm, (x, gain, norm.eps)), last)
        if norm.dims > 1:
            new = inherit(graph.call_function(torch.unflatten, (new, -1, sizes)), last)
    replace(last, new)
