"""How large a program will be, counted before it is built.

Blocks that call blocks twice double at every level, and a loop bound may be any number; both would exhaust memory if
they were built first.
Counting works on the text with static values only, remembers each block for its static arguments, and multiplies
loops whose body does not look at the loop variable.
"""

from __future__ import annotations

from . import syntax
from .axes import Axis
from .body import OPERATION_LIMIT
from .diagnostics import Mistake, Noted
from .errors.weights import TooLarge
from .modules import Instance, Library
from .names_read import all_words, first_line
from .sizes import ChosenValues
from .source import Span
from .static_math import arithmetic, compare, is_static, number_of
from .statics import BlockRef
from .work import COUNTED, went_through

Statics = dict[str, object]


class _Counter:
    def __init__(self, library: Library) -> None:
        self.library = library
        self.known: dict[tuple, int] = {}
        self.mentions: dict[int, frozenset[str]] = {}
        self.open: set[int] = set()
        self.largest: tuple[int, Span] | None = None
        self.statements = 0  # that were gone through

    def body(self, statements: tuple[syntax.Statement, ...], env: Statics, home: Instance) -> int:
        total = 0
        for statement in statements:
            self.statements += 1
            if self.statements % COUNTED == 0:
                went_through(self.library.problems, 1, statement.span)
            total += self._statement(statement, env, home)
            if total > OPERATION_LIMIT:
                break
        return total

    def _statement(self, statement: syntax.Statement, env: Statics, home: Instance) -> int:
        match statement:
            case syntax.For():
                return self._loop(statement, env, home)
            case syntax.If():
                condition = self.static(statement.condition, env, home)
                if isinstance(condition, bool):
                    return self.body(statement.body if condition else statement.orelse, env, home)
                return max(self.body(statement.body, env, home), self.body(statement.orelse, env, home))
            case syntax.Bind():
                if len(statement.targets) == 1 and statement.targets[0].index is None:
                    name = statement.targets[0].name.text
                    value = self.static(statement.value, env, home)
                    if value is not None:
                        env[name] = value
                    else:
                        env.pop(name, None)
                return self.expression(statement.value, env, home)
            case syntax.Return() | syntax.Loss() | syntax.Evaluate():
                return self.expression(statement.value, env, home)
            case syntax.Routed():
                # Which enum it is, is not known before types are.
                return self._large(self._tags(home) * self.body(statement.body, dict(env), home), statement.span)
            case syntax.Match():
                return 1 + sum(self.body(arm.body, dict(env), home) for arm in statement.arms)
            case _:
                return 1

    @staticmethod
    def _tags(home: Instance) -> int:
        return max((len(enum.members) for enum in home.module.enums.values()), default=1)

    def _loop(self, statement: syntax.For, env: Statics, home: Instance) -> int:
        turns = self._turns(statement.over, env, home)
        name = statement.variable.text
        if name not in self._mentioned(statement):
            once = 1 + self.body(statement.body, dict(env), home)
            return self._large(once * len(turns), statement.span)
        if len(turns) > OPERATION_LIMIT:
            return self._large(len(turns), statement.span)  # whatever the body does: a turn counts as one
        total = 0
        for turn in turns:
            total += 1 + self.body(statement.body, {**env, name: turn}, home)
            if total > OPERATION_LIMIT:
                break
        return self._large(total, statement.span)

    def _turns(self, over: syntax.Expression, env: Statics, home: Instance) -> range | tuple:
        if isinstance(over, syntax.Range):
            start, stop = self.static(over.start, env, home), self.static(over.stop, env, home)
            if isinstance(start, int) and isinstance(stop, int):
                return range(start, min(stop, start + (1 << 48)))
            return range(1)
        value = self.static(over, env, home)
        return value if isinstance(value, tuple) else range(1)

    def _mentioned(self, statement: syntax.For) -> frozenset[str]:
        key = id(statement)
        if key not in self.mentions:
            self.mentions[key] = frozenset(all_words(statement.body))
        return self.mentions[key]

    def _large(self, count: int, span: Span) -> int:
        if self.largest is None or count > self.largest[0]:
            self.largest = (count, span)
        return count

    def expression(self, e: object, env: Statics, home: Instance) -> int:
        match e:
            case syntax.Call():
                return self._call(e, env, home)
            case syntax.Pipe():
                return self.expression(e.left, env, home) + self._call(e.call, env, home, piped=True)
            case syntax.Binary():
                return 1 + self.expression(e.left, env, home) + self.expression(e.right, env, home)
            case syntax.Comparison():
                return len(e.operators) + sum(self.expression(o, env, home) for o in e.operands)
            case syntax.Unary():
                return 1 + self.expression(e.operand, env, home)
            case syntax.Group():
                return self.expression(e.inner, env, home)
            case syntax.Field():
                return self.expression(e.base, env, home)
            case syntax.Subscript():
                return 1 + self.expression(e.base, env, home) + sum(self.expression(i, env, home) for i in e.items)
            case syntax.Tuple() | syntax.ListOf():
                return sum(self.expression(item, env, home) for item in e.items)
            case _:
                return 0

    def _call(self, call: syntax.Call, env: Statics, home: Instance, piped: bool = False) -> int:
        total = 1 + sum(self.expression(argument.value, env, home) for argument in call.arguments)
        block = self._block(call.callee, env, home)
        if block is None:
            return total
        return total + self._block_body(block, call, env, home, piped)

    def _block(self, callee: syntax.Expression, env: Statics, home: Instance) -> BlockRef | None:
        if not isinstance(callee, syntax.Name):
            return None
        found = env.get(callee.text) or self._find(callee.text, home)
        return found if isinstance(found, BlockRef) else None

    def _block_body(self, block: BlockRef, call: syntax.Call, env: Statics, home: Instance, piped: bool) -> int:
        inner: Statics = {}
        names = [p.name.text for p in block.declaration.parameters]
        plain = iter(names[piped:])
        for argument in call.arguments:
            name = argument.name.text if argument.name else next(plain, None)
            value = self.static(argument.value, env, home)
            if name is not None and value is not None:
                inner[name] = value
        for parameter in block.declaration.parameters:
            if parameter.default is not None and parameter.name.text not in inner:
                value = self.static(parameter.default, inner, block.home)
                if value is not None:
                    inner[parameter.name.text] = value
        key = (id(block.declaration), id(block.home), tuple(sorted((k, _told(v)) for k, v in inner.items())))
        if key in self.known:
            return self.known[key]
        if id(block.declaration) in self.open:
            return 0  # a circle: the elaborator reports it
        self.open.add(id(block.declaration))
        count = self.body(block.declaration.body, dict(inner), block.home)
        self.open.discard(id(block.declaration))
        self.known[key] = self._large(count, call.span)
        return count

    def _find(self, name: str, home: Instance) -> object | None:
        values = home.values
        said = len(values.unset) if isinstance(values, ChosenValues) else 0
        try:
            found = home.lookup(name)
        except (Mistake, Noted):
            if isinstance(values, ChosenValues):
                values.forget_unset(said)
            return None
        if found is None and (module := self.library.prelude(name)) is not None:
            return Instance(module, {}, (), make_axis=home.make_axis).lookup(name) if name in module.named else None
        return found

    def static(self, e: syntax.Expression, env: Statics, home: Instance) -> object | None:
        """A static value, or None when it is none or not worth knowing."""
        match e:
            case syntax.Number():
                return e.value
            case syntax.Name():
                if e.text in ("true", "false"):
                    return e.text == "true"
                found = env[e.text] if e.text in env else self._find(e.text, home)
                if isinstance(found, Axis):
                    return found.size
                return found if is_static(found) or isinstance(found, BlockRef) else None
            case syntax.Group():
                return self.static(e.inner, env, home)
            case syntax.Binary():
                a, b = number_of(self.static(e.left, env, home)), number_of(self.static(e.right, env, home))
                return None if a is None or b is None else self._try(lambda: arithmetic(e.operator, a, b, e.span))
            case syntax.Comparison(operands, (operator,)):
                left, right = self.static(operands[0], env, home), self.static(operands[1], env, home)
                return (
                    None if left is None or right is None else self._try(lambda: compare(operator, left, right, e.span))
                )
            case syntax.Tuple():
                items = tuple(self.static(item, env, home) for item in e.items)
                return None if None in items else items
            case syntax.Subscript(base, (index,)):
                items, number = self.static(base, env, home), self.static(index, env, home)
                inside = isinstance(items, tuple) and isinstance(number, int) and 0 <= number < len(items)
                return items[number] if inside else None  # type: ignore[index]
            case _:
                return None

    @staticmethod
    def _try(compute) -> object | None:
        try:
            return compute()
        except (Mistake, Noted):
            return None


def check_size(declaration: syntax.Block | syntax.Objective, home: Instance, library: Library) -> None:
    """Raises TooLarge when the unrolled program passes the limit."""
    counter = _Counter(library)
    total = counter.body(declaration.body, {}, home)
    if total > OPERATION_LIMIT:
        at = counter.largest[1] if counter.largest else declaration.name.span
        count = f"at least {total:,}" if total < 10**12 else "more than 10^12"
        raise Mistake(TooLarge(first_line(at), f"{count} operations; the limit is {OPERATION_LIMIT:,}"))


def _told(value: object) -> str:
    """What tells one static value from another. A block is told by where it is declared: to print it is to print its
    text."""
    if isinstance(value, BlockRef):
        return f"block {id(value.declaration)} {id(value.home)}"
    return repr(value)
