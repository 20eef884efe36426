"""Operators that the language has and this version types but does not lower: selections, scans.

The type and causality rules are whole; a spec that uses one is told so (E901) once its types are right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from ...dsl import frontier
from ...dsl.axes import Axis, Selected
from ...dsl.errors.axes import NotAlong
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, AxisMapping, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Kind
from ..lowering import LowerContext
from .axis_pairs import moved, one_pair, want_along
from .joining import Operand, join, level_words, same_kind, want_whole


def not_built(rule: Callable[..., Inferred], what: str) -> Callable[..., Inferred]:
    """The type rule (kept as `__wrapped__`), after which the call is refused."""

    @wraps(rule)
    def infer(call: OpCall, *args: object, **kwargs: object) -> Inferred:
        rule(call, *args, **kwargs)
        raise call.fail(NotBuiltYet(call.span, what))

    return infer


def _lower(ctx: LowerContext, node: Node) -> None:
    raise AssertionError(f"{node.op.name} passed its type rule")


@record
class TakeAttrs:
    source: Axis
    target: Axis


def _infer_take(call: OpCall, x: Value, axes: AxisMapping) -> Inferred:
    source, target = one_pair(call, "take", axes)
    want_along(call, "take", x, source)
    if not (isinstance(target.kind, Selected) and target.kind.parent is source):
        raise call.fail(NotACut(call.at("axes"), "take", source.name, target.name, "a selection of"))
    return Inferred(TakeAttrs(source, target), (x,), (moved(x, source, target),))


def _frontier_take(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, TakeAttrs)
    return frontier.take(given[0], node.attrs.target)


@record
class JoinAttrs:
    parts: tuple[Axis, ...]
    whole: Axis


def _infer_join(call: OpCall, values: tuple[Value, ...], axes: AxisMapping) -> Inferred:
    if len(axes.right) != 1 or len(axes.left) != len(values):
        found = f"{len(axes.left)} axes for {len(values)} values"
        raise call.fail(BadNumber(call.at("axes"), "join", "axes", found, "one selection for each value, and one axis"))
    whole = axes.right[0]
    kind: Kind = values[0].type.kind
    tags: set[str] = set()
    for value, part in zip(values, axes.left, strict=True):
        if value.type.rows is not part:
            raise call.fail(NotAlong(call.at("axes"), "join", part.name, level_words(value.type), call.at("values")))
        if not isinstance(part.kind, Selected) or part.kind.parent is not whole:
            raise call.fail(NotACut(call.at("axes"), "join", whole.name, part.name, "a selection of"))
        tags.add(part.kind.tag)
        kind = same_kind(call, "join", values=values[0], other=value)
    if len(tags) != 1:
        raise call.fail(
            BadNumber(call.at("axes"), "join", "axes", "selections by several tags", "selections by one tag")
        )
    lifted = tuple(
        Operand(Value(value.name, moved(value, part, whole), value.span), call.at("values"))
        for value, part in zip(values, axes.left, strict=True)
    )
    return Inferred(JoinAttrs(axes.left, whole), values, (join(call, "join", lifted).type(kind),))


def _frontier_join(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, JoinAttrs)
    return frontier.join_selections(node.attrs.whole, given)


@record
class ScanAttrs:
    along: Axis


def _infer_scan(call: OpCall, step: object, x: Value, along: Axis | None) -> Inferred:
    want_whole(call, "scan", x=x)
    rows = x.type.rows if along is None else along
    if rows is None or rows is not x.type.rows:
        name = along.name if along is not None else "an ordered axis"
        raise call.fail(NotAlong(call.at("along"), "scan", name, level_words(x.type), call.at("x")))
    return Inferred(ScanAttrs(rows), (x,), (x.type,))


def _frontier_scan(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    assert isinstance(node.attrs, ScanAttrs)
    return frontier.scan(given[0], node.attrs.along)


X, AXES = Param("x", Accepts.VALUE), Param("axes", Accepts.MAPPING)
TAKE = OpDef(
    name="take",
    params=(X, AXES),
    infer=not_built(_infer_take, "`take`"),
    frontier=_frontier_take,
    lower=_lower,
    doc="`take(x, seq -> word)`: the rows of a selection, in order. Missing rows are passed on.",
)
JOIN = OpDef(
    name="join",
    params=(Param("values", Accepts.VALUES), AXES),
    infer=not_built(_infer_join, "`join`"),
    frontier=_frontier_join,
    lower=_lower,
    doc=(
        "`join((a, b), (word, cell) -> seq)`: rows of selections of one tag, put back in their places; they must "
        "cover the axis."
    ),
)
SCAN = OpDef(
    name="scan",
    params=(Param("step", Accepts.BLOCK), X, Param("along", Accepts.AXIS, None)),
    infer=not_built(_infer_scan, "`scan`"),
    frontier=_frontier_scan,
    lower=_lower,
    row_wise=False,
    doc="`scan(f, x)`: f applied to the result so far and each row, in order. Axes are kept.",
)
LATER = (TAKE, JOIN, SCAN)
