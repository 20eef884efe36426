"""Shared values and shared block instances: one owner, one path, whoever reads them (SEMANTICS 7)."""

from __future__ import annotations

from . import syntax
from .block_call import BlockCalls
from .diagnostics import Mistake, Noted
from .errors.names import BadArguments, CircularUse, MisplacedStatement, NoSuchMember, NotCallable, did_you_mean
from .modules import Instance
from .op_call import bind_arguments
from .opdef import Param
from .program import Distribution
from .signatures import parameter
from .source import Span
from .statics import UNKNOWN, BlockRef, SharedBlock, SharedFamily, describe
from .value_type import Real, ValueType

DEFAULT_INIT = Distribution("normal", (("std", 0.02),))


class SharedCalls(BlockCalls):
    """The part of elaboration that makes shared weights and calls shared blocks."""

    def shared(self, family: SharedFamily, index: int | None, at: Span) -> object:
        """A shared weight, or a shared block instance."""
        declaration, home = family.declaration, family.home
        name = declaration.name.text
        home.used.add(name)
        if declaration.index is not None and (index is None or index < 0):
            found = "without an index" if index is None else str(index)
            raise Mistake(NoSuchMember(at, f"`{name}`", found, ("0, 1, 2, ...",)))
        path = (*home.path, name) if index is None else (*home.path, name, str(index))
        if name in home.making:
            raise Mistake(CircularUse(at, (*home.making[home.making.index(name) :], name)))
        home.making.append(name)
        try:
            if declaration.call is not None or self._block_named(family) is not None:
                return self._shared_block(family, path, index)
            return self._shared_weight(declaration, home, path, index)
        finally:
            home.making.pop()

    @staticmethod
    def _block_named(family: SharedFamily) -> syntax.Name | None:
        """`shared middle: layer` without settings reads as a type; a block is no type."""
        type = family.declaration.type
        if type is None or type.axes is not None or type.element is not None:
            return None
        is_block = isinstance(family.home.lookup(type.kind.text), BlockRef)
        return syntax.Name(type.kind.text, type.kind.span) if is_block else None

    def _shared_weight(
        self, declaration: syntax.Shared, home: Instance, path: tuple[str, ...], index: int | None
    ) -> object:
        owner = self.beside(home, path)
        if declaration.index is not None:
            owner.scope.bind(declaration.index.text, index)
        assert declaration.type is not None
        type = owner.value_type(declaration.type)
        owner.want_weight_axes(type, declaration.type.span)
        at_site = declaration.init is not None
        init = DEFAULT_INIT if declaration.init is None else owner.distribution(declaration.init)
        name = declaration.name.text
        with self.build.book.instance():
            return self.build.book.make(".".join(path), type, init, 0, declaration.span, at_site, name)

    def _shared_block(self, family: SharedFamily, path: tuple[str, ...], index: int | None) -> SharedBlock:
        declaration, home = family.declaration, family.home
        call = declaration.call or self._block_named(family)
        callee, settings = (call.callee, call.arguments) if isinstance(call, syntax.Call) else (call, ())
        assert callee is not None
        block = self.beside(home, ()).evaluate(callee)
        if block is UNKNOWN:
            raise Noted
        if not isinstance(block, BlockRef):
            raise Mistake(NotCallable(callee.span, describe(block)))
        index_name = declaration.index.text if declaration.index else None
        return SharedBlock(block, settings, home, path, index_name, index)

    def call_shared(self, shared: SharedBlock, call: syntax.Call, piped: syntax.Expression | None) -> object:
        """Settings from the declaration, arguments from the call; weights under the declaration's path."""
        params = tuple(parameter(p) for p in shared.block.declaration.parameters)
        given = self._settings(shared, params)
        free = tuple(param for param in params if param.name not in given)
        bound = bind_arguments(shared.block.name, call, piped, free)
        arguments = given | {p.name: self.argument(p, bound[p.name]) for p in free if p.name in bound}
        if any(value is UNKNOWN for value in arguments.values()):
            return UNKNOWN
        before, self.path = self.path, ()
        try:
            with self.build.book.instance():
                spans = {name: expression.span for name, expression in bound.items()}
                return self.expand_with(shared.block, arguments, spans, call.span, shared.path)
        finally:
            self.path = before

    def _settings(self, shared: SharedBlock, params: tuple[Param, ...]) -> dict[str, object]:
        owner = self.beside(shared.home, ())
        if shared.index_name is not None:
            owner.scope.bind(shared.index_name, shared.index)
        known = {param.name: param for param in params}
        given: dict[str, object] = {}
        for argument in shared.settings:
            name = argument.name.text if argument.name else ""
            if not name:
                what = "is shared: its settings are given by name"
                help = f"for example `{params[0].name}=..`" if params else None
                raise Mistake(BadArguments(argument.span, shared.block.name, what, help))
            if name not in known:
                help = did_you_mean(name, tuple(known))
                raise Mistake(BadArguments(argument.span, shared.block.name, f"has no parameter `{name}`", help))
            given[name] = owner.argument(known[name], argument.value)
        return given

    def want_weight_axes(self, type: ValueType, at: Span) -> None:
        """A weight is real and has static axes."""
        for axis in type.axes:
            if axis.is_ordered:
                what = f"a weight has static axes only; `{axis.name}` has another length in each example"
                raise Mistake(MisplacedStatement(at, what))
        if not isinstance(type.kind, Real):
            raise Mistake(MisplacedStatement(at, f"a weight is real, not {type.kind}"))

    def beside(self, home: Instance, path: tuple[str, ...]) -> SharedCalls:
        """A body for the text of a declaration: its names are its file's, not this body's."""
        return type(self)(self.build, home, "shared", path, self.frames)
