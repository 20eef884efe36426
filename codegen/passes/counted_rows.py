"""Rows that no loss counts get no logits.

    logits = linear(x, w)                            rows = counted(begin_count(keep))
    ce = logsumexp(logits) - logits[target]    ->    logits = linear(take(x, rows), w)
    loss_sum(ce, keep)                               ce = logsumexp(logits) - logits[take(target, rows)]
                                                     loss_sum(ce, None)

A loss reads the rows that count: those that have a target, and that `only` leaves in. What reads its own row alone
wants the rows that its readers want, so it is known of every value up to the last linear which of its rows anybody
wants, and the linear is given those. Rows that are missing from a reduction, or that a `where` does not choose, are
wanted by neither. A value with another reader is wanted as a whole, and so is what it is made of.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ...dsl.axes import Axis
from ...dsl.value_type import Flag, Int, ValueType
from ..fact import Fact
from ..facts import FACT, facts
from ..functions import counted_rows, gathers, packing, pointwise, precision, segments, selections, statics
from ..lower import signature
from ..origin import Origin, inherit, mark, origin
from .matching import is_call, is_weight, node_at
from .ordering import pull_operands

# Rows that have one of these flags; None: all rows.
Wanted = frozenset[fx.Node] | None
NOBODY: Wanted = frozenset()

# To take rows apart and put their gradient back costs as much as a few outputs of a linear.
LEAST_OUTPUTS = 64

# A row of the result follows from the same row of each operand.
_ROW_BY_ROW = frozenset(
    (
        operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.neg,
        operator.pow, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_,
        operator.or_, operator.invert, operator.getitem, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.abs,
        torch.sign, torch.floor, torch.ceil, torch.round, torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.erf,
        torch.relu, torch.detach, torch.remainder, torch.clamp, torch.logical_and, torch.logical_or,
        torch.logical_not, torch.Tensor.to, torch.reshape, torch.flatten, torch.unflatten, torch.permute,
        torch.unsqueeze, torch.squeeze, torch.select, torch.stack, torch.cat, functional.softplus, functional.linear,
        pointwise.maximum, pointwise.minimum, pointwise.where, pointwise.whole, pointwise.straight_through,
        pointwise.fill_missing, precision.real, packing.expand, gathers.entries, statics.sum_static,
        statics.mean_static, statics.max_static, statics.min_static, statics.any_static, statics.all_static,
        statics.logsumexp_static, statics.softmax_static, statics.argmax_static,
    )
)  # fmt: skip

# Where a function of its first operand has the flags of the rows that it reads.
_PLACE_OF_FLAGS: Mapping[Any, int] = {
    packing.loss_sum: 1,
    packing.loss_count: 1,
    pointwise.fill_missing: 1,
    **dict.fromkeys(
        (
            segments.sum_rows, segments.mean_rows, segments.max_rows, segments.min_rows, segments.any_rows,
            segments.all_rows, segments.logsumexp_rows,
        ),
        3,
    ),
}  # fmt: skip


def leave_out_uncounted_rows(module: fx.GraphModule, least_outputs: int = LEAST_OUTPUTS) -> None:
    """Of objectives: nothing else has losses. `least_outputs` of a linear for which it is done."""
    if signature(module).losses:
        known = facts(module)
        moved = _moved(module, known, wanted_rows(module, known), least_outputs)
        if moved:
            _Rewriting(module, known, moved).run()


def counted_linears(module: fx.GraphModule) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """After the pass, the linears that are given some rows only, each with the losses that follow from it."""
    axes = {_axis(node) for node in module.graph.nodes if is_call(node, counted_rows.counted)}
    return {node: _losses(node) for node in module.graph.nodes if _is_linear(node) and _axis(node) in axes}


def _losses(node: fx.Node) -> tuple[fx.Node, ...]:
    waiting, seen = [node], dict.fromkeys([node])
    while waiting:
        more = [user for user in waiting.pop().users if user not in seen]
        seen |= dict.fromkeys(more)
        waiting += more
    return tuple(one for one in seen if is_call(one, packing.loss_sum))


def wanted_rows(module: fx.GraphModule, known: dict[fx.Node, Fact]) -> dict[fx.Node, Wanted]:
    """Which rows of each value anybody wants."""
    found: dict[fx.Node, Wanted] = defaultdict(frozenset)
    for node in reversed(module.graph.nodes):
        for operand in node.all_input_nodes:
            before, more = found[operand], _wanted_by(node, operand, found[node], known)
            found[operand] = None if before is None or more is None else before | more
    return found


def _wanted_by(node: fx.Node, operand: fx.Node, own: Wanted, known: dict[fx.Node, Fact]) -> Wanted:
    """The rows of an operand that a node reads, where it is wanted at `own`."""
    if operand not in known:
        return None
    if _is_row_by_row(node, known) and own is not None:
        return own if known[operand].level == known[node].level else None
    flags = _flags(node)
    # Whoever reads the flags, or reads an operand twice, wants all of it.
    if flags is None or node.args.count(operand) != 1 or operand is not node.args[_place_of_value(node)]:
        return None
    fact = known.get(flags)
    return frozenset((flags,)) if fact == Fact(known[operand].level, (), torch.bool) else None


def _flags(node: fx.Node) -> fx.Node | None:
    """What says which rows of a value a node reads."""
    place = 0 if is_call(node, pointwise.where) else _PLACE_OF_FLAGS.get(node.target)
    flags = None if place is None or len(node.args) <= place else node.args[place]
    return flags if isinstance(flags, fx.Node) else None


def _place_of_value(node: fx.Node) -> int:
    return 1 if is_call(node, pointwise.where) else 0


def _is_row_by_row(node: fx.Node, known: dict[fx.Node, Fact]) -> bool:
    if node.op != "call_function" or node.target not in _ROW_BY_ROW or node.kwargs or FACT in node.meta:
        return False
    return node in known and known[node].level is not None and all(one in known for one in node.all_input_nodes)


def _moved(
    module: fx.GraphModule, known: dict[fx.Node, Fact], wanted: dict[fx.Node, Wanted], least_outputs: int
) -> dict[fx.Node, Wanted]:
    """The values that are computed at some rows alone, the last linears of losses and what is made of them; and which
    rows these are, those that anybody wants of a linear."""
    steps = {node for node in module.graph.nodes if wanted[node] and _is_row_by_row(node, known)}
    before_linears: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if any(user in steps and (user in before_linears or _is_linear(user)) for user in node.users):
            before_linears.add(node)
    moved: dict[fx.Node, Wanted] = {}
    for node in module.graph.nodes:
        if node not in steps:
            continue
        # Readers of a linear stay together, so that it can be streamed: a loss leaves out what another one counts.
        sets = {moved[operand] for operand in node.all_input_nodes if operand in moved}
        is_last = _is_linear(node) and node not in before_linears and _axis(node) is not None
        if sets or (is_last and known[node].dims[-1] >= least_outputs):
            moved[node] = sets.pop() if len(sets) == 1 else wanted[node]
    return moved


def _is_linear(node: fx.Node) -> bool:
    return is_call(node, functional.linear)


def _axis(node: fx.Node) -> Axis | None:
    """The axis of a node's rows."""
    type_ = origin(node).type
    return None if type_ is None else type_.rows


@dataclass
class _Rewriting:
    """`rows`: by the flags, which rows have one. `made`: the new value of a node at the rows with these flags."""

    module: fx.GraphModule
    known: dict[fx.Node, Fact]
    moved: dict[fx.Node, Wanted]
    rows: dict[Wanted, fx.Node] = field(default_factory=dict)
    axes: dict[Wanted, Axis] = field(default_factory=dict)
    made: dict[tuple[fx.Node, Wanted], fx.Node] = field(default_factory=dict)

    def run(self) -> None:
        for node, flags in self.moved.items():
            if flags not in self.rows:
                self._find_rows(node, flags)
            with self.module.graph.inserting_before(node):
                arguments = fx.map_arg(node.args, lambda one: self._at(one, flags))  # noqa: B023
                self.made[node, flags] = self._like(node, flags, node.target, *arguments)
        for node in self.moved:
            self._tell_readers(node)
        pull_operands(self.module, "leaving out rows that no loss counts")

    def _find_rows(self, node: fx.Node, flags: Wanted) -> None:
        graph, axis = self.module.graph, self._axis_of(self.known[node].level)
        names = {one.name for one in self.axes.values()}
        free = (f"{axis.name}.counted{number or ''}" for number in count())
        self.axes[flags] = replace(axis, name=next(name for name in free if name not in names))
        keep, *more = _ordered(flags)
        where = Origin(origin(keep).span, ValueType(Flag(), (axis,)))
        first = next(one for one in graph.nodes if one.op != "placeholder")
        # As early as can be. What depends on weights is not there before they have been used.
        with graph.inserting_before(node if _reads_weights(flags) else first):
            for other in more:
                keep = mark(graph.call_function(torch.logical_or, (keep, other)), where)
            begun = mark(graph.call_function(counted_rows.begin_count, (keep,)), replace(where, type=None))
        with graph.inserting_before(node):
            rows = graph.call_function(counted_rows.counted, (begun,))
        self.rows[flags] = mark(rows, replace(where, type=ValueType(Int(), (self.axes[flags],))))

    def _axis_of(self, level: str | None) -> Axis:
        return next(axis for one in self.moved if self.known[one].level == level and (axis := _axis(one)) is not None)

    def _at(self, operand: fx.Node, flags: Wanted) -> fx.Node:
        """An operand at the rows with these flags; one without rows as it is."""
        if self.known[operand].level is None:
            return operand
        if (operand, flags) not in self.made:
            own, rows = self.moved.get(operand), self.rows[flags]
            if own is None:
                source, places = operand, rows
            else:
                source = self.made[operand, own]
                places = self._call(rows, selections.places_of, self.rows[own], rows)
            self.made[operand, flags] = self._like(operand, flags, selections.take, source, places)
        return self.made[operand, flags]

    def _like(self, node: fx.Node, flags: Wanted, function: Any, *arguments: Any) -> fx.Node:
        new, known = self.module.graph.call_function(function, arguments), origin(node)
        type = known.type
        if type is not None and type.rows is not None:
            type = type.with_axes(tuple(self.axes[flags] if axis is type.rows else axis for axis in type.axes))  # type: ignore[union-attr]
        return mark(new, replace(known, type=type))

    def _tell_readers(self, node: fx.Node) -> None:
        own, whole = self.moved[node], None
        for reader in list(node.users):
            if reader in self.moved:
                continue
            with self.module.graph.inserting_before(reader):
                if is_call(reader, packing.loss_sum, packing.loss_count):
                    keep = node_at(reader, 1)
                    # Of these rows all count, unless another loss counts others.
                    reader.args = self.made[node, own], None if own == {keep} else self._at(keep, own)
                    continue
                # Rows that nobody reads may hold anything.
                given = self.made[node, own], self.rows[own], _ordered(own)[0]
                whole = whole or self._call(node, selections.placed, *given)
                reader.replace_input_with(node, whole)

    def _call(self, like: fx.Node, function: Any, *arguments: Any) -> fx.Node:
        return inherit(self.module.graph.call_function(function, arguments), like)


def _ordered(flags: Wanted) -> list[fx.Node]:
    """So that a graph is the same each time it is made."""
    return sorted(flags or (), key=lambda one: one.name)


def _reads_weights(flags: Wanted) -> bool:
    waiting, seen = list(flags or ()), set()
    while waiting:
        node = waiting.pop()
        if is_weight(node):
            return True
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False
