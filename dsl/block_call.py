"""Calls of blocks and models: parameters bound, generic axes inferred, the body elaborated in place."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from . import syntax
from .axes import Axis, Cut, Nested, Scaled, Selected, Static
from .body import NESTING_LIMIT, Body
from .diagnostics import Mistake, Noted
from .errors.names import BadArguments, CircularUse, NoResult, WrongArgument
from .errors.signatures import LocalAxisEscapes, ResultAxes
from .errors.weights import TooLarge
from .expansions import Call
from .expressions import Expressions
from .length import Length
from .modules import Instance
from .op_call import OpCalls, as_value, bind_arguments, none_of
from .opdef import Accepts, AxisMapping, Param
from .program import Constant, Frame, Value
from .segment_statements import optional_names
from .signatures import STATIC_KINDS, Signatures, parameter
from .source import Span
from .static_math import is_static, number_of
from .statics import NONE, UNKNOWN, BlockRef, Family, Record, describe
from .value_type import ordered_first


def _cut_chain(axis: Axis) -> set[Axis]:
    """The axis and what it is cut from, selected from or scaled from."""
    chain = {axis}
    while isinstance(axis.kind, Cut | Selected | Scaled | Nested):
        axis = axis.kind.parent
        chain.add(axis)
    return chain


class BlockCalls(Signatures, Expressions, OpCalls):
    """The part of elaboration that expands blocks."""

    def expand(self, block: BlockRef, call: syntax.Call, piped: syntax.Expression | None) -> object:
        """A block or model called in the text."""
        params = tuple(parameter(p) for p in block.declaration.parameters)
        optional = optional_names(block.declaration) if block.declaration.form == "model" else {}
        params += tuple(Param(name, Accepts.VALUE, None) for name in optional)
        bound = bind_arguments(block.name, call, piped, params)
        arguments: dict[str, object] = {}
        for param in params:
            if param.name in bound:
                arguments[param.name] = self.argument(param, bound[param.name])
        if any(value is UNKNOWN for value in arguments.values()):
            return UNKNOWN
        spans = {name: expression.span for name, expression in bound.items()}
        label = call.label.text if call.label else None
        return self.expand_with(block, arguments, spans, call.span, self.site(block.name, label))

    def call_block(
        self,
        block: BlockRef,
        arguments: list[object],
        at: Span,
        label: str | None = None,
        visible: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(zip((p.name.text for p in block.declaration.parameters), arguments, strict=False))
        return self.expand_with(block, given, {}, at, self.site(block.name, label), visible)

    def expand_with(
        self,
        block: BlockRef,
        arguments: dict[str, object],
        spans: dict[str, Span],
        at: Span,
        site: tuple[str, ...],
        visible: Mapping[str, object] | None = None,
    ) -> object:
        """The result of a block on evaluated arguments. `site` is what the call adds to weight paths; `visible`: see
        `call_block`."""
        declaration = block.declaration
        is_model = declaration.form == "model"
        if is_model:
            arguments = {name: self._handed_over(value, block.home, at) for name, value in arguments.items()}
        home = self._home_of_call(block, arguments) if is_model else block.home
        path = self._model_path(block) if is_model else (*self.path, *site)
        frame = Frame(declaration.name.text, None, at)
        body = type(self)(self.build, home, declaration.form, path, (*self.frames, frame))
        body.precise = self.precise
        if is_model:
            body.given_inputs = {
                name: (as_value(self, arguments[name], spans.get(name, at), name), spans.get(name, at))
                for name in optional_names(declaration)
                if arguments.get(name) is not None
            }
        if visible:
            own = set(home.names)
            body.scope.bound.update({name: value for name, value in visible.items() if name not in own})
        known = len(self.problems)

        def elaborated() -> object:
            self._bind_parameters(body, declaration, arguments, spans, at)
            with self.build.book.instance() if is_model else nullcontext():
                body.run(declaration.body)
            for name, (_, where) in body.given_inputs.items():
                raise Mistake(BadArguments(where, block.name, f"has no input `{name}` as its options are set"))
            return body.checked_result(declaration)

        with self._entered(block, at):
            if id(declaration) in self.build.failed:
                return UNKNOWN  # its mistakes are known, and are said once
            if is_model or visible:
                result = elaborated()
            else:
                call = Call(declaration, home, arguments, path, body.frames, self.users_place(at))
                result = self.build.expansions.made(self, call, elaborated)
        if len(self.problems) > known:
            self.build.failed.add(id(declaration))
        if result is UNKNOWN:
            return UNKNOWN
        if not is_model:
            return result
        return self._model_run(block, body, result, at)

    @contextmanager
    def _entered(self, block: BlockRef, at: Span):
        chain = self.build.calls
        names = [name for _, name in chain]
        if any(declaration is block.declaration for declaration, _ in chain):
            start = next(i for i, (declaration, _) in enumerate(chain) if declaration is block.declaration)
            raise Mistake(CircularUse(at, (*names[start:], block.name), "calls"))
        if len(chain) >= NESTING_LIMIT:
            raise Mistake(TooLarge(at, f"calls nested deeper than {NESTING_LIMIT}"))
        chain.append((block.declaration, block.name))
        self.build.expanded.add(id(block.declaration))
        try:
            yield
        finally:
            chain.pop()

    def _bind_parameters(
        self,
        body: BlockCalls,
        declaration: syntax.Block,
        arguments: dict[str, object],
        spans: dict[str, Span],
        at: Span,
    ) -> None:
        generic: dict[str, Axis | None] = {axis.text: None for axis in declaration.axes}
        # Arguments first: defaults may speak of axes that later arguments determine.
        for written in declaration.parameters:
            name = written.name.text
            if name in arguments:
                param = parameter(written)
                value = body.bound_argument(written, param, arguments[name], generic, spans.get(name, at))
                body.scope.bind(name, value)
                if generic or written.type is None or written.type.any_axes or written.type.kind.text in STATIC_KINDS:
                    body.scope.uncertain.add(name)
                for axis_name, axis in generic.items():
                    if axis is not None:
                        body.scope.bind(axis_name, axis)
        for written in declaration.parameters:
            name = written.name.text
            if name in arguments:
                continue
            if written.default is None:
                raise Mistake(BadArguments(at, declaration.name.text, f"needs `{name}`"))
            param = parameter(written)
            default = body.argument(replace(param, default=None), written.default)
            if default is UNKNOWN:
                raise Noted
            bound = (
                default
                if default is NONE or (is_static(default) and param.accepts is Accepts.VALUE)
                else body.bound_argument(written, param, default, generic, at)
            )
            body.scope.bind(name, bound)
        for axis_name, axis in generic.items():
            if axis is None:
                what = f"cannot tell its axis `{axis_name}` from the arguments"
                help = f"no argument has it: give a parameter a type with `{axis_name}` in it, or take it as an `axis`"
                raise Mistake(BadArguments(at, declaration.name.text, what, help))

    def bound_argument(
        self, written: syntax.Parameter, param: Param, given: object, generic: dict[str, Axis | None], at: Span
    ) -> object:
        """An argument as its parameter's name will stand for it in the body."""
        type = written.type
        if type is None:
            return given
        if type.kind.text == "size":
            return self._as_size(written.name.text, given, at)
        if type.kind.text in STATIC_KINDS:
            return NONE if given is NONE else self._accept(replace(param, default=None), given, at)
        if given is NONE and type.or_none and type.element is not None:
            axis = self.axis(type.element)
            return none_of(axis, at)
        # A static number stays static, so that the body may decide by it.
        if not type.axes and (is_static(given) or given is NONE):
            return number_of(given) if isinstance(given, Axis) else given
        value = as_value(self, given, at, written.name.text)
        self.fits(type, value, written.name.text, generic, at)
        return value

    def _as_size(self, name: str, given: object, at: Span) -> Axis:
        if isinstance(given, Axis) and given.is_static:
            return given
        number = number_of(given)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise Mistake(WrongArgument(at, name, describe(given), "a size"))
        return Axis(name, Static(), Length.number(number), number, at)

    # ---- results ----------------------------------------------------------------------------------

    def checked_result(self, declaration: syntax.Block) -> object:
        """The body's result, if it fits the signature."""
        if self.result is None:
            name = declaration.name
            self.note(NoResult(name.span, name.text, "does not return a value", "end it with `return ..`"))
            return UNKNOWN
        result, at = self.result
        if result is UNKNOWN:
            return UNKNOWN
        with self.noted():
            items = result if isinstance(result, tuple) else (result,)
            # Several results of a block may be families, for a block that takes them as they are.
            values = tuple(
                item
                if isinstance(item, Family) and len(items) > 1 and declaration.form == "block"
                else as_value(self, item, at, "the result")
                for item in items
            )
            for value in values:
                for part in value.members.values() if isinstance(value, Family) else (value,):
                    if isinstance(part, Value):
                        self._fits_result(declaration, part, at, len(values))
            return values if isinstance(result, tuple) else values[0]
        return UNKNOWN

    def _fits_result(self, declaration: syntax.Block, value: Value, at: Span, count: int) -> None:
        for axis in value.type.axes:
            local = self.scope.bound.get(axis.name)
            if local is axis and axis.name in self.local_axes:
                raise Mistake(LocalAxisEscapes(at, axis.name, axis.span))
        written = declaration.result
        if written is None:
            return
        name = declaration.name.text
        if count > 1:
            raise Mistake(ResultAxes(at, name, f"{count} values", f"one `{written.span.text}`", written.span))
        if not self.kind_fits(written, value):
            raise Mistake(ResultAxes(at, name, f"`{value.type}`", f"`{written.span.text}`", written.span))
        if not written.any_axes and set(ordered_first(self.type_axes(written))) != set(value.type.axes):
            raise Mistake(ResultAxes(at, name, f"`{value.type}`", f"`{written.span.text}`", written.span))

    # ---- models -----------------------------------------------------------------------------------

    def _model_path(self, block: BlockRef) -> tuple[str, ...]:
        """A model is an instance: its weights have one path whoever calls it."""
        several = len(block.home.models) > 1
        return (*block.home.path, block.name) if several else block.home.path

    def _home_of_call(self, block: BlockRef, arguments: dict[str, object]) -> Instance:
        """The file as one call of its model sees it: ordered axes are those of the arguments, and cuts that an
        earlier call has made are born again."""
        home = self._bind_ordered_axes(block, arguments)
        born = {axis for axis in home.axes.values() if isinstance(axis, Axis) and axis in self.build.cuts}
        if not born:
            return home
        kept = {
            name: axis
            for name, axis in home.axes.items()
            if not isinstance(axis, Axis) or not (_cut_chain(axis) & born)
        }
        return replace(home, axes=kept)

    def _bind_ordered_axes(self, block: BlockRef, arguments: dict[str, object]) -> Instance:
        """A model's ordered axes are bound at each call: the file's view for this call has the caller's instead."""
        home = block.home
        view: dict[str, Axis] = {}
        for written in block.declaration.parameters:
            given = arguments.get(written.name.text)
            value = given.main if isinstance(given, Record) else given
            if not isinstance(value, Value) or written.type is None or value.type.rows is None:
                continue
            names = [item.text for item in written.type.axes or () if isinstance(item, syntax.Name)]
            own = [(name, axis) for name in names if isinstance(axis := home.lookup(name), Axis) and axis.is_ordered]
            # The lowest of them is where the rows are; its owners are those of the argument's rows.
            levels = (value.type.rows, *value.type.rows.ancestors)
            for name, axis in own:
                depth = sum(axis in other.ancestors for _, other in own)
                if depth < len(levels) and axis is not levels[depth]:
                    view[name] = levels[depth]
        if not view:
            return home
        kept = {name: axis for name, axis in home.axes.items() if not isinstance(axis, Axis) or axis.is_static}
        return replace(home, axes={**kept, **view})

    def _model_run(self, block: BlockRef, body: Body, result: object, at: Span) -> object:
        once = {name: value for name, value in body.scope.bound.items() if name not in body.scope.rebound}
        fields = {name: value for name, value in once.items() if isinstance(value, Value | Record)}
        main = self._in_axes_of(self.home, result, at) if isinstance(result, Value) else None
        if main is None:
            return result
        rebound = frozenset(body.scope.rebound)
        return Record(f"a run of `{block.name}`", {"output": main, **fields}, main, rebound)

    def _handed_over(self, argument: object, home: Instance, at: Span) -> object:
        value = argument.main if isinstance(argument, Record) else argument
        if not isinstance(value, Value) or isinstance(value, Constant):
            return argument
        return self._in_axes_of(home, value, at)

    def _in_axes_of(self, home: Instance, value: Value, at: Span) -> Value:
        """A value that goes from one file's model to another: along that file's axes of the same names and lengths."""
        axes: dict[Axis, Axis] = {}
        for axis in value.type.static_axes:
            try:
                other = home.lookup(axis.name)
            except (Mistake, Noted):
                continue
            if isinstance(other, Axis) and other is not axis and other.size == axis.size:
                axes[axis] = other
        if not axes:
            return value
        mapping = AxisMapping(tuple(axes), tuple(axes.values()))
        renamed = self.apply(self.build.ops["rename"], {"x": value, "axes": mapping, "mode": "checked"}, at)
        assert isinstance(renamed, Value)
        return renamed

    local_axes: set[str]

    def run(self, statements: tuple[syntax.Statement, ...]) -> None:
        raise NotImplementedError
