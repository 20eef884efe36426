"""Masks as written, turned into formulas: comparisons of what a query row and a key row see (SEMANTICS 5)."""

from __future__ import annotations

from collections.abc import Mapping

from . import syntax
from .axes import Axis
from .diagnostics import Mistake
from .errors.masks import BadMask
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
)
from .program import Value
from .static_math import number_of
from .statics import UNKNOWN, MaskRef, Record


class _Writer:
    """One mask under construction. `names` are the parameters of a mask definition being expanded."""

    def __init__(self, body: MaskCalls) -> None:
        self.body = body
        self.captures: list[Value] = []

    def formula(self, e: syntax.Expression, names: Mapping[str, object]) -> Formula | None:
        match e:
            case syntax.Group():
                return self.formula(e.inner, names)
            case syntax.Binary("and" | "or" as operator, left, right):
                a, b = self.formula(left, names), self.formula(right, names)
                if operator == "and":
                    return b if a is None else a if b is None else Both(a, b)
                return None if a is None or b is None else Either(a, b)
            case syntax.Unary("not", operand):
                inner = self.formula(operand, names)
                if inner is None:
                    raise Mistake(BadMask(e.span, "`not` of a mask that allows everything allows nothing"))
                return Not(inner)
            case syntax.Comparison():
                terms = [self.term(operand, names) for operand in e.operands]
                parts = [Compare(op, a, b) for op, a, b in zip(e.operators, terms, terms[1:], strict=False)]
                result: Formula = parts[0]
                for part in parts[1:]:
                    result = Both(result, part)
                return result
            case syntax.Name():
                found = names.get(e.text) or self.body.find(e.text, e.span)
                return self._named(found, (), e, names)
            case syntax.Call():
                callee = self.body.evaluate(e.callee)
                return self._named(callee, e.arguments, e, names)
            case _:
                raise Mistake(
                    BadMask(
                        e.span,
                        "this is no mask: a comparison of `query(..)` with `key(..)`, or a named mask, is wanted",
                    )
                )

    def _named(
        self,
        found: object,
        arguments: tuple[syntax.Argument, ...],
        e: syntax.Name | syntax.Call,
        names: Mapping[str, object],
    ) -> Formula | None:
        if isinstance(found, Mask):
            return self._captured(found)
        if not isinstance(found, MaskRef):
            if found is None:
                self.body.read(e.span.text.split("(")[0], e.span)
            raise Mistake(BadMask(e.span, f"`{e.span.text}` is not a mask"))
        parameters = found.declaration.parameters
        if len(arguments) != len(parameters):
            raise Mistake(
                BadMask(
                    e.span,
                    f"mask `{found.declaration.name.text}` takes {len(parameters)} arguments, not {len(arguments)}",
                )
            )
        given: dict[str, object] = {}
        for parameter, argument in zip(parameters, arguments, strict=True):
            name = argument.name.text if argument.name else parameter.name.text
            text = argument.value.text if isinstance(argument.value, syntax.Name) else None
            given[name] = names[text] if text in names else self.body.evaluate(argument.value)
            if given[name] is UNKNOWN:
                raise Mistake(BadMask(argument.span, "the argument of a mask is unknown"))
        # The definition's own free names belong to its file; it has parameters and the language's words only.
        return self.formula(found.declaration.value, given)

    def _captured(self, mask: Mask) -> Formula | None:
        """A mask passed in from outside, with its captures renumbered into this one."""
        start = len(self.captures)
        self.captures.extend(mask.captures)
        return None if mask.formula is None else _shifted(mask.formula, start)

    def term(self, e: syntax.Expression, names: Mapping[str, object]) -> Term:
        match e:
            case syntax.Group():
                return self.term(e.inner, names)
            case syntax.Binary("+" | "-" | "*" as operator, left, right):
                return Arithmetic(operator, self.term(left, names), self.term(right, names))
            case syntax.Unary("-", operand):
                return Arithmetic("-", self.term(operand, names))
            case syntax.Call(syntax.Name("abs"), (argument,)):
                return Arithmetic("abs", self.term(argument.value, names))
            case syntax.Call(syntax.Name("query" | "key" as side), (argument,)):
                return Side(side, self._read(argument.value, names))
            case _:
                value = names.get(e.text) if isinstance(e, syntax.Name) else None
                value = self.body.evaluate(e) if value is None else value
                number = number_of(value)
                if number is None:
                    raise Mistake(BadMask(e.span, "a value in a mask is read at a row: write `query(..)` or `key(..)`"))
                return Literal(number)

    def _read(self, e: syntax.Expression, names: Mapping[str, object]) -> Position | Captured | SegmentIndex:
        if isinstance(e, syntax.Name) and e.text == "position" and e.text not in names:
            return Position()
        if isinstance(e, syntax.Call) and isinstance(e.callee, syntax.Name) and e.callee.text == "index":
            axis = self._axis_of(e.arguments[0].value, names)
            closed = len(e.arguments) > 1 and e.arguments[1].value.span.text == "closed"
            return SegmentIndex(axis, "closed" if closed else "own")
        value = names.get(e.text) if isinstance(e, syntax.Name) else None
        value = self.body.evaluate(e) if value is None else value
        if isinstance(value, Record) and value.main is not None:
            value = value.main
        if isinstance(value, Axis):
            return SegmentIndex(value)
        if not isinstance(value, Value):
            raise Mistake(BadMask(e.span, "`query(..)` and `key(..)` read `position`, an axis or a value"))
        if value not in self.captures:
            self.captures.append(value)
        return Captured(self.captures.index(value))

    def _axis_of(self, e: syntax.Expression, names: Mapping[str, object]) -> Axis:
        value = names.get(e.text) if isinstance(e, syntax.Name) else None
        return value if isinstance(value, Axis) else self.body.axis(e)


class MaskCalls(Expressions):
    """The part of elaboration that reads masks."""

    def mask(self, expression: syntax.Expression) -> Mask:
        writer = _Writer(self)
        formula = writer.formula(expression, {})
        return Mask(formula, tuple(writer.captures), expression.span)


def _shifted(formula: Formula, by: int) -> Formula:
    """The formula with its captures counted from `by`."""
    if by == 0:
        return formula
    match formula:
        case Both(left, right):
            return Both(_shifted(left, by), _shifted(right, by))
        case Either(left, right):
            return Either(_shifted(left, by), _shifted(right, by))
        case Not(inner):
            return Not(_shifted(inner, by))
        case Compare(operator, left, right):
            return Compare(operator, _shifted_term(left, by), _shifted_term(right, by))


def _shifted_term(term: Term, by: int) -> Term:
    match term:
        case Side(side, Captured(index)):
            return Side(side, Captured(index + by))
        case Arithmetic(operator, left, right):
            return Arithmetic(operator, _shifted_term(left, by), None if right is None else _shifted_term(right, by))
        case _:
            return term
