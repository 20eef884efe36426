"""Activations written as formulas become torch's single functions, which keep one tensor for the backward.

g * sigmoid(g)                                     ->  silu(g)
0.5 * x * (1 + erf(x * 0.7071))                    ->  gelu(x)
0.5 * x * (1 + tanh(0.7979 * (x + 0.0447 * x^3)))  ->  gelu(x, tanh)
"""

from __future__ import annotations

import math
import operator
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..origin import inherit
from .matching import arguments, is_number, products, replace, sums

gelu_tanh = partial(functional.gelu, approximate="tanh")


def recognise_activations(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        x = _silu(node)
        if x is not None:
            _put(module, node, functional.silu, (x,))
            continue
        x = _gelu(node)
        if x is not None:
            _put(module, node, functional.gelu, (x,))
            continue
        x = _gelu_tanh(node)
        if x is not None:
            _put(module, node, functional.gelu, (x,), {"approximate": "tanh"})


def _put(
    module: fx.GraphModule, node: fx.Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> None:
    with module.graph.inserting_before(node):
        new = inherit(module.graph.call_function(function, args, kwargs or {}), node)
    replace(node, new)


def _near(value: object, wanted: float) -> bool:
    return is_number(value) and math.isclose(float(value), wanted, rel_tol=1e-9)  # type: ignore[arg-type]


def _silu(node: fx.Node) -> fx.Node | None:
    for x, gate in products(node):
        if (inner := arguments(gate, torch.sigmoid)) is not None and inner == (x,):
            return x
    return None


def _half_times(node: fx.Node) -> tuple[Any, Any] | None:
    """`(0.5 * x) * y` as (x, y)."""
    for half, y in products(node):
        for number, x in products(half):
            if _near(number, 0.5):
                return x, y
    return None


def _gelu(node: fx.Node) -> fx.Node | None:
    parts = _half_times(node)
    if parts is None:
        return None
    x, y = parts
    for one, curve in sums(y):
        inner = arguments(curve, torch.erf)
        if _near(one, 1.0) and inner is not None:
            for operand, number in products(inner[0]):
                if operand is x and _near(number, math.sqrt(0.5)):
                    return x
    return None


def _gelu_tanh(node: fx.Node) -> fx.Node | None:
    parts = _half_times(node)
    if parts is None:
        return None
    x, y = parts
    for one, curve in sums(y):
        inner = arguments(curve, torch.tanh)
        if not _near(one, 1.0) or inner is None:
            continue
        for number, polynomial in products(inner[0]):
            if _near(number, math.sqrt(2 / math.pi)) and _is_cubic(polynomial, x):
                return x
    return None


def _is_cubic(polynomial: Any, x: fx.Node) -> bool:
    """`x + 0.044715 * x^3`."""
    for first, second in sums(polynomial):
        if first is not x:
            continue
        for number, cube in products(second):
            if _near(number, 0.044715) and arguments(cube, operator.pow) == (x, 3):
                return True
    return False
