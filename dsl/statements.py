"""Statements: bindings, loops, static choices, losses. The last layer of a body's elaboration."""

from __future__ import annotations

from . import syntax
from .axes import Axis
from .axis_declarations import declared_axis
from .body import OPERATION_LIMIT, Build
from .dead_branch import alike_types, differ, names_of_branch
from .diagnostics import Mistake, Noted
from .distributions import distribution
from .errors.axes import OverNeeded
from .errors.names import (
    BadArguments,
    MisplacedStatement,
    NoResult,
    NotCallable,
    NotStatic,
    UnknownName,
)
from .errors.weights import NoLoss, TooLarge
from .expansions import Call
from .facts import facts
from .mask_calls import MaskCalls
from .modules import Instance
from .names_read import MASK_WORDS, bound_names, family_names, first_line, names_read, set_of_names_read
from .op_call import as_value
from .opdef import OpDef
from .program import Constant, Distribution, Frame, LossTerm, Value
from .repeats import LoopText, alike
from .routing import route
from .scope import Branched, Scope
from .segment_statements import optional_input, segment
from .shared_calls import DEFAULT_INIT, SharedCalls
from .side_calls import SideCalls
from .source import Span
from .static_math import number_of
from .statics import UNKNOWN, BlockRef, Builtin, Family, Record, SharedBlock, SharedFamily, describe
from .value_type import Flag, Real, level_words


class Elaboration(SharedCalls, MaskCalls, SideCalls):
    """A body with every layer in place."""

    def __init__(
        self, build: Build, home: Instance, kind: str, path: tuple[str, ...], frames=(), scope: Scope | None = None
    ) -> None:
        super().__init__(build, home, kind, path, frames, scope)
        self.local_axes: set[str] = set()
        self.loops = 0
        self.loss_names: dict[str, Span] = {}
        self.choices = 0
        self.returned_early = False
        self.text: tuple[syntax.Statement, ...] = ()  # the whole body's

    # ---- calls ------------------------------------------------------------------------------------

    def call(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        if self.build.sides is not None and self.is_side(call.callee):
            return self.side(call, piped)
        callee = self._callee(call.callee)
        match callee:
            case _ if callee is UNKNOWN:
                return UNKNOWN
            case OpDef() if not callee.params:
                raise Mistake(NotCallable(call.callee.span, f"`{callee.name}`", "it is written without brackets"))
            case OpDef():
                return self.call_op(callee, call, piped)
            case BlockRef():
                return self.expand(callee, call, piped)
            case SharedBlock():
                return self.call_shared(callee, call, piped)
            case Builtin():
                return self._call_builtin(callee, call, piped)
            case _:
                help = None
                if isinstance(callee, Value | Record):
                    help = "to multiply, write `*`; to read an entry, write `x[index]`"
                raise Mistake(NotCallable(call.callee.span, describe(callee), help))

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
        if builtin.name == "size" and isinstance(value, tuple) and not any(isinstance(item, Axis) for item in value):
            return len(value)
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
                raise Mistake(BadArguments(at, name, f"needs an ordered axis; this is {value.type}"))
            return value.type.rows
        if len(static) == 1 or (static and name == "last_axis"):
            return static[-1]
        # The default of a parameter: the block that was called is the one to name.
        operator = self.frames[-1].name if self.frames else name
        raise Mistake(OverNeeded(at, operator, tuple(axis.name for axis in static)))

    # ---- what other layers ask for ----------------------------------------------------------------

    def distribution(self, expression: syntax.Expression) -> Distribution:
        return distribution(self, expression)

    def make_axis(self, home: Instance, declaration: syntax.Axis, index: int | None):
        return declared_axis(Elaboration(self.build, home, "axis", (), ()), declaration, index)

    # ---- statements -------------------------------------------------------------------------------

    def run(self, statements: tuple[syntax.Statement, ...]) -> None:
        self.text = self.text or statements
        for number, statement in enumerate(statements):
            if self.result is not None:
                if not self.returned_early:
                    self.note(NoResult(statement.span, "return", "is followed by statements that nothing reaches"))
                # After a `return` in a static `if` the rest belongs to the other choice.
                self.check_names(statements[number:])
                return
            self.build.step(statement.span)
            try:
                self._run(statement)
            except Mistake as mistake:
                self.note(mistake.error)
                self._forget(statement)
            except Noted:
                self._forget(statement)

    def _forget(self, statement: syntax.Statement) -> None:
        """What a failed statement would have bound is unknown, so that its readers stay silent."""
        self.scope.lost |= family_names((statement,))
        for name in bound_names((statement,)):
            self.scope.bind(name, UNKNOWN)
        if isinstance(statement, syntax.Return) and not self.loops and not self.arms:
            self.result = (UNKNOWN, statement.span)
        if isinstance(statement, syntax.For | syntax.If | syntax.Routed | syntax.Match):
            # The head is wrong, so the body was not run; its names are a mistake of their own.
            self.check_names((statement,))

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
            case syntax.Segment():
                segment(self, statement)
            case syntax.OptionalInput():
                optional_input(self, statement)
            case syntax.Routed() | syntax.Match():
                route(self, statement)
            case syntax.Send() | syntax.On():
                raise Mistake(MisplacedStatement(first_line(statement.span), "this belongs in a `generate` program"))

    def _bind(self, statement: syntax.Bind) -> None:
        targets = statement.targets
        single = targets[0].name.text if len(targets) == 1 else None
        if self.scope.uncertain:
            self._pass_on_doubt(statement)
        fresh = single is not None and targets[0].index is None and single not in self.scope.bound
        before = self.binding, self.naming
        self.binding = single if fresh else None
        self.naming = None if single is None else (single, _outermost(statement.value))
        try:
            value = self.evaluate(statement.value)
        finally:
            self.binding, self.naming = before
        if isinstance(value, Builtin | OpDef) or value is None:
            raise Mistake(MisplacedStatement(statement.value.span, f"{describe(value)} is not a value", _called(value)))
        if len(targets) == 1:
            self._bind_target(targets[0], value)
            return
        if value is not UNKNOWN and (not isinstance(value, tuple) or len(value) != len(targets)):
            found = f"{len(value)} values" if isinstance(value, tuple) else describe(value)
            raise Mistake(BadArguments(statement.value.span, "=", f"binds {len(targets)} names to {found}"))
        values = value if isinstance(value, tuple) else (UNKNOWN,) * len(targets)
        for target, item in zip(targets, values, strict=True):
            self._bind_target(target, item)

    def _pass_on_doubt(self, statement: syntax.Bind) -> None:
        names = {target.name.text for target in statement.targets}
        uncertain = self.scope.uncertain
        is_sure = uncertain.isdisjoint(set_of_names_read(statement.value))
        self.scope.uncertain = uncertain - names if is_sure else uncertain | names

    def _bind_target(self, target: syntax.Target, value: object) -> None:
        if target.index is None:
            self.scope.bind(target.name.text, value)
        else:
            self.scope.bind_member(target.name.text, self.whole(target.index, "an index"), value, target.span)

    def _return(self, statement: syntax.Return) -> None:
        if self.form == "objective":
            raise Mistake(MisplacedStatement(statement.span, "an objective has no `return`", "write `loss = ...`"))
        for inside, where in ((self.loops, "loop"), (self.arms, "arm")):
            if inside:
                what = f"`return` inside {'a' if where == 'loop' else 'an'} {where}"
                raise Mistake(
                    MisplacedStatement(statement.span, what, f"bind the value and return it after the {where}")
                )
        self.result = (self.evaluate(statement.value), statement.value.span)
        self.returned_early = self.choices > 0

    def _for(self, statement: syntax.For) -> None:
        turns = self.evaluate(statement.over)
        if self.build.is_dead and (turns is UNKNOWN or isinstance(turns, range | tuple)):
            turns = (UNKNOWN,)  # one turn shows the mistakes of all
        if turns is UNKNOWN:
            raise Noted
        if not isinstance(turns, range | tuple):
            raise Mistake(
                NotStatic(statement.over.span, describe(turns), "what a loop runs over", "write `for i in 0 .. n:`")
            )
        if len(turns) > OPERATION_LIMIT:
            raise Mistake(TooLarge(statement.over.span, f"{len(turns):,} turns; the limit is {OPERATION_LIMIT:,}"))
        before, path, frames = self.scope.snapshot(), self.path, self.frames
        outer, self.binding = self.binding, None
        self.loops += 1
        name = statement.variable.text
        skips = self.build.turns
        if skips is not None:
            skips.enter((*path, name), statement)
        try:
            for turn in turns:
                number = number_of(turn) if turn is not UNKNOWN else 0
                self.path = (*path, name, f"{turn if number is None else number}".replace(".", "_"))
                self.frames = (*frames, Frame(name, int(number or 0), statement.span))
                self.scope.bind(name, turn)
                start = self.scope.snapshot()
                is_plain = self._turn(statement, {**before, name: turn}, start)
                if skips is not None and is_plain and alike(start, self.scope.bound):
                    skips.skipped(start, self.scope.bound)
                    break
        finally:
            self.path, self.frames, self.binding = path, frames, outer
            self.loops -= 1
            if name in before:
                self.scope.bind(name, before[name])
            else:
                self.scope.bound.pop(name, None)

    def _turn(self, statement: syntax.For, before: dict[str, object], start: dict[str, object]) -> bool:
        """One turn of a loop. `before`: the names that outlive it; `start`: those that are bound. Whether another does
        the same if it starts from like values."""
        text = self.build.loop_texts.get(id(statement))
        if text is None:
            is_counted = isinstance(start[statement.variable.text], int)
            text = self.build.loop_texts[id(statement)] = LoopText.of(statement, is_counted)

        def run() -> dict[str, object]:
            self.run(statement.body)
            self.scope.leave_loop(before, statement.span)
            bound = self.scope.bound
            names = dict.fromkeys((*start, *bound))
            return {name: bound.get(name) for name in names if bound.get(name) is not start.get(name)}

        if not text.is_plain:
            run()
            return False
        # A block that is given to an operator may read any value of the scope; a family that is not written in the body
        # gets no members, and a number is not looked at.
        given = {
            name: value for name, value in start.items() if name in text.words or isinstance(value, Value | Record)
        }
        call = Call(statement, self.home, given, self.path, self.frames, self.users_place(statement.span))
        changed = self.build.expansions.made(self, call, run)
        self.scope.bound.update({name: value for name, value in changed.items() if value is not None})
        return True

    def _if(self, statement: syntax.If) -> None:
        condition = self.evaluate(statement.condition)
        if condition is UNKNOWN and self.build.is_dead:
            before = self.scope.snapshot()
            for branch in (statement.body, statement.orelse):
                names_of_branch(self, statement, branch, before)
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
        before = self.scope.snapshot()
        known = self.build.facts
        self.build.facts = (*known, *facts(self, statement.condition, condition))
        self.choices += 1
        try:
            self.run(taken)
        finally:
            self.choices -= 1
            self.build.facts = known
        self.check_names(other)
        self._meet(statement, before, names_of_branch(self, statement, other, before))

    def _meet(self, statement: syntax.If, before: dict[str, object], dead: dict[str, object] | None) -> None:
        """What the names of an `if` are after it: those of both branches, if of one type, and those from before."""
        scope, place = self.scope, first_line(statement.span)
        here, there = set(bound_names(statement.body)), set(bound_names(statement.orelse))
        for name in here | there:
            live = scope.bound.get(name)
            if isinstance(live, Family) or live is UNKNOWN:
                continue
            # Where the branch not taken leaves it: bound there, or as it was.
            other = UNKNOWN if dead is None else dead.get(name)
            if name in here & there and differ(live, other):
                scope.bound.pop(name, None)
                scope.branches[name] = Branched(place, (describe(live), describe(other)))
            elif name not in here & there and name not in before:
                scope.bound.pop(name, None)
                scope.branches[name] = Branched(place)
            elif not alike_types(live, other):
                scope.uncertain.add(name)

    def check_names(self, statements: tuple[syntax.Statement, ...]) -> None:
        """Text that is not run, such as the branch not taken: every name in it exists, and it is built at all. Its
        types are checked under the sizes and options that run it."""
        local = set(bound_names(statements))
        for name in names_read(statements):
            if name.text in local or name.text in MASK_WORDS or name.text in self.build.ops.choices:
                continue
            try:
                found = self.find(name.text, name.span)
            except (Mistake, Noted):
                continue
            if isinstance(found, SharedFamily):
                found.home.used.add(name.text)
            # A family may get its first member later in the turn that comes before the one that reads it.
            if found is None and name.text not in family_names(self.text):
                self.note(UnknownName(name.span, name.text, self.known_names(local)))

    def _loss(self, statement: syntax.Loss) -> None:
        if self.form != "objective":
            raise Mistake(MisplacedStatement(statement.span, "`loss` outside an objective"))
        if self.arms:
            repair = "bind the value, and write its `loss` after the arms"
            raise Mistake(MisplacedStatement(statement.span, "`loss` inside an arm", repair))
        name = statement.name.text if statement.name else "loss"
        if name in self.loss_names:
            raise Mistake(NoLoss(statement.span, f"the loss `{name}` is given twice", self.loss_names[name]))
        self.loss_names[name] = statement.span
        value = as_value(self, self.evaluate(statement.value), statement.value.span, "the loss")
        if value.type.static_axes:
            axes = ", ".join(axis.name for axis in value.type.static_axes)
            raise Mistake(NoLoss(statement.value.span, f"a loss is one number a row; this still has the axes {axes}"))
        is_number = isinstance(value, Constant) and not isinstance(value.number, bool)
        if not isinstance(value.type.kind, Real) and not is_number:
            raise Mistake(NoLoss(statement.value.span, f"a loss is a real; this is {describe(value)}"))
        only = None
        if statement.only is not None:
            only = as_value(self, self.evaluate(statement.only), statement.only.span, "only")
            if not isinstance(only.type.kind, Flag):
                raise Mistake(NoLoss(statement.only.span, f"`only` takes a flag for each row; this is {only.type}"))
            self._check_only(value, only, statement)
        self.losses.append(LossTerm(name, value, only, statement.span))

    def _check_only(self, value: Value, only: Value, statement: syntax.Loss) -> None:
        """`only` says of each row of the loss whether it counts: it lives at the rows of the loss, or above them."""
        assert statement.only is not None
        rows, own = only.type.rows, value.type.rows
        if only.type.static_axes:
            raise Mistake(NoLoss(statement.only.span, f"`only` takes one flag for each row; this is {only.type}"))
        if rows is not None and rows is not own and (own is None or rows not in own.ancestors):
            what = f"`only` has a flag per row of {rows.name}, the loss one number {level_words(value.type)}"
            raise Mistake(NoLoss(statement.only.span, what))
        if only.type.per_example and value.type.is_weight_level and not value.type.per_example:
            raise Mistake(NoLoss(statement.only.span, "`only` has a flag per example, the loss one number in all"))

    def _param(self, statement: syntax.Param) -> None:
        type = self.value_type(statement.type)
        self.want_weight_axes(type, statement.type.span)
        init = DEFAULT_INIT if statement.init is None else self.distribution(statement.init)
        name = statement.name.text
        # The init in a block's text is that block's default: patterns of the spec may override it.
        at_site = statement.init is not None and self.form != "block"
        path, site = ".".join((*self.path, name)), self.users_place(statement.span)
        weight = self.build.book.make(path, type, init, 0, statement.span, at_site, name, site)
        self.scope.bind(name, weight)


def _called(value: object) -> str | None:
    return f"call it: `{value.name}(..)`" if isinstance(value, Builtin | OpDef) else None


def _outermost(e: syntax.Expression) -> Span:
    """The span of the operation that an expression ends with."""
    while isinstance(e, syntax.Group):
        e = e.inner
    return e.call.span if isinstance(e, syntax.Pipe) else e.span
