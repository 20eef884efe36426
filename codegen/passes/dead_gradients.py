"""Rows that nothing trainable precedes are computed without a gradient, and nothing of them is kept for backward.

    x = take(mixed, text);  y = linear(x, frozen)       ->      a = detach(take(mixed, early));  b = linear(a, frozen)
    z = join((y, picture), order)                               c = take(mixed, late);           d = linear(c, frozen)
                                                                z = join((b, d, picture), order of three)

Which these are, and why that changes no gradient, is `codegen/dead_rows.py`. To freeze a weight is not to detach: rows
behind a picture hand on its gradient, so an arm runs once for rows in front and once for rows behind.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ...dsl.axes import Axis
from ...dsl.value_type import Flag, Int, ValueType
from ..dead_rows import EarlyRows, early_rows
from ..fact import Fact
from ..facts import facts
from ..functions import packing, selections
from ..lower import signature
from ..origin import Origin, inherit, mark, origin
from .matching import is_call, node_at, tuple_at
from .matching import replace as read_instead
from .ordering import pull_operands

Halves = tuple[Any, Any]  # early and late


def stop_dead_gradients(module: fx.GraphModule) -> None:
    """Of objectives: nothing else has a backward pass."""
    if signature(module).losses:
        for early in early_rows(module, known := facts(module)):
            _Split(module.graph, known, early).run()
            pull_operands(module, "dead gradients")  # a tag may itself be selected
            return  # facts of rows by another tag are of another graph now


@dataclass
class _Split:
    """`of_part`: places of a part's halves among its rows. `halves` of nodes."""

    graph: fx.Graph
    known: dict[fx.Node, Fact]
    early: EarlyRows
    of_part: dict[fx.Node, Halves] = field(default_factory=dict)
    rows: dict[fx.Node, Halves] = field(default_factory=dict)
    axes: dict[Axis, tuple[Axis, Axis]] = field(default_factory=dict)
    halves: dict[fx.Node, Halves] = field(default_factory=dict)
    orders: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def run(self) -> None:
        nodes = list(self.graph.nodes)
        self._find_rows(next(node for node in nodes if node.op != "placeholder"))
        split = [node for node in nodes if self.early.is_split(node, self.known)]
        for node in split:
            self.halves[node] = self._twice(node)
        for node in nodes:
            if is_call(node, selections.join) and self.known[node].level == self.early.level:
                self._join(node)
        for node in split:
            self._tell_readers(node)

    def _find_rows(self, first: fx.Node) -> None:
        early = self.early
        where = Origin(origin(early.offsets).span, ValueType(Flag(), origin(early.tag).type.axes))  # type: ignore[union-attr]

        def call(function: Any, *arguments: Any) -> fx.Node:
            return mark(self.graph.call_function(function, arguments), where)

        with self.graph.inserting_before(first):
            row_example = call(packing.row_example, early.offsets, early.tag)
            flags = call(selections.has_tag, early.tag, tuple(sorted(early.members)))
            in_front = call(selections.in_front, flags, early.offsets, row_example)
            behind = call(operator.invert, in_front)
        for part in dict.fromkeys(early.parts.values()):
            axis = origin(part).type.rows  # type: ignore[union-attr]
            assert axis is not None
            flags = (in_front, behind)
            halves = [self._half_of(part, own, half) for own, half in zip(flags, self._halves_of(axis), strict=True)]
            self.of_part[part], self.rows[part] = tuple(zip(*halves, strict=True))

    def _halves_of(self, axis: Axis) -> tuple[Axis, Axis]:
        if axis not in self.axes:
            early, late = (replace(axis, name=f"{axis.name}.{half}") for half in ("early", "late"))
            self.axes[axis] = early, late
        return self.axes[axis]

    def _half_of(self, part: fx.Node, flags: fx.Node, axis: Axis) -> Halves:
        """Which rows of a part have a flag: their places among its rows, and on the whole axis."""
        made, where = part, Origin(origin(part).span, ValueType(Int(), (axis,)))

        def call(function: Any, *arguments: Any) -> fx.Node:
            with self.graph.inserting_after(made):
                return mark(self.graph.call_function(function, arguments), where)

        made = call(selections.take, flags, part)
        places = made = call(selections.rows_of, made)
        return places, call(selections.take, part, places)

    # -- values ------------------------------------------------------------------------------------

    def _twice(self, node: fx.Node) -> Halves:
        part = self.early.parts[self.known[node].level or ""]
        made = []
        for half in (0, 1):
            with self.graph.inserting_before(node):
                if is_call(node, selections.take):
                    rows = self.rows[part][half]
                    new = self._like(node, half, selections.take, node_at(node, 0), rows)
                    made.append(self._like(node, half, torch.detach, new) if half == 0 else new)
                else:
                    arguments = fx.map_arg(node.args, lambda one: self._half(one, half, node))  # noqa: B023
                    new = self._like(node, half, node.target, *arguments)
                    new.kwargs = fx.map_arg(node.kwargs, lambda one: self._half(one, half, node))  # noqa: B023
                    made.append(new)
        return made[0], made[1]

    def _half(self, node: fx.Node, half: int, reader: fx.Node) -> fx.Node:
        """What a half reads of an operand; of another level: all."""
        level = self.known[node].level if node in self.known else None
        if level not in self.early.parts:
            return node
        if node not in self.halves:
            part = self.early.parts[level]
            with self.graph.inserting_before(reader):
                places = self.of_part[part]
                self.halves[node] = tuple(  # type: ignore[assignment]
                    self._like(node, i, selections.take, node, places[i]) for i in (0, 1)
                )
        return self.halves[node][half]

    def _like(self, node: fx.Node, half: int, function: Any, *arguments: Any) -> fx.Node:
        new, known = self.graph.call_function(function, arguments), origin(node)
        type = known.type
        if type is not None and type.rows is not None:
            axes = tuple(self._halves_of(axis)[half] if axis is type.rows else axis for axis in type.axes)
            known = replace(known, type=type.with_axes(axes))
        return mark(new, known)

    # -- readers -----------------------------------------------------------------------------------

    def _join(self, node: fx.Node) -> None:
        order = node_at(node, 1)
        rows = tuple_at(order, 0)
        if not any(one in self.rows for one in rows):
            return
        parts: list[Any] = []
        for part, own in zip(tuple_at(node, 0), rows, strict=True):
            parts += [self._half(part, half, node) for half in (0, 1)] if own in self.rows else [part]
        if order not in self.orders:
            with self.graph.inserting_before(node):
                each = [half for own in rows for half in self.rows.get(own, (own,))]
                self.orders[order] = inherit(self.graph.call_function(selections.order_of, (tuple(each),)), order)
        node.args = (tuple(parts), self.orders[order])

    def _tell_readers(self, node: fx.Node) -> None:
        """What is no part of the arm reads the halves put together again; sums of them are two sums."""
        whole = None
        for reader in list(node.users):
            if reader in self.halves or reader in self.halves.values():
                continue
            if is_call(reader, packing.loss_sum, packing.loss_count):
                self._add(reader)
                continue
            if whole is None:
                whole = self._whole(node)
            reader.replace_input_with(node, whole)

    def _add(self, reader: fx.Node) -> None:
        with self.graph.inserting_before(reader):
            sums = []
            for half in (0, 1):
                arguments = fx.map_arg(reader.args, lambda one: self._half(one, half, reader))  # noqa: B023
                sums.append(inherit(self.graph.call_function(reader.target, arguments), reader))  # type: ignore[arg-type]
            both = inherit(self.graph.call_function(operator.add, tuple(sums)), reader)
        read_instead(reader, both)

    def _whole(self, node: fx.Node) -> fx.Node:
        places = self.of_part[self.early.parts[self.known[node].level or ""]]
        with self.graph.inserting_after(self.halves[node][1]):
            order = inherit(self.graph.call_function(selections.order_of, (places,)), node)
        with self.graph.inserting_after(order):
            return inherit(self.graph.call_function(selections.join, (self.halves[node], order)), node)
