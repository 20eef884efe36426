"""Nested axes: `pool` and `spread` between an axis and the one that owns its rows, `flatten` and `unflatten` of rows.

flatten(z, (picture, half) -> spot)     spot is nested in picture: as many rows of it in each picture as half has
"""

from __future__ import annotations

import math
from dataclasses import replace

from ...dsl import frontier
from ...dsl.axes import Axis, Selected
from ...dsl.errors.axes import WrongAxisKind
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.frontier import Frontier
from ...dsl.length import Length
from ...dsl.opdef import AxisMapping, Inferred, OpCall
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import ordered_first
from ..functions_lazy import packing, segments, selections
from ..lazy import torch
from ..lowering import LowerContext
from .axis_pairs import moved, want_along
from .joining import axis_names, want_axes, want_static, want_whole
from .operands import own, sizes


@record
class OwnedAttrs:
    """Between rows and their owners. `by`: how a pool takes an owner's rows together; empty for `spread`."""

    source: Axis
    target: Axis
    by: str = ""


def infer_pool(call: OpCall, x: Value, source: Axis, owner: Axis, by: str) -> Inferred:
    return Inferred(OwnedAttrs(source, owner, by), (x,), (moved(x, source, owner),))


def infer_spread(call: OpCall, x: Value, owner: Axis, target: Axis, which: str) -> Inferred:
    if which != "own":
        wanted = "`own`: rows of a nested axis read the row that owns them"
        raise call.fail(BadNumber(call.at("which"), "spread", "which", which, wanted))
    return Inferred(OwnedAttrs(owner, target), (x,), (moved(x, owner, target),))


def lower_owned(ctx: LowerContext, node: Node, attrs: OwnedAttrs) -> None:
    x = node.inputs[0]
    if not attrs.by:
        made = ctx.aligned(x, x.type.static_axes, attrs.target)
    else:
        function = {
            "max": segments.max_rows,
            "mean": segments.mean_rows,
            "sum": segments.sum_rows,
            "first": segments.first_rows,
            "last": segments.last_rows,
        }[attrs.by]
        made = ctx.call(function, own(ctx, x), ctx.owner(attrs.source), ctx.edges(attrs.source))
    ctx.define(node.outputs[0], made)


def frontier_owned(attrs: OwnedAttrs, given: Frontier) -> Frontier:
    if not attrs.by:
        return given  # as where a value of an owner meets one of its rows
    return frontier.pool(given, frontier.segments(attrs.target, None, attrs.source), attrs.by)


# -- rows out of static axes, and back


@record
class RowsAttrs:
    """`outer`'s rows times the entries of `inner` are rows of `rows`. `parts`: whether rows are taken apart.
    `shown`: where `rows` are selected, the cut whose segments are those of each row of `outer`."""

    outer: Axis
    inner: tuple[Axis, ...]
    rows: Axis
    parts: bool
    shown: Axis | None = None


def infer_rows(call: OpCall, operator: str, x: Value, axes: AxisMapping) -> Inferred:
    """`flatten` to an ordered axis, or `unflatten` of one."""
    parts = operator == "unflatten"
    one, several = (axes.left, axes.right) if parts else (axes.right, axes.left)
    if len(one) != 1:
        side = "left" if parts else "right"
        names = " and ".join(axis_names(one))
        raise call.fail(WrongAxisKind(call.at("axes"), operator, names, f"one axis on the {side}", "several"))
    want_whole(call, operator, x=x)
    rows, (outer, *rest) = one[0], several
    inner = tuple(rest)
    want_static(call, operator, call.at("axes"), inner)
    if outer.is_static or not (rows.parent is outer or isinstance(rows.kind, Selected)):
        raise call.fail(NotACut(call.at("axes"), operator, outer.name, rows.name, "an axis in"))
    want_along(call, operator, x, rows if parts else outer)
    want_axes(call, operator, "x", x, call.at("axes"), () if parts else inner)
    call.owned(rows, outer, math.prod((axis.length for axis in inner), start=Length.number(1)))
    each = math.prod(sizes(inner))
    kept = tuple(axis for axis in x.type.static_axes if axis not in inner)
    made = (outer, *inner, *x.type.static_axes) if parts else (rows, *kept)
    type = replace(x.type, axes=ordered_first(made))
    if not isinstance(rows.kind, Selected):
        return Inferred(RowsAttrs(outer, inner, rows, parts), (x,), (type,))
    shown = call.shown(rows, outer, each)
    made = call.segmented(shown)
    assert made is not None
    return Inferred(RowsAttrs(outer, inner, rows, parts, shown), (x, *made.values), (type,))


def lower_rows(ctx: LowerContext, node: Node, attrs: RowsAttrs) -> None:
    x, each = node.inputs[0], math.prod(sizes(attrs.inner))
    if attrs.parts and attrs.shown is not None:
        ctx.define(node.outputs[0], ctx.call(torch.unflatten, own(ctx, x), 0, (-1, *sizes(attrs.inner))))
        return
    if attrs.parts:
        # Rows that an input gives are as many as the text says, or refused.
        read = ctx.call(packing.want_each, own(ctx, x), ctx.edges(attrs.rows, attrs.outer), each)
        ctx.define(node.outputs[0], ctx.call(torch.unflatten, read, 0, (-1, *sizes(attrs.inner))))
        return
    kept = tuple(axis for axis in x.type.static_axes if axis not in attrs.inner)
    read = ctx.call(torch.flatten, own(ctx, x, (*attrs.inner, *kept)), 0, len(attrs.inner))
    if attrs.shown is not None:
        read = ctx.call(selections.want_as_many, read, ctx.chosen_rows(attrs.rows), attrs.rows.name)
    else:
        ctx.nest(attrs.rows, each)
    ctx.define(node.outputs[0], read)


def frontier_rows(attrs: RowsAttrs, given: Frontier) -> Frontier:
    if attrs.shown is not None:
        return frontier.shown_rows(given, attrs.shown, attrs.parts)
    if not attrs.parts:
        return given
    return frontier.pool(given, frontier.segments(attrs.outer, None, attrs.rows), "sum")


def is_rows(node: Node) -> bool:
    return isinstance(node.attrs, RowsAttrs)
