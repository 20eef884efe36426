"""`== != < <= > >=` and `and or not` on flags.

Row by row, to a flag. Numbers are compared with numbers, ids with ids of the same axis or with ints, tags with tags
of the same enum. Flags carry no gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from ...dsl import frontier
from ...dsl.errors.axes import KindMismatch
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Constant, Value
from ...dsl.value_type import Flag, Id, Tag
from ..lazy import torch
from .joining import NoAttrs, join, kind_words, operands, same_kind, want_flag
from .operands import cost_per_entry, row_by_row

A, B = Param("a", Accepts.VALUE), Param("b", Accepts.VALUE)


def _infer_comparison(symbol: str, ordered: bool) -> Callable[..., Inferred]:
    def infer(call: OpCall, a: Value, b: Value) -> Inferred:
        left, right = a.type.kind, b.type.kind
        ids = (
            isinstance(left, Id)
            and isinstance(right, Id)
            and not isinstance(a, Constant)
            and not isinstance(b, Constant)
        )
        if isinstance(left, Id) and isinstance(right, Id) and ids and left.axis is not right.axis:
            raise call.fail(
                KindMismatch(
                    call.at("b"),
                    symbol,
                    kind_words(b),
                    "ids of one axis",
                    call.at("a"),
                    kind_words(a),
                    "where they count the same things: `int(a) == int(b)`",
                )
            )
        if not ids:
            kind = same_kind(call, symbol, a=a, b=b)
            if ordered and isinstance(kind, Flag | Tag):
                raise call.fail(KindMismatch(call.at("a"), symbol, kind_words(a), "a number"))
        return Inferred(NoAttrs(), (a, b), (join(call, symbol, operands(call, a=a, b=b)).type(Flag()),))

    return infer


def _comparison(name: str, symbol: str, function: Callable[..., object], *samples: str) -> OpDef:
    ordered = symbol not in ("==", "!=")
    return OpDef(
        name=name,
        params=(A, B),
        infer=_infer_comparison(symbol, ordered),
        frontier=frontier.row_wise,
        lower=row_by_row(lambda: function),
        doc=f"`a {symbol} b`: a flag. One operand's static axes contain the other's.",
        cost=cost_per_entry(1),
        decides=True,
        samples=samples,
    )


def _infer_logic(symbol: str) -> Callable[..., Inferred]:
    def infer(call: OpCall, a: Value, b: Value) -> Inferred:
        want_flag(call, symbol, a=a, b=b)
        return Inferred(NoAttrs(), (a, b), (join(call, symbol, operands(call, a=a, b=b)).type(Flag()),))

    return infer


def _infer_not(call: OpCall, a: Value) -> Inferred:
    want_flag(call, "not", a=a)
    return Inferred(NoAttrs(), (a,), (join(call, "not", operands(call, a=a)).type(Flag()),))


EQ = _comparison("eq", "==", operator.eq, "i: id[seq] in vocab => i == 3", "i: int[seq], j: int[seq, dim] => i == j")
NE = _comparison("ne", "!=", operator.ne, "kind: modality[seq] => kind != modality.text")
LT = _comparison("lt", "<", operator.lt, "x: real[seq, dim], y: real[dim] => x < y")
LE = _comparison("le", "<=", operator.le, "x: real[seq, dim] => 0.2 <= x")
GT = _comparison("gt", ">", operator.gt, "x: real[seq] => x > 0")
GE = _comparison("ge", ">=", operator.ge, "i: int[seq] => i >= 2")

# Operators and not torch's logical functions: those refuse a written flag.
AND = OpDef(
    name="and_",
    params=(A, B),
    infer=_infer_logic("and"),
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: operator.and_),
    doc="`a and b` of flags. One operand's static axes contain the other's.",
    cost=cost_per_entry(1),
    samples=("x: real[seq], y: real[seq, dim] => x > 0 and y > 0",),
)
OR = OpDef(
    name="or_",
    params=(A, B),
    infer=_infer_logic("or"),
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: operator.or_),
    doc="`a or b` of flags. One operand's static axes contain the other's.",
    cost=cost_per_entry(1),
    samples=("x: real[seq], y: real[seq, dim] => x > 0 or y > 0",),
)
NOT = OpDef(
    name="not_",
    params=(A,),
    infer=_infer_not,
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: torch.logical_not),
    doc="`not a` of a flag. Axes are kept.",
    cost=cost_per_entry(1),
    samples=("x: real[seq, dim] => not (x > 0)",),
)

COMPARISON = (EQ, NE, LT, LE, GT, GE, AND, OR, NOT)
