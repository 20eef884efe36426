"""Calls in which a tag has one value at all rows: what selects by it is everything or nothing.

    x = join((a, b), order((ra, rb)));  c = take(y, rb)         all rows have the tag of b:     x = b;  c = y

An arm whose tag no row has computes nothing. Where a graph still wants its rows (as a result, as a sum of none) they
are made from nothing, so that all that leads to them, weights included, is dead. Rows of a selection of everything are
from here on rows of the axis that it was made from, so that later passes see one axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ...dsl.axes import Axis, Cut, Group, Nested, Scaled, Selected
from ...dsl.program import Program, Value
from ...dsl.value_type import Tag, ValueType
from ..fact import Fact, level_of
from ..facts import facts
from ..functions import caches, selections
from ..origin import inherit, mark, origin
from .dead_code import drop_dead_code
from .matching import is_call, node_at, tuple_at
from .matching import replace as read_instead


@dataclass
class Folded:
    """What is known of a graph. `tags`: the one value of these tags. `chosen`: flags and rows that select everything
    (True) or nothing."""

    graph: fx.Graph
    program: Program
    tags: dict[fx.Node, int]
    alone: bool
    chosen: dict[fx.Node, bool] = field(default_factory=dict)

    def call(self, like: fx.Node, function: Any, *arguments: Any) -> fx.Node:
        with self.graph.inserting_before(like):
            return inherit(self.graph.call_function(function, arguments), like)


def fold_tags(module: fx.GraphModule, program: Program, tags: Mapping[str, int], alone: bool) -> None:
    """`tags`: the number of the one value that an input has at all rows. `alone`: in a decoding graph, the new rows of
    each sequence are one row, or the rows of one owner, such as a picture."""
    known = facts(module)
    inputs = {of.name: node for node in module.graph.nodes if (of := origin(node).value) and node.op == "placeholder"}
    folded = Folded(module.graph, program, {inputs[name]: member for name, member in tags.items()}, alone)
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            _fold(folded, node)
    drop_dead_code(module)
    axes = _Axes(folded, {value: node for node in module.graph.nodes if (value := origin(node).value)})
    axes.rename(module, _without_rows(module, known, axes, next(iter(folded.tags))))


def _fold(folded: Folded, node: fx.Node) -> None:
    if node.target in _FOLDS:
        _FOLDS[node.target](folded, node)


# -- which rows ------------------------------------------------------------------------------------


def _has_tag(folded: Folded, node: fx.Node) -> None:
    member = folded.tags.get(node_at(node, 0))
    if member is not None:
        folded.chosen[node] = member in tuple_at(node, 1)


def _rows_of(folded: Folded, node: fx.Node) -> None:
    flags = node_at(node, 0)
    if flags in folded.chosen:
        folded.chosen[node] = folded.chosen[flags]


def _at_rows(folded: Folded, node: fx.Node) -> None:
    """The tag of examples, or flags of it, at their rows."""
    of_examples = node_at(node, 0)
    if of_examples in folded.tags:
        folded.tags[node] = folded.tags[of_examples]
    if of_examples in folded.chosen and is_call(of_examples, selections.has_tag):
        folded.chosen[node] = folded.chosen[of_examples]


def _offsets(folded: Folded, node: fx.Node, flags: int, offsets: int) -> None:
    if folded.chosen.get(node_at(node, flags)):
        read_instead(node, node_at(node, offsets))


def _order(folded: Folded, node: fx.Node) -> None:
    if all(rows in folded.chosen for rows in tuple_at(node, 0)):
        folded.chosen[node] = True


# -- values ----------------------------------------------------------------------------------------


def _take(folded: Folded, node: fx.Node) -> None:
    x, rows = node_at(node, 0), node_at(node, 1)
    if x in folded.tags:
        folded.tags[node] = folded.tags[x]
    if folded.chosen.get(rows):
        if x in folded.chosen:
            folded.chosen[node] = folded.chosen[x]
        read_instead(node, x)


def _join(folded: Folded, node: fx.Node) -> None:
    order = node_at(node, 1)
    if order not in folded.chosen:
        return
    for part, rows in zip(tuple_at(node, 0), tuple_at(order, 0), strict=True):
        if folded.chosen[rows]:
            read_instead(node, part)


def _as_many(folded: Folded, node: fx.Node) -> None:
    """Rows that are looked at for their number: any others of as many do."""
    rows = node_at(node, 1)
    if folded.chosen.get(rows):
        node.update_arg(1, _one_for_each(node_at(rows, 0)))


def _one_for_each(flags: fx.Node) -> fx.Node:
    """What there was with an entry for each row before flags were made of it."""
    return node_at(flags, 0) if is_call(flags, selections.has_tag) else node_at(flags, 2)


def _places(folded: Folded, node: fx.Node) -> None:
    if folded.chosen.get(node_at(node, 0)):
        read_instead(node, node_at(node, 1))


def _place_of_segment(folded: Folded, node: fx.Node) -> None:
    position, chosen, begins, number = (node_at(node, i) for i in range(4))
    if not folded.chosen.get(chosen):
        return
    if folded.alone and is_call(position, caches.positions):
        # The one that is new begins where its sequence ended.
        _, row_example, lengths = (node_at(position, i) for i in range(3))
        read_instead(node, folded.call(node, torch.index_select, lengths, 0, row_example))
    else:
        of_segment = folded.call(node, torch.index_select, position, 0, begins)
        read_instead(node, folded.call(node, torch.index_select, of_segment, 0, number))


def _numbers(folded: Folded, node: fx.Node) -> None:
    number, inside, rows, like, outside = node.args
    chosen = folded.chosen.get(rows)  # type: ignore[arg-type]
    if chosen and inside is None:
        read_instead(node, number)  # type: ignore[arg-type]
    elif chosen is False:
        read_instead(node, folded.call(node, selections.nowhere, like, outside))


_FOLDS: dict[Any, Any] = {
    selections.has_tag: _has_tag,
    selections.rows_of: _rows_of,
    torch.index_select: _at_rows,
    selections.offsets_of: lambda folded, node: _offsets(folded, node, 0, 1),
    selections.offsets_of_examples: lambda folded, node: _offsets(folded, node, 1, 0),
    selections.order_of: _order,
    selections.take: _take,
    selections.join: _join,
    selections.want_as_many: _as_many,
    selections.places_of: _places,
    selections.place_of_segment: _place_of_segment,
    selections.placed_numbers: _numbers,
}


# -- rows that there are none of -------------------------------------------------------------------


@dataclass(frozen=True)
class _Axes:
    """Axes and groups of examples of a graph whose tags have one value. `nodes`: where each value is computed."""

    folded: Folded
    nodes: Mapping[Value, fx.Node]

    def lacks_rows(self, axis: Axis) -> bool:
        cut = self.folded.program.shown.get(axis)
        if cut is not None and self.lacks_rows(cut):
            return True
        match axis.kind:
            case Selected(parent=parent):
                return self._is_chosen(axis) is False or self.lacks_rows(parent)
            case Cut(parent=parent) | Nested(parent=parent) | Scaled(parent=parent):
                return self.lacks_rows(parent)
            case _:
                return False

    def lacks_examples(self, group: Group | None) -> bool:
        return group is not None and (self._has(group.by, group.members) is False or self.lacks_examples(group.parent))

    def lacks(self, type: ValueType) -> bool:
        return self.lacks_examples(type.group) if type.rows is None else self.lacks_rows(type.rows)

    def widened(self, type: ValueType) -> ValueType:
        """The type with the axes, and the examples, that selections of everything were made from."""
        group = type.group
        while group is not None and self._has(group.by, group.members):
            group = group.parent
        return replace(type, axes=tuple(map(self._widened, type.axes)), group=group)

    def _widened(self, axis: Axis) -> Axis:
        while isinstance(axis.kind, Selected) and self._is_chosen(axis):
            axis = axis.kind.parent
        return axis

    def _is_chosen(self, axis: Axis) -> bool | None:
        """Whether a selection has all rows of what it is made from (True), or none (False)."""
        kind = axis.kind
        assert isinstance(kind, Selected)
        if kind.group is not None:
            return self._has(kind.group.by, kind.group.members)
        tag = kind.by or self.folded.program.selected.get(axis)
        if tag is None or not isinstance(tag.type.kind, Tag):
            return None
        names = tag.type.kind.enum.members
        return self._has(tag, tuple(names.index(name) for name in kind.members))

    def _has(self, tag: Value, members: tuple[int, ...]) -> bool | None:
        member = self.folded.tags.get(self.nodes[tag]) if tag in self.nodes else None
        return None if member is None else member in members

    def rename(self, module: fx.GraphModule, keep: set[fx.Node]) -> None:
        for node in module.graph.nodes:
            known = origin(node)
            if known.type is not None and node not in keep:
                mark(node, replace(known, type=self.widened(known.type)))


def _without_rows(module: fx.GraphModule, known: Mapping[fx.Node, Fact], axes: _Axes, like: fx.Node) -> set[fx.Node]:
    """Who reads rows that there are none of reads rows made from nothing. Returns these."""
    types = [type for node in module.graph.nodes if (type := origin(node).type) is not None]
    levels = {level for type in types if axes.lacks(type) and (level := level_of(type)) is not None}
    made: set[fx.Node] = set()

    def is_empty(node: fx.Node) -> bool:
        return node in made or (node in known and known[node].level in levels)

    for node in list(module.graph.nodes):
        if not is_empty(node) or node.op == "placeholder":
            continue
        readers = [user for user in node.users if not is_empty(user)]
        if readers:
            with module.graph.inserting_before(node):
                fact = known[node]
                none = module.graph.call_function(selections.no_rows, (like, fact.dims, fact.dtype))
            made.add(inherit(none, node))
            for reader in readers:
                reader.replace_input_with(node, none)
    return made
