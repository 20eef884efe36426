"""Selections: `take` the rows that have a tag, `join` rows of all tags in their places again (SEMANTICS 2 and 8).

The tag is among the inputs, because which rows are chosen is data. Arms of `match` and `routed by` are made of the same
two operators (dsl/arms.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dsl import frontier
from ...dsl.axes import Axis, Group, Selected
from ...dsl.errors.axes import NotAlong
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.errors.routing import NotCovered
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, AxisMapping, Cost, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.selections import JoinAttrs, TakeAttrs
from ...dsl.value_type import Kind, Tag, ValueType
from ..functions_lazy import selections
from ..lowering import LowerContext
from .axis_pairs import moved, one_pair, want_along
from .joining import Operand, join, level_words, same_kind
from .operands import own, result_type, traffic


def members_of(tag: Value, names: tuple[str, ...]) -> tuple[int, ...]:
    assert isinstance(tag.type.kind, Tag)
    return tuple(tag.type.kind.enum.members.index(name) for name in names)


def members_of_axis(tag: Value, axis: Axis) -> tuple[int, ...]:
    assert isinstance(axis.kind, Selected)
    return members_of(tag, axis.kind.members)


def read_tag(call: OpCall, axis: Axis) -> tuple[Value, ...]:
    """What an operator reads that has rows along a selected axis, or counts them: the tag. Arms know theirs."""
    kind = axis.kind
    return (call.selected(axis),) if isinstance(kind, Selected) and kind.by is None else ()


def choose_rows(ctx: LowerContext, node: Node, axis: Axis) -> None:
    """Tells the graph which rows a selected axis has, where `read_tag` is all that the node reads."""
    if isinstance(axis.kind, Selected) and node.inputs:
        chosen_rows(ctx, axis, node.inputs[0])


def chosen_rows(ctx: LowerContext, axis: Axis, tag: Value) -> Any:
    """int64: which rows of the whole a declared selection has."""
    assert isinstance(axis.kind, Selected)
    return ctx.chosen(axis, axis.kind.parent, tag, members_of_axis(tag, axis), None)


def _selection(call: OpCall, operator: str, part: Axis, whole: Axis) -> Selected:
    kind = part.kind
    if not (isinstance(kind, Selected) and kind.parent is whole):
        raise call.fail(NotACut(call.at("axes"), operator, whole.name, part.name, "a selection of"))
    return kind


def _cost(node: Node, rows: Mapping[Axis, int]) -> Cost:
    return Cost(0, traffic(node, rows))


# -- take ------------------------------------------------------------------------------------------


def _infer_take(call: OpCall, x: Value, axes: AxisMapping) -> Inferred:
    source, target = one_pair(call, "take", axes)
    want_along(call, "take", x, source)
    kind = _selection(call, "take", target, source)
    tag = call.selected(target)
    return Inferred(TakeAttrs(source, target, members_of(tag, kind.members)), (x, tag), (moved(x, source, target),))


def _lower_take(ctx: LowerContext, node: Node) -> None:
    attrs, (x, tag) = node.attrs, node.inputs
    assert isinstance(attrs, TakeAttrs)
    rows = ctx.chosen(attrs.target, attrs.source, tag, attrs.members, attrs.group)
    present = ctx.present(x)
    ctx.define(
        node.outputs[0],
        ctx.call(selections.take, own(ctx, x), rows),
        None if present is None else ctx.call(selections.take, present, rows),
    )


def _frontier_take(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, TakeAttrs)
    if node.attrs.target is None:
        return frontier.join(*given)
    return frontier.take(given[0], node.attrs.target, given[1])


AXES = Param("axes", Accepts.MAPPING)
TAKE = OpDef(
    name="take",
    params=(Param("x", Accepts.VALUE), AXES),
    infer=_infer_take,
    frontier=_frontier_take,
    lower=_lower_take,
    cost=_cost,
    doc="`take(x, seq -> word)`: the rows of a selection, in order. Missing rows are passed on.",
    samples=(
        (
            "x: real[seq, dim], kind: modality[seq]; a = take(x, seq -> word); b = take(x, seq -> spot) => "
            "join((a, 2 * b), (word, spot) -> seq)"
        ),
        "x: real[seq, dim], kind: modality[seq] => mean(take(x, seq -> word), over=word)",
        (
            "x: real[seq, dim], kind: modality[seq]; a = or_missing(take(next(x), seq -> spot), 3) => "
            "x + sum(a, over=(spot, dim)) * real(length(word))"
        ),
    ),
)


# -- join ------------------------------------------------------------------------------------------


def _infer_join(call: OpCall, values: tuple[Value, ...], axes: AxisMapping) -> Inferred:
    if len(axes.right) != 1 or len(axes.left) != len(values):
        found = f"{len(axes.left)} axes for {len(values)} values"
        raise call.fail(BadNumber(call.at("axes"), "join", "axes", found, "one selection for each value, and one axis"))
    whole = axes.right[0]
    kind: Kind = values[0].type.kind
    kinds: list[Selected] = []
    for value, part in zip(values, axes.left, strict=True):
        if value.type.rows is not part:
            raise call.fail(NotAlong(call.at("axes"), "join", part.name, level_words(value.type), call.at("values")))
        kinds.append(_selection(call, "join", part, whole))
        kind = same_kind(call, "join", values=values[0], other=value)
    tags = dict.fromkeys(call.selected(part) for part in axes.left)
    if len(tags) != 1:
        raise call.fail(
            BadNumber(call.at("axes"), "join", "axes", "selections by several tags", "selections by one tag")
        )
    tag = next(iter(tags))
    _want_cover(call, tag, whole, kinds)
    lifted = tuple(
        Operand(Value(value.name, moved(value, part, whole), value.span), call.at("values"))
        for value, part in zip(values, axes.left, strict=True)
    )
    attrs = JoinAttrs(axes.left, whole, tuple(members_of(tag, selected.members) for selected in kinds))
    return Inferred(attrs, (*values, tag), (join(call, "join", lifted).type(kind),))


def _want_cover(call: OpCall, tag: Value, whole: Axis, parts: list[Selected]) -> None:
    assert isinstance(tag.type.kind, Tag)
    given = [member for part in parts for member in part.members]
    twice = next((member for member in given if given.count(member) > 1), None)
    lacking = tuple(member for member in tag.type.kind.enum.members if member not in given)
    if twice is not None or lacking:
        raise call.fail(NotCovered(call.at("axes"), whole.name, parts[0].tag, lacking, twice))


def _lower_join(ctx: LowerContext, node: Node) -> None:
    attrs, place = node.attrs, result_type(node)
    assert isinstance(attrs, JoinAttrs)
    *values, tag = node.inputs
    groups = attrs.groups or (None,) * len(values)
    rows = [
        ctx.chosen(part, attrs.whole, tag, members, group)
        for part, members, group in zip(attrs.parts, attrs.members, groups, strict=True)
    ]
    order = ctx.joined_order(attrs.whole, tuple(rows))
    parts = [
        _part(ctx, value, part, group, place) for value, part, group in zip(values, attrs.parts, groups, strict=True)
    ]
    there = [ctx.present(value) for value in values]
    present = None
    if any(flags is not None for flags in there):
        filled = [
            ctx.call(selections.all_there, own_rows) if flags is None else flags
            for flags, own_rows in zip(there, rows, strict=True)
        ]
        present = ctx.call(selections.join, tuple(filled), order)
    ctx.define(node.outputs[0], ctx.call(selections.join, tuple(parts), order), present)


def _part(ctx: LowerContext, value: Value, part: Axis | None, group: Group | None, place: ValueType) -> Any:
    """The rows of one part, with all static axes of the result."""
    type = value.type
    if set(type.static_axes) == set(place.static_axes) and type.rows is part and (part or type.per_example):
        return ctx.aligned(value, place.static_axes, part, part is None)
    return ctx.full(value, place.static_axes, part, part is None, group)


def _frontier_join(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, JoinAttrs)
    *parts, tag = given
    if node.attrs.whole is None:
        return frontier.join(*given)
    return frontier.join_selections(node.attrs.whole, parts, tag)


JOIN = OpDef(
    name="join",
    params=(Param("values", Accepts.VALUES), AXES),
    infer=_infer_join,
    frontier=_frontier_join,
    lower=_lower_join,
    cost=_cost,
    doc=(
        "`join((a, b), (word, cell) -> seq)`: rows of selections of one tag, put back in their places; they must "
        "cover the axis."
    ),
    samples=(
        (
            "x: real[seq, heads, dim], kind: modality[seq]; a = tanh(take(x, seq -> word)); "
            "b = sum(take(x, seq -> spot), over=dim) => join((a, b), (word, spot) -> seq)"
        ),
        (
            "x: real[seq, dim], kind: modality[seq]; a = take(shift(x, -1), seq -> word) => "
            "or_missing(join((take(2 * x, seq -> spot), a), (spot, word) -> seq), 4)"
        ),
        (
            "i: id[seq] in vocab, kind: modality[seq]; a = take(i, seq -> word); b = take(i, seq -> spot) => "
            "join((a, b), (word, spot) -> seq)"
        ),
    ),
)

SELECTIONS = (TAKE, JOIN)
