"""`generate` declarations: what is done when a token comes, elaborated into actions (SEMANTICS 12).

Statements are elaborated as in a model, with values per request. Three things are not: a call of the model is a look at
new rows behind what is there, `append` keeps rows, and a `for` inside of `on` is run turn by turn, its variable a
number that is not known here. Parameters are static, so a program is elaborated anew for other ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from . import syntax
from .body import Abandoned, Build
from .causality import why_not_generated
from .diagnostics import Mistake, Noted, Problems, SpecErrors
from .errors.generate import BadEvent, BadRows, NothingToGoOn, TurnChangesType, WeightInGenerate
from .errors.later import NotBuiltYet
from .errors.names import BadArguments, MisplacedStatement, did_you_mean
from .errors.signatures import BadType
from .errors.sizes import WrongOption
from .generation import (
    Append,
    Carried,
    Event,
    Generation,
    Look,
    NewRows,
    Repeat,
    Straight,
    appended,
    settled,
    tokens_of,
)
from .generation_rows import new_rows
from .names_read import all_words, bound_names, family_names, first_line
from .op_call import as_value, bind_arguments
from .opdef import Accepts, OpDef, Param
from .program import Frame, Program, Value
from .signatures import HOST_KINDS, check_option
from .sizes import parsed
from .source import Source, Span
from .statements import Elaboration
from .statics import NONE, UNKNOWN, BlockRef, Record
from .value_type import Int, ValueType
from .weight_book import WeightBook

if TYPE_CHECKING:
    from .elaborate import Spec

WANTED = {"real": "a number", "int": "a whole number", "flag": "true or false"}
KINDS = tuple(WANTED)


class NoWeights(WeightBook):
    def make(self, path: str, type: ValueType, *rest: Any, **options: Any) -> Any:
        del type, options
        site = next(part for part in rest if isinstance(part, Span))
        raise Mistake(WeightInGenerate(site, path))


@dataclass(eq=False)
class GenerateBuild(Build):
    """`actions` are those of the body under elaboration; the nodes since the last of them are in `nodes`."""

    model: Program | None = None
    actions: list = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)  # what statements of the program call values
    in_event: bool = False

    def act(self, action: Look | Append | Repeat) -> None:
        self.close()
        if self.make_nodes:
            self.actions.append(action)

    def close(self) -> None:
        if self.nodes:
            self.actions.append(Straight(tuple(self.nodes)))
            self.nodes.clear()
        self.taken.clear()

    def inner(self) -> list:
        """Begins a body of its own; what was before is given back, for `outer`."""
        self.close()
        before, self.actions = self.actions, []
        return before

    def outer(self, before: list) -> tuple:
        self.close()
        made, self.actions = tuple(self.actions), before
        return made


class GenerateBody(Elaboration):
    """The body of a `generate` program, and blocks that it calls."""

    build: GenerateBuild

    # ---- statements -------------------------------------------------------------------------------

    def _run(self, statement: syntax.Statement) -> None:
        at = first_line(statement.span)
        match statement:
            case _ if self.form != "generate":
                super()._run(statement)
            case syntax.On():
                self._on(statement)
            case syntax.Send():
                raise Mistake(NotBuiltYet(statement.target.span, "`<-`"))
            case syntax.Match() | syntax.Routed():
                raise Mistake(NotBuiltYet(at, "a choice by a tag in a `generate` program"))
            case syntax.Return() | syntax.OptionalInput() | syntax.Segment():
                raise Mistake(MisplacedStatement(at, "this has no place in a `generate` program"))
            case syntax.For() if self.build.in_event and isinstance(statement.over, syntax.Range):
                self._repeat(statement, statement.over)
            case _:
                super()._run(statement)
        if not self.build.in_event and (self.build.nodes or self.build.actions):
            self.build.nodes.clear()
            self.build.actions.clear()
            what = "a `generate` program computes when something happens"
            raise Mistake(MisplacedStatement(at, what, "write it below `on token == N:`"))

    def _bind_target(self, target: syntax.Target, value: object) -> None:
        super()._bind_target(target, value)
        if self.form == "generate" and isinstance(value, Value):
            self.build.names.setdefault(value, target.name.text)

    def _on(self, statement: syntax.On) -> None:
        build, at = self.build, first_line(statement.span)
        if build.in_event or self.loops:
            raise Mistake(MisplacedStatement(at, "`on` inside another statement", "it stands in the program itself"))
        token = self._awaited(statement)
        first = next((event.span for event in build.events if event.token == token), None)
        if first is not None:
            raise Mistake(BadEvent(at, f"token {token} is waited for twice", None, first))
        scope, before = self.scope.snapshot(), build.inner()
        build.in_event = True
        try:
            self.run(statement.body)
        finally:
            build.in_event = False
            made = build.outer(before)
            self.scope.leave_loop(scope, at)
            self.scope.bound.update(scope)
        body, _ = settled(made, frozenset(), statement.span, build.names)
        self._want_token_last(body)
        if build.make_nodes:
            build.events.append(Event(token, body, at))

    def _awaited(self, statement: syntax.On) -> int:
        """The token of `on token == N`."""
        event, condition = statement.event, statement.condition
        if event.text != "token":
            if event.text in ("sentence", "end"):
                raise Mistake(NotBuiltYet(event.span, f"`on {event.text}`"))
            help = did_you_mean(event.text, ("token", "sentence", "end"))
            raise Mistake(BadEvent(event.span, f"nothing is called `{event.text}` that a program could wait for", help))
        match condition:
            case syntax.Comparison((syntax.Name("token"), wanted), ("==",)) if statement.each is None:
                token = self.whole(wanted, "the token that is waited for")
            case _:
                raise Mistake(BadEvent(first_line(statement.span), "one token is waited for", "`on token == N:`"))
        tokens = tokens_of(self._model())
        if tokens is None:
            raise Mistake(self._no_tokens(event.span))
        if not 0 <= token < tokens.count:
            kind = tokens.input.type.kind
            what = f"token {token} never comes: `{tokens.input.name}` is `{kind}`, 0 to {tokens.count - 1}"
            raise Mistake(BadEvent(wanted.span, what))
        return token

    def _no_tokens(self, at: Span) -> BadRows:
        model = self._model()
        what = f"`{model.name}` does not go on with tokens: it has no single input of ids, with scores for the next one"
        return BadRows(at, what, None, model.span)

    def _want_token_last(self, body: tuple) -> None:
        rows = appended(body)
        tokens = tokens_of(self._model())
        if rows and tokens is not None and rows[-1].along is not tokens.input.type.rows:
            self.note(NothingToGoOn(rows[-1].span, rows[-1].along.name))

    def _repeat(self, statement: syntax.For, over: syntax.Range) -> None:
        """A loop that is run: its body is elaborated once, for any turn."""
        build, name = self.build, statement.variable.text
        turns = range(self.whole(over.start, "a range"), self.whole(over.stop, "a range"))
        families = family_names(statement.body)
        if families:
            what = f"`{min(families)}` would have a member for each turn, and turns are run one after another"
            raise Mistake(MisplacedStatement(first_line(statement.span), what))
        before, outer = self.scope.snapshot(), build.inner()
        carried = self._carried(statement, before)
        variable = Value(name, ValueType(Int()), statement.variable.span)
        inside = {**before, **{other: value for other, (_, value) in carried.items()}, name: variable}
        self.scope.bound.update(inside)
        self.loops += 1
        try:
            self.run(statement.body)
        finally:
            self.loops -= 1
            body = build.outer(outer)
            left = self.scope.snapshot()
            self.scope.leave_loop(before, statement.span)
            self.scope.bound.update({**before, **{other: value for other, (_, value) in carried.items()}})
        handed = [self._handed_on(other, left[other], *values, statement) for other, values in carried.items()]
        build.act(Repeat(variable, turns, tuple(one for one in handed if one is not None), body))

    def _carried(self, statement: syntax.For, before: Mapping[str, object]) -> dict[str, tuple[Value, Value]]:
        """Names that the body binds anew: their values before the loop, and what they stand for in it."""
        found: dict[str, tuple[Value, Value]] = {}
        for name in dict.fromkeys(bound_names(statement.body)):
            if name in before and before[name] is not UNKNOWN:
                start = as_value(self, before[name], first_line(statement.span), name)
                found[name] = start, Value(name, start.type, start.span)
        return found

    def _handed_on(self, name: str, left: object, start: Value, value: Value, statement: syntax.For) -> Carried | None:
        if left is UNKNOWN:
            self.scope.bound[name] = UNKNOWN
            return None
        end = as_value(self, left, first_line(statement.span), name)
        a, b = value.type, end.type
        if a.kind != b.kind or set(a.axes) != set(b.axes) or a.per_example != b.per_example:
            self.scope.bound[name] = UNKNOWN
            self.note(TurnChangesType(first_line(statement.span), name, _said(a), _said(b)))
            return None
        return Carried(start, value, end)

    # ---- calls ------------------------------------------------------------------------------------

    def call(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        callee = call.callee
        if isinstance(callee, syntax.Name) and callee.text == "append" and self.find("append", callee.span) is None:
            return self._append(call, piped)
        return super().call(call, piped)

    def expand(self, block: BlockRef, call: syntax.Call, piped: syntax.Expression | None) -> object:
        if block.declaration.form != "model":
            return super().expand(block, call, piped)
        if self.build.model is None:
            raise Noted
        if block.declaration.span != self._model().span:
            what = f"`{block.name}` is not the model that this program goes on with, `{self._model().name}`"
            raise Mistake(BadRows(call.callee.span, what, None, self._model().span))
        return self._look(call, piped)

    def _look(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        model = self._model()
        names = {value.name for value in model.inputs}
        bound = self._bound(call, piped, model.name, () if "prompt" in names else ("prompt",))
        alone = "prompt" not in names and "prompt" in bound
        if alone and self.evaluate(bound.pop("prompt")) is not NONE:
            help = "`prompt=none` looks behind the empty prompt, a call without it behind the request's own rows"
            raise Mistake(BadArguments(call.span, model.name, "takes a `prompt` of `none` only", help))
        rows = self._rows(call, bound)
        made = tuple(
            (name, Value(name, ValueType(value.type.kind, value.type.static_axes, True), call.span))
            for name, value in model.outputs
            if value.type.rows is rows.along or (rows.along not in model.shown and value.type.rows is rows.along.whole)
        )
        if not made:
            raise Mistake(BadRows(call.span, f"`{model.name}` has no result for a row of {rows.along.name}"))
        self.build.act(Look(rows, made, alone))
        main = made[0][1] if len(made) == 1 else None
        return Record(f"a look at `{model.name}`", dict(made), main)

    def _append(self, call: syntax.Call, piped: syntax.Expression | None) -> None:
        if not self.build.in_event:
            raise Mistake(MisplacedStatement(call.span, "`append` adds rows when something happens"))
        tokens = tokens_of(self._model())
        unnamed = [argument for argument in call.arguments if argument.name is None]
        if unnamed and tokens is None:
            raise Mistake(self._no_tokens(call.span))
        if len(unnamed) + (piped is not None) > 1:
            raise Mistake(BadArguments(call.span, "append", "takes one token", "append them one after another"))
        if tokens is not None and len(unnamed) == 1:
            bound = self._bound(call, piped, "append", (), first=tokens.input.name)
        else:
            bound = self._bound(call, piped, "append", ())
        self.build.act(Append(self._rows(call, bound)))

    def _bound(
        self, call: syntax.Call, piped: syntax.Expression | None, callee: str, more: tuple[str, ...], first: str = ""
    ) -> dict[str, syntax.Expression]:
        names = [*dict.fromkeys((*([first] if first else []), *(v.name for v in self._model().inputs))), *more]
        return bind_arguments(callee, call, piped, tuple(Param(name, Accepts.VALUE, None) for name in names))

    def _rows(self, call: syntax.Call, bound: Mapping[str, syntax.Expression]) -> NewRows:
        given: dict[str, tuple[object, Span]] = {}
        for name, expression in bound.items():
            value = self.evaluate(expression)
            if value is UNKNOWN:
                raise Noted
            given[name] = value, expression.span
        return new_rows(self, self._model(), given, call.span)

    def _model(self) -> Program:
        if self.build.model is None:
            raise Noted
        return self.build.model

    def emit(self, op: OpDef, attrs: object, inputs, types, span: Span) -> tuple[Value, ...]:
        rows = next((type.rows for type in types if type.rows is not None), None)
        if rows is not None:
            what = f"`{op.name}` would have a value per row of {rows.name}; a `generate` program has one per request"
            raise Mistake(BadRows(span, what, f"leave out `{rows.name}`", rows.span))
        return super().emit(op, attrs, inputs, types, span)


def _said(type: ValueType) -> str:
    return f"{type}" + (" per request" if type.per_example else "")


# ---- declarations ---------------------------------------------------------------------------------


def elaborate_generate(
    spec: Spec, declaration: syntax.Generate, models: Mapping[str, Program | None], given: Mapping[str, object]
) -> Generation | None:
    """A `generate` declaration for the parameters given, others at their defaults. None when it cannot be built; why
    is among the problems."""
    problems = spec.library.problems
    model = models.get(_model_named(declaration, models, problems) or "")
    book = NoWeights(problems, (), {}, lambda rule, fan_in, fan_out, turn: None)  # type: ignore[arg-type, return-value]
    build = GenerateBuild(spec.ops, spec.library, problems, book, False, expanded=spec.expanded, model=model)
    name = declaration.name.text
    body = GenerateBody(build, spec.root, "generate", ("generate", name), (Frame(name, None, declaration.span),))
    settings = _settings(body, declaration, given)
    try:
        body.run(declaration.body)
        if problems or model is None:
            return None
        error = why_not_generated(model, problems) if not spec.shorten else None
    except Abandoned:
        return None
    tokens = tokens_of(model)
    if error is not None:
        problems.add(error)
        return None
    if tokens is None:
        problems.add(body._no_tokens(declaration.name.span))
        return None
    again = partial(_again, spec, declaration, models)
    return Generation(name, model, tokens, settings, tuple(build.events), declaration.span, again)


def _again(
    spec: Spec, declaration: syntax.Generate, models: Mapping[str, Program | None], given: Mapping[str, object]
) -> Generation:
    """The same declaration for other parameters. Raises SpecErrors."""
    problems, before = Problems(), spec.library.problems
    spec.library.problems = problems
    try:
        made = elaborate_generate(spec, declaration, models, given)
    finally:
        spec.library.problems = before
    if made is None or problems:
        from .render import render  # wanted for mistakes only

        raise SpecErrors(problems.errors, "\n\n".join(render(e.describe(), color=False) for e in problems.errors))
    return made


def _model_named(declaration: syntax.Generate, models: Mapping[str, Program | None], problems: Problems) -> str | None:
    """The model that the program goes on with: the one it calls, or else one that goes on with tokens."""
    words = set(all_words(declaration.body))
    called = [name for name in models if name in words]
    if len(called) > 1:
        what = f"it calls two models, `{called[0]}` and `{called[1]}`, and goes on with one"
        problems.add(BadRows(declaration.name.span, what))
        return None
    able = [name for name, model in models.items() if model is not None and tokens_of(model) is not None]
    if not called and len(able) != 1:
        if None in models.values():
            return None  # its mistakes are told
        found = f"several: {', '.join(able)}" if able else "none"
        what = f"it calls no model, and of models that go on with tokens the file has {found}"
        problems.add(BadRows(declaration.name.span, what))
        return None
    return (called or able)[0]


def _settings(
    body: GenerateBody, declaration: syntax.Generate, given: Mapping[str, object]
) -> dict[str, int | float | bool]:
    """Binds the parameters, each to what is given for it, or to its default."""
    chosen: dict[str, Any] = {}
    known = tuple(parameter.name.text for parameter in declaration.parameters)
    text = ", ".join(f"{name} = {value}" for name, value in given.items())
    source = Source("<settings asked for>", text)
    for name in given:
        if name not in known:
            at = Span(source, text.index(f"{name} ="), text.index(f"{name} =") + len(name))
            help = did_you_mean(name, known) or f"its parameters are {', '.join(known) or 'none'}"
            body.note(BadArguments(at, declaration.name.text, f"has no parameter `{name}`", help))
    for parameter in declaration.parameters:
        name = parameter.name.text
        body.scope.bind(name, UNKNOWN)
        with body.noted():
            kind = _kind(parameter)
            if name in given:
                at = Span(source, text.index(f"{name} ="), text.index(f"{name} =") + len(f"{name} = {given[name]}"))
                value: object = parsed(given[name], None)
            else:
                assert parameter.default is not None
                at, value = parameter.default.span, body.evaluate(parameter.default)
            if value is UNKNOWN:
                continue
            if isinstance(value, str):
                raise Mistake(WrongOption(at, name, f"`{value}`", WANTED[kind.text]))
            value = getattr(value, "size", None) or value
            option = syntax.OptionDeclaration(parameter.name, kind, syntax.Name(name, at), at)
            chosen[name] = body.scope.bound[name] = check_option(option, value, None, at)
    return chosen


def _kind(parameter: syntax.Parameter) -> syntax.Identifier:
    name, type = parameter.name.text, parameter.type
    if type is not None and type.kind.text in HOST_KINDS:
        raise Mistake(NotBuiltYet(type.span, f"a parameter of type `{type.kind.text}`"))
    if type is None or type.kind.text not in KINDS or type.axes is not None or type.any_axes:
        help = f"for example `{name}: real = 1.0`"
        raise Mistake(BadType(parameter.span, f"`{name}` is to be {', '.join(KINDS[:-1])} or {KINDS[-1]}", help))
    if parameter.default is None:
        raise Mistake(BadArguments(parameter.span, name, "needs a default"))
    return type.kind
