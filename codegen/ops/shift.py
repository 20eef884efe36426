"""`previous`, `next`, `shift`: the row k before or after, in the same example."""

from __future__ import annotations

from dataclasses import replace

from ...dsl import frontier
from ...dsl.axes import Axis, Selected
from ...dsl.errors.axes import NotAlong, WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import BadNumber
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Tag
from ..functions_lazy import selections, shifts
from ..lowering import LowerContext
from .axis_pairs import moved
from .joining import Operand, join, level_words, same_kind, want_whole
from .operands import cost_per_entry, own
from .selection import members_of_axis


@record
class ShiftAttrs:
    """Reads `by` rows later; earlier for a negative `by`. Inputs of the node: x, what `previous` fills with, or the tag
    of the selection `part`."""

    by: int
    along: Axis
    part: Axis | None = None  # the rows of x, where they are a selection of `along`


def _along(call: OpCall, operator: str, x: Value, along: Axis | None) -> Axis:
    rows = x.type.rows
    if rows is None or (along is not None and along is not rows):
        if along is not None and along.is_static:
            raise call.fail(WrongAxisKind(call.at("along"), operator, along.name, "an ordered axis", "static"))
        if along is not None and rows is not None:
            raise call.fail(
                NotBuiltYet(call.at("along"), f"`{operator}` of a value along {rows.name}, counted along {along.name}")
            )
        name = along.name if along is not None else "an ordered axis"
        raise call.fail(NotAlong(call.at("along"), operator, name, level_words(x.type), call.at("x")))
    if rows.parent is not None:
        raise call.fail(NotBuiltYet(call.span, f"`{operator}` along the nested axis {rows.name}"))
    return rows


def _positive(call: OpCall, operator: str, k: int) -> None:
    if k < 1:
        raise call.fail(BadNumber(call.at("k"), operator, "k", str(k), "at least 1"))


def _infer_previous(call: OpCall, x: Value, k: int, first: Value | None, along: Axis | None) -> Inferred:
    _positive(call, "previous", k)
    want_whole(call, "previous", x=x)
    axis = _along(call, "previous", x, along)
    if first is None:
        if isinstance(x.type.kind, Tag):
            raise call.fail(
                BadNumber(call.span, "previous", "first", "nothing", "given for tags: what the first rows read")
            )
        return Inferred(ShiftAttrs(-k, axis), (x,), (x.type,))
    kind = same_kind(call, "previous", x=x, first=first)
    joint = join(call, "previous", (Operand(x, call.at("x")), Operand(first, call.at("first"))))
    if joint.axes != x.type.axes:
        wider = next(a for a in joint.axes if a not in x.type.axes)
        raise call.fail(NotAlong(call.at("first"), "previous", wider.name, level_words(x.type), call.at("x")))
    return Inferred(ShiftAttrs(-k, axis), (x, first), (replace(x.type, kind=kind),))


def _lower_previous(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, ShiftAttrs)
    # A written number stays one.
    first = ctx.aligned(node.inputs[1], x.type.static_axes, attrs.along) if len(node.inputs) > 1 else 0
    ctx.define(
        node.outputs[0], ctx.call(shifts.previous_rows, own(ctx, x), ctx.position(attrs.along), -attrs.by, first)
    )


def _infer_ahead(call: OpCall, operator: str, x: Value, by: int, along: Axis | None) -> Inferred:
    axis = _along(call, operator, x, along)
    return Inferred(ShiftAttrs(by, axis), (x,), (replace(x.type, missing=True),))


def _infer_next(call: OpCall, x: Value, k: int, along: Axis | None) -> Inferred:
    _positive(call, "next", k)
    part = x.type.rows
    if along is not None and part is not None and isinstance(part.kind, Selected) and part.kind.parent is along:
        # `next(ids, along=seq)` of ids along words: the id of the following row, if that is a word.
        type = replace(moved(x, part, along), missing=True)
        return Inferred(ShiftAttrs(k, along, part), (x, call.selected(part)), (type,))
    return _infer_ahead(call, "next", x, k, along)


def _infer_shift(call: OpCall, x: Value, by: int, along: Axis | None) -> Inferred:
    return _infer_ahead(call, "shift", x, -by, along)


def _lower_ahead(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, ShiftAttrs)
    axis = attrs.along
    there = ctx.call(shifts.has_next, ctx.row_example(axis), ctx.offsets(axis), ctx.position(axis), attrs.by)
    inside, read, present = there, own(ctx, x), ctx.present(x)
    if attrs.part is not None:
        chosen = ctx.chosen(attrs.part, axis, node.inputs[1], members_of_axis(node.inputs[1], attrs.part), None)
        present = ctx.call(selections.placed_flags, chosen, there, present)
        read = ctx.call(selections.placed, read, chosen, there)
    if present is not None:
        inside = ctx.call(shifts.shifted_flags, present, attrs.by, inside)
    ctx.define(node.outputs[0], ctx.call(shifts.next_rows, read, there, attrs.by), inside)


def _frontier_shift(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    assert isinstance(attrs, ShiftAttrs)
    if attrs.by < 0:
        return frontier.join(frontier.previous(given[0], -attrs.by, attrs.along), *given[1:])
    if attrs.part is not None:
        # Counted on the whole axis, as the tag is.
        on_whole = frontier.join_selections(attrs.along, given)
        return frontier.following(on_whole, attrs.by, attrs.along)
    return frontier.following(given[0], attrs.by, attrs.along)


def _target_shift(node: Node) -> int:
    assert isinstance(node.attrs, ShiftAttrs)
    return node.attrs.by


X, ALONG = Param("x", Accepts.VALUE), Param("along", Accepts.AXIS, None)
K = Param("k", Accepts.INTEGER, 1)
PREVIOUS = OpDef(
    name="previous",
    params=(X, K, Param("first", Accepts.VALUE, None), ALONG),
    infer=_infer_previous,
    frontier=_frontier_shift,
    lower=_lower_previous,
    row_wise=False,
    cost=cost_per_entry(0),
    doc=(
        "`previous(x, k=1, first=)`: the row k before, in the same example. The first k rows read `first`; without "
        "it 0, false or id 0. Axes are kept."
    ),
    samples=(
        "x: real[seq, dim] => previous(x)",
        "x: real[seq, dim] => previous(x, 2)",
        "i: id[seq] in vocab => previous(i, 1, first=3)",
        "f: flag[seq], x: real[seq, dim] => where(previous(f), x, 0)",
        "x: real[seq, dim], y: real[dim] => previous(x, 2, first=y)",
    ),
)
NEXT = OpDef(
    name="next",
    params=(X, K, ALONG),
    infer=_infer_next,
    frontier=_frontier_shift,
    lower=_lower_ahead,
    row_wise=False,
    cost=cost_per_entry(0),
    target_shift=_target_shift,
    doc=(
        "`next(x, k=1)`: the row k after, in the same example; the last k rows are missing. In an objective it marks "
        "what is predicted. Axes are kept. `next(ids, along=seq)` of ids along words, rows of seq, has a row for each "
        "row of seq: the id of the row after it, missing where that is no word."
    ),
    samples=(
        "x: real[seq, dim], kind: modality[seq] => or_missing(next(take(x, seq -> word), along=seq), 0)",
        "i: id[seq] in vocab, kind: modality[seq] => or_missing(next(next(take(i, seq -> spot)), 2, along=seq), 0)",
        "x: real[seq, dim] => or_missing(next(x), 0)",
        "i: id[seq] in vocab => or_missing(next(next(i), 2), 0)",
    ),
)
SHIFT = OpDef(
    name="shift",
    params=(X, Param("by", Accepts.INTEGER), ALONG),
    infer=_infer_shift,
    frontier=_frontier_shift,
    lower=_lower_ahead,
    row_wise=False,
    cost=cost_per_entry(0),
    doc=(
        "`shift(x, k)`: rows moved k later, `shift(x, -k)` k earlier; rows that nothing reaches are missing. Unlike "
        "`next` it claims nothing. Axes are kept."
    ),
    samples=("x: real[seq, dim] => or_missing(shift(x, -2), 0)", "x: real[seq, dim] => or_missing(shift(x, 2), 1)"),
)

SHIFTS = (PREVIOUS, NEXT, SHIFT)
