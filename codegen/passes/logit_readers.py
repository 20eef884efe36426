"""Who reads the outputs of a linear, where all of them only reduce along the row.

    logsumexp(z)    sum(softmax(z) * z)    max(z)    argmax(z)    z[id]

`readers_of` names them as codegen/gpu/logits_form.py does. Between the linear and z may stand a formula of numbers,
a soft cap such as 30 * tanh(y / 30): `changed_by` reads it.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..functions.gathers import entries
from ..functions.pointwise import maximum, minimum
from ..functions.statics import argmax_static, logsumexp_static, max_static, softmax_static, sum_static
from ..gpu.formula import is_known
from ..origin import origin
from .matching import bare, is_call, is_number, node_at, readers

_REDUCTIONS = {logsumexp_static: "partition", max_static: "top", argmax_static: "place"}


@dataclass(frozen=True)
class LogitReaders:
    """`nodes`: by the name of the result that each computes. `ids`: what `pick_0`, `pick_1`, .. are picked by."""

    nodes: dict[str, tuple[fx.Node, ...]]
    ids: tuple[fx.Node, ...]

    @property
    def all(self) -> Iterable[fx.Node]:
        return (node for nodes in self.nodes.values() for node in nodes)


_FUNCTIONS: dict[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.neg: "neg",
    operator.pow: "pow", torch.tanh: "tanh", torch.sigmoid: "sigmoid", torch.exp: "exp", torch.log: "log",
    torch.abs: "abs", torch.sqrt: "sqrt", torch.relu: "relu", functional.softplus: "softplus",
    maximum: "max", minimum: "min",
}  # fmt: skip


def changed_by(linear: fx.Node) -> tuple[fx.Node, tuple[Any, ...] | None]:
    """The node that holds the logits, and the formula that makes them of the linear's outputs, as nested tuples over
    ("score",): the linear itself and None where nothing stands between it and its readers."""
    made: dict[fx.Node, tuple[Any, ...]] = {linear: ("score",)}
    waiting = list(readers(linear))
    while waiting:
        node = waiting.pop(0)
        formula = None if node in made else _formula(node, made)
        if formula is not None and is_known(formula):
            made[node] = formula
            waiting += readers(node)
    # What somebody else reads must be one value.
    ends = [node for node in made if any(reader not in made for reader in readers(node))]
    if len(ends) != 1 or ends[0] is linear:
        return linear, None
    return ends[0], made[ends[0]]


def _formula(node: fx.Node, made: dict[fx.Node, tuple[Any, ...]]) -> tuple[Any, ...] | None:
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" and not node.kwargs else None
    if name is None:
        return None
    parts: list[tuple[Any, ...]] = []
    for operand in map(bare, node.args):
        if isinstance(operand, fx.Node) and operand in made:
            parts.append(made[operand])
        elif isinstance(operand, int | float) and is_number(operand):
            # A whole number stays one in an exponent only.
            parts.append(("number", operand if name == "pow" else 1.0 * operand))
        else:
            return None
    return (name, *parts)


def readers_of(logits: fx.Node) -> LogitReaders | None:
    """None where something else reads them, or nothing reduces them."""
    type_ = origin(logits).type
    if type_ is None or type_.rows is None or len(type_.static_axes) != 1:
        return None
    found: dict[str, list[fx.Node]] = defaultdict(list)
    ids: dict[fx.Node, str] = {}
    for reader in dict.fromkeys(readers(logits)):
        name = _name(reader, logits, ids)
        if name is None:
            return None
        if name == "mean":
            found[name] += _means(reader)
        elif name:
            found[name].append(reader)
    # An entry alone is a product with one row of the weight.
    if not {"partition", "mean", "top", "place"} & found.keys():
        return None
    return LogitReaders({name: tuple(nodes) for name, nodes in found.items()}, tuple(ids))


def _name(reader: fx.Node, logits: fx.Node, ids: dict[fx.Node, str]) -> str | None:
    """The result that a reader computes; "" for a step on the way to one; None for anything else."""
    if is_call(reader, *_REDUCTIONS) and _is_along_the_row(reader.args[1]):
        return _REDUCTIONS[reader.target]
    if is_call(reader, entries) and bare(reader.args[0]) is logits and _is_one_id_per_row(reader):
        return ids.setdefault(node_at(reader, 1), f"pick_{len(ids)}")
    if is_call(reader, softmax_static) and _is_along_the_row(reader.args[1]):
        return "mean" if _means(reader) else None
    if is_call(reader, operator.mul) and any(_is_weighted(reader, softmax, logits) for softmax in reader.args):
        return ""
    return None


def _means(softmax: fx.Node) -> list[fx.Node]:
    """The sums of the softmax times what it is of; none where it is read otherwise."""
    sums = []
    for product in readers(softmax):
        if not is_call(product, operator.mul) or not _is_weighted(product, softmax, bare(softmax.args[0])):
            return []
        for total in readers(product):
            if not is_call(total, sum_static) or not _is_along_the_row(total.args[1]):
                return []
            sums.append(total)
    return sums


def _is_weighted(product: fx.Node, softmax: object, logits: fx.Node) -> bool:
    """Whether a product is of the logits and their softmax, and the softmax a step to a mean."""
    softmax = bare(softmax)
    if not isinstance(softmax, fx.Node) or not is_call(softmax, softmax_static) or bare(softmax.args[0]) is not logits:
        return False
    operands = [bare(operand) for operand in product.args]
    return len(operands) == 2 and softmax in operands and logits in operands


def _is_along_the_row(dims: object) -> bool:
    """Logits have rows and one axis."""
    return isinstance(dims, int | tuple) and dims in (-1, 1, (-1,), (1,))


def _is_one_id_per_row(pick: fx.Node) -> bool:
    type_ = origin(pick).type
    is_along_rows = type_ is not None and type_.rows is not None and not type_.static_axes
    return is_along_rows and pick.args[2:] == (1,)
