"""Operators that the language has and this version types but does not lower: scans.

The type and causality rules are whole; a spec that uses one is told so (E901) once its types are right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import NotAlong
from ...dsl.errors.later import NotBuiltYet
from ...dsl.frontier import Frontier
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ..lowering import LowerContext
from .joining import level_words, want_whole


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
SCAN = OpDef(
    name="scan",
    params=(Param("step", Accepts.BLOCK), X, Param("along", Accepts.AXIS, None)),
    infer=not_built(_infer_scan, "`scan`"),
    frontier=_frontier_scan,
    lower=_lower,
    row_wise=False,
    doc="`scan(f, x)`: f applied to the result so far and each row, in order. Axes are kept.",
)
LATER = (SCAN,)
