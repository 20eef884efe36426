"""Calls of primitives: arguments brought to what each parameter accepts, then the op's type rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from . import syntax
from .axes import Axis
from .body import Body
from .diagnostics import Mistake, Noted, SpecError
from .errors.names import BadArguments, StaticArithmetic, WrongArgument, did_you_mean
from .errors.nested import RowsPerOwner
from .errors.syntax import BadMapping
from .length import Length
from .masks import Mask
from .opdef import REQUIRED, Accepts, AxisMapping, Inferred, OpDef, Param, Traced
from .program import Constant, Distribution, Node, Segmented, Value, Weight
from .source import Span
from .static_math import equal, number_of
from .statics import NONE, UNKNOWN, BlockRef, Member, Record, describe
from .value_type import EnumType, Flag, Id, Int, Real, Tag, ValueType


class Call:
    """What a type rule sees of its call: see OpCall in opdef.py."""

    def __init__(
        self, body: Body, op: OpDef, span: Span, spans: dict[str, Span], label: str | None, path: tuple[str, ...]
    ) -> None:
        self.span = span
        self._body = body
        self._op = op
        self._spans = spans
        self._label = label
        self._path = path
        self._given_inits: dict[str, Distribution] = {}

    def at(self, parameter: str) -> Span:
        return self._spans.get(parameter, self.span)

    def fail(self, error: SpecError) -> Exception:
        return Mistake(error)

    def weight(
        self, name: str, axes: tuple[Axis, ...], init: Distribution, outputs: int = 0, kind: Any = None, kernel: int = 0
    ) -> Weight:
        path = ".".join((*self._path, *self._body.site(self._op.name, self._label), name))
        at_site = "init" in self._spans
        type = ValueType(kind or Real(), axes)
        return self._body.build.book.make(
            path, type, init, outputs, self.span, at_site, name, self._body.users_place(self.span), kernel
        )

    def emit(self, op: str, **arguments: Any) -> Any:
        return self._body.apply(self._body.build.ops[op], arguments, self.span, self._spans)

    def equal(self, left: Length, right: Length) -> bool:
        return equal(left, right, self._body.build.facts)

    def segmented(self, axis: Axis) -> Segmented | None:
        return self._body.segmented(axis, self.span)

    def owned(self, axis: Axis, owner: Axis, each: Length) -> None:
        before, first = self._body.build.owned.setdefault((axis, owner), (each, self.span))
        if not self.equal(before, each):
            raise Mistake(RowsPerOwner(self.at("axes"), axis.name, owner.name, str(each), str(before), first))

    def shown(self, axis: Axis, owner: Axis, each: int) -> Axis:
        return self._body.shown(axis, owner, each, self.span)

    def shown_among(self, rows: Axis, owner: Axis) -> Axis | None:
        return self._body.shown_among(rows, owner)

    def selected(self, axis: Axis) -> Value:
        return self._body.selected(axis, self.span)

    def traced(self, block: BlockRef, type: ValueType) -> Traced:
        build = self._body.build
        given = Value("score", type, self.span)
        before = build.nodes, build.make_nodes, build.sides
        build.nodes, build.make_nodes, build.sides = [], True, {}
        try:
            result = self._body.call_block(block, [given], self.span, self._label, self._body.scope.bound)
            nodes, reads = tuple(build.nodes), build.sides
        finally:
            build.nodes, build.make_nodes, build.sides = before
        if result is UNKNOWN:
            raise Noted
        return Traced(given, as_value(self._body, result, self.span, "the result"), nodes, reads)

    def keep(self, nodes: Iterable[Node]) -> None:
        if self._body.build.make_nodes:
            self._body.build.nodes.extend(nodes)


def as_value(body: Body, given: object, at: Span, parameter: str) -> Value:
    """A tensor operand; static numbers and members become constants."""
    match given:
        case Value():
            return given
        case Record() if given.main is not None:
            return given.main
        case Member():
            return Constant(given.name, ValueType(Tag(given.enum)), at, given.index)
        case _ if given is UNKNOWN:
            raise Noted
    number = number_of(given)
    if number is None:
        fields = ", ".join(f"`.{name}`" for name in given.fields) if isinstance(given, Record) else ""
        help = f"its values are {fields}" if fields else None
        raise Mistake(WrongArgument(at, parameter, describe(given), "a value", help))
    kind = Flag() if isinstance(number, bool) else Int() if isinstance(number, int) else Real()
    return Constant(f"{number:g}" if not isinstance(number, bool) else str(number).lower(), ValueType(kind), at, number)


def none_of(axis: Axis, at: Span) -> Constant:
    """`none` where an `id in axis or none` is wanted: the entry past the last."""
    assert axis.size is not None
    return Constant("none", ValueType(Id(axis, True)), at, axis.size)


class OpCalls(Body):
    """The part of elaboration that calls primitives."""

    def apply(
        self,
        op: OpDef,
        arguments: dict[str, object],
        at: Span,
        spans: dict[str, Span] | None = None,
        label: str | None = None,
    ) -> object:
        spans = spans or {}
        accepted: dict[str, Any] = {}
        for param in op.params:
            if param.name in arguments:
                accepted[param.name] = self._accept(param, arguments[param.name], spans.get(param.name, at))
            elif param.default is REQUIRED:
                raise Mistake(BadArguments(at, op.name, _missing(param), usage(op)))
            else:
                accepted[param.name] = param.default
        return self.infer(op, accepted, at, spans, label)

    def infer(self, op: OpDef, accepted: dict[str, Any], at: Span, spans: dict[str, Span], label: str | None) -> object:
        call = Call(self, op, at, spans, label, self.path)
        try:
            inferred: Inferred = op.infer(call, **accepted)
        except ArithmeticError:
            # An axis of length 0, or numbers whose product no float holds.
            raise Mistake(StaticArithmetic(at, f"`{op.name}` has no result for these numbers and lengths")) from None
        outputs = self.emit(op, inferred.attrs, inferred.inputs, inferred.types, at)
        if inferred.fields:
            return Record(f"the result of `{op.name}`", dict(zip(inferred.fields, outputs, strict=True)))
        return outputs[0] if len(outputs) == 1 else outputs

    def _accept(self, param: Param, given: object, at: Span) -> Any:
        """A value that is already evaluated, brought to what the parameter accepts."""
        if given is UNKNOWN:
            raise Noted
        if given is None or given is NONE:
            if param.default is not REQUIRED and param.default is None:
                return None
            raise Mistake(WrongArgument(at, param.name, "`none`", param.accepts.value))
        match param.accepts:
            case Accepts.VALUE:
                return as_value(self, given, at, param.name)
            case Accepts.VALUES if isinstance(given, tuple):
                return tuple(as_value(self, item, at, param.name) for item in given)
            case Accepts.AXIS:
                axes = self.as_axes(given, at)
                if len(axes) == 1:
                    return axes[0]
            case Accepts.AXES:
                return self.as_axes(given, at)
            case Accepts.NUMBER:
                number = number_of(given)
                if number is not None and not isinstance(number, bool):
                    return number
            case Accepts.INTEGER:
                number = number_of(given)
                if isinstance(number, int) and not isinstance(number, bool):
                    return number
            case Accepts.FLAG if isinstance(given, bool):
                return given
            case Accepts.INDEX if isinstance(given, tuple) and all(number_of(item) is not None for item in given):
                return tuple(number_of(item) for item in given)
            case accepts if isinstance(given, _SORTS.get(accepts, ())):
                return given
        raise Mistake(WrongArgument(at, param.name, describe(given), param.accepts.value, _written(param, given)))

    def call_op(self, op: OpDef, call: syntax.Call, piped: syntax.Expression | None) -> object:
        """A primitive called in the text: arguments bound to parameters, each evaluated as its parameter wants."""
        try:
            bound = bind_arguments(op.name, call, piped, op.params)
        except Mistake:
            self._want_whole_mappings(op, call, {})
            raise
        self._want_whole_mappings(op, call, bound)
        arguments: dict[str, object] = {}
        known = True
        for param in op.params:
            expression = bound.get(param.name)
            if expression is None:
                continue
            value = self.argument(param, expression)
            known = known and value is not UNKNOWN
            arguments[param.name] = value
        if not known:
            return UNKNOWN
        spans = {name: expression.span for name, expression in bound.items()}
        return self.apply(op, arguments, call.span, spans, call.label.text if call.label else None)

    def _want_whole_mappings(self, op: OpDef, call: syntax.Call, bound: dict[str, syntax.Expression]) -> None:
        """`linear(x, dim -> heads, head_dim)` lacks the brackets that make one list of the last two."""
        accepts = {id(bound[param.name]): param.accepts for param in op.params if param.name in bound}
        written = [argument.value for argument in call.arguments if argument.name is None]
        for first, second in pairwise(written):
            name, mapping = (second, first) if isinstance(first, syntax.Mapping) else (first, second)
            if not isinstance(mapping, syntax.Mapping) or not isinstance(name, syntax.Name):
                continue
            side = mapping.right if mapping is first else mapping.left
            takes_no_axis = accepts.get(id(name), Accepts.FLAG) in (Accepts.FLAG, Accepts.CHOICE)
            if isinstance(side, syntax.Tuple) or not takes_no_axis:
                continue
            if isinstance(self.find(name.text, name.span), Axis):
                parts = (side, name) if mapping is first else (name, side)
                both = "(" + ", ".join(part.span.text for part in parts) + ")"
                one = mapping.left.span.text if mapping is first else mapping.right.span.text
                right = f"{one} -> {both}" if mapping is first else f"{both} -> {one}"
                raise Mistake(BadMapping(first.span.to(second.span), f"write `{right}`"))

    def argument(self, param: Param, expression: syntax.Expression) -> object:
        """Masks, distributions and choices are read by their own rules, everything else is an expression."""
        result: object = UNKNOWN
        with self.noted():
            match param.accepts:
                case Accepts.MASK:
                    result = self.mask(expression)
                case Accepts.INIT:
                    result = self.distribution(expression)
                case Accepts.CHOICE:
                    result = self._choice(param, expression)
                case Accepts.AXIS | Accepts.AXES:
                    result = self.axes(expression)
                case _:
                    result = self.evaluate(expression)
        return result

    def _choice(self, param: Param, expression: syntax.Expression) -> str:
        text = expression.text if isinstance(expression, syntax.Name) else expression.span.text
        if text in param.choices:
            return text
        raise Mistake(
            WrongArgument(
                expression.span,
                param.name,
                f"`{text}`",
                ", ".join(f"`{choice}`" for choice in param.choices),
                did_you_mean(text, param.choices),
            )
        )

    def mask(self, expression: syntax.Expression) -> Mask:
        raise NotImplementedError

    def distribution(self, expression: syntax.Expression) -> Distribution:
        raise NotImplementedError

    def call_block(
        self,
        block: BlockRef,
        arguments: list[object],
        at: Span,
        label: str | None = None,
        visible: Mapping[str, object] | None = None,
    ) -> object:
        raise NotImplementedError

    def axes(self, expression: syntax.Expression) -> tuple[Axis, ...]:
        raise NotImplementedError

    def as_axes(self, value: object, at: Span) -> tuple[Axis, ...]:
        raise NotImplementedError


_SORTS: dict[Accepts, tuple[type, ...]] = {
    Accepts.MAPPING: (AxisMapping,),
    Accepts.MASK: (Mask,),
    Accepts.BLOCK: (BlockRef,),
    Accepts.INIT: (Distribution,),
    Accepts.CHOICE: (str,),
    Accepts.ENUM: (EnumType,),
}


def _missing(param: Param) -> str:
    if param.accepts is Accepts.MAPPING:
        return "needs a mapping of axes, `A -> B`"
    sort = "" if param.accepts is Accepts.VALUE else f", {param.accepts.value}"
    return f"needs `{param.name}`{sort}"


def _written(param: Param, given: object) -> str | None:
    """How an argument of another sort is written, where that is what was probably meant."""
    match param.accepts, given:
        case Accepts.MAPPING, _:
            return "a mapping is written `A -> B`, or `A -> (B, C)`"
        case Accepts.FLAG, Axis():
            return "several axes on one side of a mapping stand in brackets: `A -> (B, C)`"
        case Accepts.VALUES, _:
            return "a list is written `(a, b)`"
    return None


def usage(op: OpDef) -> str:
    """How an operator is called: the first thing its documentation shows."""
    return "it is written " + "`" + op.doc.split("`")[1] + "`"


def bind_arguments(
    callee: str, call: syntax.Call, piped: syntax.Expression | None, params: tuple[Any, ...]
) -> dict[str, syntax.Expression]:
    """Argument expressions by parameter name. A mapping without a name goes to the first free one
    that takes it."""
    names = [param.name for param in params]
    takes_mapping = [param.name for param in params if param.accepts is Accepts.MAPPING]
    bound: dict[str, syntax.Expression] = {}
    positional = [] if piped is None else [piped]
    for argument in call.arguments:
        if argument.name is not None:
            _bind_named(callee, argument, names, bound)
        elif isinstance(argument.value, syntax.Mapping) and any(name not in bound for name in takes_mapping):
            bound[next(name for name in takes_mapping if name not in bound)] = argument.value
        else:
            positional.append(argument.value)
    for expression in positional:
        free = [name for name in names if name not in bound]
        if not free:
            count = "1 argument" if len(names) == 1 else f"{len(names)} arguments"
            raise Mistake(BadArguments(expression.span, callee, f"takes {count}, this is one more"))
        bound[free[0]] = expression
    return bound


def _bind_named(callee: str, argument: syntax.Argument, names: list[str], bound: dict[str, syntax.Expression]) -> None:
    assert argument.name is not None
    name, at = argument.name.text, argument.name.span
    if name not in names:
        help = did_you_mean(name, tuple(names)) or f"its parameters are {', '.join(names)}"
        raise Mistake(BadArguments(at, callee, f"has no parameter `{name}`", help))
    if name in bound:
        raise Mistake(BadArguments(at, callee, f"is given `{name}` twice"))
    bound[name] = argument.value
