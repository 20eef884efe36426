"""Random draws: `normal`, `uniform`, `uniform_int`, `bernoulli`.

One draw per example, unless `per=` names axes or `like=` a value whose axes the draws take. Every draw is a function
of the run's seed, the step, the example, the place in the spec, the row and the entry: nothing else changes it.
"""

from __future__ import annotations

from collections.abc import Callable

from ...dsl import frontier
from ...dsl.axes import Axis
from ...dsl.errors.axes import LowerLevel
from ...dsl.errors.operators import BadNumber
from ...dsl.opdef import Accepts, Inferred, OpCall, OpDef, Param
from ...dsl.program import Node, Value
from ...dsl.value_type import Flag, Int, Kind, Real, ValueType, ordered_first
from ..functions_lazy import draws
from ..lowering import LowerContext
from .joining import NoAttrs, axis_names, join, level_words, operands, want_int, want_real, want_whole
from .operands import cost_per_entry, like, result_type, sizes

LIKE, PER = Param("like", Accepts.VALUE, None), Param("per", Accepts.AXES, None)


def _place(
    call: OpCall, operator: str, kind: Kind, like_value: Value | None, per: tuple[Axis, ...] | None
) -> ValueType:
    if like_value is not None and per is not None:
        raise call.fail(BadNumber(call.at("per"), operator, "per", "both `like` and `per`", "the only one of the two"))
    if like_value is not None:
        return ValueType(kind, like_value.type.axes, like_value.type.per_example)
    axes = ordered_first(per or ())
    return ValueType(kind, axes, not any(axis.is_ordered for axis in axes))


def _check_numbers(call: OpCall, operator: str, place: ValueType, **numbers: Value) -> tuple[Value, ...]:
    """The numbers of a distribution live at the draws' level or above, with no axes but theirs."""
    want_whole(call, operator, **numbers)
    for name, value in numbers.items():
        joint = join(call, operator, operands(call, **{name: value}))
        foreign = [
            axis for axis in joint.axes if axis not in place.axes and not any(axis in a.ancestors for a in place.axes)
        ]
        if foreign:
            what = (
                f"with {' and '.join(axis_names(tuple(foreign)))}" if foreign[0].is_static else level_words(value.type)
            )
            raise call.fail(LowerLevel(call.at(name), operator, what, f"one value {level_words(place)}"))
    return tuple(numbers.values())


def _infer_normal(call: OpCall, like: Value | None, per: tuple[Axis, ...] | None) -> Inferred:
    return Inferred(NoAttrs(), (), (_place(call, "normal", Real(), like, per),))


def _infer_uniform(call: OpCall, low: Value, high: Value, like: Value | None, per: tuple[Axis, ...] | None) -> Inferred:
    want_real(call, "uniform", low=low, high=high)
    place = _place(call, "uniform", Real(), like, per)
    return Inferred(NoAttrs(), _check_numbers(call, "uniform", place, low=low, high=high), (place,))


def _infer_int(call: OpCall, low: Value, high: Value, like: Value | None, per: tuple[Axis, ...] | None) -> Inferred:
    want_int(call, "uniform_int", low=low, high=high)
    place = _place(call, "uniform_int", Int(), like, per)
    return Inferred(NoAttrs(), _check_numbers(call, "uniform_int", place, low=low, high=high), (place,))


def _infer_bernoulli(call: OpCall, p: Value, like: Value | None, per: tuple[Axis, ...] | None) -> Inferred:
    want_real(call, "bernoulli", p=p)
    place = _place(call, "bernoulli", Flag(), like, per)
    return Inferred(NoAttrs(), _check_numbers(call, "bernoulli", place, p=p), (place,))


def _lower(function: Callable[[], Callable[..., object]], has_dtype: bool) -> Callable[[LowerContext, Node], None]:
    def lower(ctx: LowerContext, node: Node) -> None:
        place = result_type(node)
        numbers = [like(ctx, value, place) for value in node.inputs]
        arguments = (
            ctx.draw_key(node, place.rows),
            sizes(place.static_axes),
            *((ctx.working_type(),) if has_dtype else ()),
        )
        ctx.define(node.outputs[0], ctx.call(function(), *numbers, *arguments))

    return lower


NORMAL = OpDef(
    name="normal",
    params=(LIKE, PER),
    infer=_infer_normal,
    frontier=frontier.no_data,
    lower=_lower(lambda: draws.normal, True),
    doc=(
        "`normal(like=x)` or `normal(per=A)`: draws of mean 0 and variance 1. One per example, per entry of the axes "
        "`per`, or per entry of `like`."
    ),
    cost=cost_per_entry(20),
    is_random=True,
    samples=(
        "x: real[seq, dim] => x + normal(like=x)",
        "x: real[dim] => x + normal()",
        "x: real[item, dim] => x + normal(like=x) * normal(per=other)",
    ),
)
UNIFORM = OpDef(
    name="uniform",
    params=(Param("low", Accepts.VALUE), Param("high", Accepts.VALUE), LIKE, PER),
    infer=_infer_uniform,
    frontier=frontier.row_wise,
    lower=_lower(lambda: draws.uniform_between, True),
    doc=(
        "`uniform(low, high, like=, per=)`: reals from `low` up to `high`. One per example, per entry of the axes "
        "`per`, or per entry of `like`."
    ),
    cost=cost_per_entry(8),
    is_random=True,
    samples=(
        "x: real[seq, dim] => uniform(0, 1, like=x)",
        "x: real[seq, dim], y: real => uniform(y, y + 1, per=(seq, dim))",
    ),
)
UNIFORM_INT = OpDef(
    name="uniform_int",
    params=(Param("low", Accepts.VALUE), Param("high", Accepts.VALUE), LIKE, PER),
    infer=_infer_int,
    frontier=frontier.row_wise,
    lower=_lower(lambda: draws.uniform_int, False),
    doc=(
        "`uniform_int(low, high, like=, per=)`: ints from `low` to `high - 1`. One per example, per entry of the "
        "axes `per`, or per entry of `like`."
    ),
    cost=cost_per_entry(8),
    is_random=True,
    samples=("x: real[seq, dim] => uniform_int(3, 9, like=x)", "n: int => uniform_int(0, n + 1, per=dim)"),
)
BERNOULLI = OpDef(
    name="bernoulli",
    params=(Param("p", Accepts.VALUE), LIKE, PER),
    infer=_infer_bernoulli,
    frontier=frontier.row_wise,
    lower=_lower(lambda: draws.bernoulli, False),
    doc=(
        "`bernoulli(p, like=, per=)`: flags, true with probability p. One per example, per entry of the axes `per`, "
        "or per entry of `like`."
    ),
    cost=cost_per_entry(8),
    is_random=True,
    decides=True,
    samples=("x: real[seq, dim] => bernoulli(0.3, like=x)",),
)


def _infer_step(call: OpCall) -> Inferred:
    return Inferred(NoAttrs(), (), (ValueType(Int()),))


STEP = OpDef(
    name="step",
    params=(),
    infer=_infer_step,
    frontier=frontier.no_data,
    lower=lambda ctx, node: ctx.define(node.outputs[0], ctx.step()),
    doc="`step`: the number of the optimiser step, an int, in objectives.",
    cost=cost_per_entry(0),
)

DRAWS = (NORMAL, UNIFORM, UNIFORM_INT, BERNOULLI, STEP)
