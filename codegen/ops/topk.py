"""`topk` and `topk_pairs`: the largest scores along an axis, with their places. Ties go to the lowest index."""

from __future__ import annotations

import operator

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import AxisTwice, LengthMismatch
from ...dsl.errors.operators import BadNumber
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Id, Real, ValueType
from ..functions_lazy import gathers
from ..lazy import torch
from ..lowering import LowerContext
from .joining import want_axes, want_real, want_static, want_whole
from .operands import cost_per_entry, own


@record
class TopkAttrs:
    over: Axis
    count: Axis
    pair: Axis | None = None


def _check(call: OpCall, name: str, x: Value, axes: tuple[Axis, ...], k: Axis, most: int) -> tuple[Axis, ...]:
    """The axes that stay."""
    want_real(call, name, x=x)
    want_whole(call, name, x=x)
    want_static(call, name, call.at("over"), axes)
    want_static(call, name, call.at("k"), (k,))
    want_axes(call, name, "x", x, call.at("over"), axes)
    kept = tuple(axis for axis in x.type.axes if axis not in axes)
    if k in kept:
        raise call.fail(AxisTwice(call.at("k"), name, k.name, call.at("x")))
    if (k.size or 0) > most:
        raise call.fail(BadNumber(call.at("k"), name, "k", str(k.size), f"at most {most}, the number of scores"))
    return kept


def _infer_topk(call: OpCall, x: Value, over: Axis, k: Axis) -> Inferred:
    kept = _check(call, "topk", x, (over,), k, over.size or 0)
    score = ValueType(Real(), (*kept, k), x.type.per_example)
    index = ValueType(Id(over), (*kept, k), x.type.per_example)
    return Inferred(TopkAttrs(over, k), (x,), (score, index), ("score", "index"))


def _infer_pairs(call: OpCall, x: Value, over: Axis, pair: Axis, k: Axis, into: Axis) -> Inferred:
    size = over.size or 0
    kept = _check(call, "topk_pairs", x, (pair, over), k, size * size)
    want_static(call, "topk_pairs", call.at("into"), (into,))
    if pair.size != 2:
        raise call.fail(
            BadNumber(call.at("pair"), "topk_pairs", "pair", f"an axis of length {pair.size}", "an axis of length 2")
        )
    if into.size != size * size:
        raise call.fail(
            LengthMismatch(
                call.at("into"), "topk_pairs", (over.name, over.name), str(size * size), (into.name,), str(into.size)
            )
        )
    score = ValueType(Real(), (*kept, k), x.type.per_example)
    index = ValueType(Id(into), (*kept, k), x.type.per_example)
    return Inferred(TopkAttrs(over, k, pair), (x,), (score, index), ("score", "index"))


def _lower(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, TopkAttrs)
    lead = (attrs.pair,) if attrs.pair is not None else ()
    kept = tuple(axis for axis in x.type.static_axes if axis not in (attrs.over, *lead))
    read = own(ctx, x, (*kept, *lead, attrs.over))
    if attrs.pair is None:
        found = ctx.call(gathers.top, read, attrs.count.size)
    else:
        first, second = ctx.call(torch.select, read, -2, 0), ctx.call(torch.select, read, -2, 1)
        found = ctx.call(gathers.top_pairs, first, second, attrs.count.size)
    ctx.define(node.outputs[0], ctx.call(operator.getitem, found, 0))
    ctx.define(node.outputs[1], ctx.call(operator.getitem, found, 1))


X, OVER, K = Param("x", Accepts.VALUE), Param("over", Accepts.AXIS), Param("k", Accepts.AXIS)
TOPK = OpDef(
    name="topk",
    params=(X, OVER, K),
    infer=_infer_topk,
    frontier=frontier.row_wise,
    lower=_lower,
    doc=(
        "`topk(x, over=A, k=N)`: the N largest entries along the static axis A, largest first: `.score` and `.index "
        "in A`, both with the axis N in place of A. Ties go to the lowest index."
    ),
    cost=cost_per_entry(4),
    decides=True,
    samples=(
        "x: real[seq, heads, dim] => topk(x, over=dim, k=three).score",
        "x: real[seq, heads, dim] => topk(x, over=heads, k=three).index",
    ),
)
TOPK_PAIRS = OpDef(
    name="topk_pairs",
    params=(X, OVER, Param("pair", Accepts.AXIS), K, Param("into", Accepts.AXIS)),
    infer=_infer_pairs,
    frontier=frontier.row_wise,
    lower=_lower,
    doc=(
        "`topk_pairs(x, over=A, pair=P, k=N, into=S)`: the N largest of x[0, i] + x[1, j] over all pairs of A, where "
        "P is the axis of the two sides: `.score` and `.index in S`, which is i * size(A) + j. The pairs are never "
        "formed."
    ),
    cost=cost_per_entry(4),
    decides=True,
    samples=("x: real[seq, two, heads, dim] => topk_pairs(x, over=dim, pair=two, k=three, into=dim_pair).score",),
)

TOPK_OPS = (TOPK, TOPK_PAIRS)
