"""`score=` of `attend`: a block of one real, as the formula that the lowered graph carries (functions/scores.py)."""

from __future__ import annotations

from typing import Any

from ...dsl.errors.axes import KindMismatch
from ...dsl.errors.later import NotBuiltYet
from ...dsl.opdef import OpCall
from ...dsl.program import Constant, Value
from ...dsl.statics import BlockRef
from ...dsl.value_type import Real, ValueType
from .joining import NoAttrs, kind_words

ROW_BY_ROW = (
    "add", "sub", "mul", "div", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "exp", "log",
    "sqrt", "rsqrt", "abs", "sign", "floor", "ceil", "round", "sin", "cos", "tanh", "sigmoid", "erf", "softplus",
    "relu", "maximum", "minimum", "where", "stop_gradient",
)  # fmt: skip


def score_formula(call: OpCall, block: BlockRef) -> tuple[Any, ...]:
    """What the block makes of a score."""
    score, result, nodes = call.traced(block, ValueType(Real()))
    made: dict[Value, tuple[Any, ...]] = {score: ("score",)}

    def read(value: Value) -> tuple[Any, ...]:
        if isinstance(value, Constant):
            return ("number", value.number)
        if value not in made:
            raise call.fail(NotBuiltYet(call.at("score"), f"a score that reads `{value.name}` as well"))
        return made[value]

    for node in nodes:
        if node.op.name not in ROW_BY_ROW or not isinstance(node.attrs, NoAttrs):
            raise call.fail(NotBuiltYet(call.at("score"), f"a score made with `{node.op.name}`"))
        made[node.outputs[0]] = (node.op.name, *map(read, node.inputs))
    if not isinstance(result.type.kind, Real) and not isinstance(result, Constant):
        raise call.fail(KindMismatch(call.at("score"), "attend", kind_words(result), "a real from `score`"))
    return read(result)
