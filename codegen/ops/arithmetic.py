"""`+ - * / // mod ^` and negation.

Row by row on reals, or on ints (ids count as ints). One operand's static axes contain the other's. `/` is for reals.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from ...dsl import frontier
from ...dsl.errors.operators import InexactDivision
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Constant, Value
from ...dsl.value_type import Int, Real
from .joining import NoAttrs, has_ints, join, kind_words, number_kind, operands
from .operands import cost_per_entry, row_by_row

A, B = Param("a", Accepts.VALUE), Param("b", Accepts.VALUE)


def _infer_binary(symbol: str) -> Callable[..., Inferred]:
    def infer(call: OpCall, a: Value, b: Value) -> Inferred:
        kind = number_kind(call, symbol, a=a, b=b)
        return Inferred(NoAttrs(), (a, b), (join(call, symbol, operands(call, a=a, b=b)).type(kind),))

    return infer


def _infer_division(call: OpCall, a: Value, b: Value) -> Inferred:
    number_kind(call, "/", a=a, b=b)
    if has_ints(a) and has_ints(b):
        raise call.fail(InexactDivision(call.span, kind_words(a), kind_words(b)))
    return Inferred(NoAttrs(), (a, b), (join(call, "/", operands(call, a=a, b=b)).type(Real()),))


def _infer_power(call: OpCall, a: Value, b: Value) -> Inferred:
    # An int raised to a negative power would not be whole, and only a written exponent is known.
    is_whole = isinstance(b, Constant) and isinstance(b.number, int) and b.number >= 0
    kind = number_kind(call, "^", a=a, b=b)
    if isinstance(kind, Int) and not is_whole:
        raise call.fail(InexactDivision(call.span, kind_words(a), f"{kind_words(b)} as exponent"))
    return Inferred(NoAttrs(), (a, b), (join(call, "^", operands(call, a=a, b=b)).type(kind),))


def _infer_negation(call: OpCall, a: Value) -> Inferred:
    kind = number_kind(call, "-", a=a)
    return Inferred(NoAttrs(), (a,), (join(call, "-", operands(call, a=a)).type(kind),))


def _binary(name: str, symbol: str, infer: Callable[..., Inferred], doc: str, *samples: str) -> OpDef:
    return OpDef(
        name=name,
        params=(A, B),
        infer=infer,
        frontier=frontier.row_wise,
        lower=row_by_row(lambda: _FUNCTIONS[name]),
        doc=f"`a {symbol} b`: {doc} One operand's static axes contain the other's.",
        cost=cost_per_entry(1),
        decides=name in ("floordiv", "mod"),
        samples=samples,
    )


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "neg": operator.neg,
}  # fmt: skip

ADD = _binary(
    "add",
    "+",
    _infer_binary("+"),
    "the sum.",
    "x: real[seq, dim], y: real[seq, dim] => x + y",
    "x: real[seq, heads, dim], y: real[dim] => y + x",
    "x: real[dim], y: real[seq] => x + y",
    "x: real[seq, dim] => 1 + x",
)
SUB = _binary(
    "sub",
    "-",
    _infer_binary("-"),
    "the difference.",
    "x: real[seq, dim], y: real[seq] => x - y",
    "x: real[seq] => 1 - x",
)
MUL = _binary("mul", "*", _infer_binary("*"), "the product.", "x: real[seq, heads, dim], y: real[seq, dim] => x * y")
DIV = _binary(
    "div",
    "/",
    _infer_division,
    "the quotient of reals.",
    "x: real[seq, dim], y: real[seq, dim] => x / (y^2 + 1)",
    "x: real[seq] => 1 / (2 + x^2)",
)
FLOORDIV = _binary(
    "floordiv",
    "//",
    _infer_binary("//"),
    "the quotient rounded down.",
    "i: int[seq] => i // 3",
    "i: id[seq] in vocab => (i - 5) // 2",
)
MOD = _binary(
    "mod", "mod", _infer_binary("mod"), "the remainder of `//`, with the sign of b.", "i: int[seq] => (i - 50) mod 7"
)
POW = _binary(
    "pow",
    "^",
    _infer_power,
    "a power; of an int only with a written whole exponent.",
    "x: real[seq, dim] => x^2",
    "x: real[seq] => (x^2 + 1)^-0.5",
    "x: real[seq] => 2.5^x",
    "i: int[seq] => i^3",
)
NEG = OpDef(
    name="neg",
    params=(A,),
    infer=_infer_negation,
    frontier=frontier.row_wise,
    lower=row_by_row(lambda: operator.neg),
    doc="`-a`: the negative of a real or an int. Axes are kept.",
    cost=cost_per_entry(1),
    samples=("x: real[seq, dim] => -x",),
)

ARITHMETIC = (ADD, SUB, MUL, DIV, FLOORDIV, MOD, POW, NEG)
