"""Linears of one shape over the parts of one routing are one call on a GPU (gpu/grouped.py).

    join((linear(a, v), linear(b, w)), order((ra, rb)))         ->      grouped(a, b, ra, rb, order, v, w)
    linear(take(x, ra), v), linear(take(x, rb), w)              ->      grouped(x, ra, rb, v, w)
    linear(a, v), linear(b, w)      in two arms of one line     ->      grouped(a, b, v, w)

What is joined or taken apart around them is read and written where it lies. So are linears of one input, whose weights
lie behind one another: they are the pieces of one call. Towers of unequal shapes stay as they are. Rows of a tower that
hand on no gradient (dead_gradients.py) are a group of their own, by the same weights.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ...dsl.axes import Selected
from ..facts import FACT, Fact, facts
from ..functions import selections
from ..gpu.grouped_form import MOST_GROUPS, GroupedForm
from ..gpu.joined import joined_linears
from ..grouped.op import GroupedOp, grouped_op
from ..origin import inherit, mark, origin
from .matching import depends_on, is_call, node_at, replace, tuple_at
from .ordering import pull_operands


@dataclass(frozen=True, eq=False)
class _Linear:
    """A linear, or several of one input: `pieces` are their results."""

    node: fx.Node
    place: int
    x: fx.Node
    weights: tuple[fx.Node, ...]
    biases: tuple[fx.Node, ...]
    pieces: tuple[fx.Node, ...]
    inputs: int
    outputs: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> object:
        return self.inputs, self.outputs, bool(self.biases), self.dtype


@dataclass(frozen=True)
class _Group:
    """Linears that are one call. `joins`: of each piece, where its parts are joined and how rows are unflattened in
    front of it; `source`: what all of them take their rows from."""

    linears: tuple[_Linear, ...]
    rows: tuple[fx.Node, ...] = ()
    joins: tuple[tuple[fx.Node, tuple[Any, ...]], ...] = ()
    source: fx.Node | None = None

    @property
    def detached(self) -> tuple[int, ...]:
        """Which of them take rows of the source without a gradient."""
        if self.source is None:
            return ()
        return tuple(place for place, linear in enumerate(self.linears) if is_call(_rows_of(linear), torch.detach))


def group_linears(module: fx.GraphModule) -> None:
    known = facts(module)
    left = dict.fromkeys(one for place, node in enumerate(module.graph.nodes) if (one := _linear(node, place, known)))
    ops: dict[object, GroupedOp] = {}
    for find in (_joined, _taken, _beside):
        for group in find(left):
            if len(group.linears) <= MOST_GROUPS:
                _rewrite(module, group, known, ops)
                for linear in group.linears:
                    del left[linear]
    pull_operands(module, "grouping linears")


def _linear(node: fx.Node, place: int, known: Mapping[fx.Node, Fact]) -> _Linear | None:
    """Over rows of real entries."""
    if node.kwargs or not is_call(node, functional.linear, joined_linears):
        return None
    if is_call(node, functional.linear):
        x, weight, *rest = node.args
        weights, biases, pieces = (weight,), tuple(one for one in rest if one is not None), (node,)
    else:
        x, *weights = node.args
        parts = {user.args[1]: user for user in node.users if is_call(user, operator.getitem)}
        if len(parts) < len(weights) or len(parts) < len(node.users):
            return None
        weights, biases, pieces = tuple(weights), (), tuple(parts[j] for j in range(len(weights)))
    found = [known.get(one) if isinstance(one, fx.Node) else None for one in (x, *weights, *biases)]
    there = [fact for fact in found if fact is not None]
    if len(there) < len(found) or not all(isinstance(one, fx.Node) for one in pieces):
        return None
    rows, shapes = there[0], [fact.dims for fact in there[1 : 1 + len(weights)]]
    if rows.level is None or any(shape[1:] != rows.dims for shape in shapes):
        return None
    if len({fact.dtype for fact in there}) > 1 or not rows.is_real or any(piece not in known for piece in pieces):
        return None
    outputs = tuple(shape[0] for shape in shapes)
    return _Linear(node, place, x, weights, biases, pieces, rows.dims[0], outputs, rows.dtype)  # type: ignore[arg-type]


# -- which belong together ---------------------------------------------------------------------------------------------


def _joined(linears: Mapping[_Linear, None]) -> list[_Group]:
    """Parts of the same joins, and of all their parts."""
    found: dict[object, dict[int, _Linear]] = defaultdict(dict)
    for linear in linears:
        sinks = [_sink(piece) for piece in linear.pieces]
        joins = tuple((sink[0], sink[1]) for sink in sinks if sink is not None)
        places = {sink[2] for sink in sinks if sink is not None}
        if len(joins) == len(linear.pieces) and len(places) == 1:
            found[linear.shape, joins][places.pop()] = linear
    groups = []
    for (_, joins), parts in found.items():  # type: ignore[misc]
        orders = {node_at(join, 1) for join, _ in joins}
        order = orders.pop()
        if orders or not is_call(order, selections.order_of) or set(parts) != set(range(len(tuple_at(order, 0)))):
            continue
        rows, members = tuple_at(order, 0), tuple(parts[place] for place in range(len(parts)))
        sources = [_source(one) for one in members]
        whole = {source[0] for source in sources if source is not None}
        taken = tuple(source[1] for source in sources if source is not None)
        source = whole.pop() if len(whole) == 1 and taken == rows else None
        groups.append(_Group(members, rows, joins, source))
    return groups


def _sink(piece: fx.Node) -> tuple[fx.Node, tuple[Any, ...], int] | None:
    """The join that alone reads a result, what unflattens its rows before, and which part it is."""
    arguments: tuple[Any, ...] = ()
    reader, value = _only(piece), piece
    if reader is not None and is_call(reader, torch.unflatten):
        arguments, value, reader = tuple(map(_fixed, reader.args[1:])), reader, _only(reader)
    if reader is None or not is_call(reader, selections.join) or tuple_at(reader, 0).count(value) != 1:
        return None
    return reader, arguments, tuple_at(reader, 0).index(value)


def _only(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _fixed(argument: Any) -> Any:
    return tuple(argument) if isinstance(argument, list) else argument


def _taken(linears: Mapping[_Linear, None]) -> list[_Group]:
    """Of rows that are taken from one tensor for each tag."""
    found: dict[object, dict[fx.Node, _Linear]] = defaultdict(dict)
    counts: dict[object, int] = defaultdict(int)
    for linear in linears:
        source = _source(linear)
        if source is not None:
            whole, rows = source
            counts[source, linear.shape] += 1
            # Several of one shape: the first of each part, the second of each.
            found[whole, linear.shape, counts[source, linear.shape]][rows] = linear
    return [
        _Group(tuple(parts.values()), tuple(parts), source=whole)  # type: ignore[arg-type]
        for (whole, *_), parts in found.items()  # type: ignore[misc]
        if len(parts) > 1 and _are_apart(list(parts))
    ]


def _source(linear: _Linear) -> tuple[fx.Node, fx.Node] | None:
    """What the rows of a linear are taken from, and which rows."""
    x = _rows_of(linear)
    if is_call(x, torch.detach):
        x = node_at(x, 0)
    if not is_call(x, selections.take):
        return None
    return node_at(x, 0), node_at(x, 1)


def _rows_of(linear: _Linear) -> fx.Node:
    """Before their entries became one axis."""
    x = linear.x
    return node_at(x, 0) if is_call(x, torch.flatten) and x.args[1:] in ((1,), (1, -1)) else x


def _are_apart(rows: Sequence[fx.Node]) -> bool:
    """Whether no row is in two of them: they are parts of one order, or have different values of one tag."""
    orders = [user for user in rows[0].users if is_call(user, selections.order_of)]
    if any(set(rows) <= set(tuple_at(order, 0)) for order in orders):
        return True
    tags, seen = set(), []
    for one in rows:
        flags = node_at(one, 0) if is_call(one, selections.rows_of) else None
        if flags is None or not is_call(flags, selections.has_tag):
            return False
        tags.add(flags.args[0])
        seen += tuple_at(flags, 1)
    return len(tags) == 1 and len(set(seen)) == len(seen)


def _beside(linears: Mapping[_Linear, None]) -> list[_Group]:
    """Of one line, in different arms of one routing."""
    found: dict[object, dict[object, _Linear]] = defaultdict(dict)
    for linear in linears:
        known = origin(linear.node)
        axis = None if known.type is None else known.type.rows
        arms = [place for place, frame in enumerate(known.scope) if frame.is_arm]
        if axis is not None and isinstance(axis.kind, Selected) and axis.kind.by is not None and arms:
            scope = [(frame.name, frame.index) for frame in known.scope]
            around = tuple(scope[: arms[-1]]), tuple(scope[arms[-1] + 1 :])
            key = known.span, around, axis.kind.parent, axis.kind.by, linear.shape
            found[key].setdefault((axis.kind.members, axis.name), linear)
    groups = [tuple(parts.values()) for parts in found.values() if len(parts) > 1]
    return [_Group(linears) for linears in groups if not _waits(linears)]


def _waits(linears: Sequence[_Linear]) -> bool:
    """Whether one needs the result of another."""
    nodes = {linear.node for linear in linears}
    return depends_on((linear.x for linear in linears), nodes)


# -- the graph ---------------------------------------------------------------------------------------------------------


def _rewrite(module: fx.GraphModule, group: _Group, known: dict[fx.Node, Fact], ops: dict[object, GroupedOp]) -> None:
    graph, linears = module.graph, group.linears
    first = linears[0]
    form = GroupedForm(
        groups=len(linears),
        inputs=first.inputs,
        outputs=first.outputs,
        gathers=group.source is not None,
        scatters=bool(group.joins),
        has_bias=bool(first.biases),
        detached=group.detached,
    )
    x = (group.source,) if group.source is not None else tuple(linear.x for linear in linears)
    order = (node_at(group.joins[0][0], 1),) if group.joins else ()
    weights = tuple(weight for linear in linears for weight in linear.weights)
    biases = tuple(bias for linear in linears for bias in linear.biases)
    # In front of all of them: what reads the results keeps its order, which is the same in all arms.
    with graph.inserting_before(min(linears, key=lambda linear: linear.place).node):
        call = graph.call_function(_op(form, first.dtype, ops), (*x, *group.rows, *order, *weights, *biases))
        inherit(call, first.node)
        results = [call]
        if form.results > 1:
            mark(call, replace_fields(origin(call), value=None))  # its parts compute values
            results = [graph.call_function(operator.getitem, (call, place)) for place in range(form.results)]
    if not group.joins:
        for old, new in zip((piece for linear in linears for piece in linear.pieces), results, strict=True):
            new.meta[FACT] = known[new] = known[old]
            replace(old, inherit(new, old))
        return
    for (join, arguments), result, size in zip(group.joins, results, first.outputs, strict=True):
        result.meta[FACT] = known[result] = Fact(known[join].level, (size,), first.dtype)
        if form.results > 1:
            mark(result, replace_fields(origin(join), value=None))
        whole = result
        if arguments:
            with graph.inserting_after(result):
                whole = graph.call_function(torch.unflatten, (result, *arguments))
            known[whole] = known[join]
        replace(join, inherit(whole, join))


def _op(form: GroupedForm, dtype: torch.dtype, ops: dict[object, GroupedOp]) -> GroupedOp:
    """Ours where rows are moved, which the matrix library does by copies of its operands; else it has the better
    product, until one is measured."""
    if (form, dtype) not in ops:
        name = f"grouped_{form.inputs}_{'_'.join(map(str, form.outputs))}"
        alike = sum(op.name.startswith(name) for op in ops.values())
        name += f"_variant_{alike}" if alike else ""
        ops[form, dtype] = grouped_op(name, form, dtype, is_ours=form.moves)
    return ops[form, dtype]
