"""Reading fx graphs by shape of expression: what the recognising passes have in common.

Conversions between float types (`Tensor.to`) are looked through: they say how precisely a formula is computed, not
what it is. A pass may replace a formula only by a function that computes it at least as precisely.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import fx

Function = Callable[..., Any]


def is_call(node: object, *functions: Function) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in functions


def bare(node: Any) -> Any:
    """The node under conversions."""
    while is_call(node, torch.Tensor.to):
        node = node.args[0]
    return node


def arguments(node: Any, *functions: Function) -> tuple[Any, ...] | None:
    """The arguments of a call of one of `functions`, conversions of them removed; None for anything else. No
    keywords."""
    node = bare(node)
    if not is_call(node, *functions) or node.kwargs:
        return None
    return tuple(bare(argument) for argument in node.args)


def node_at(node: fx.Node, place: int) -> fx.Node:
    """The positional argument at a place, where the function called takes a tensor there."""
    found = node.args[place]
    assert isinstance(found, fx.Node), f"{node.format_node()} has no node at {place}"
    return found


def tuple_at(node: fx.Node, place: int) -> tuple[Any, ...]:
    """The positional argument at a place, where the function called takes several numbers or nodes there."""
    found = node.args[place]
    assert isinstance(found, tuple | list), f"{node.format_node()} has no sequence at {place}"
    return tuple(found)


def both_orders(node: Any, function: Function) -> Iterator[tuple[Any, Any]]:
    """The two operands of a commutative call, in either order."""
    found = arguments(node, function)
    if found is not None and len(found) == 2:
        yield found[0], found[1]
        yield found[1], found[0]


def products(node: Any) -> Iterator[tuple[Any, Any]]:
    return both_orders(node, operator.mul)


def sums(node: Any) -> Iterator[tuple[Any, Any]]:
    return both_orders(node, operator.add)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a node, looking through conversions."""
    found: list[fx.Node] = []
    for user in node.users:
        found += readers(user) if is_call(user, torch.Tensor.to) else [user]
    return found


def only_reader(node: fx.Node) -> fx.Node | None:
    """The one node that reads a node, or None."""
    found = set(readers(node))
    return next(iter(found)) if len(found) == 1 else None


def depends_on(nodes: Iterable[fx.Node], wanted: Collection[fx.Node]) -> bool:
    """Whether one of `nodes` is wanted, or is made of one that is."""
    left, seen = list(nodes), set()
    while left:
        node = left.pop()
        if node in wanted:
            return True
        if node not in seen:
            seen.add(node)
            left += node.all_input_nodes
    return False


def is_weight(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def replace(old: fx.Node, new: fx.Node) -> None:
    """Readers of `old` read `new`; what becomes dead is removed by the dead-code pass."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
