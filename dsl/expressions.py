"""Expressions: names, arithmetic, comparisons, fields, subscripts. Calls are in calls.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import syntax
from .axes import Axis
from .body import Body
from .diagnostics import Mistake, Noted
from .errors.later import NotBuiltYet
from .errors.names import (
    CircularUse,
    MisplacedStatement,
    NoSuchField,
    NoSuchMember,
    NotStatic,
    StaticArithmetic,
    UnknownName,
)
from .errors.signatures import LiteralAxis, NotAnAxis
from .errors.sizes import SizeNotSet
from .op_call import none_of
from .opdef import AxisMapping, OpDef
from .program import Value
from .source import Span
from .static_math import arithmetic, compare, is_static, number_of
from .statics import NONE, UNKNOWN, AxisFamily, Builtin, Family, Member, Record, SharedFamily, describe
from .value_type import EnumType, Id, Tag

OPERATORS = {
    "+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "mod": "mod", "^": "pow", "and": "and_",
    "or": "or_",
    "==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge",
}  # fmt: skip
CONSTANTS = {"true": True, "false": False, "none": NONE}
# Members of axis families made from other members: `axis a[i] = a[i - 1] / 2`.
AXES_DEEP = 64
# Functions of the language that this version lacks.
LATER_FUNCTIONS = ("gradient", "peer", "again", "extend", "rewind", "batch_norm")
BUILTINS = ("size", "static_axis", "static_axes", "last_axis", "row_axis", "precise")


class Expressions(Body):
    def evaluate(self, expression: syntax.Expression) -> object:
        try:
            return self._evaluate(expression)
        except Mistake as mistake:
            self.note(mistake.error)
        except Noted:
            pass
        return UNKNOWN

    def _evaluate(self, e: syntax.Expression) -> object:
        match e:
            case syntax.Number():
                return e.value
            case syntax.Name():
                found = self.read(e.text, e.span)
                if isinstance(found, OpDef) and not found.params:
                    return self._step(found, e.span)
                if isinstance(found, SharedFamily) and found.declaration.index is None:
                    return self.shared(found, None, e.span)
                return found
            case syntax.Group():
                return self.evaluate(e.inner)
            case syntax.Call():
                return self.call(e, None)
            case syntax.Pipe():
                return self.call(e.call, e.left)
            case syntax.Binary():
                left, right = self.evaluate(e.left), self.evaluate(e.right)
                return self.binary(e.operator, left, right, e.span, {"a": e.left.span, "b": e.right.span})
            case syntax.Comparison():
                return self._comparison(e)
            case syntax.Unary():
                return self._unary(e)
            case syntax.Field():
                return self._field(e)
            case syntax.Subscript():
                return self._subscript(e)
            case syntax.Mapping():
                return AxisMapping(self.axes(e.left), self.axes(e.right))
            case syntax.Tuple() | syntax.ListOf():
                items = tuple(self.evaluate(item) for item in e.items)
                return UNKNOWN if UNKNOWN in items else items
            case syntax.Range():
                start, stop = self.whole(e.start, "a range"), self.whole(e.stop, "a range")
                return range(start, stop)
            case syntax.String():
                raise Mistake(MisplacedStatement(e.span, "a string has no meaning here"))

    # ---- names ------------------------------------------------------------------------------------

    def find(self, name: str, at: Span) -> object | None:
        """What a name stands for: a binding, then the file, then the standard library, the operators, the language."""
        if (bound := self.scope.read(name, at)) is not None:
            return bound
        try:
            declared = self.home.lookup(name)
        except Mistake as mistake:
            if isinstance(mistake.error, SizeNotSet):
                raise Mistake(replace(mistake.error, at=at)) from None
            raise
        if declared is not None:
            return declared
        if (standard := self.standard(name)) is not None:
            return standard
        if name in self.build.ops:
            return self.build.ops[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name == "training":
            return self.build.training
        if name in BUILTINS:
            return Builtin(name)
        if name == "or":
            return self.build.ops["or_missing"]
        return UNKNOWN if name in self.home.module.lost else None

    def standard(self, name: str) -> object | None:
        """What the standard library defines under a name."""
        module = self.build.library.prelude(name)
        if module is None:
            return None
        home = self.build.prelude.get(module.source.name)
        if home is None:
            home = type(self.home)(module, {}, (), make_axis=self.home.make_axis)
            self.build.prelude[module.source.name] = home
        return home.lookup(name)

    def read(self, name: str, at: Span) -> object:
        found = self.find(name, at)
        if found is None and name in LATER_FUNCTIONS:
            raise Mistake(NotBuiltYet(at, f"`{name}`"))
        if found is None and name == "append":
            raise Mistake(MisplacedStatement(at, "`append` is called in a `generate` program"))
        if found is None:
            loop = self.scope.ended.get(name)
            reason = f"`{name}` is bound in the loop at line {loop.line} and ends with each turn" if loop else None
            raise Mistake(UnknownName(at, name, self.known_names(), reason))
        return found

    def known_names(self, local: Iterable[str] = ()) -> tuple[str, ...]:
        """What may be read here, for suggestions."""
        standard = self.build.library.prelude_names
        ops = (op.name for op in self.build.ops.ops.values() if op.is_called)
        return (*local, *self.scope.bound, *self.home.names, *standard, *ops, *BUILTINS, *CONSTANTS)

    def _step(self, op: OpDef, at: Span) -> object:
        """The number of the optimiser step, which objectives may read."""
        if self.form != "objective":
            what = f"`{op.name}` is read in objectives"
            raise Mistake(MisplacedStatement(at, what, "pass it to the model as an input"))
        return self.apply(op, {}, at)

    # ---- operators --------------------------------------------------------------------------------

    def binary(
        self, operator: str, left: object, right: object, at: Span, spans: dict[str, Span] | None = None
    ) -> object:
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        a, b = number_of(left), number_of(right)
        if a is not None and b is not None:
            return arithmetic(operator, a, b, at)
        if operator == "*" and isinstance(left, tuple) and isinstance(b, int):
            return left * min(b, 4096)
        if operator == "+" and isinstance(left, tuple) and isinstance(right, tuple):
            return left + right
        return self.apply(self.build.ops[OPERATORS[operator]], {"a": left, "b": right}, at, spans)

    def _unary(self, e: syntax.Unary) -> object:
        operand = self.evaluate(e.operand)
        if operand is UNKNOWN:
            return UNKNOWN
        number = number_of(operand)
        if number is not None:
            return (not number) if e.operator == "not" else -number
        op = self.build.ops["not_" if e.operator == "not" else "neg"]
        return self.apply(op, {"a": operand}, e.span, {"a": e.operand.span})

    def _comparison(self, e: syntax.Comparison) -> object:
        values = [self.evaluate(operand) for operand in e.operands]
        if UNKNOWN in values:
            return UNKNOWN
        results: list[object] = []
        for number, symbol in enumerate(e.operators):
            left, right = values[number], values[number + 1]
            spans = {"a": e.operands[number].span, "b": e.operands[number + 1].span}
            left, right = self._as_none(left, right, e.span), self._as_none(right, left, e.span)
            left = _member_meant(e.operands[number], left, right)
            right = _member_meant(e.operands[number + 1], right, left)
            if (left is NONE or right is NONE) and symbol in ("==", "!="):
                results.append((left is right) == (symbol == "=="))  # a parameter that was left out, or was not
            elif is_static(left) and is_static(right):
                results.append(compare(symbol, left, right, e.span))
            else:
                op = self.build.ops[OPERATORS[symbol]]
                results.append(self.apply(op, {"a": left, "b": right}, e.span, spans))
        result = results[0]
        for other in results[1:]:
            result = self.binary("and", result, other, e.span)
        return result

    @staticmethod
    def _as_none(side: object, other: object, at: Span) -> object:
        """`none` beside an `id in A or none` is that id's `none`."""
        kind = other.type.kind if side is NONE and isinstance(other, Value) else None
        return none_of(kind.axis, at) if isinstance(kind, Id) and kind.or_none else side

    # ---- parts ------------------------------------------------------------------------------------

    def _field(self, e: syntax.Field) -> object:
        base = self.evaluate(e.base)
        if base is UNKNOWN:
            return UNKNOWN
        if isinstance(base, EnumType) and e.name.text in base.members:
            return Member(base, e.name.text)
        if isinstance(base, Record):
            if e.name.text in base.fields:
                return base.fields[e.name.text]
            name = e.name.text
            why = f"`{name}` is bound more than once in there; give the one you mean a name of its own"
            why = why if name in base.rebound else None
            raise Mistake(NoSuchField(e.name.span, name, base.what, tuple(base.fields), why))
        raise Mistake(NoSuchField(e.name.span, e.name.text, describe(base), (), self._no_method(e.name.text)))

    def _no_method(self, name: str) -> str | None:
        """For habits of array libraries: `x.mean()`, `x.T`."""
        if name in ("T", "mT", "view", "reshape", "transpose", "permute", "swapaxes", "squeeze", "unsqueeze", "expand"):
            return "axes have names: nothing is transposed, reshaped or expanded by position"
        if name in self.build.ops.ops or name in self.build.library.prelude_names:
            return f"a function stands in front of its operand: `{name}(x)`"
        return None

    def _subscript(self, e: syntax.Subscript) -> object:
        base = self.evaluate(e.base)
        if base is UNKNOWN:
            return UNKNOWN
        if len(e.items) != 1:
            raise Mistake(StaticArithmetic(e.span, "one index is wanted in brackets"))
        match base:
            case Family():
                index = self.whole(e.items[0], "an index")
                if index not in base.members:
                    raise Mistake(
                        NoSuchMember(e.span, f"`{base.name}`", str(index), tuple(str(i) for i in sorted(base.members)))
                    )
                return base.members[index]
            case AxisFamily():
                return self.family_axis(base, self.whole(e.items[0], "an index"), e.span)
            case SharedFamily():
                return self.shared(base, self.whole(e.items[0], "an index"), e.span)
            case tuple():
                index = self.whole(e.items[0], "an index")
                if not 0 <= index < len(base):
                    raise Mistake(NoSuchMember(e.span, "the list", str(index), (f"0 .. {len(base)}",)))
                return base[index]
            case Value() | Record():
                index = self.evaluate(e.items[0])
                arguments: dict[str, object] = {"x": base, "index": index}
                spans = {"x": e.base.span, "index": e.items[0].span}
                return UNKNOWN if index is UNKNOWN else self.apply(self.build.ops["gather"], arguments, e.span, spans)
            case _:
                raise Mistake(NoSuchMember(e.span, describe(base), "[..]", ()))

    def family_axis(self, family: AxisFamily, index: int, at: Span) -> Axis:
        """`level[2]`: made once per index."""
        name = f"{family.declaration.name.text}[{index}]"
        home = family.home
        known = home.axes.get(name)
        if known is None:
            if name in home.making or len(home.making) > AXES_DEEP:
                raise Mistake(CircularUse(at, (*home.making[-3:], name)))
            home.making.append(name)
            try:
                known = self.make_axis(home, family.declaration, index)
            finally:
                home.making.pop()
            home.axes[name] = known
        assert isinstance(known, Axis)
        return known

    def shared(self, family: SharedFamily, index: int | None, at: Span) -> object:
        raise NotImplementedError

    def make_axis(self, home, declaration: syntax.Axis, index: int | None) -> Axis:
        raise NotImplementedError

    # ---- what a place wants -----------------------------------------------------------------------

    def whole(self, expression: syntax.Expression, what: str) -> int:
        """A static whole number."""
        value = self.evaluate(expression)
        number = number_of(value)
        if value is UNKNOWN:
            raise Noted
        if number is None or isinstance(number, bool) or number != int(number):
            raise Mistake(NotStatic(expression.span, describe(value), what))
        return int(number)

    def axis(self, expression: syntax.Expression) -> Axis:
        axes = self.axes(expression)
        if len(axes) != 1:
            raise Mistake(NotAnAxis(expression.span, "a list of axes"))
        return axes[0]

    def axes(self, expression: syntax.Expression) -> tuple[Axis, ...]:
        """One axis, or a parenthesised list; axes parameters are spliced."""
        if isinstance(expression, syntax.Tuple):
            return tuple(axis for item in expression.items for axis in self.axes(item))
        if isinstance(expression, syntax.Number):
            raise Mistake(LiteralAxis(expression.span, expression.span.text))
        try:
            return self.as_axes(self._evaluate(expression), expression.span)
        except Mistake as mistake:
            if isinstance(mistake.error, UnknownName) and isinstance(expression, syntax.Name):
                raise Mistake(replace(mistake.error, is_axis=True)) from None
            raise

    def as_axes(self, value: object, at: Span) -> tuple[Axis, ...]:
        match value:
            case Axis():
                return (value,)
            case EnumType():
                return (self.build.enum_axis(value),)
            case tuple():
                return tuple(axis for item in value for axis in self.as_axes(item, at))
            case bool() | int() | float():
                raise Mistake(LiteralAxis(at, str(value)))
            case _ if value is UNKNOWN:
                raise Noted
            case _:
                raise Mistake(NotAnAxis(at, describe(value)))


def _member_meant(written: syntax.Expression, side: object, other: object) -> object:
    """A bare member's name beside a tag is a member of that tag's enum, whatever else has the name."""
    enum = other.enum if isinstance(other, Member) else None
    if isinstance(other, Value) and isinstance(other.type.kind, Tag):
        enum = other.type.kind.enum
    if enum is None or not isinstance(side, Member) or side.enum is enum:
        return side
    is_bare = isinstance(written, syntax.Name) and written.text == side.name and side.name in enum.members
    return Member(enum, side.name) if is_bare else side
