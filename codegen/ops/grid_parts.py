"""`pool` and `spread` between a static grid and one scaled from it, whose rows are squares of the other's."""

from __future__ import annotations

from ...dsl.axes import Axis
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.grids import is_grid, scale, sides
from ...dsl.opdef import Inferred, OpCall
from ...dsl.program import Node, Value
from ...dsl.record import record
from ..functions_lazy import places
from ..lowering import LowerContext
from .axis_pairs import moved
from .joining import want_axes
from .operands import own


@record
class GridAttrs:
    """`scale` places on each side of the finer of the two are one of the coarser. `by` is for `pool` alone."""

    source: Axis
    target: Axis
    scale: int
    by: str = ""


def infer_pool(call: OpCall, x: Value, source: Axis, target: Axis, by: str) -> Inferred:
    attrs = GridAttrs(source, target, _scale(call, "pool", x, source, source, target), by)
    return Inferred(attrs, (x,), (moved(x, source, target),))


def infer_spread(call: OpCall, x: Value, source: Axis, target: Axis, which: str) -> Inferred:
    factor = _scale(call, "spread", x, source, target, source)
    if which != "own":
        wanted = "`own`: places of a grid have no order"
        raise call.fail(BadNumber(call.at("which"), "spread", "which", which, wanted))
    return Inferred(GridAttrs(source, target, factor), (x,), (moved(x, source, target),))


def _scale(call: OpCall, operator: str, x: Value, source: Axis, fine: Axis, coarse: Axis) -> int:
    want_axes(call, operator, "x", x, call.at("axes"), (source,))
    factor = scale(fine, coarse) if is_grid(fine) and coarse.is_static else None
    if factor is None:
        raise call.fail(NotACut(call.at("axes"), operator, fine.name, coarse.name, "a grid scaled from"))
    return factor


def lower_grid(ctx: LowerContext, node: Node, attrs: GridAttrs) -> None:
    x, static = node.inputs[0], node.inputs[0].type.static_axes
    place = static.index(attrs.source) - len(static)
    here, there = (tuple(side.size for side in sides(axis)) for axis in (attrs.source, attrs.target))
    if attrs.by:
        made = ctx.call(places.pool, own(ctx, x), place, here, attrs.by, attrs.scale)
    else:
        made = ctx.call(places.spread, own(ctx, x), place, here, there, attrs.scale)
    ctx.define(node.outputs[0], made)


def is_between_grids(node: Node) -> bool:
    return isinstance(node.attrs, GridAttrs)
