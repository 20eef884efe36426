"""Rows stay sorted by their tag between arms: what one `routed by` joins and the next takes apart is never joined.

    x = join((a, b), order((ra, rb)));  c = take(x, ra);  d = take(x, rb)       ->      c = a;  d = b

A row-by-row step between the two, such as a residual that the spec adds outside the arms, is done for each part:

    y = x + z;  c = take(y, ra);  d = take(y, rb)       ->      c = a + take(z, ra);  d = b + take(z, rb)

So only attention and what else reads other rows pays for the order of the spec.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..facts import Fact, facts
from ..functions import pointwise, selections
from ..origin import inherit, mark, origin
from .matching import is_call, node_at, replace, tuple_at

# Functions whose result has one entry for each of those of its operands, whatever the rows are.
_ROW_BY_ROW = frozenset(
    (
        operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow, torch.exp, torch.log,
        torch.sqrt, torch.rsqrt, torch.abs, torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.relu, torch.detach,
        functional.softplus, functional.silu, pointwise.maximum, pointwise.minimum, pointwise.where,
    )
)  # fmt: skip


def keep_rows_sorted(module: fx.GraphModule) -> None:
    known = facts(module)
    # From the end: a step that is done for each part may uncover a join in front of it.
    for node in reversed(list(module.graph.nodes)):
        if node.users and _is_row_by_row(node, known):
            _part(module.graph, node, known)
    for node in list(module.graph.nodes):
        if is_call(node, selections.take):
            part = _part_of(node.args[0], node.args[1])
            if part is not None:
                replace(node, part)


def _part_of(x: Any, rows: Any) -> fx.Node | None:
    """The part that a join made these rows of."""
    if not isinstance(x, fx.Node) or not is_call(x, selections.join):
        return None
    parts, order = x.args
    found = _rows(order)
    assert isinstance(parts, tuple | list)
    return parts[found.index(rows)] if rows in found else None  # type: ignore[return-value]


def _rows(order: Any) -> tuple[Any, ...]:
    return tuple_at(order, 0) if is_call(order, selections.order_of) else ()


def _is_row_by_row(node: fx.Node, known: dict[fx.Node, Fact]) -> bool:
    """Whether all that is read of a step are its parts, and one of them is at hand."""
    if not _works_by_row(node, known):
        return False
    if not all(is_call(user, selections.take) and user.args[0] is node for user in node.users):
        return False
    return _is_at_hand(node, {node_at(user, 1) for user in node.users}, known)


def _works_by_row(node: fx.Node, known: dict[fx.Node, Fact]) -> bool:
    if node.op != "call_function" or node.target not in _ROW_BY_ROW or node.kwargs or node not in known:
        return False
    return known[node].level is not None and all(operand in known for operand in _operands(node))


def _is_at_hand(node: fx.Node, rows: set[Any], known: dict[fx.Node, Fact]) -> bool:
    """Whether a join of these rows is among the operands, or behind steps that nobody else reads."""
    for operand in _operands(node):
        if is_call(operand, selections.join):
            if rows <= set(_rows(operand.args[1])):
                return True
        elif len(operand.users) == 1 and _works_by_row(operand, known) and _is_at_hand(operand, rows, known):
            return True
    return False


def _operands(node: fx.Node) -> list[fx.Node]:
    return [argument for argument in node.args if isinstance(argument, fx.Node)]


def _part(graph: fx.Graph, node: fx.Node, known: dict[fx.Node, Fact]) -> None:
    made: dict[Any, fx.Node] = {}
    for user in sorted(node.users):
        rows = user.args[1]
        if rows not in made:
            with graph.inserting_before(user):
                arguments = tuple(_taken(graph, a, rows, user, known) for a in node.args)
                made[rows] = inherit(graph.call_function(node.target, arguments), user)  # type: ignore[arg-type]
            known[made[rows]] = known.get(user, known[node])
        replace(user, made[rows])
        graph.erase_node(user)
    # What it read is read by the takes alone.
    graph.erase_node(node)


def _taken(graph: fx.Graph, argument: Any, rows: Any, like: fx.Node, known: dict[fx.Node, Fact]) -> Any:
    if not isinstance(argument, fx.Node) or known[argument].level is None:
        return argument
    made = graph.call_function(selections.take, (argument, rows))
    mark(made, dataclasses.replace(origin(like), value=None, type=None))
    known[made] = known[argument]
    return made
