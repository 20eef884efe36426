"""`score=` of `attend`: a block applied to every score, as the formula that the lowered graph carries.

    block nearer(score: real[heads]) -> real[heads]:
        return score - softplus(slope) * real(query(position) - key(position))

In the formula stand the score, numbers, and what the block reads of the two rows and of the heads. What does not depend
on these, such as `softplus(slope)`, is computed outside, once. A table is read by ids that the formula computes:

    return score + bias[wrap(query(position) - key(position), distance)]        bias: real[distance, heads]
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
from .conversion import WrapAttrs
from .elementwise import ClampAttrs
from .gather import EmbedAttrs, GatherAttrs
from .joining import NoAttrs, axis_names, kind_words

ROW_BY_ROW = (
    "add", "sub", "mul", "div", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "exp", "log",
    "sqrt", "rsqrt", "abs", "sign", "floor", "ceil", "round", "sin", "cos", "tanh", "sigmoid", "erf", "softplus",
    "relu", "maximum", "minimum", "where", "stop_gradient", "real", "int", "floordiv", "mod",
)  # fmt: skip


@record(eq=False)
class Score:
    """`formula`: nested tuples (functions/scores.py) in which ("query" or "key", i) reads `captures[i]` at the row of
    that side, and ("entry", i, at) the entry `at` of the table `captures[i]`, counted over the axes `indexed[i]`. A
    capture without rows that is no table counts as the query's."""

    formula: tuple[Any, ...]
    captures: tuple[Value, ...] = ()
    indexed: tuple[tuple[Axis, ...], ...] = ()


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


@record(eq=False)
class _Entries:
    """Of a table, what the ids read so far leave: `at` counts the entries of the axes that they replaced."""

    table: Value
    indexed: tuple[Axis, ...]
    at: tuple[Any, ...]


class _Reading:
    """One block under translation: values of the formula, and what it captures."""

    def __init__(self, call: OpCall, traced: Traced, heads: tuple[Axis, ...]) -> None:
        self.call, self.traced, self.heads = call, traced, heads
        self.captures: list[tuple[Value, tuple[Axis, ...]]] = []
        self.made: dict[Value, tuple[Any, ...] | _Entries] = {traced.given: ("score",)}
        self.sides = {value: side for value, (side, _) in traced.reads.items()}

    def score(self) -> Score:
        outside: list[Node] = []
        for node in self.traced.nodes:
            if not self.is_inside(node):
                outside.append(node)
                continue
            self.made[node.outputs[0]] = self.computed(node)
        formula = self.read(self.traced.result, None)
        self.call.keep(outside)
        captures, indexed = zip(*self.captures, strict=True) if self.captures else ((), ())
        return Score(formula, captures, indexed)

    def is_inside(self, node: Node) -> bool:
        """Also what is made of numbers alone, which stay numbers in a formula."""
        if any(value in self.made or value in self.sides for value in node.inputs):
            return True
        is_number = bool(node.inputs) and all(isinstance(value, Constant) for value in node.inputs)
        return is_number and node.op.name in ROW_BY_ROW and isinstance(node.attrs, NoAttrs)

    def computed(self, node: Node) -> tuple[Any, ...] | _Entries:
        match node.attrs:
            case GatherAttrs() if not node.attrs.axis.is_ordered:
                table, index = node.inputs
                return self.entries(node, table, index, node.attrs.axis)
            case EmbedAttrs():
                index, table = node.inputs
                return self.entries(node, table, index, node.attrs.entries)
            case WrapAttrs():
                return ("mod", self.read(node.inputs[0], node), ("number", node.attrs.size))
            case ClampAttrs():
                bounded = self.read(node.inputs[0], node)
                for name, bound in (("maximum", node.attrs.low), ("minimum", node.attrs.high)):
                    bounded = bounded if bound is None else (name, bounded, ("number", bound))
                return bounded
            case NoAttrs() if node.op.name in ROW_BY_ROW:
                return (node.op.name, *(self.read(value, node) for value in node.inputs))
            case _:
                raise self.call.fail(NotBuiltYet(node.span, f"`{node.op.name}` of a score or of a side's row"))

    def entries(self, node: Node, table: Value, index: Value, axis: Axis) -> _Entries:
        """A table is read by one id after another, or by one for all of its axes but those of heads."""
        at, before = self.read(index, node), self.made.get(table)
        if isinstance(before, _Entries):
            among = ("add", ("mul", before.at, ("number", axis.size)), at)
            return _Entries(before.table, (*before.indexed, axis), among)
        if before is not None or table in self.sides or not table.type.is_weight_level:
            what = f"reading `{table.name}`, which is not the same for all rows, by an id of two rows"
            raise self.call.fail(NotBuiltYet(node.span, what))
        return _Entries(table, (axis,), at)

    def read(self, value: Value, reader: Node | None) -> tuple[Any, ...]:
        if isinstance(value, Constant):
            return ("number", value.number)
        if value in self.made:
            made = self.made[value]
            if not isinstance(made, _Entries):
                return made
            at = value.span if reader is None else reader.span
            return ("entry", self.captured(made.table, at, made.indexed), made.at)
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

    def captured(self, value: Value, at: Any, indexed: tuple[Axis, ...] = ()) -> int:
        for axis in value.type.static_axes:
            if axis not in (*self.heads, *indexed):
                names = axis_names(self.heads)
                what = "values that the score reads"
                raise self.call.fail(AxisUnshared(at, what, axis.name, names, self.call.at("q")))
        if (value, indexed) not in self.captures:
            self.captures.append((value, indexed))
        return self.captures.index((value, indexed))
