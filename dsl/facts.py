"""What the condition of a static `if` says about lengths, for the branch that it guards.

if dim == inner:
    h = rename(x, dim -> inner)     equal here, though not as formulas
"""

from __future__ import annotations

from . import syntax
from .axis_declarations import length
from .diagnostics import Mistake, Noted
from .expressions import Expressions
from .length import LengthError
from .static_math import Fact


def facts(body: Expressions, condition: syntax.Expression, holds: bool) -> tuple[Fact, ...]:
    """Pairs of lengths that are equal where the condition holds, or where it does not."""
    match condition:
        case syntax.Group():
            return facts(body, condition.inner, holds)
        case syntax.Unary("not", operand):
            return facts(body, operand, not holds)
        case syntax.Binary("and" | "or" as operator, left, right) if holds == (operator == "and"):
            return (*facts(body, left, holds), *facts(body, right, holds))
        case syntax.Comparison(operands, operators) if holds or len(operators) == 1:
            wanted = "==" if holds else "!="
            pairs = zip(operators, operands, operands[1:], strict=False)
            found = (_pair(body, left, right) for symbol, left, right in pairs if symbol == wanted)
            return tuple(fact for fact in found if fact is not None)
        case _:
            return ()


def _pair(body: Expressions, left: syntax.Expression, right: syntax.Expression) -> Fact | None:
    try:
        return length(body, left, "the length").form, length(body, right, "the length").form
    except (Mistake, Noted, LengthError):
        return None  # not about lengths
