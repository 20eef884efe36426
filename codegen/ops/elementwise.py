"""Functions of one number, and the larger or smaller of two.

Row by row; axes are kept. Functions of reals want reals; `abs`, `sign`, `maximum`, `minimum` and `clamp` also take
ints.
"""

from __future__ import annotations

from collections.abc import Callable

from ...dsl import frontier
from ...dsl.errors.operators import BadNumber
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.record import record
from ...dsl.value_type import Real
from ..functions_lazy import pointwise
from ..lazy import functional, torch
from ..lowering import LowerContext
from .joining import NoAttrs, join, number_kind, operands, want_real
from .operands import cost_per_entry, presence, result_type, row_by_row

X, A, B = Param("x", Accepts.VALUE), Param("a", Accepts.VALUE), Param("b", Accepts.VALUE)


def _of_real(
    name: str,
    function: Callable[[], Callable[..., object]],
    doc: str,
    sample: str | None = None,
    flops: float = 1,
    decides: bool = False,
) -> OpDef:
    def infer(call: OpCall, x: Value) -> Inferred:
        want_real(call, name, x=x)
        return Inferred(NoAttrs(), (x,), (join(call, name, operands(call, x=x)).type(Real()),))

    return OpDef(
        name=name,
        params=(X,),
        infer=infer,
        frontier=frontier.row_wise,
        lower=row_by_row(function),
        doc=f"`{name}(x)`: {doc} of a real, row by row. Axes are kept.",
        cost=cost_per_entry(flops),
        decides=decides,
        samples=(sample or f"x: real[seq, dim] => {name}(x)",),
    )


def _of_number(name: str, function: Callable[[], Callable[..., object]], doc: str, decides: bool = False) -> OpDef:
    def infer(call: OpCall, x: Value) -> Inferred:
        kind = number_kind(call, name, x=x)
        return Inferred(NoAttrs(), (x,), (join(call, name, operands(call, x=x)).type(kind),))

    return OpDef(
        name=name,
        params=(X,),
        infer=infer,
        frontier=frontier.row_wise,
        lower=row_by_row(function),
        doc=f"`{name}(x)`: {doc} of a real or an int, row by row. Axes are kept.",
        cost=cost_per_entry(1),
        decides=decides,
        samples=(f"x: real[seq, dim] => {name}(x)", f"i: int[seq] => {name}(i - 2)"),
    )


def _of_two(name: str, function: Callable[[], Callable[..., object]], doc: str) -> OpDef:
    def infer(call: OpCall, a: Value, b: Value) -> Inferred:
        kind = number_kind(call, name, a=a, b=b)
        return Inferred(NoAttrs(), (a, b), (join(call, name, operands(call, a=a, b=b)).type(kind),))

    return OpDef(
        name=name,
        params=(A, B),
        infer=infer,
        frontier=frontier.row_wise,
        lower=row_by_row(function),
        doc=f"`{name}(a, b)`: {doc}, row by row. One operand's static axes contain the other's.",
        cost=cost_per_entry(1),
        samples=(f"x: real[seq, dim], y: real[dim] => {name}(x, y)", f"x: real[seq] => {name}(0.5, x)"),
    )


EXP = _of_real("exp", lambda: torch.exp, "e to the power", flops=4)
LOG = _of_real("log", lambda: torch.log, "the natural logarithm", "x: real[seq, dim] => log(x^2 + 1)", 4)
SQRT = _of_real("sqrt", lambda: torch.sqrt, "the square root", "x: real[seq, dim] => sqrt(x^2 + 1)", 2)
RSQRT = _of_real("rsqrt", lambda: torch.rsqrt, "1 over the square root", "x: real[seq, dim] => rsqrt(x^2 + 1)", 2)
FLOOR = _of_real("floor", lambda: torch.floor, "the next whole number below", decides=True)
CEIL = _of_real("ceil", lambda: torch.ceil, "the next whole number above", decides=True)
ROUND = _of_real("round", lambda: torch.round, "the nearest whole number, halves to even,", decides=True)
SIN = _of_real("sin", lambda: torch.sin, "the sine", flops=8)
COS = _of_real("cos", lambda: torch.cos, "the cosine", flops=8)
TANH = _of_real("tanh", lambda: torch.tanh, "the hyperbolic tangent", flops=8)
SIGMOID = _of_real("sigmoid", lambda: torch.sigmoid, "1 / (1 + exp(-x))", flops=6)
ERF = _of_real("erf", lambda: torch.erf, "the error function", flops=8)
SOFTPLUS = _of_real("softplus", lambda: functional.softplus, "log(1 + exp(x))", flops=8)
RELU = _of_real("relu", lambda: torch.relu, "the larger of x and 0")
ABS = _of_number("abs", lambda: torch.abs, "the size without its sign")
SIGN = _of_number("sign", lambda: torch.sign, "-1, 0 or 1", decides=True)
MAXIMUM = _of_two("maximum", lambda: pointwise.maximum, "the larger of two numbers")
MINIMUM = _of_two("minimum", lambda: pointwise.minimum, "the smaller of two numbers")


@record
class ClampAttrs:
    low: int | float | None
    high: int | float | None


def _infer_clamp(call: OpCall, x: Value, low: int | float | None, high: int | float | None) -> Inferred:
    kind = number_kind(call, "clamp", x=x)
    if low is None and high is None:
        raise call.fail(BadNumber(call.span, "clamp", "low", "no bound", "given, or `high`"))
    if low is not None and high is not None and low > high:
        raise call.fail(BadNumber(call.at("low"), "clamp", "low", str(low), f"no more than `high`, {high}"))
    return Inferred(ClampAttrs(low, high), (x,), (join(call, "clamp", operands(call, x=x)).type(kind),))


def _lower_clamp(ctx: LowerContext, node: Node) -> None:
    attrs, x = node.attrs, node.inputs[0]
    assert isinstance(attrs, ClampAttrs)
    place = result_type(node)
    read = ctx.aligned(x, place.static_axes, place.rows, place.per_example)
    ctx.define(node.outputs[0], ctx.call(torch.clamp, read, attrs.low, attrs.high), presence(ctx, node))


CLAMP = OpDef(
    name="clamp",
    params=(X, Param("low", Accepts.NUMBER, None), Param("high", Accepts.NUMBER, None)),
    infer=_infer_clamp,
    frontier=frontier.row_wise,
    lower=_lower_clamp,
    doc=(
        "`clamp(x, low=, high=)`: x, no less than `low` and no more than `high`; either may be left out. Axes are kept."
    ),
    cost=cost_per_entry(1),
    samples=("x: real[seq, dim] => clamp(x, low=-0.5, high=0.7)", "x: real[seq] => clamp(x, high=1)"),
)

ELEMENTWISE = (
    EXP,
    LOG,
    SQRT,
    RSQRT,
    ABS,
    SIGN,
    FLOOR,
    CEIL,
    ROUND,
    SIN,
    COS,
    TANH,
    SIGMOID,
    ERF,
    SOFTPLUS,
    RELU,
    MAXIMUM,
    MINIMUM,
    CLAMP,
)
