"""`pool` and `spread` between a ragged axis and one scaled from it, whose rows are runs of as many of its rows."""

from __future__ import annotations

from ...dsl import frontier
from ...dsl.axes import Axis, Scaled
from ...dsl.frontier import Frontier
from ...dsl.grids import is_grid
from ...dsl.opdef import Inferred
from ...dsl.program import Node, Value
from ...dsl.record import record
from ..functions_lazy import cuts, segments
from ..lowering import LowerContext
from .axis_pairs import moved
from .operands import own


@record
class ScaledAttrs:
    """`how` is that of a pool, or which row `spread` reads. `pools` says which of the two."""

    fine: Axis
    coarse: Axis
    how: str
    pools: bool


def is_scaled_pair(fine: Axis, coarse: Axis) -> bool:
    return isinstance(coarse.kind, Scaled) and coarse.kind.parent is fine and fine.is_ordered and not is_grid(fine)


def infer_pool(x: Value, fine: Axis, coarse: Axis, by: str) -> Inferred:
    return Inferred(ScaledAttrs(fine, coarse, by, True), (x,), (moved(x, fine, coarse),))


def infer_spread(x: Value, coarse: Axis, fine: Axis, which: str) -> Inferred:
    return Inferred(ScaledAttrs(fine, coarse, which, False), (x,), (moved(x, coarse, fine),))


def lower_scaled(ctx: LowerContext, node: Node, attrs: ScaledAttrs) -> None:
    x = own(ctx, node.inputs[0])
    if not attrs.pools:
        ctx.define(node.outputs[0], ctx.call(cuts.spread, x, ctx.scaled_row(attrs.coarse, attrs.how)))
        return
    function = {
        "max": segments.max_rows,
        "mean": segments.mean_rows,
        "sum": segments.sum_rows,
        "first": segments.first_rows,
        "last": segments.last_rows,
    }[attrs.how]
    made = ctx.call(function, x, ctx.scaled_row(attrs.coarse, "own"), ctx.scaled_bounds(attrs.coarse))
    ctx.define(node.outputs[0], made)


def frontier_scaled(attrs: ScaledAttrs, given: Frontier) -> Frontier:
    cut = frontier.segments(attrs.coarse, None, attrs.fine)
    return frontier.pool(given, cut, attrs.how) if attrs.pools else frontier.spread(given, cut, attrs.how)
