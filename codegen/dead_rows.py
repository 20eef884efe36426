"""Which rows of a training graph can have no gradient, because nothing trainable precedes them.

Rows of a document before its first picture, where the tower of texts is frozen: early rows. That they have none is
shown for a whole graph by induction. It holds for what is embedded, and a step keeps it if a row of its result reads
the same row of its operands, or rows of the same document that are not behind it. Autograd knows this of whole tensors
only, and what an arm computes of a batch is one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import fx

from ..dsl.program import Weight
from .fact import Fact
from .functions import attention, packing, selections
from .origin import origin
from .passes.matching import is_call, node_at, tuple_at


class Gradient(IntEnum):
    """Of the rows of a value: any may have a gradient; none of the early ones has; none has."""

    ANY = 0
    LATE = 1
    NONE = 2


# What changes the order of a row's entries, whatever operator asked for it.
_LAYOUT = frozenset((torch.reshape, torch.flatten, torch.unflatten, torch.permute, operator.getitem, packing.expand))


@dataclass(frozen=True)
class EarlyRows:
    """Rows of the axis `level` whose `tag` is one of `members`, as are all rows before them in their example. `offsets`
    of the axis. `parts`: of each level whose rows are chosen by these tags alone, which rows they are. `gradients` of
    all nodes."""

    tag: fx.Node
    level: str
    offsets: fx.Node
    members: frozenset[int]
    parts: dict[str, fx.Node]
    gradients: dict[fx.Node, Gradient]

    def are_selected_by(self, rows: Any) -> bool:
        return rows in self.parts.values()

    def is_split(self, node: fx.Node, known: dict[fx.Node, Fact]) -> bool:
        """Whether some rows of a node, which are rows of one part, have a gradient and others cannot."""
        return node in known and known[node].level in self.parts and self.gradients.get(node) is Gradient.LATE


def early_rows(module: fx.GraphModule, known: dict[fx.Node, Fact]) -> Iterator[EarlyRows]:
    """For each tag by which a graph selects rows that attend to one another."""
    for tag in dict.fromkeys(node_at(node, 0) for node in module.graph.nodes if is_call(node, selections.has_tag)):
        level = known[tag].level if tag in known else None
        attended = {
            node_at(node, 3)
            for node in module.graph.nodes
            if is_call(node, attention.attend_packed) and _level(node.args[0], known) == level
        }
        if level is None or len(attended) != 1:
            continue
        found = _settle(module, known, tag, level, attended.pop())
        if any(found.is_split(node, known) for node in module.graph.nodes):
            yield found


def _settle(
    module: fx.GraphModule, known: dict[fx.Node, Fact], tag: fx.Node, level: str, offsets: fx.Node
) -> EarlyRows:
    """Leaves out tags of whose rows some early one may have a gradient, until there are none."""
    members = frozenset(m for node in tag.users if is_call(node, selections.has_tag) for m in tuple_at(node, 1))
    while True:
        found = EarlyRows(tag, level, offsets, members, _parts(tag, level, members, known), {})
        trained = _first_trained(module, found, known)
        if trained is None:
            return found
        members -= set(_members(found.parts[trained]))


def _first_trained(module: fx.GraphModule, early: EarlyRows, known: dict[fx.Node, Fact]) -> str | None:
    """The first part with a gradient at early rows. Others may have got theirs from it."""
    for node in module.graph.nodes:
        early.gradients[node] = _gradient(node, early, known)
        level = _level(node, known)
        if early.gradients[node] is Gradient.ANY and level in early.parts and node.op != "placeholder":
            return level
    return None


def _parts(tag: fx.Node, level: str, members: frozenset[int], known: dict[fx.Node, Fact]) -> dict[str, fx.Node]:
    chosen = [
        rows
        for flags in tag.users
        if is_call(flags, selections.has_tag) and members.issuperset(tuple_at(flags, 1))
        for rows in flags.users
        if is_call(rows, selections.rows_of)
    ]
    parts = {}
    for rows in chosen:
        for user in rows.users:
            if is_call(user, selections.take) and user.args[1] is rows and _level(user.args[0], known) == level:
                parts[_level(user, known)] = rows
            if is_call(user, selections.order_of):
                place = tuple_at(user, 0).index(rows)
                parts |= {_level(tuple_at(join, 0)[place], known): rows for join in user.users}
    parts.pop(None, None)
    return parts


def _members(rows: fx.Node) -> tuple[int, ...]:
    return tuple_at(node_at(rows, 0), 1)


def _level(node: Any, known: dict[fx.Node, Fact]) -> str | None:
    return known[node].level if node in known else None


def _gradient(node: fx.Node, early: EarlyRows, known: dict[fx.Node, Fact]) -> Gradient:
    fact, states = known.get(node), early.gradients
    if fact is not None and not fact.is_real:
        return Gradient.NONE
    match node.op:
        case "placeholder":
            # A caller may ask for the gradient of what it gives.
            return Gradient.NONE if fact is None else Gradient.ANY
        case "get_attr":
            weight = origin(node).value
            return Gradient.NONE if isinstance(weight, Weight) and weight.frozen else Gradient.ANY
        case "output":
            return Gradient.ANY
    if node.target is torch.detach or all(states[one] is Gradient.NONE for one in node.all_input_nodes):
        return Gradient.NONE
    return Gradient.LATE if fact is not None and _keeps_early(node, early, known) else Gradient.ANY


def _keeps_early(node: fx.Node, early: EarlyRows, known: dict[fx.Node, Fact]) -> bool:
    """Whether no early row of a call's result has a gradient."""
    states, level = early.gradients, _level(node, known)
    if is_call(node, selections.take):
        x, rows = node_at(node, 0), node.args[1]
        return early.are_selected_by(rows) and _level(x, known) == early.level and states[x] is not Gradient.ANY
    if is_call(node, selections.join):
        parts = _joined(node, early)
        # Of the other parts no row is early.
        return level == early.level and all(states[part] is not Gradient.ANY for part in parts)
    if is_call(node, attention.attend_packed):
        own = node.args[3] is node.args[4] is early.offsets
        sees = own and _sees_nothing_behind(node, early)
        return sees and all(states[one] is not Gradient.ANY for one in node.all_input_nodes)
    if level not in (early.level, *early.parts) or not _is_row_wise(node):
        return False
    return all(
        states[one] is Gradient.NONE or (states[one] is Gradient.LATE and _level(one, known) == level)
        for one in node.all_input_nodes
    )


def _joined(node: fx.Node, early: EarlyRows) -> list[fx.Node]:
    """The parts of a join that have early rows."""
    rows = tuple_at(node_at(node, 1), 0)
    return [part for part, own in zip(tuple_at(node, 0), rows, strict=True) if _may_be_early(own, early)]


def _may_be_early(rows: Any, early: EarlyRows) -> bool:
    if not is_call(rows, selections.rows_of) or not is_call(flags := node_at(rows, 0), selections.has_tag):
        return True
    return node_at(flags, 0) is not early.tag or not early.members.isdisjoint(tuple_at(flags, 1))


def _is_row_wise(node: fx.Node) -> bool:
    made = origin(node).node
    return node.target in _LAYOUT or (made is not None and made.op.is_row_wise(made))


# -- what an early row sees ------------------------------------------------------------------------


def _sees_nothing_behind(node: fx.Node, early: EarlyRows) -> bool:
    high, predicate = node.kwargs.get("high"), node.kwargs.get("predicate")
    if len(node.args) > 6:
        return False
    return (isinstance(high, int) and high <= 0) or (predicate is not None and _excludes(predicate, early))


def _excludes(e: Any, early: EarlyRows) -> bool:
    """Whether a mask is false for an early query and a key behind it."""
    match e:
        case ("and", a, b):
            return _excludes(a, early) or _excludes(b, early)
        case ("or", a, b):
            return _excludes(a, early) and _excludes(b, early)
        case ("<=" | "<" | "==", ("key", "position"), ("query", "position")):
            return True
        case (">=" | ">" | "==", ("query", "position"), ("key", "position")):
            return True
        case ("==", ("query", rows), ("key", _)) | ("==", ("key", _), ("query", rows)):
            # The number of a segment: early rows are in none.
            return is_call(rows, selections.placed_numbers) and not _may_be_early(rows.args[2], early)
        case _:
            return False
