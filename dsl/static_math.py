"""Arithmetic and comparison of values known when the spec is checked, and lengths of axes.

A length is computed twice side by side: its normal form (are these two the same length, whatever the sizes?) and its
number (for the sizes chosen).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from .axes import Axis
from .diagnostics import Mistake
from .errors.names import StaticArithmetic
from .length import Length
from .record import record
from .source import Span
from .statics import Member

LARGEST = 1 << 48
Fact = tuple[Length, Length]  # two lengths that are equal where a condition holds


@record
class Measure:
    """A length: its normal form, and its number (None along an ordered axis)."""

    form: Length
    number: int | None


def number_of(value: object) -> int | float | bool | None:
    """The number a static value stands for; None when it stands for none. An axis stands for its length."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Axis):
        return value.size
    return None


def is_static(value: object) -> bool:
    return number_of(value) is not None or isinstance(value, Member | tuple)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def compare(symbol: str, left: object, right: object, at: Span) -> bool:
    a, b = number_of(left), number_of(right)
    if a is not None and b is not None:
        return bool(_COMPARISONS[symbol](a, b))
    if isinstance(left, Member) and isinstance(right, Member) and left.enum is not right.enum:
        what = f"`{left.name}` is of enum `{left.enum.name}`, `{right.name}` of enum `{right.enum.name}`"
        raise Mistake(StaticArithmetic(at, f"members of two enums are never equal: {what}"))
    if symbol in ("==", "!="):
        return bool(_COMPARISONS[symbol](left, right))
    raise Mistake(StaticArithmetic(at, f"`{symbol}` compares numbers only"))


def arithmetic(symbol: str, left: int | float | bool, right: int | float | bool, at: Span) -> int | float | bool:
    """`left symbol right` of two static numbers."""
    try:
        result = _arithmetic(symbol, left, right)
    except ZeroDivisionError:
        raise Mistake(StaticArithmetic(at, "division by zero")) from None
    except (OverflowError, ValueError):
        raise Mistake(StaticArithmetic(at, f"`{left} {symbol} {right}` is out of range")) from None
    if isinstance(result, complex) or (isinstance(result, int) and abs(result) >= 1 << 64):
        raise Mistake(StaticArithmetic(at, f"`{left} {symbol} {right}` is out of range"))
    return result


def _arithmetic(symbol: str, left, right):
    match symbol:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            whole = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
            return left // right if whole else left / right
        case "//":
            return math.floor(left / right) if isinstance(left, float) or isinstance(right, float) else left // right
        case "mod":
            return left % right
        case "^":
            # An int power could be made as long as memory; numbers past 2^64 have no use here.
            if isinstance(left, int) and isinstance(right, int) and right >= 0:
                if abs(left) > 1 and right > 64:
                    raise OverflowError
                return left**right
            return float(left) ** float(right)
        case "and":
            return bool(left and right)
        case _:
            return bool(left or right)


def measure(symbol: str, left: Measure, right: Measure, name: str, at: Span) -> Measure:
    """Arithmetic on lengths. Raises StaticArithmetic where the normal form has no such operation."""
    form = _form(symbol, left.form, right, at)
    if left.number is None or right.number is None:
        return Measure(form, None)
    value = arithmetic(symbol, left.number, right.number, at)
    if isinstance(value, float):
        raise Mistake(
            StaticArithmetic(
                at, f"{left.number} {symbol} {right.number} is not a whole number, so `{name}` has no length"
            )
        )
    return Measure(form, int(value))


def _form(symbol: str, left: Length, right: Measure, at: Span) -> Length:
    match symbol:
        case "+":
            return left + right.form
        case "-":
            return left - right.form
        case "*":
            return left * right.form
        case "^" if right.number is not None and 0 <= right.number <= 64:
            return left**right.number
        case "/" | "//" | "mod" if right.number == 0:
            raise Mistake(StaticArithmetic(at, "division by zero"))
        case "/":
            return left.divided_exactly(right.form)
        case "//":
            return left // right.form
        case "mod":
            return left % right.form
        case _:
            raise Mistake(StaticArithmetic(at, f"`{symbol}` makes no length"))


def equal(left: Length, right: Length, known: tuple[Fact, ...]) -> bool:
    """Whether two lengths are equal as formulas, or because one fact makes them so."""
    return left == right or any(
        left * b == right * a or left * a == right * b or left - right in (a - b, b - a) for a, b in known
    )
