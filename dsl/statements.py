"""Statements: bindings, loops, static choices, losses. The last layer of a body's elaboration."""

from __future__ import annotations

from . import syntax
from .axis_declarations import declared_axis
from .block_call import BlockCalls
from .body import Build
from .diagnostics import Mistake, Noted
from .distributions import distribution
from .errors.later import NotBuiltYet
from .errors.names import (
    BadArguments,
    MisplacedStatement,
    NoResult,
    NotCallable,
    NotStatic,
    UnknownName,
)
from .errors.weights import NoLoss
from .mask_calls import MaskCalls
from .modules import Instance
from .op_call import as_value
from .opdef import OpDef
from .program import Distribution, Frame, LossTerm, Value
from .scope import Scope
from .source import Span
from .static_math import number_of
from .statics import UNKNOWN, BlockRef, Builtin, Family, SharedBlock, SharedFamily, describe
from .value_type import Flag


class Elaboration(BlockCalls, MaskCalls):
    """A body with every layer in place."""

    def __init__(
        self, build: Build, home: Instance, kind: str, path: tuple[str, ...], frames=(), scope: Scope | None = None
    ) -> None:
        super().__init__(build, home, kind, path, frames, scope)
        self.local_axes: set[str] = set()
        self.loops = 0

    # ---- calls ------------------------------------------------------------------------------------

    def call(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        callee = self._callee(call.callee)
        match callee:
            case _ if callee is UNKNOWN:
                return UNKNOWN
            case OpDef():
                return self.call_op(callee, call, piped)
            case BlockRef():
                return self.expand(callee, call, piped)
            case SharedBlock():
                return self._call_shared(callee, call, piped)
            case Builtin():
                return self._call_builtin(callee, call, piped)
            case _:
                raise Mistake(NotCallable(call.callee.span, describe(callee)))

    def _callee(self, expression: syntax.Expression) -> object:
        """A callee may share its name with a value: `scale = ...` does not hide an operator `scale`."""
        if not isinstance(expression, syntax.Name):
            return self.evaluate(expression)
        found = self.read(expression.text, expression.span)
        if isinstance(found, SharedFamily):
            return self.shared(found, None, expression.span)
        if isinstance(found, OpDef | BlockRef | SharedBlock | Builtin) or found is UNKNOWN:
            return found
        for other in (self.home.lookup(expression.text), self.standard(expression.text)):
            if isinstance(other, BlockRef):
                return other
        ops = self.build.ops
        return ops.ops.get(expression.text, found)

    def _call_builtin(self, builtin: Builtin, call: syntax.Call, piped: syntax.Expression | None) -> object:
        values = ([piped] if piped else []) + [argument.value for argument in call.arguments]
        if len(values) != 1:
            raise Mistake(BadArguments(call.span, builtin.name, "takes one argument"))
        if builtin.name == "precise":
            before, self.precise = self.precise, True
            try:
                return self.evaluate(values[0])
            finally:
                self.precise = before
        value = self.evaluate(values[0])
        if value is UNKNOWN:
            return UNKNOWN
        if builtin.name == "size":
            axis = self.as_axes(value, values[0].span)[0]
            if axis.size is None:
                raise Mistake(
                    NotStatic(
                        values[0].span,
                        describe(axis),
                        "the size of an axis",
                        "`length(axis)` is its length in each example",
                    )
                )
            return axis.size
        return self._axis_of_value(builtin.name, as_value(self, value, values[0].span, "x"), call.span)

    def _axis_of_value(self, name: str, value: Value, at: Span) -> object:
        static = value.type.static_axes
        if name == "static_axes":
            return static
        if name == "row_axis":
            if value.type.rows is None:
                raise Mistake(BadArguments(at, name, f"{value.type} has no ordered axis"))
            return value.type.rows
        if not static or (name == "static_axis" and len(static) > 1):
            what = "no static axis" if not static else "several static axes: " + ", ".join(a.name for a in static)
            raise Mistake(BadArguments(at, name, f"{value.type} has {what}", "say which: `over=...`"))
        return static[-1]

    # ---- shared values and blocks -----------------------------------------------------------------

    def shared(self, family: SharedFamily, index: int | None, at: Span) -> object:
        """A shared weight, or a shared block instance."""
        declaration, home = family.declaration, family.home
        home.used.add(declaration.name.text)
        name = declaration.name.text
        path = (*home.path, name) if index is None else (*home.path, name, str(index))
        if declaration.call is not None:
            return self._shared_block(family, path, index)
        owner = Elaboration(self.build, home, "shared", path, self.frames)
        if declaration.index is not None and index is not None:
            owner.scope.bind(declaration.index.text, index)
        assert declaration.type is not None
        type = owner.value_type(declaration.type)
        init = (
            owner.distribution(declaration.init)
            if declaration.init is not None
            else Distribution("normal", (("std", 0.02),))
        )
        with self.build.book.instance():
            return self.build.book.make(
                ".".join(path), type, init, 0, declaration.span, declaration.init is not None, name
            )

    def _shared_block(self, family: SharedFamily, path: tuple[str, ...], index: int | None) -> SharedBlock:
        declaration, home = family.declaration, family.home
        call = declaration.call
        if not isinstance(call, syntax.Call):
            callee, settings = call, ()
        else:
            callee, settings = call.callee, call.arguments
        assert callee is not None
        block = Elaboration(self.build, home, "shared", (), ()).evaluate(callee)
        if not isinstance(block, BlockRef):
            raise Mistake(NotCallable(callee.span, describe(block)))
        index_name = declaration.index.text if declaration.index else None
        return SharedBlock(block, settings, home, path, index_name, index)

    def _call_shared(self, shared: SharedBlock, call: syntax.Call, piped: syntax.Expression | None) -> object:
        """Settings from the declaration, arguments from the call; weights under the declaration's path."""
        owner = Elaboration(self.build, shared.home, "shared", (), self.frames)
        if shared.index_name is not None:
            owner.scope.bind(shared.index_name, shared.index)
        given = {argument.name.text: owner.evaluate(argument.value) for argument in shared.settings if argument.name}
        names = {argument.name.text for argument in call.arguments if argument.name}
        positional = ([piped] if piped else []) + [a.value for a in call.arguments if a.name is None]
        free = [
            p.name.text
            for p in shared.block.declaration.parameters
            if p.name.text not in given and p.name.text not in names
        ]
        if len(positional) > len(free):
            raise Mistake(
                BadArguments(call.span, shared.block.name, f"takes {len(free)} arguments here, not {len(positional)}")
            )
        expressions = dict(zip(free, positional, strict=False)) | {
            a.name.text: a.value for a in call.arguments if a.name
        }
        arguments = given | {name: self.evaluate(expression) for name, expression in expressions.items()}
        if any(value is UNKNOWN for value in arguments.values()):
            return UNKNOWN
        before, self.path = self.path, ()
        try:
            with self.build.book.instance():
                spans = {name: expression.span for name, expression in expressions.items()}
                return self.expand_with(shared.block, arguments, spans, call.span, shared.path)
        finally:
            self.path = before

    def distribution(self, expression: syntax.Expression) -> Distribution:
        return distribution(self, expression)

    def make_axis(self, home: Instance, declaration: syntax.Axis, index: int | None):
        return declared_axis(Elaboration(self.build, home, "axis", (), ()), declaration, index)

    # ---- statements -------------------------------------------------------------------------------

    def run(self, statements: tuple[syntax.Statement, ...]) -> None:
        for statement in statements:
            if self.result is not None:
                self.problems.add(NoResult(statement.span, "return", "is followed by statements that nothing reaches"))
                return
            try:
                self._run(statement)
            except Mistake as mistake:
                self.problems.add(mistake.error)
                self._forget(statement)
            except Noted:
                self._forget(statement)

    def _forget(self, statement: syntax.Statement) -> None:
        """What a failed statement would have bound is unknown, so that its readers stay silent."""
        for name in bound_names((statement,)):
            self.scope.bind(name, UNKNOWN)
        if isinstance(statement, syntax.Return):
            self.result = (UNKNOWN, statement.span)

    def _run(self, statement: syntax.Statement) -> None:
        match statement:
            case syntax.Bind():
                self._bind(statement)
            case syntax.Return():
                self._return(statement)
            case syntax.For():
                self._for(statement)
            case syntax.If():
                self._if(statement)
            case syntax.Loss():
                self._loss(statement)
            case syntax.Param():
                self._param(statement)
            case syntax.LocalAxis():
                name = statement.declaration.name.text
                axis = declared_axis(self, statement.declaration, None)
                self.local_axes.add(name)
                self.scope.bind(name, axis)
            case syntax.Evaluate():
                self.evaluate(statement.value)
            case syntax.Routed():
                raise Mistake(NotBuiltYet(_head(statement), "`routed by`"))
            case syntax.Match():
                raise Mistake(NotBuiltYet(_head(statement), "`match`"))
            case syntax.Segment():
                raise Mistake(NotBuiltYet(statement.span, "`segment`"))
            case syntax.OptionalInput():
                raise Mistake(NotBuiltYet(statement.span, "an optional `input`"))
            case syntax.Send() | syntax.On():
                raise Mistake(MisplacedStatement(_head(statement), "this belongs into a `generate` program"))

    def _bind(self, statement: syntax.Bind) -> None:
        targets = statement.targets
        single = targets[0].name.text if len(targets) == 1 else None
        fresh = single is not None and single not in self.scope.bound
        before, self.binding = self.binding, single if fresh else None
        try:
            value = self.evaluate(statement.value)
        finally:
            self.binding = before
        if isinstance(value, Builtin | OpDef) or value is None:
            raise Mistake(MisplacedStatement(statement.value.span, f"{describe(value)} is no value"))
        if len(targets) == 1:
            self._bind_target(targets[0], value)
            return
        if value is not UNKNOWN and (not isinstance(value, tuple) or len(value) != len(targets)):
            found = f"{len(value)} values" if isinstance(value, tuple) else describe(value)
            raise Mistake(BadArguments(statement.value.span, "=", f"{len(targets)} names are bound to {found}"))
        values = value if isinstance(value, tuple) else (UNKNOWN,) * len(targets)
        for target, item in zip(targets, values, strict=True):
            self._bind_target(target, item)

    def _bind_target(self, target: syntax.Target, value: object) -> None:
        if target.index is None:
            self.scope.bind(target.name.text, value)
        else:
            self.scope.bind_member(target.name.text, self.whole(target.index, "an index"), value, target.span)

    def _return(self, statement: syntax.Return) -> None:
        if self.form == "objective":
            raise Mistake(MisplacedStatement(statement.span, "an objective has no `return`", "write `loss = ...`"))
        if self.loops:
            raise Mistake(
                MisplacedStatement(
                    statement.span, "`return` inside a loop", "bind the value and return it after the loop"
                )
            )
        self.result = (self.evaluate(statement.value), statement.value.span)

    def _for(self, statement: syntax.For) -> None:
        turns = self.evaluate(statement.over)
        if turns is UNKNOWN:
            raise Noted
        if not isinstance(turns, range | tuple):
            raise Mistake(
                NotStatic(statement.over.span, describe(turns), "what a loop runs over", "write `for i in 0 .. n:`")
            )
        before, path, frames = self.scope.snapshot(), self.path, self.frames
        outer, self.binding = self.binding, None
        self.loops += 1
        name = statement.variable.text
        try:
            for turn in turns:
                number = number_of(turn)
                self.path = (*path, name, f"{turn if number is None else number}".replace(".", "_"))
                self.frames = (*frames, Frame(name, int(number or 0), statement.span))
                self.scope.bind(name, turn)
                self.run(statement.body)
                self.scope.leave_loop({**before, name: turn})
        finally:
            self.path, self.frames, self.binding = path, frames, outer
            self.loops -= 1
            if name in before:
                self.scope.bind(name, before[name])
            else:
                self.scope.bound.pop(name, None)

    def _if(self, statement: syntax.If) -> None:
        condition = self.evaluate(statement.condition)
        if condition is UNKNOWN:
            raise Noted
        if not isinstance(condition, bool):
            raise Mistake(
                NotStatic(
                    statement.condition.span,
                    describe(condition),
                    "the condition of an `if`",
                    "for a choice by data: `where(c, a, b)`",
                )
            )
        taken, other = (statement.body, statement.orelse) if condition else (statement.orelse, statement.body)
        before = set(self.scope.bound)
        self.run(taken)
        self._check_names(other)
        both = set(bound_names(statement.body)) & set(bound_names(statement.orelse))
        for name in (set(bound_names(taken)) | set(bound_names(other))) - before - both:
            if not isinstance(self.scope.bound.get(name), Family):
                self.scope.bound.pop(name, None)
                self.scope.branches[name] = statement.span

    def _check_names(self, statements: tuple[syntax.Statement, ...]) -> None:
        """The branch not taken: every name in it must exist. Its types are checked under the sizes that take it."""
        later = set(bound_names(statements))
        for name in syntax_names(statements):
            if name.text in later or name.text in ("query", "key", "ones", "zeros"):
                continue
            try:
                found = self.find(name.text, name.span)
            except Mistake:
                continue
            if found is None:
                self.problems.add(UnknownName(name.span, name.text, (*self.scope.bound, *self.home.names)))

    def _loss(self, statement: syntax.Loss) -> None:
        if self.form != "objective":
            raise Mistake(MisplacedStatement(statement.span, "`loss` outside an objective"))
        name = statement.name.text if statement.name else "loss"
        if any(loss.name == name for loss in self.losses):
            raise Mistake(NoLoss(statement.span, f"the loss `{name}` is given twice"))
        value = as_value(self, self.evaluate(statement.value), statement.value.span, "the loss")
        if value.type.static_axes:
            axes = ", ".join(axis.name for axis in value.type.static_axes)
            raise Mistake(NoLoss(statement.value.span, f"a loss is one number a row; this still has the axes {axes}"))
        only = None
        if statement.only is not None:
            only = as_value(self, self.evaluate(statement.only), statement.only.span, "only")
            if not isinstance(only.type.kind, Flag):
                raise Mistake(NoLoss(statement.only.span, f"`only` takes a flag for each row; this is {only.type}"))
        self.losses.append(LossTerm(name, value, only, statement.span))

    def _param(self, statement: syntax.Param) -> None:
        type = self.value_type(statement.type)
        if any(axis.is_ordered for axis in type.axes):
            raise Mistake(MisplacedStatement(statement.type.span, "a weight has static axes only"))
        init = (
            self.distribution(statement.init)
            if statement.init is not None
            else Distribution("normal", (("std", 0.02),))
        )
        name = statement.name.text
        # The init in a block's text is that block's default: patterns of the spec may override it.
        at_site = statement.init is not None and self.form != "block"
        weight = self.build.book.make(".".join((*self.path, name)), type, init, 0, statement.span, at_site, name)
        self.scope.bind(name, weight)


def _head(statement: syntax.Routed | syntax.Match | syntax.Send | syntax.On) -> Span:
    """The first line of a statement with a body."""
    span = statement.span
    line = span.text.split("\n", 1)[0].rstrip()
    return Span(span.source, span.start, span.start + len(line))


def bound_names(statements: tuple[syntax.Statement, ...]) -> list[str]:
    """Names that statements bind where they stand, loops' own variables left out."""
    names: list[str] = []
    for statement in statements:
        match statement:
            case syntax.Bind():
                names += [target.name.text for target in statement.targets]
            case syntax.Param() | syntax.OptionalInput():
                names.append(statement.name.text)
            case syntax.LocalAxis():
                names.append(statement.declaration.name.text)
            case syntax.Segment():
                names.append(statement.into.text)
            case syntax.For() | syntax.Routed():
                names += bound_names(statement.body)
            case syntax.If():
                names += bound_names(statement.body) + bound_names(statement.orelse)
            case syntax.Match():
                names += [name for arm in statement.arms for name in bound_names(arm.body)]
    return names


def syntax_names(node: object) -> list[syntax.Name]:
    """Every name that is read below a node, argument choices included only where they are plain expressions."""
    if isinstance(node, syntax.Name):
        return [node]
    if isinstance(node, tuple):
        return [name for item in node for name in syntax_names(item)]
    if isinstance(node, syntax.For):
        inner = [name for name in syntax_names(node.body) if name.text != node.variable.text]
        return syntax_names(node.over) + inner
    if isinstance(node, syntax.Argument) and node.name is not None and isinstance(node.value, syntax.Name):
        return []  # may be a choice such as `by=max`
    fields = getattr(type(node), "__dataclass_fields__", {})
    if not type(node).__module__.endswith("syntax"):
        return []
    return [name for field in fields if field != "span" for name in syntax_names(getattr(node, field))]
