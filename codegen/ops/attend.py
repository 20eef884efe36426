"""`attend`: softmax attention of queries to the rows of an axis (SEMANTICS 3 and 5).

`over` is contracted between q and k; `along` is the axis whose rows are keys. Other axes of q and k are shared by
name, or are q's own and stay; `group=heads -> kv_heads` lets several heads read one. v brings its own axes to the
result.

Everything static becomes one head axis for the kernel: `[rows, (shared, heads, own), D]`, so that the key head of
head h is h // (heads / key heads) whatever the axes were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...dsl import frontier
from ...dsl.axes import Axis, Cut
from ...dsl.errors.axes import AxisTwice, NotAlong, SidewaysLevels, WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import AxisUnshared, GroupMismatch
from ...dsl.frontier import Frontier
from ...dsl.masks import Formula, Mask
from ...dsl.opdef import Accepts, AxisMapping, Cost, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.statics import BlockRef
from ...dsl.value_type import Real, ValueType
from ..functions_lazy import attention, cuts
from ..lazy import torch
from ..lowering import LowerContext
from .attend_formulas import check_mask, check_score, mask_arguments, reads_positions, score_argument, sides_of
from .cut import seen_cut
from .joining import Operand, axis_names, level_words, lowest_rows, want_axes, want_real, want_static, want_whole
from .mask_cuts import MaskCut, mask_cuts, same_segment, with_shown
from .operands import entries, result_type, sizes, traffic
from .score import Score, score_of
from .selection import members_of_axis


@record
class Heads:
    """Static axes of the queries, in the order of the one head axis: shared with the keys, the grouped one, q's own."""

    shared: tuple[Axis, ...]
    queries: Axis | None
    keys: Axis | None
    own: tuple[Axis, ...]

    @property
    def of_queries(self) -> tuple[Axis, ...]:
        return (*self.shared, *((self.queries,) if self.queries is not None else ()), *self.own)

    @property
    def of_keys(self) -> tuple[Axis, ...]:
        return (*self.shared, *((self.keys,) if self.keys is not None else ()))


@record
class AttendAttrs:
    """Inputs of the node: q, k, v, then the bias if `has_bias`, then what the mask captures, then what the score does,
    then what made the cuts that the mask reads.

    `query_rows` is the ordered axis of the queries, None at example level. `query_side`: q itself has the static axis
    `along`.
    """

    over: tuple[Axis, ...]
    along: Axis
    heads: Heads
    value_axes: tuple[Axis, ...]
    scale: float
    mask: Mask
    has_bias: bool
    query_rows: Axis | None
    query_side: bool
    score: Score | None = None
    cuts: tuple[MaskCut, ...] = ()

    @property
    def first_capture(self) -> int:
        """Where in the inputs the mask's captures begin."""
        return 4 if self.has_bias else 3

    @property
    def first_score_capture(self) -> int:
        return self.first_capture + len(self.mask.captures)

    @property
    def first_cut_input(self) -> int:
        return self.first_score_capture + (0 if self.score is None else len(self.score.captures))

    def mask_captures(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the inputs, or of what is said of each."""
        return inputs[self.first_capture : self.first_score_capture]

    def score_captures(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[self.first_score_capture : self.first_cut_input]

    def cut_inputs(self, inputs: tuple[Any, ...]) -> list[tuple[MaskCut, tuple[Any, ...]]]:
        """What made each cut."""
        found, start = [], self.first_cut_input
        for cut in self.cuts:
            found.append((cut, inputs[start : start + cut.inputs]))
            start += cut.inputs
        return found


def _infer(
    call: OpCall,
    q: Value,
    k: Value,
    v: Value,
    over: tuple[Axis, ...],
    along: Axis,
    group: AxisMapping | None,
    mask: Mask | None,
    bias: Value | None,
    score: BlockRef | None,
    scale: float | None,
) -> Inferred:
    want_real(call, "attend", q=q, k=k, v=v, bias=bias)
    want_whole(call, "attend", q=q, k=k, v=v, bias=bias)
    want_static(call, "attend", call.at("over"), over)
    want_axes(call, "attend", "q", q, call.at("over"), over)
    want_axes(call, "attend", "k", k, call.at("over"), over)
    for name, value in (("k", k), ("v", v)):
        if along not in value.type.axes:
            raise call.fail(NotAlong(call.at("along"), "attend", along.name, level_words(value.type), call.at(name)))
    _check_levels(call, q, k, v, along)
    heads = _heads(call, q, k, v, over, along, group)
    query_side = along.is_static and along in q.type.axes
    used = (*heads.of_keys, along)
    value_axes = tuple(axis for axis in v.type.static_axes if axis not in used)
    ordered, query_rows = _ordered(call, q, k, v, along)
    taken = (*heads.of_queries, *((along,) if query_side else ()))
    for axis in value_axes:
        if axis in taken:
            raise call.fail(AxisTwice(call.at("v"), "attend", axis.name, call.at("q")))
    # Axes of q stay where they were; those of v come last.
    stay = tuple(axis for axis in q.type.static_axes if axis not in over)
    per_example = not ordered and any(value.type.per_example or value.type.rows is not None for value in (q, k, v))
    type = ValueType(Real(), (*ordered, *stay, *value_axes), per_example)
    mask = with_shown(call, mask or Mask(None), along, query_rows)
    check_mask(call, mask, along, query_rows)
    if bias is not None:
        _check_bias(call, bias, heads, along)
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    factor: float = math.prod(sizes(over)) ** -0.5 if scale is None else float(scale)
    found = None if score is None else score_of(call, score, heads.of_queries)
    if found is not None:
        check_score(call, found, along, query_rows)
    captures = () if found is None else found.captures
    cuts, made = mask_cuts(call, mask, along, query_rows)
    attrs = AttendAttrs(
        over, along, heads, value_axes, factor, mask, bias is not None, query_rows, query_side, found, cuts
    )
    return Inferred(attrs, (*inputs, *mask.captures, *captures, *made), (type,))


def _check_levels(call: OpCall, q: Value, k: Value, v: Value, along: Axis) -> None:
    if along.is_static:
        return
    for name, value in (("k", k), ("v", v)):
        if value.type.rows is not along:
            raise call.fail(NotAlong(call.at("along"), "attend", along.name, level_words(value.type), call.at(name)))


def _ordered(call: OpCall, q: Value, k: Value, v: Value, along: Axis) -> tuple[tuple[Axis, ...], Axis | None]:
    """The ordered axes of the result, and the one that queries lie along."""
    if along.is_ordered:
        return tuple(axis for axis in q.type.axes if axis.is_ordered), q.type.rows
    given = tuple(Operand(value, call.at(name)) for name, value in (("q", q), ("k", k), ("v", v)))
    ordered = lowest_rows(call, "attend", given)
    return ordered, ordered[-1] if ordered else None


def _heads(
    call: OpCall, q: Value, k: Value, v: Value, over: tuple[Axis, ...], along: Axis, group: AxisMapping | None
) -> Heads:
    query_heads, key_heads = None, None
    if group is not None:
        want_static(call, "attend", call.at("group"), (*group.left, *group.right))
        if len(group.left) != 1 or len(group.right) != 1:
            names = " and ".join(axis_names((*group.left, *group.right)))
            raise call.fail(WrongAxisKind(call.at("group"), "attend", names, "one axis on each side", "a list"))
        query_heads, key_heads = group.left[0], group.right[0]
        want_axes(call, "attend", "q", q, call.at("group"), (query_heads,))
        want_axes(call, "attend", "k", k, call.at("group"), (key_heads,))
        heads_size, groups_size = query_heads.size or 1, key_heads.size or 1
        if heads_size % groups_size:
            raise call.fail(GroupMismatch(call.at("group"), query_heads.name, heads_size, key_heads.name, groups_size))
    of_queries = tuple(axis for axis in q.type.static_axes if axis not in over and axis is not along)
    shared = []
    for axis in k.type.static_axes:
        if axis in over or axis is along or axis is key_heads:
            continue
        if axis not in of_queries or axis is query_heads:
            raise call.fail(AxisUnshared(call.at("k"), "keys", axis.name, axis_names(q.type.axes), call.at("q")))
        shared.append(axis)
    # What only q and v have in common is shared as well: the keys are the same for all its entries.
    shared += [axis for axis in of_queries if axis in v.type.axes and axis not in shared and axis is not query_heads]
    own = tuple(axis for axis in of_queries if axis not in shared and axis is not query_heads)
    # The stored order of q where it allows it, so that nothing is permuted.
    order = [axis for axis in of_queries if axis in shared]
    return Heads(tuple(order), query_heads, key_heads, own)


def _check_bias(call: OpCall, bias: Value, heads: Heads, along: Axis) -> None:
    rows = bias.type.rows
    if rows is not None and rows is not along:
        raise call.fail(
            SidewaysLevels(call.at("bias"), "attend", along.name, rows.name, call.at("along"), call.at("bias"))
        )
    for axis in bias.type.static_axes:
        if axis not in (*heads.of_queries, along) and axis is not heads.keys:
            raise call.fail(
                AxisUnshared(call.at("bias"), "biases", axis.name, axis_names(heads.of_queries), call.at("q"))
            )
    if heads.keys is not None and heads.keys in bias.type.static_axes:
        raise call.fail(NotBuiltYet(call.at("bias"), f"a bias per key head ({heads.keys.name})"))


# -- lowering
# ------------------------------------------------------------------------------------------------------------------


def _as_heads(
    ctx: LowerContext, value: Value, lead: tuple[Axis, ...], heads: tuple[Axis, ...], last: tuple[Axis, ...], place: Any
) -> Any:
    """`[rows, *lead, prod(heads), prod(last)]`."""
    rows, per_example, leading = place
    # An axis that the value lacks has one entry for all heads, which must be written out to count heads.
    read = (ctx.aligned if set(heads) <= set(value.type.axes) else ctx.full)(
        value, (*lead, *heads, *last), rows, per_example
    )
    if len(heads) == 1 and len(last) == 1:
        return read
    shape = (*sizes(lead), math.prod(sizes(heads)), math.prod(sizes(last)))
    return ctx.call(torch.reshape, read, (-1, *shape) if leading else shape)


def _arguments(ctx: LowerContext, node: Node, attrs: AttendAttrs, formula: Formula | None) -> dict[str, Any]:
    """What the mask and the score say."""
    captures = attrs.mask_captures(node.inputs)
    arguments = mask_arguments(ctx, formula, captures, attrs.query_rows, attrs.along)
    if attrs.score is not None:
        heads = attrs.heads.of_queries
        arguments["score"] = score_argument(ctx, attrs.score, heads, attrs.query_rows, attrs.along)
    return arguments


def _lower(ctx: LowerContext, node: Node) -> None:
    attrs = node.attrs
    assert isinstance(attrs, AttendAttrs)
    (_lower_packed if attrs.along.is_ordered else _lower_static)(ctx, node, attrs)


def _lower_packed(ctx: LowerContext, node: Node, attrs: AttendAttrs) -> None:
    q, k, v = node.inputs[:3]
    heads = attrs.heads
    for cut, made in attrs.cut_inputs(node.inputs):
        if cut.selected:
            selection = cut.axis.kind.parent if isinstance(cut.axis.kind, Cut) else cut.axis
            ctx.chosen(selection, cut.along, made[-1], members_of_axis(made[-1], selection), None)
    at_queries, at_keys = (attrs.query_rows, attrs.query_rows is None, True), (attrs.along, False, True)
    grouped, formula = same_segment(attrs.mask.formula, attrs.query_rows, attrs.along, ctx)
    arguments = _arguments(ctx, node, attrs, formula)
    if attrs.query_rows is None:
        q_read = ctx.full(q, (*heads.of_queries, *attrs.over), None, True)
        q_read = ctx.call(torch.reshape, q_read, (-1, math.prod(sizes(heads.of_queries)), math.prod(sizes(attrs.over))))
        q_offsets = ctx.call(attention.one_each, ctx.offsets(attrs.along))
    else:
        q_read = _as_heads(ctx, q, (), heads.of_queries, attrs.over, at_queries)
        q_offsets = ctx.offsets(attrs.query_rows)
    k_read = _as_heads(ctx, k, (), heads.of_keys, attrs.over, at_keys)
    v_read = _as_heads(ctx, v, (), heads.of_keys, attrs.value_axes, at_keys)
    if attrs.has_bias:
        arguments["bias"] = _bias(ctx, node, attrs)
    k_offsets = ctx.offsets(attrs.along)
    if grouped is not None and attrs.along is not grouped:
        groups = math.prod(sizes(heads.of_keys))
        k_read = ctx.segment_values(grouped, k, k_read, (groups, math.prod(sizes(attrs.over))))
        v_read = ctx.segment_values(grouped, v, v_read, (groups, math.prod(sizes(attrs.value_axes))))
    if grouped is not None:
        assert attrs.query_rows is not None
        q_offsets, k_offsets = (_segment_offsets(ctx, grouped, rows) for rows in (attrs.query_rows, attrs.along))
        # Rows count from the start of their segment; where that matters, their numbers in the example are given.
        by_position = "predicate" in arguments or reads_positions(arguments.get("score"))
        if (attrs.query_rows is not attrs.along and len(arguments) > ("bias" in arguments)) or by_position:
            arguments |= {"q_position": ctx.position(attrs.query_rows), "k_position": ctx.position(attrs.along)}
    result = ctx.call(attention.attend_packed, q_read, k_read, v_read, q_offsets, k_offsets, attrs.scale, **arguments)
    ctx.define(node.outputs[0], _unpacked(ctx, node, attrs, result, (), True))


def _segment_offsets(ctx: LowerContext, cut: Axis, rows: Axis) -> Any:
    """Offsets of the rows of each segment, or that each owner has: with them, segments are examples."""
    if rows is cut:
        return ctx.call(cuts.each_alone, ctx.per_segment(cut))
    return ctx.edges(rows, cut) if cut in rows.ancestors else ctx.segment_bounds(cut)


def _bias(ctx: LowerContext, node: Node, attrs: AttendAttrs) -> Any:
    """`[key rows, heads or 1]`."""
    bias = node.inputs[3]
    if not bias.type.static_axes:
        return ctx.call(torch.unsqueeze, ctx.aligned(bias, (), attrs.along), -1)
    full = ctx.full(bias, attrs.heads.of_queries, attrs.along)
    return ctx.call(torch.flatten, full, 1)


def _lower_static(ctx: LowerContext, node: Node, attrs: AttendAttrs) -> None:
    q, k, v = node.inputs[:3]
    place, heads = result_type(node), attrs.heads
    rows, per_example = place.rows, place.per_example
    leading = rows is not None or per_example
    arguments = _arguments(ctx, node, attrs, attrs.mask.formula)

    def read(value: Value, lead: tuple[Axis, ...], axes: tuple[Axis, ...], last: tuple[Axis, ...]) -> Any:
        """`[rows, entries of lead or 1, heads, D]`."""
        own_leading = value.type.rows is not None or value.type.per_example
        where = (rows, per_example, own_leading) if own_leading else (None, False, False)
        full = ctx.full(value, (*lead, *axes, *last), where[0], where[1])
        shape = (math.prod(sizes(lead)), math.prod(sizes(axes)), math.prod(sizes(last)))
        return ctx.call(torch.reshape, full, (-1, *shape))

    side = (attrs.along,) if attrs.query_side else ()
    q_read = read(q, side, heads.of_queries, attrs.over)
    k_read = read(k, (attrs.along,), heads.of_keys, attrs.over)
    v_read = read(v, (attrs.along,), heads.of_keys, attrs.value_axes)
    if attrs.has_bias:
        bias = node.inputs[3]
        arguments["bias"] = ctx.call(torch.squeeze, read(bias, (attrs.along,), heads.of_queries, ()), -1)
    result = ctx.call(attention.attend_static, q_read, k_read, v_read, attrs.scale, **arguments)
    ctx.define(node.outputs[0], _unpacked(ctx, node, attrs, result, side, leading))


def _unpacked(
    ctx: LowerContext, node: Node, attrs: AttendAttrs, result: Any, side: tuple[Axis, ...], leading: bool
) -> Any:
    """The result's own axes again, in its own order."""
    place = result_type(node)
    order = (*side, *attrs.heads.of_queries, *attrs.value_axes)
    plain = not side and attrs.along.is_ordered and len(attrs.heads.of_queries) == 1 and len(attrs.value_axes) == 1
    if not plain:
        result = ctx.call(torch.reshape, result, (-1, *sizes(order)) if leading else sizes(order))
    if order != place.static_axes:
        back = [order.index(axis) + leading for axis in place.static_axes]
        result = ctx.call(torch.permute, result, [0, *back] if leading else back)
    return result


def _frontier(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    assert isinstance(attrs, AttendAttrs)
    queries = attrs.along if attrs.query_side else attrs.query_rows
    made_of = attrs.cut_inputs(given)
    seen = {cut.axis: seen_cut(cut.axis, cut.along, made[: len(made) - cut.selected]) for cut, made in made_of}
    reach = frontier.reach_of(attrs.mask, attrs.along, queries, seen)
    tags = tuple(made[-1] for cut, made in made_of if cut.selected)
    read = [] if attrs.score is None else attrs.score_captures(given)
    sides = [] if attrs.score is None else sides_of(attrs.score.formula)
    of_keys = {index for side, index in sides if side == "key"} - {index for side, index in sides if side == "query"}
    # A table is read at the query's, as all that has no rows.
    at_query = frontier.join(given[0], *(f for index, f in enumerate(read) if index not in of_keys))
    at_keys = [*given[1 : attrs.first_capture], *(read[index] for side, index in sides if side == "key")]
    return frontier.attend(at_query, at_keys, reach, (*attrs.mask_captures(given), *tags))


def _cost(node: Node, rows: Mapping[Axis, int]) -> Cost:
    """As if every query met every key of one example of average length: `rows` counts those."""
    attrs = node.attrs
    assert isinstance(attrs, AttendAttrs)
    keys = attrs.along.size or rows.get(attrs.along, 1)
    per_pair = math.prod(sizes(attrs.over)) + math.prod(sizes(attrs.value_axes))
    queries = entries(node.inputs[0].type, rows) / math.prod(sizes(attrs.over))
    return Cost(2 * queries * keys * per_pair, traffic(node, rows))


ATTEND = OpDef(
    name="attend",
    params=(
        Param("q", Accepts.VALUE),
        Param("k", Accepts.VALUE),
        Param("v", Accepts.VALUE),
        Param("over", Accepts.AXES),
        Param("along", Accepts.AXIS),
        Param("group", Accepts.MAPPING, None),
        Param("mask", Accepts.MASK, None),
        Param("bias", Accepts.VALUE, None),
        Param("score", Accepts.BLOCK, None),
        Param("scale", Accepts.NUMBER, None),
    ),
    infer=_infer,
    frontier=_frontier,
    lower=_lower,
    doc=(
        "`attend(q, k, v, over=D, along=K, group=heads -> kv_heads, mask=, bias=, score=, scale=)`: each query's "
        "average of v over the rows of K that the mask allows, weighed by the softmax of score(scale * q . k) + "
        "bias, where `score` is a block of one real, or of the heads' axes, that may read `query(e)`, `key(e)`, "
        "values without rows, and tables of weights by ids made of these. D is contracted, `scale` is size(D)^-0.5 "
        "unless given. Other axes of q and k are shared by name or q's own; with `group` query head h reads key "
        "head h // (heads / kv_heads). A bias has one value per key. A row without an allowed key gives 0. The "
        "result has the axes of q without D, and v's own."
    ),
    cost=_cost,
    multiplies=True,
    samples=(
        (
            "q: real[seq, heads, head_dim], k: real[seq, heads, head_dim], v: real[seq, heads, head_dim] => "
            "attend(q, k, v, over=head_dim, along=seq, mask=causal)"
        ),
        (
            "q: real[seq, heads, head_dim], k: real[seq, kv_heads, head_dim], v: real[seq, kv_heads, dim] => "
            "attend(q, k, v, over=head_dim, along=seq, group=heads -> kv_heads, mask=causal and window(3))"
        ),
        (
            "q: real[other, head_dim, heads], k: real[seq, head_dim], v: real[seq, dim] => attend(q, k, v, "
            "over=head_dim, along=seq)"
        ),
        (
            "q: real[heads, head_dim], k: real[seq, head_dim], v: real[seq, dim], b: real[seq] => "
            "attend(q, k, v, over=head_dim, along=seq, bias=b, scale=0.3)"
        ),
        (
            "q: real[seq, dim], k: real[seq, three, dim], v: real[seq, three, dim] => attend(q, k, v, over=dim, "
            "along=three)"
        ),
        (
            "q: real[seq, three, heads, dim], k: real[seq, three, dim] => attend(q, k, k, over=dim, along=three, "
            "mask=causal)"
        ),
        "q: real[seq, dim], i: id[seq] in vocab => attend(q, q, q, over=dim, along=seq, mask=causal and same(i))",
        (
            "q: real[seq, three, heads, dim], k: real[seq, three, kv_heads, dim] => "
            "attend(q, k, k, over=dim, along=seq, group=heads -> kv_heads, mask=key(position) < query(position))"
        ),
        "q: real[seq, heads, dim] => attend(q, q, q, over=dim, along=seq, mask=causal and window(3), score=tanh_of)",
        "q: real[seq, heads, dim] => attend(q, q, q, over=dim, along=seq, mask=causal, score=near_of)",
        "q: real[seq, three, dim] => attend(q, q, q, over=dim, along=three, score=silu)",
        "x: real[seq, three, dim]; q = tanh(x) => attend(q, q, q, over=dim, along=three)",
        "x: real[item, dim] => attend(x, x, x, over=dim, along=item)",
        "x: real[item, dim] => attend(x, x, x, over=dim, along=item, mask=same(other))",
        "x: real[item, dim] => attend(x, x, x, over=dim, along=item, mask=causal and same(other))",
        "x: real[item, dim] => attend(x, x, x, over=dim, along=item, mask=causal or same(other))",
        "q: real[other, heads, dim], x: real[item, dim] => attend(q, x, x, over=dim, along=item, mask=same(other))",
        "q: real[item, dim], x: real[other, dim] => attend(q, x, x, over=dim, along=other, mask=same(other))",
        (
            "x: real[item, dim], y: real[other, three, dim]; p = flatten(y, (other, three) -> part) => "
            "attend(p, x, x, over=dim, along=item, mask=same(other))"
        ),
        "q: real[item, dim], k: real[other, three, dim] => attend(q, k, k, over=dim, along=three)",
        "q: real[seq, heads, dim], b: real[seq, heads] => attend(q, q, q, over=dim, along=seq, bias=b, mask=causal)",
    ),
    row_wise=False,
    row_wise_when=lambda node: isinstance(node.attrs, AttendAttrs) and node.attrs.along.is_static,
)
