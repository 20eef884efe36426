"""The pointwise functions of row programs, one place each: Triton text, torch meaning, derivative.

A derivative is written with the same functions: `rule(make, operands, result, gradient)` gives the gradient of each
operand, None where there is none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from .row_program import Val


class Make(Protocol):
    """Builds values while a derivative is written."""

    def __call__(self, function: Function, *operands: Val | int | float | bool) -> Val: ...


Gradient = Callable[[Make, "tuple[Val, ...]", "Val", "Val"], "tuple[Val | None, ...]"]


@dataclass(frozen=True, eq=False)
class Function:
    """`text` has places {0}, {1}, .. for the operands. `result` is the kind of the result, None for that of the
    operands. `cost` in floating-point operations an entry. `scratch`: registers an entry needs while it is computed,
    where the compiler works on all entries of a thread side by side."""

    name: str
    text: str
    torch: Callable[..., Any]
    gradient: Gradient | None = None
    result: str | None = None
    cost: int = 1
    scratch: int = 0


def _two(text: str) -> str:
    return f"({{0}} {text} {{1}})"


ADD = Function("add", _two("+"), operator.add, lambda m, x, y, g: (g, g))
SUB = Function("sub", _two("-"), operator.sub, lambda m, x, y, g: (g, m(NEG, g)))
MUL = Function("mul", _two("*"), operator.mul, lambda m, x, y, g: (m(MUL, g, x[1]), m(MUL, g, x[0])))
DIV = Function(
    "div", _two("/"), operator.truediv,
    lambda m, x, y, g: (m(DIV, g, x[1]), m(NEG, m(DIV, m(MUL, g, y), x[1]))), cost=4,
)  # fmt: skip
NEG = Function("neg", "(-{0})", operator.neg, lambda m, x, y, g: (m(NEG, g),))
# Python's: rounded down, with the sign of the divisor. C rounds towards zero.
# The quotient is corrected after dividing: x less its remainder may be below the least number there is.
FLOORDIV = Function(
    "floordiv", "({0} // {1} - tl.where(({0} % {1} != 0) & (({0} % {1} < 0) != ({1} < 0)), 1, 0))", operator.floordiv,
    cost=8,
)  # fmt: skip
MOD = Function("mod", "((({0} % {1}) + {1}) % {1})", operator.mod, cost=8)
EXP = Function("exp", "tl.exp({0})", torch.exp, lambda m, x, y, g: (m(MUL, g, y),), cost=4)
LOG = Function("log", "tl.log({0})", torch.log, lambda m, x, y, g: (m(DIV, g, x[0]),), cost=4)
SQRT = Function("sqrt", "tl.sqrt({0})", torch.sqrt, lambda m, x, y, g: (m(DIV, m(MUL, g, 0.5), y),), cost=2)
RSQRT = Function(
    "rsqrt", "tl.rsqrt({0})", torch.rsqrt,
    lambda m, x, y, g: (m(MUL, m(MUL, g, -0.5), m(MUL, y, m(MUL, y, y))),), cost=2,
)  # fmt: skip
FLOOR = Function("floor", "tl.floor({0})", torch.floor)
CEIL = Function("ceil", "tl.ceil({0})", torch.ceil)
ROUND = Function(
    "round", "(tl.floor({0} * 0.5 + 0.25) + tl.ceil({0} * 0.5 - 0.25))", torch.round, cost=6
)  # halves to even: the two terms round x / 2 up and down
# An angle of many turns is reduced in 64 bits, in a branch that every entry may take: all else waits in registers.
SIN = Function("sin", "tl.sin({0})", torch.sin, lambda m, x, y, g: (m(MUL, g, m(COS, x[0])),), cost=8, scratch=4)
COS = Function(
    "cos", "tl.cos({0})", torch.cos, lambda m, x, y, g: (m(NEG, m(MUL, g, m(SIN, x[0]))),), cost=8, scratch=4
)
SIGMOID = Function(
    "sigmoid", "tl.sigmoid({0})", torch.sigmoid,
    lambda m, x, y, g: (m(MUL, g, m(MUL, y, m(SUB, 1.0, y))),), cost=6,
)  # fmt: skip
TANH = Function("tanh", "tanh({0})", torch.tanh, lambda m, x, y, g: (m(MUL, g, m(SUB, 1.0, m(MUL, y, y))),), cost=8)
ERF = Function(
    "erf", "tl.erf({0})", torch.erf,
    lambda m, x, y, g: (m(MUL, g, m(MUL, 2 / math.sqrt(math.pi), m(EXP, m(NEG, m(MUL, x[0], x[0]))))),), cost=8,
)  # fmt: skip
SOFTPLUS = Function(
    "softplus", "softplus({0})", functional.softplus, lambda m, x, y, g: (m(MUL, g, m(SIGMOID, x[0])),), cost=8
)
RELU = Function(
    "relu", "tl.maximum({0}, 0.0)", torch.relu, lambda m, x, y, g: (m(WHERE, m(GREATER, x[0], 0.0), g, 0.0),)
)
ABS = Function("abs", "tl.abs({0})", torch.abs, lambda m, x, y, g: (m(MUL, g, m(SIGN, x[0])),))
SIGN = Function("sign", "sign({0})", torch.sign)
POW = Function(
    "pow", "power({0}, {1})", operator.pow,
    lambda m, x, y, g: (
        m(MUL, g, m(MUL, x[1], m(POW, x[0], m(SUB, x[1], 1.0)))),
        # 0^b is 0 whatever b, and the logarithm of 0 has no place in its derivative.
        m(MUL, g, m(WHERE, m(GREATER, x[0], 0.0), m(MUL, y, m(LOG, m(MAXIMUM, x[0], 1e-38))), 0.0)),
    ), cost=12,
)  # fmt: skip
MAXIMUM = Function("maximum", "tl.maximum({0}, {1})", torch.maximum, lambda m, x, y, g: _shared(m, x, g, LESS))
MINIMUM = Function("minimum", "tl.minimum({0}, {1})", torch.minimum, lambda m, x, y, g: _shared(m, x, g, GREATER))
EQUAL = Function("equal", _two("=="), operator.eq, result="flag")
NOT_EQUAL = Function("not_equal", _two("!="), operator.ne, result="flag")
LESS = Function("less", _two("<"), operator.lt, result="flag")
AT_MOST = Function("at_most", _two("<="), operator.le, result="flag")
GREATER = Function("greater", _two(">"), operator.gt, result="flag")
AT_LEAST = Function("at_least", _two(">="), operator.ge, result="flag")
AND = Function("and", _two("&"), operator.and_, result="flag")
OR = Function("or", _two("|"), operator.or_, result="flag")
NOT = Function("not", "({0} == 0)", torch.logical_not, result="flag")
WHERE = Function(
    "where", "tl.where({0}, {1}, {2})", torch.where,
    lambda m, x, y, g: (None, m(WHERE, x[0], g, 0.0), m(WHERE, x[0], 0.0, g)),
)  # fmt: skip
TO_REAL = Function("real", "{0}.to({real})", lambda x: x.to(torch.float64), lambda m, x, y, g: (None,), "real", 0)
TO_INT = Function("int", "{0}.to(tl.int64)", lambda x: x.to(torch.int64), None, "int", 0)
STOP = Function("stop", "{0}", torch.detach, lambda m, x, y, g: (None,), cost=0)

STRAIGHT = Function("straight_through", "{0}", lambda value, carrier: value, lambda m, x, y, g: (None, g), cost=0)


# `clamp`: at a bound the gradient passes, as in torch.
AT_LOW = Function(
    "clamp", "tl.maximum({0}, {1})", torch.maximum, lambda m, x, y, g: (m(WHERE, m(AT_LEAST, x[0], x[1]), g, 0.0), None)
)
AT_HIGH = Function(
    "clamp", "tl.minimum({0}, {1})", torch.minimum, lambda m, x, y, g: (m(WHERE, m(AT_MOST, x[0], x[1]), g, 0.0), None)
)


def _shared(make: Make, x: tuple[Val, ...], g: Val, loses: Function) -> tuple[Val, ...]:
    """Equal operands share the gradient, as in torch."""
    half = make(MUL, g, 0.5)
    same = make(EQUAL, x[0], x[1])
    first = make(WHERE, make(loses, x[0], x[1]), 0.0, g)
    second = make(WHERE, make(loses, x[0], x[1]), g, 0.0)
    return make(WHERE, same, half, first), make(WHERE, same, half, second)
