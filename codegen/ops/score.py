"""`score=` of `attend`: a block applied to every score, as the formula that the lowered graph carries.

    block nearer(score: real[heads]) -> real[heads]:
        return score - softplus(slope) * real(query(position) - key(position))

In the formula stand the score, numbers, and what the block reads of the two rows and of the heads. What does not depend
on these, such as `softplus(slope)`, is computed outside, once.
"""

from __future__ import annotations

from typing import Any

from ...dsl.axes import Axis
from ...dsl.errors.axes import KindMismatch
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.masks import BadMask
from ...dsl.errors.operators import AxisUnshared
from ...dsl.opdef import OpCall, Traced
from ...dsl.program import Constant, Node, Value
from ...dsl.record import record
from ...dsl.statics import BlockRef
from ...dsl.value_type import Real, ValueType
from .joining import NoAttrs, axis_names, kind_words

ROW_BY_ROW = (
    "add", "sub", "mul", "div", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "exp", "log",
    "sqrt", "rsqrt", "abs", "sign", "floor", "ceil", "round", "sin", "cos", "tanh", "sigmoid", "erf", "softplus",
    "relu", "maximum", "minimum", "where", "stop_gradient", "real",
)  # fmt: skip


@record(eq=False)
class Score:
    """`formula`: nested tuples (functions/scores.py) in which ("query" or "key", i) reads `captures[i]` at the row of
    that side. A capture without rows counts as the query's."""

    formula: tuple[Any, ...]
    captures: tuple[Value, ...] = ()


def score_of(call: OpCall, block: BlockRef, heads: tuple[Axis, ...]) -> Score:
    """What the block makes of a score. Its parameter has the axes of the heads if it is written with any."""
    parameters = block.declaration.parameters
    written = parameters[0].type if parameters else None
    has_axes = written is not None and (bool(written.axes) or written.any_axes)
    traced = call.traced(block, ValueType(Real(), heads if has_axes else ()))
    result = traced.result
    if not isinstance(result.type.kind, Real) and not isinstance(result, Constant):
        raise call.fail(KindMismatch(call.at("score"), "attend", kind_words(result), "a real from `score`"))
    return _Reading(call, traced, heads).score()


class _Reading:
    """One block under translation: values of the formula, and what it captures."""

    def __init__(self, call: OpCall, traced: Traced, heads: tuple[Axis, ...]) -> None:
        self.call, self.traced, self.heads = call, traced, heads
        self.captures: list[Value] = []
        self.made: dict[Value, tuple[Any, ...]] = {traced.given: ("score",)}
        self.sides = {value: side for value, (side, _) in traced.reads.items()}

    def score(self) -> Score:
        outside: list[Node] = []
        for node in self.traced.nodes:
            if not any(value in self.made or value in self.sides for value in node.inputs):
                outside.append(node)
                continue
            if node.op.name not in ROW_BY_ROW or not isinstance(node.attrs, NoAttrs):
                raise self.call.fail(NotBuiltYet(node.span, f"`{node.op.name}` of a score or of a side's row"))
            self.made[node.outputs[0]] = (node.op.name, *(self.read(value, node) for value in node.inputs))
        formula = self.read(self.traced.result, None)
        self.call.keep(outside)
        return Score(formula, tuple(self.captures))

    def read(self, value: Value, reader: Node | None) -> tuple[Any, ...]:
        if isinstance(value, Constant):
            return ("number", value.number)
        if value in self.made:
            return self.made[value]
        if value not in self.sides:
            at = self.call.at("score") if reader is None else reader.span
            if value.type.rows is not None:
                help = f"write `query({value.name})` or `key({value.name})`"
                rows = value.type.rows.name
                raise self.call.fail(BadMask(at, f"`{value.name}` has a row for each {rows}; which is meant?", help))
            return ("query", self.captured(value, at))
        side, read = self.traced.reads[value]
        if read is None:
            return (side, "position")
        if read in self.made or read in self.sides:
            raise self.call.fail(BadMask(value.span, f"`{side}(..)` reads values of one row, not of a pair of rows"))
        has_rows = read.type.rows is not None
        return (side if has_rows else "query", self.captured(read, value.span))

    def captured(self, value: Value, at: Any) -> int:
        for axis in value.type.static_axes:
            if axis not in self.heads:
                names = axis_names(self.heads)
                what = "values that the score reads"
                raise self.call.fail(AxisUnshared(at, what, axis.name, names, self.call.at("q")))
        if value not in self.captures:
            self.captures.append(value)
        return self.captures.index(value)
