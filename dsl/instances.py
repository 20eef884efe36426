"""Files used by a spec: which instance of a file a `use` means, and what it brings in (SEMANTICS 7)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

from . import syntax
from .body import Build
from .diagnostics import Mistake
from .errors.names import BadArguments, CircularUse, DuplicateName, UnknownName
from .errors.sizes import UnknownSize
from .modules import Instance, Library, Module
from .opdef import OpTable
from .shared_calls import DEFAULT_INIT
from .sizes import ChosenValues, Given
from .source import Span
from .statements import Elaboration
from .statics import UNKNOWN, BlockRef, Record
from .weight_book import WeightBook


def scratch_build(library: Library, ops: OpTable) -> Build:
    """For expressions outside any program. Weights made there are dropped."""
    book = WeightBook(library.problems, (), {}, lambda rule, fan_in, fan_out, turn: DEFAULT_INIT)
    return Build(ops, library, library.problems, book, False)


class Instances:
    """Makes instances of files: one for every `use f`, whoever uses it, and another for each `use f as g` and each
    `use f(dim = ..)`."""

    def __init__(self, size: str | None, library: Library, ops: OpTable) -> None:
        self.size = size
        self.library = library
        self.ops = ops
        self.made: list[Instance] = []
        self.known: dict[tuple, Instance] = {}

    def make(
        self, module: Module, overrides: Mapping[str, Given], path: tuple[str, ...], chain: tuple[str, ...]
    ) -> Instance:
        instance = Instance(module, {}, path)
        scratch = scratch_build(self.library, self.ops)
        instance.make_axis = lambda home, declaration: Elaboration(scratch, home, "axis", ()).make_axis(
            home, declaration, None
        )

        def body() -> Elaboration:
            return Elaboration(scratch, instance, "size", ())

        instance.values = ChosenValues(module, self.size, overrides, self.library.problems, body)
        self.made.append(instance)
        for use in module.of(syntax.Use):
            with body().noted():
                self.use(instance, use, body(), chain)
        return instance

    def use(self, user: Instance, use: syntax.Use, body: Elaboration, chain: tuple[str, ...]) -> None:
        """Brings in what one `use` names. Names of a file that cannot be used are unknown, and silent."""
        local = use.alias or use.module[-1]
        module = self.library.used(use, user.module.source)
        if module is not None and module.source.name in chain:
            circle = (*chain[chain.index(module.source.name) :], module.source.name)
            self.library.problems.add(CircularUse(_head(use), tuple(PurePath(name).stem for name in circle), "uses"))
            module = None
        if module is None:
            for name in [entry.alias or entry.name for entry in use.names] or [local]:
                user.imports.setdefault(name.text, UNKNOWN)
            return
        instance = self._instance(user, use, local.text, module, body, chain)
        if use.names:
            for entry in use.names:
                user.imports.setdefault((entry.alias or entry.name).text, UNKNOWN)
                with body.noted():
                    self.bring(user, entry.alias or entry.name, self.named(instance, entry.name))
        else:
            for name, value in _whole(instance, use, local).items():
                self.bring(user, syntax.Identifier(name, local.span), value)

    def bring(self, user: Instance, name: syntax.Identifier, value: object) -> None:
        """Binds a name of another file, which must not be taken."""
        own = user.module.named.get(name.text)
        taken = user.imports.get(name.text)
        if own is not None:
            self.library.problems.add(DuplicateName(name.span, name.text, own.name.span))
        elif taken is not None and taken is not UNKNOWN and not _same(taken, value):
            self.library.problems.add(DuplicateName(name.span, name.text, user.imported_at[name.text]))
        else:
            user.imports[name.text] = value
            user.imported_at[name.text] = name.span

    def named(self, instance: Instance, name: syntax.Identifier) -> object:
        found = instance.lookup(name.text)
        if found is None and name.text in instance.module.lost:
            return UNKNOWN
        if found is None:
            standard = self.library.prelude(name.text) is not None
            reason = f"`{name.text}` is in the standard library, which needs no `use`" if standard else None
            raise Mistake(UnknownName(name.span, name.text, instance.names, reason))
        return found

    def _instance(
        self, user: Instance, use: syntax.Use, local: str, module: Module, body: Elaboration, chain: tuple[str, ...]
    ) -> Instance:
        settings: dict[str, Given] = {}
        for argument in use.settings:
            if argument.name is None:
                what = "takes its sizes and options by name"
                name = ".".join(part.text for part in use.module)
                raise Mistake(BadArguments(argument.span, name, what, "for example `(dim = 64)`"))
            value = body.evaluate(argument.value)
            if argument.name.text not in module.settable:
                error = UnknownSize(argument.name.span, argument.name.text, module.settable)
                self.library.problems.add(error)
            elif value is not UNKNOWN:
                settings[argument.name.text] = Given(value, argument.value.span)
        own = bool(use.alias or use.settings)
        key = (module.source.name, *user.path, local) if own else (module.source.name,)
        if key not in self.known:
            path = (*user.path, local) if own else (local,)
            if any(instance.path == path for instance in self.made):
                path = (*user.path, local)
            self.known[key] = self.make(module, settings, path, (*chain, module.source.name))
        return self.known[key]


def _head(use: syntax.Use) -> Span:
    return use.module[0].span.to(use.module[-1].span)


def _same(a: object, b: object) -> bool:
    """Declarations are wrapped anew at each look-up."""
    if isinstance(a, BlockRef) and isinstance(b, BlockRef):
        return a.declaration is b.declaration and a.home is b.home
    return a is b


def _whole(instance: Instance, use: syntax.Use, local: syntax.Identifier) -> dict[str, object]:
    """What `use f` brings in: f's model under the name of the file, several models by their own names, and of a file
    without models its blocks and masks."""
    models: dict[str, object] = {model.name.text: BlockRef(model, instance) for model in instance.models}
    if use.alias is not None and len(models) != 1:
        parts = models or _parts(instance)
        return {local.text: Record(f"the file `{local.text}`", parts)}
    if len(models) == 1:
        return {local.text: next(iter(models.values()))}
    return models or _parts(instance)


def _parts(instance: Instance) -> dict[str, object]:
    names = [declaration.name.text for declaration in instance.module.of((syntax.Block, syntax.Mask))]
    return {name: instance.lookup(name) for name in names}
