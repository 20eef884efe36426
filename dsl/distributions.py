"""How weights start: `zeros`, `normal(0.02)`, `trunc_normal(fan_in^-0.5, cut=3)`, `copy(path)`."""

from __future__ import annotations

from . import syntax
from .diagnostics import Mistake, Noted
from .errors.weights import BadDistribution
from .expressions import Expressions
from .program import Distribution
from .static_math import number_of
from .statics import UNKNOWN, describe

# Each distribution's numbers in order, with defaults; None: must be given.
DISTRIBUTIONS: dict[str, tuple[tuple[str, float | None], ...]] = {
    "zeros": (),
    "ones": (),
    "eye": (),
    "constant": (("value", None),),
    "normal": (("std", 1.0), ("mean", 0.0)),
    "trunc_normal": (("std", 1.0), ("cut", 2.0), ("mean", 0.0)),
    "uniform": (("low", None), ("high", None)),
}


def distribution(body: Expressions, e: syntax.Expression) -> Distribution:
    """The distribution an `init` names; its numbers are static."""
    if isinstance(e, syntax.Name):
        bound = body.scope.bound.get(e.text)
        if isinstance(bound, Distribution):
            return bound
        return _made(body, e.text, (), e)
    if isinstance(e, syntax.Number):
        return Distribution("constant", (("value", float(e.value)),))
    if isinstance(e, syntax.Call) and isinstance(e.callee, syntax.Name):
        return _made(body, e.callee.text, e.arguments, e)
    raise Mistake(BadDistribution(e.span, "this is not a distribution", _known()))


def _known() -> str:
    return "the distributions are " + ", ".join((*DISTRIBUTIONS, "copy"))


def _made(body: Expressions, name: str, arguments: tuple[syntax.Argument, ...], e: syntax.Expression) -> Distribution:
    if name == "copy":
        if len(arguments) != 1:
            raise Mistake(BadDistribution(e.span, "`copy` takes the path of one weight"))
        return Distribution("copy", source=arguments[0].value.span.text.replace(" ", ""))
    if name not in DISTRIBUTIONS:
        raise Mistake(BadDistribution(e.span, f"`{name}` is not a distribution", _known()))
    wanted = DISTRIBUTIONS[name]
    numbers: dict[str, float] = {}
    for argument in arguments:
        free = [key for key, _ in wanted if key not in numbers]
        key = argument.name.text if argument.name else (free[0] if free else "")
        if key not in free:
            raise Mistake(
                BadDistribution(argument.span, f"`{name}` takes {', '.join(k for k, _ in wanted) or 'nothing'}")
            )
        value = body.evaluate(argument.value)
        if value is UNKNOWN:
            raise Noted
        number = number_of(value)
        if number is None or isinstance(number, bool):
            raise Mistake(BadDistribution(argument.span, f"`{key}` is {describe(value)}, not a number"))
        numbers[key] = float(number)
    for key, default in wanted:
        if key not in numbers and default is None:
            raise Mistake(BadDistribution(e.span, f"`{name}` needs `{key}`"))
    return Distribution(name, tuple((key, numbers.get(key, default or 0.0)) for key, default in wanted))
