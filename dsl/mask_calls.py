"""Masks as written, turned into formulas: comparisons of what a query row and a key row see (SEMANTICS 5)."""

from __future__ import annotations

from . import syntax
from .axes import Axis
from .diagnostics import Mistake, Noted
from .errors.masks import BadMask
from .errors.names import BadArguments, CircularUse
from .expressions import Expressions
from .masks import (
    Arithmetic,
    Both,
    Captured,
    Compare,
    Either,
    Formula,
    Literal,
    Mask,
    Not,
    Position,
    SegmentIndex,
    Side,
    Term,
    with_sides,
)
from .op_call import bind_arguments
from .opdef import Accepts, Param
from .program import Value
from .scope import Scope
from .static_math import number_of
from .statics import NONE, UNKNOWN, MaskRef, Member, Record, describe
from .value_type import Flag, Id

COMPARE = "compare `query(..)` with `key(..)`, or use a named mask such as `causal`"


class _Writer:
    """One mask under construction: what it captures, and the definitions being expanded, for circles."""

    def __init__(self) -> None:
        self.captures: list[Value] = []
        self.open: list[syntax.Mask] = []

    def formula(self, e: syntax.Expression, body: MaskCalls) -> Formula | None:
        match e:
            case syntax.Group():
                return self.formula(e.inner, body)
            case syntax.Binary("and" | "or" as operator, left, right):
                a, b = self.formula(left, body), self.formula(right, body)
                if operator == "and":
                    return b if a is None else a if b is None else Both(a, b)
                return None if a is None or b is None else Either(a, b)
            case syntax.Unary("not", operand):
                inner = self.formula(operand, body)
                if inner is None:
                    raise Mistake(BadMask(e.span, "`not` of a mask that allows everything allows nothing"))
                return Not(inner)
            case syntax.Comparison():
                terms = [self.term(operand, body) for operand in e.operands]
                parts = [self._compared(op, a, b) for op, a, b in zip(e.operators, terms, terms[1:], strict=False)]
                result: Formula = parts[0]
                for part in parts[1:]:
                    result = Both(result, part)
                return result
            case syntax.Name():
                return self._named(body.read(e.text, e.span), None, e, body)
            case syntax.Call(syntax.Name("query" | "key" as side)):
                return self._flag(side, e, body)
            case syntax.Call():
                return self._named(body.evaluate(e.callee), e, e, body)
            case syntax.Field():
                return self._named(body.evaluate(e), None, e, body)
        raise Mistake(BadMask(e.span, "this is not a mask", COMPARE))

    def _compared(self, operator: str, left: Term, right: Term) -> Formula:
        """A comparison. Rows whose id is `none` are equal to no row."""
        compared = Compare(operator, left, right)
        if operator != "==" or not isinstance(left, Side) or not isinstance(right, Side):
            return compared
        formula: Formula = compared
        for side in (left, right):
            kind = self.captures[side.read.index].type.kind if isinstance(side.read, Captured) else None
            if isinstance(kind, Id) and kind.or_none:
                assert kind.axis.size is not None
                formula = Both(formula, Compare("!=", side, Literal(kind.axis.size)))
        return formula

    def _flag(self, side: str, e: syntax.Call, body: MaskCalls) -> Formula:
        """`key(f)` of a flag, which needs no comparison."""
        term = self.term(e, body)
        assert isinstance(term, Side)
        read = term.read
        if isinstance(read, Captured) and isinstance(self.captures[read.index].type.kind, Flag):
            return Compare("==", term, Literal(True))
        raise Mistake(BadMask(e.span, f"`{side}({e.arguments[0].span.text})` is no flag", "compare it with something"))

    def _named(self, found: object, call: syntax.Call | None, e: syntax.Expression, body: MaskCalls) -> Formula | None:
        if found is UNKNOWN:
            raise Noted
        if found is NONE:
            return None
        if isinstance(found, Mask):
            return self._captured(found)
        if not isinstance(found, MaskRef):
            what = e.callee if isinstance(e, syntax.Call) else e
            raise Mistake(BadMask(what.span, f"this is {describe(found)}, not a mask", COMPARE))
        declaration = found.declaration
        if declaration in self.open:
            names = [mask.name.text for mask in self.open[self.open.index(declaration) :]]
            raise Mistake(CircularUse(e.span, (*names, declaration.name.text)))
        scope = Scope(self._visible(found, body) | self._arguments(found, call, e, body))
        inner = type(body)(body.build, found.home, "mask", body.path, body.frames, scope)
        self.open.append(declaration)
        try:
            return self.formula(declaration.value, inner)
        finally:
            self.open.pop()

    def _arguments(
        self, found: MaskRef, call: syntax.Call | None, e: syntax.Expression, body: MaskCalls
    ) -> dict[str, object]:
        declaration = found.declaration
        params = tuple(Param(parameter.name.text, Accepts.VALUE) for parameter in declaration.parameters)
        bound = {} if call is None else bind_arguments(declaration.name.text, call, None, params)
        given: dict[str, object] = {}
        for param in params:
            if param.name not in bound:
                raise Mistake(BadArguments(e.span, declaration.name.text, f"needs `{param.name}`"))
            given[param.name] = body.evaluate(bound[param.name])
            if given[param.name] is UNKNOWN:
                raise Noted
        return given

    @staticmethod
    def _visible(found: MaskRef, body: MaskCalls) -> dict[str, object]:
        """A mask captures values by name where it is used. What its own file declares comes first."""
        own = set(found.home.names)
        return {name: value for name, value in body.scope.bound.items() if name not in own}

    def _captured(self, mask: Mask) -> Formula | None:
        """A mask passed in from outside, with its captures renumbered into this one."""
        start = len(self.captures)
        self.captures.extend(mask.captures)
        return None if mask.formula is None else _shifted(mask.formula, start)

    def term(self, e: syntax.Expression, body: MaskCalls) -> Term:
        match e:
            case syntax.Group():
                return self.term(e.inner, body)
            case syntax.Binary("+" | "-" | "*" as operator, left, right):
                return Arithmetic(operator, self.term(left, body), self.term(right, body))
            case syntax.Unary("-", operand):
                return Arithmetic("-", self.term(operand, body))
            case syntax.Call(syntax.Name("abs"), (argument,)):
                return Arithmetic("abs", self.term(argument.value, body))
            case syntax.Call(syntax.Name("query" | "key" as side), arguments):
                if len(arguments) != 1:
                    raise Mistake(BadMask(e.span, f"`{side}(..)` takes one argument"))
                return Side(side, self._read(arguments[0].value, body))
        value = body.evaluate(e)
        if value is UNKNOWN:
            raise Noted
        if isinstance(value, Member):
            return Literal(value.index)
        number = number_of(value)
        if number is None or (isinstance(value, Axis) and value.is_ordered):
            help = f"write `query({e.span.text})` or `key({e.span.text})`"
            raise Mistake(BadMask(e.span, f"a mask compares rows; `{e.span.text}` does not say of which", help))
        return Literal(number)

    def _read(self, e: syntax.Expression, body: MaskCalls) -> Position | Captured | SegmentIndex:
        if isinstance(e, syntax.Name) and e.text == "position" and e.text not in body.scope.bound:
            return Position()
        if isinstance(e, syntax.Call) and isinstance(e.callee, syntax.Name) and e.callee.text == "index":
            match [argument.value for argument in e.arguments]:
                case [cut]:
                    return SegmentIndex(body.axis(cut), "own")
                case [cut, syntax.Name("own" | "closed" as which)]:
                    return SegmentIndex(body.axis(cut), which)
            raise Mistake(BadMask(e.span, "`index` takes a cut, and `own` or `closed`"))
        value = body.evaluate(e)
        if value is UNKNOWN:
            raise Noted
        if isinstance(value, Record) and value.main is not None:
            value = value.main
        if isinstance(value, Axis) and value.is_ordered:
            return SegmentIndex(value)
        if not isinstance(value, Value):
            what = f"`query(..)` and `key(..)` read `position`, an ordered axis or a value, not {describe(value)}"
            raise Mistake(BadMask(e.span, what))
        if value not in self.captures:
            self.captures.append(value)
        return Captured(self.captures.index(value))


class MaskCalls(Expressions):
    """The part of elaboration that reads masks."""

    def mask(self, expression: syntax.Expression) -> Mask:
        writer = _Writer()
        formula = writer.formula(expression, self)
        return Mask(formula, tuple(writer.captures), expression.span)


def _shifted(formula: Formula, by: int) -> Formula:
    """The formula with its captures counted from `by`."""

    def later(side: Side) -> Side:
        match side.read:
            case Captured(index):
                return Side(side.side, Captured(index + by))
            case _:
                return side

    return with_sides(formula, later) if by else formula
