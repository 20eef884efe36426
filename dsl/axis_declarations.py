"""Axis declarations, of a file or local to a body, turned into axes (SEMANTICS 2)."""

from __future__ import annotations

from . import syntax
from .axes import Axis, AxisKind, ByCase, Cut, Grid, Joined, Nested, Ragged, Scaled, Selected, Side, Static
from .diagnostics import Mistake, Noted
from .errors.names import StaticArithmetic
from .errors.signatures import BadType, NotAnAxis
from .errors.sizes import BadSize
from .expressions import Expressions
from .grids import is_grid, scaled_side, sides
from .length import Length
from .source import Span
from .static_math import LARGEST, Measure, measure, number_of
from .statics import UNKNOWN, Member, describe
from .value_type import EnumType


def declared_axis(body: Expressions, declaration: syntax.Axis, index: int | None) -> Axis:
    """The axis a declaration makes; `index` for a member of a family."""
    name = declaration.name.text if index is None else f"{declaration.name.text}[{index}]"
    if declaration.index is not None and index is not None:
        body.scope.bind(declaration.index.text, index)
    match declaration.form:
        case "ragged":
            return _ordered(name, Ragged(), declaration.span)
        case "grid":
            return _ordered(name, Grid(), declaration.span)
        case "nested":
            return _ordered(name, Nested(_parent(body, declaration)), declaration.span)
        case "cut":
            return _ordered(name, Cut(_parent(body, declaration)), declaration.span)
        case "selected":
            return _selected(body, declaration, name)
        case "by_case":
            return _by_case(body, declaration, name)
        case _:
            assert declaration.value is not None
            return _valued(body, declaration.value, name, declaration.span)


def _ordered(name: str, kind: AxisKind, span: Span, length: Length | None = None) -> Axis:
    # Two ragged axes of one name are two axes: the span makes their lengths two symbols.
    return Axis(name, kind, length or Length.symbol(name, (span.source.name, span.start)), None, span)


def _parent(body: Expressions, declaration: syntax.Axis) -> Axis:
    assert declaration.parent is not None
    found = body.read(declaration.parent.text, declaration.parent.span)
    if not isinstance(found, Axis) or found.is_static:
        raise Mistake(NotAnAxis(declaration.parent.span, describe(found), "an axis with a length per example"))
    return found


def _selected(body: Expressions, declaration: syntax.Axis, name: str) -> Axis:
    """`axis word = seq where kind == text`, or `kind == text or kind == code`."""
    named = _members(body, declaration.where)
    tags = {tag for tag, _ in named}
    if len(tags) != 1:
        raise Mistake(
            BadType(declaration.span, "rows are selected by `tag == member`, or by several members of one tag")
        )
    members = tuple(dict.fromkeys(member for _, member in named))
    return _ordered(name, Selected(_parent(body, declaration), tags.pop(), members), declaration.span)


def _members(body: Expressions, where: syntax.Expression | None) -> list[tuple[str, str]]:
    """The tags and members that rows are compared with; none where something else is written."""
    match where:
        case syntax.Comparison((syntax.Name(tag), member), ("==",)):
            found = body.evaluate(member)
            if found is UNKNOWN:
                raise Noted
            return [(tag, found.name)] if isinstance(found, Member) else []
        case syntax.Binary("or", left, right):
            sides = (_members(body, left), _members(body, right))
            return [*sides[0], *sides[1]] if all(sides) else []
    return []


def _by_case(body: Expressions, declaration: syntax.Axis, name: str) -> Axis:
    if not isinstance(declaration.value, syntax.Name):
        raise Mistake(BadType(declaration.span, "`match` in an axis takes the name of a tag"))
    cases = tuple(
        (member.text, _valued(body, value, f"{name}.{member.text}", value.span)) for member, value in declaration.cases
    )
    _check_cases(body, declaration)
    return _ordered(name, ByCase(declaration.value.text, cases), declaration.span)


def _check_cases(body: Expressions, declaration: syntax.Axis) -> None:
    """One case for each member of one enum; there is no default."""
    seen: set[str] = set()
    enum = None
    for member, _ in declaration.cases:
        found = body.read(member.text, member.span)
        if found is UNKNOWN:
            raise Noted
        if not isinstance(found, Member) or (enum is not None and member.text not in enum.members):
            raise Mistake(BadType(member.span, f"`{member.text}` is no member of " + _enum_words(enum)))
        if member.text in seen:
            raise Mistake(BadType(member.span, f"`{member.text}` has two cases"))
        seen.add(member.text)
        enum = enum or found.enum
    lacking = [f"`{name}`" for name in (enum.members if enum else ()) if name not in seen]
    if lacking:
        raise Mistake(BadType(declaration.span, f"no case for {', '.join(lacking)} of " + _enum_words(enum)))


def _enum_words(enum: EnumType | None) -> str:
    return "an enum" if enum is None else f"the enum `{enum.name}`"


def _valued(body: Expressions, value: syntax.Expression, name: str, span: Span) -> Axis:
    """Static by a length, or scaled, joined, or a grid of known sides."""
    if isinstance(value, syntax.Call) and isinstance(value.callee, syntax.Name) and value.callee.text == "grid":
        return _static_grid(body, value, name, span)
    if (scaled := _scaled(body, value)) is not None:
        return _scaled_axis(*scaled, name, span)
    if (parts := _joined(body, value)) is not None:
        total = Length.number(0)
        for part in parts:
            total = total + (Length.number(part) if isinstance(part, int) else part.length)
        return _ordered(name, Joined(parts), span, total)
    measured = length(body, value, name)
    if measured.number is None:
        raise Mistake(BadType(value.span, "an axis made from an ordered axis is `axis / n` or a sum of axes"))
    return Axis(name, Static(), measured.form, check_length(measured.number, name, value.span), span)


def _scaled_axis(parent: Axis, divisor: int, name: str, span: Span) -> Axis:
    """Rounded up; of a grid, each side is."""
    kind = Scaled(parent, divisor)
    if parent.size is None:
        if is_grid(parent):
            return _ordered(name, kind, span)
        return _ordered(name, kind, span, parent.length.ceil_divided(divisor))
    height, width = (scaled_side(side, divisor) for side in sides(parent))
    return Axis(name, kind, height.length * width.length, height.size * width.size, span)


def _static_grid(body: Expressions, call: syntax.Call, name: str, span: Span) -> Axis:
    measures = [length(body, argument.value, name) for argument in call.arguments]
    found = [Side(side.form, side.number) for side in measures if side.number is not None]
    if len(measures) != 2 or len(found) != 2:
        raise Mistake(BadType(call.span, "a grid has two static sides: `grid(32, 32)`"))
    height, width = found
    for side, argument in zip(found, call.arguments, strict=True):
        check_length(side.size, name, argument.span)
    size = check_length(height.size * width.size, name, call.span)
    return Axis(name, Grid((height, width)), height.length * width.length, size, span)


def _axis_operand(body: Expressions, e: syntax.Expression, or_grid: bool = False) -> Axis | None:
    """The ordered axis an expression names, if it is one; with `or_grid` a static grid too."""
    if isinstance(e, syntax.Name | syntax.Subscript):
        found = body.evaluate(e)
        if found is UNKNOWN:
            raise Noted
        if isinstance(found, Axis) and (found.is_ordered or (or_grid and is_grid(found))):
            return found
    return None


def _scaled(body: Expressions, e: syntax.Expression) -> tuple[Axis, int] | None:
    if not (isinstance(e, syntax.Binary) and e.operator == "/"):
        return None
    parent = _axis_operand(body, e.left, or_grid=True)
    if parent is None:
        return None
    divisor = body.whole(e.right, "the scale of an axis")
    if divisor < 1:
        raise Mistake(BadSize(e.right.span, e.span.text, f"is divided by {divisor}"))
    return parent, divisor


def _joined(body: Expressions, e: syntax.Expression) -> tuple[Axis | int, ...] | None:
    if not (isinstance(e, syntax.Binary) and e.operator == "+"):
        return None
    parts: list[Axis | int] = []
    stack: list[syntax.Expression] = [e]
    while stack:
        item = stack.pop()
        if isinstance(item, syntax.Binary) and item.operator == "+":
            stack += [item.right, item.left]
        elif (axis := _axis_operand(body, item)) is not None:
            parts.append(axis)
        else:
            parts.append(body.whole(item, "a number of rows"))
    return tuple(parts) if any(isinstance(part, Axis) for part in parts) else None


def check_length(number: int, name: str, at: Span) -> int:
    """A length as it is, if it can be one."""
    if number < 0:
        raise Mistake(BadSize(at, name, f"is {number}, below 0"))
    if number >= LARGEST:
        found = f"{number:,}" if number < 1 << 64 else "huge"
        raise Mistake(BadSize(at, name, f"is {found}; the limit is 2^48"))
    return number


def length(body: Expressions, e: syntax.Expression, name: str) -> Measure:
    """A length as normal form and number. Names are sizes, axes, options and loop variables."""
    match e:
        case syntax.Group():
            return length(body, e.inner, name)
        case syntax.Binary():
            left, right = length(body, e.left, name), length(body, e.right, name)
            try:
                return measure(e.operator, left, right, name, e.span)
            except Mistake as mistake:
                if isinstance(mistake.error, StaticArithmetic) and e.operator == "/" and right.number:
                    what = f"is {left.number} / {right.number}, which is not whole"
                    error = BadSize(e.span, name, what, "`//` rounds down")
                    raise Mistake(error) from None
                raise
        case syntax.Unary("-", operand):
            inner = length(body, operand, name)
            return Measure(-inner.form, None if inner.number is None else -inner.number)
    value = body.evaluate(e)
    if value is UNKNOWN:
        raise Noted
    if isinstance(value, Axis):
        return Measure(value.length, value.size)
    number = number_of(value)
    if number is None or isinstance(number, bool) or number != int(number):
        help = f"declare it as an option: `option {name}: list = ..`" if isinstance(value, tuple) else None
        raise Mistake(BadSize(e.span, name, f"is {describe(value)}", help))
    return Measure(Length.number(int(number)), int(number))
