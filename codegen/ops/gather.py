"""Reading by an id: `embed`, `x[index]`, `pick`, `bag`, `nearest`.

An id of axis A replaces A: the result has the axes of the id and the other axes of what is read. Axes that both have
are the same entries of both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

from ...dsl import frontier
from ...dsl.axes import Axis, Static
from ...dsl.errors.axes import AxisTwice, KindMismatch, MissingRows, WrongAxisKind
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, AxisMapping, Cost, Inferred, OpCall, OpDef, Param
from ...dsl.program import Distribution, Node, Value
from ...dsl.record import record
from ...dsl.value_type import Id, Int, Real, ValueType, ordered_first
from ..functions_lazy import gathers
from ..lazy import functional, torch
from ..lowering import LowerContext
from .joining import (
    Joint,
    Operand,
    axis_names,
    join,
    kind_words,
    lowest_rows,
    operands,
    want_axes,
    want_id,
    want_real,
    want_static,
    want_weight_level,
    want_whole,
)
from .linear import check_added, check_given_weight
from .operands import entries, has_leading, matrix, own, presence, result_type, sizes, traffic


@record
class EmbedAttrs:
    entries: Axis
    added: tuple[Axis, ...]


def _with_none(axis: Axis) -> Axis:
    """The axis of a table that has one more row, for `none`."""
    assert axis.size is not None
    return Axis(f"{axis.name}_or_none", Static(), axis.length + 1, axis.size + 1, axis.span)


def _infer_embed(
    call: OpCall, index: Value, axes: AxisMapping, weight: Value | None, init: Distribution | None
) -> Inferred:
    want_whole(call, "embed", index=index)
    want_static(call, "embed", call.at("axes"), (*axes.left, *axes.right))
    if len(axes.left) != 1:
        raise call.fail(
            WrongAxisKind(call.at("axes"), "embed", " and ".join(axis_names(axes.left)), "one axis", "not one")
        )
    table_axis = axes.left[0]
    kind = index.type.kind
    if isinstance(kind, Id) and kind.or_none and kind.axis is table_axis:
        table_axis = _with_none(table_axis)
    else:
        want_id(call, "embed", "index", index, table_axis)
    check_added(call, "embed", index.type.axes, axes.right, "index")
    if weight is None:
        weight = call.weight(
            "weight",
            (table_axis, *axes.right),
            init or Distribution("normal", (("std", 0.02), ("mean", 0.0))),
            outputs=1,
        )
    else:
        check_given_weight(call, "embed", weight, (table_axis, *axes.right))
    type = ValueType(Real(), (*index.type.axes, *axes.right), index.type.per_example)
    return Inferred(EmbedAttrs(table_axis, axes.right), (index, weight), (type,))


def _lower_embed(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, EmbedAttrs)
    index, weight = node.inputs
    table = matrix(ctx, weight, (attrs.entries,), attrs.added)
    result = ctx.call(functional.embedding, own(ctx, index), table)
    if len(attrs.added) > 1:
        result = ctx.call(torch.unflatten, result, -1, sizes(attrs.added))
    elif not attrs.added:
        result = ctx.call(torch.squeeze, result, -1)
    ctx.define(node.outputs[0], result)


def _cost_read(node: Node, rows: Mapping[Axis, int]) -> Cost:
    """What is read is as large as the result; the table is not read whole."""
    return Cost(0, 2 * sum(entries(value.type, rows) for value in node.outputs))


@record
class GatherAttrs:
    """`axis` of the first operand is replaced."""

    axis: Axis


def _index_axis(call: OpCall, operator: str, index: Value) -> Axis:
    kind = index.type.kind
    if isinstance(kind, Id):
        return kind.axis
    repair = "`wrap(i, A)` makes an id of the axis A of an int" if isinstance(kind, Int) else None
    found = kind_words(index)
    raise call.fail(KindMismatch(call.at("index"), operator, found, "an id of one of the axes", repair=repair))


def _gather(call: OpCall, operator: str, x: Value, index: Value, axis: Axis, pass_missing: bool) -> Inferred:
    if not pass_missing:
        want_whole(call, operator, x=x, index=index)
    if axis.is_ordered:
        return _gather_rows(call, operator, x, index, axis)
    given = operands(call, x=x, index=index)
    joint = join(call, operator, given, contained=False)
    left = tuple(a for a in joint.axes if a.is_static and a in index.type.axes)
    rest = tuple(a for a in x.type.static_axes if a is not axis and a not in left)
    if axis in index.type.axes:
        raise call.fail(AxisTwice(call.at("index"), operator, axis.name, call.at("x")))
    ordered = tuple(a for a in joint.axes if a.is_ordered)
    type = Joint((*ordered, *index.type.static_axes, *rest), joint.per_example, joint.missing).type(x.type.kind)
    return Inferred(GatherAttrs(axis), (x, index), (type,))


def _gather_rows(call: OpCall, operator: str, x: Value, index: Value, axis: Axis) -> Inferred:
    """The index numbers rows of an ordered axis, in the reading row's own example."""
    if x.type.rows is not axis or axis.parent is not None:
        raise call.fail(
            WrongAxisKind(call.at("index"), operator, axis.name, "an id of the operand's own rows", "another axis")
        )
    if x.type.missing:
        raise call.fail(MissingRows(call.at("x"), operator))
    ordered = lowest_rows(call, operator, (Operand(index, call.at("index")),))
    rest = tuple(a for a in x.type.static_axes if a not in index.type.axes)
    if len(rest) != len(x.type.static_axes):
        shared = next(a for a in x.type.static_axes if a in index.type.axes)
        raise call.fail(AxisTwice(call.at("index"), operator, shared.name, call.at("x")))
    type = ValueType(x.type.kind, (*ordered, *index.type.static_axes, *rest), not ordered, index.type.missing)
    return Inferred(GatherAttrs(axis), (x, index), (type,))


def _infer_gather(call: OpCall, x: Value, index: Value) -> Inferred:
    axis = _index_axis(call, "x[index]", index)
    want_axes(call, "x[index]", "x", x, call.at("index"), (axis,))
    want_id(call, "x[index]", "index", index, axis)
    return _gather(call, "x[index]", x, index, axis, pass_missing=False)


def _infer_pick(call: OpCall, x: Value, index: Value, over: Axis) -> Inferred:
    want_axes(call, "pick", "x", x, call.at("over"), (over,))
    want_id(call, "pick", "index", index, over)
    return _gather(call, "pick", x, index, over, pass_missing=True)


def _lower_gather(ctx: LowerContext, node: Node) -> None:
    attrs, place = node.attrs, result_type(node)
    assert isinstance(attrs, GatherAttrs)
    x, index = node.inputs
    own_index = index.type.static_axes
    if attrs.axis.is_ordered:
        reading = None if place.rows is None else ctx.row_example(place.rows)
        found = ctx.call(gathers.starts, ctx.offsets(attrs.axis), reading)
        begins, lengths = (ctx.call(operator.getitem, found, place) for place in (0, 1))
        result = ctx.call(gathers.rows_of_example, own(ctx, x), own(ctx, index), begins, lengths)
        ctx.define(node.outputs[0], result, presence(ctx, node))
        return
    shared = tuple(a for a in own_index if a in x.type.axes)
    alone = tuple(a for a in own_index if a not in shared)
    rest = tuple(a for a in x.type.static_axes if a is not attrs.axis and a not in shared)
    leading = has_leading(place)
    if x.type.is_weight_level and not shared:
        table = own(ctx, x, (attrs.axis, *rest))
        result = ctx.call(
            gathers.rows_of_table, table, ctx.aligned(index, own_index, index.type.rows, index.type.per_example)
        )
    else:
        table = ctx.aligned(x, (*shared, attrs.axis, *rest), place.rows, place.per_example)
        reads = ctx.full(index, (*shared, *alone), place.rows, place.per_example)
        if leading and not has_leading(x.type):
            table = ctx.call(torch.reshape, table, (1, *sizes((*shared, attrs.axis, *rest))))
        result = ctx.call(gathers.entries, table, reads, leading + len(shared))
        if (*shared, *alone) != own_index:
            order = [(*shared, *alone, *rest).index(a) + leading for a in (*own_index, *rest)]
            result = ctx.call(torch.permute, result, [0, *order] if leading else order)
    ctx.define(node.outputs[0], result, presence(ctx, node))


def _frontier_gather(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, GatherAttrs)
    return frontier.gather_by_data(given[0], given[1], node.attrs.axis)


@record
class BagAttrs:
    axis: Axis
    over: tuple[Axis, ...]


def _infer_bag(call: OpCall, table: Value, index: Value, weight: Value | None, over: tuple[Axis, ...]) -> Inferred:
    axis = _index_axis(call, "bag", index)
    want_real(call, "bag", table=table, weight=weight)
    want_whole(call, "bag", index=index, weight=weight)
    want_weight_level(call, "bag", "table", table)
    want_axes(call, "bag", "table", table, call.at("index"), (axis,))
    want_id(call, "bag", "index", index, axis)
    want_static(call, "bag", call.at("over"), over)
    want_axes(call, "bag", "index", index, call.at("over"), over)
    joint = join(call, "bag", operands(call, index=index, weight=weight))
    rest = tuple(a for a in table.type.axes if a is not axis)
    kept = tuple(a for a in joint.axes if a not in over)
    for a in rest:
        if a in kept:
            raise call.fail(AxisTwice(call.at("table"), "bag", a.name, call.at("index")))
    inputs = (table, index) if weight is None else (table, index, weight)
    type = Joint(ordered_first((*kept, *rest)), joint.per_example, False).type(Real())
    return Inferred(BagAttrs(axis, over), inputs, (type,))


def _lower_bag(ctx: LowerContext, node: Node) -> None:
    attrs, place = node.attrs, result_type(node)
    assert isinstance(attrs, BagAttrs)
    table, index, *weights = node.inputs
    rest = tuple(a for a in table.type.axes if a is not attrs.axis)
    kept = tuple(a for a in place.static_axes if a not in rest)
    lead = len(kept) + has_leading(place)
    reads = [
        ctx.call(torch.flatten, ctx.full(value, (*kept, *attrs.over), place.rows, place.per_example), lead)
        for value in (index, *weights)
    ]
    result = ctx.call(gathers.bag, own(ctx, table, (attrs.axis, *rest)), reads[0], reads[1] if weights else None)
    ctx.define(node.outputs[0], result)


def _cost_bag(node: Node, rows: Mapping[Axis, int]) -> Cost:
    assert isinstance(node.attrs, BagAttrs)
    read = entries(result_type(node), rows) * math.prod(sizes(node.attrs.over))
    return Cost(2 * read, read + sum(entries(value.type, rows) for value in (*node.inputs[1:], *node.outputs)))


@record
class NearestAttrs:
    over: Axis
    along: Axis


def _infer_nearest(call: OpCall, x: Value, table: Value, over: Axis, along: Axis) -> Inferred:
    want_real(call, "nearest", x=x, table=table)
    want_whole(call, "nearest", x=x)
    want_weight_level(call, "nearest", "table", table)
    want_static(call, "nearest", call.at("over"), (over,))
    want_static(call, "nearest", call.at("along"), (along,))
    want_axes(call, "nearest", "x", x, call.at("over"), (over,))
    table_axes = {along, over}
    want_axes(call, "nearest", "table", table, call.at("along"), tuple(table_axes))
    for a in table.type.axes:
        if a not in table_axes:
            raise call.fail(
                WrongAxisKind(
                    call.at("table"), "nearest", a.name, f"{along.name} and {over.name} only", "one more axis"
                )
            )
    kept = tuple(a for a in x.type.axes if a is not over)
    if along in kept:
        raise call.fail(AxisTwice(call.at("along"), "nearest", along.name, call.at("x")))
    index = ValueType(Id(along), kept, x.type.per_example)
    score = ValueType(Real(), kept, x.type.per_example)
    value = ValueType(Real(), (*kept, over), x.type.per_example)
    return Inferred(NearestAttrs(over, along), (x, table), (index, score, value), ("index", "score", "value"))


def _lower_nearest(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, NearestAttrs)
    x, table = node.inputs
    kept = tuple(a for a in x.type.static_axes if a is not attrs.over)
    points, places = own(ctx, x, (*kept, attrs.over)), own(ctx, table, (attrs.along, attrs.over))
    found = ctx.call(gathers.nearest, points, places)
    index = ctx.call(operator.getitem, found, 0)
    ctx.define(node.outputs[0], index)
    ctx.define(node.outputs[1], ctx.call(operator.getitem, found, 1))
    ctx.define(node.outputs[2], ctx.call(gathers.rows_of_table, places, index))


def _cost_nearest(node: Node, rows: Mapping[Axis, int]) -> Cost:
    assert isinstance(node.attrs, NearestAttrs)
    return Cost(2 * entries(node.inputs[0].type, rows) * (node.attrs.along.size or 1), traffic(node, rows))


INDEX = Param("index", Accepts.VALUE)
EMBED = OpDef(
    name="embed",
    params=(
        INDEX,
        Param("axes", Accepts.MAPPING),
        Param("weight", Accepts.VALUE, None),
        Param("init", Accepts.INIT, None),
    ),
    infer=_infer_embed,
    frontier=frontier.row_wise,
    lower=_lower_embed,
    doc=(
        "`embed(i, A -> B, weight=, init=)`: the entry of a table for an id. i is an `id in A`, or of an axis that "
        "is no longer; adds the axes B. For `id in A or none` the table has one more entry."
    ),
    cost=_cost_read,
    samples=(
        "i: id[seq] in vocab => embed(i, vocab -> dim)",
        "i: id in vocab => embed(i, vocab -> (heads, head_dim))",
        "i: id[seq] in heads or none => embed(i, heads -> dim)",
        "kind: modality[seq] => embed(kind, modality -> dim)",
    ),
    table=1,
)
GATHER = OpDef(
    name="gather",
    params=(Param("x", Accepts.VALUE), INDEX),
    infer=_infer_gather,
    frontier=_frontier_gather,
    lower=_lower_gather,
    doc=(
        "`x[index]`: the entries of x that an id names. The axis that the id counts is replaced by the axes of the "
        "id; axes that both have are the same entries of both."
    ),
    cost=_cost_read,
    samples=(
        "x: real[seq, dim], y: real[seq, heads, dim] => y[argmax(x, over=dim)]",
        "x: real[seq, heads, dim], y: real[seq, heads, dim] => y[argmax(x, over=dim)]",
        "x: real[seq, dim] => x[argmax(sum(x), over=seq)]",
    ),
    row_wise=False,
    table=0,
)
PICK = OpDef(
    name="pick",
    params=(Param("x", Accepts.VALUE), INDEX, Param("over", Accepts.AXIS)),
    infer=_infer_pick,
    frontier=_frontier_gather,
    lower=_lower_gather,
    doc=(
        "`pick(x, index, over=A)`: the entry of x at an id along the static axis A, which goes. Missing rows of "
        "either are passed on."
    ),
    cost=_cost_read,
    samples=(
        "x: real[seq, vocab], i: id[seq] in vocab => pick(x, i, over=vocab)",
        "x: real[seq, heads, dim], i: id in dim => pick(x, i, over=dim)",
    ),
)
BAG = OpDef(
    name="bag",
    params=(Param("table", Accepts.VALUE), INDEX, Param("weight", Accepts.VALUE, None), Param("over", Accepts.AXES)),
    infer=_infer_bag,
    frontier=frontier.row_wise,
    lower=_lower_bag,
    doc=(
        "`bag(t, i, weight=w, over=N)`: the sum over N of the entries of the table t at the ids i, each times w. The "
        "axis of t that i counts is replaced by the other axes of i."
    ),
    cost=_cost_bag,
    multiplies=True,
    samples=(
        (
            "x: real[seq, heads, vocab]; param t: real[vocab, dim]; best = topk(x, over=vocab, k=three) => bag(t, "
            "best.index, "
            "weight=best.score, over=(heads, three))"
        ),
    ),
    table=0,
)
NEAREST = OpDef(
    name="nearest",
    params=(
        Param("x", Accepts.VALUE),
        Param("table", Accepts.VALUE),
        Param("over", Accepts.AXIS),
        Param("along", Accepts.AXIS),
    ),
    infer=_infer_nearest,
    frontier=frontier.row_wise,
    lower=_lower_nearest,
    doc=(
        "`nearest(x, table, over=D, along=K)`: the first entry of the table along K at the least squared distance, "
        "measured over D: `.index in K`, `.score` (the distance) and `.value` (the entry)."
    ),
    cost=_cost_nearest,
    multiplies=True,
    samples=("x: real[seq, dim]; param t: real[vocab, dim] => nearest(x, t, over=dim, along=vocab).value",),
)

GATHERS = (EMBED, GATHER, PICK, BAG, NEAREST)
