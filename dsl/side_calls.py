"""`query(e)` and `key(e)` in a block that `attend` applies to its scores: values of one row of either side.

    block nearer(score: real[heads]) -> real[heads]:
        return score - slope * real(query(position) - key(position))

In the block such a value has no rows, as the score has none: it is that of the two rows which the score is of.
"""

from __future__ import annotations

from dataclasses import replace

from . import syntax
from .body import Body
from .diagnostics import Mistake, Noted
from .errors.later import NotBuiltYet
from .errors.masks import BadMask
from .errors.names import BadArguments
from .program import Constant, Value
from .statics import UNKNOWN, Record, describe
from .value_type import Int, ValueType

SIDES = ("query", "key")


class SideCalls(Body):
    """The part of elaboration that reads sides of pairs of rows."""

    def is_side(self, callee: syntax.Expression) -> bool:
        """A block of either name comes first."""
        if not isinstance(callee, syntax.Name) or callee.text not in SIDES:
            return False
        return self.find(callee.text, callee.span) is None

    def side(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        assert isinstance(call.callee, syntax.Name)
        sides, side = self.build.sides, call.callee.text
        assert sides is not None
        given = ([piped] if piped is not None else []) + [argument.value for argument in call.arguments]
        if len(given) != 1:
            raise Mistake(BadArguments(call.span, side, "takes one argument"))
        e = given[0]
        if isinstance(e, syntax.Name) and e.text == "position" and e.text not in self.scope.bound:
            read, type = None, ValueType(Int())
        else:
            read = self._read_of(side, e)
            type = replace(read.type, axes=read.type.static_axes, per_example=False)
        for known, of in sides.items():
            if of == (side, read):
                return known
        stands = Value(f"{side}({e.span.text})", type, call.span)
        sides[stands] = (side, read)
        return stands

    def _read_of(self, side: str, e: syntax.Expression) -> Value:
        if isinstance(e, syntax.Call) and isinstance(e.callee, syntax.Name) and e.callee.text == "index":
            raise Mistake(NotBuiltYet(e.span, f"`{side}({e.span.text})` in a score"))
        value = self.evaluate(e)
        if value is UNKNOWN:
            raise Noted
        if isinstance(value, Record) and value.main is not None:
            value = value.main
        if not isinstance(value, Value) or isinstance(value, Constant):
            raise Mistake(BadMask(e.span, f"`{side}(..)` reads `position` or a value, not {describe(value)}"))
        return value
