"""Expressions, types and patterns of the syntax tree: the builders that statements and declarations are made from.

See tree_builder.py, which lists all builders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import syntax
from .diagnostics import Mistake
from .errors.syntax import BadDeclaration, BadLabel, BadMapping
from .lexer import ESCAPES
from .source import Span
from .syntax import Expression, Identifier


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Labelled:
    """`f(x) as name`, until its place says whether a bare `f` counts as a call: it does right of `|>`."""

    base: Expression
    label: Identifier
    span: Span


Parts = tuple[Any, ...]

# ---- expressions --------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """An expression, not in a pipe: a label must follow a call."""
    if isinstance(value, Labelled):
        if not isinstance(value.base, syntax.Call):
            raise Mistake(BadLabel(value.base.span))
        return syntax.Call(value.base.callee, value.base.arguments, value.label, value.span)
    return value


def name(span: Span, token: Token) -> syntax.Name:
    return syntax.Name(token.text, span)


def number(span: Span, token: Token) -> syntax.Number:
    text = token.text.replace("_", "")
    whole = text.isdecimal()
    return syntax.Number(int(text) if whole else float(text), span)


def string(span: Span, token: Token) -> syntax.String:
    text = token.text[1:-1]
    if "\\" in text:
        pieces, rest = [], text
        while "\\" in rest:
            before, _, after = rest.partition("\\")
            pieces += [before, ESCAPES["\\" + after[0]]]
            rest = after[1:]
        text = "".join(pieces) + rest
    return syntax.String(text, span)


def identifier(span: Span, token: Token) -> Identifier:
    return Identifier(token.text, span)


def group(span: Span, inner: Any) -> syntax.Group:
    return syntax.Group(plain(inner), span)


def unit(span: Span) -> syntax.Tuple:
    return syntax.Tuple((), span)


def tuple_(span: Span, first: Any, rest: tuple[Expression, ...] | None) -> syntax.Tuple:
    return syntax.Tuple((plain(first), *(rest or ())), span)


def list_(span: Span, items: tuple[Expression, ...] | None) -> syntax.ListOf:
    return syntax.ListOf(items or (), span)


def expressions(span: Span, *items: Any) -> tuple[Expression, ...]:
    return tuple(plain(item) for item in items)


def call(span: Span, callee: Expression, arguments: tuple[syntax.Argument, ...] | None) -> syntax.Call:
    return syntax.Call(callee, arguments or (), None, span)


def or_call(span: Span, word: Token, arguments: tuple[syntax.Argument, ...] | None) -> syntax.Call:
    """`or(x, 0)`: the operator's word where a value is wanted fills missing rows."""
    return call(span, name(Span(span.source, span.start, span.start + len(word.text)), word), arguments)


def subscript(span: Span, base: Expression, items: tuple[Expression, ...]) -> syntax.Subscript:
    return syntax.Subscript(base, items, span)


def field(span: Span, base: Expression, part: Identifier) -> syntax.Field:
    return syntax.Field(base, part, span)


def labelled(span: Span, base: Expression, label: Identifier) -> Labelled:
    return Labelled(base, label, span)


def pipe(span: Span, left: Any, right: Any) -> syntax.Pipe:
    label = None
    base = right
    if isinstance(right, Labelled):
        base, label = right.base, right.label
    if isinstance(base, syntax.Call):
        step = syntax.Call(base.callee, base.arguments, label, right.span)
    elif isinstance(base, syntax.Name | syntax.Field | syntax.Subscript):
        step = syntax.Call(base, (), label, right.span)
    else:
        raise Mistake(BadDeclaration(base.span, "right of `|>` stands a call or the name of something to call"))
    return syntax.Pipe(plain(left), step, span)


def binary(span: Span, left: Any, operator: Token, right: Any) -> syntax.Binary:
    return syntax.Binary(operator.text, plain(left), plain(right), span)


def unary(span: Span, operator: Token, operand: Any) -> syntax.Unary:
    return syntax.Unary(operator.text, plain(operand), span)


def compare(span: Span, first: Any, tail: Parts) -> syntax.Comparison:
    operands = (plain(first), *tail[1::2])
    return syntax.Comparison(operands, tuple(operator.text for operator in tail[::2]), span)


def comparison_tail(span: Span, *parts: Any) -> Parts:
    """Operators and operands in turn."""
    return tuple(part if isinstance(part, Token) else plain(part) for part in parts)


def range_(span: Span, start: Any, stop: Any) -> syntax.Range:
    return syntax.Range(plain(start), plain(stop), span)


def mapping(span: Span, left: Any, right: Any) -> syntax.Mapping:
    for side in (left, right):
        if not _names_axes(side):
            raise Mistake(BadMapping(side.span))
    return syntax.Mapping(left, right, span)


def _names_axes(side: object) -> bool:
    """A name, a family member, a list of them; a number too, because the checker says more about literal axes."""
    match side:
        case syntax.Tuple(items=items):
            return all(_names_axes(item) for item in items)
        case syntax.Group(inner=inner):
            return _names_axes(inner)
        case syntax.Name() | syntax.Subscript() | syntax.Field() | syntax.Number():
            return True
    return False


def argument(span: Span, key: Token | None, value: Any) -> syntax.Argument:
    return syntax.Argument(Identifier(key.text, key.span) if key else None, plain(value), span)


def items(span: Span, *children: Any) -> Parts:
    """A list of equals: arguments, settings, patterns, parameters, ..."""
    return children


# ---- types, parameters, patterns ----------------------------------------------------------------


def type_(
    span: Span, kind: Identifier, axes: Parts | str | None, element: Any, none: Identifier | None
) -> syntax.TypeExpression:
    if none and none.text != "none":
        raise Mistake(BadDeclaration(none.span, f"after `or` in a type stands `none`, not `{none.text}`"))
    any_axes = axes == ".."
    listed = axes if isinstance(axes, tuple) else None
    return syntax.TypeExpression(kind, listed, any_axes, plain(element), none is not None, span)


def any_axes(span: Span) -> str:
    return ".."


def type_axes(span: Span, axes: tuple[Expression, ...] | None) -> tuple[Expression, ...]:
    return axes or ()


def parameter(span: Span, named: Identifier, type: syntax.TypeExpression | None, default: Any) -> syntax.Parameter:
    return syntax.Parameter(named, type, plain(default), span)


def bracketed(span: Span, inside: Parts | None) -> Parts:
    return inside or ()


def pattern(span: Span, *parts: str) -> syntax.Pattern:
    # `layer.3.4` is read as a number 3.4.
    return syntax.Pattern(tuple(piece for part in parts for piece in part.split(".")), span)


def pattern_part(span: Span, token: Token) -> str:
    return token.text
