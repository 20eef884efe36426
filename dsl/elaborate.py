"""Files to typed programs: instances with their sizes, then each model and objective elaborated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import syntax
from .body import Build
from .count import check_size
from .diagnostics import Mistake, Noted
from .distributions import distribution
from .errors.later import NotBuiltYet
from .errors.names import BadArguments, CircularUse, UnknownName
from .errors.signatures import BadType
from .errors.weights import NoLoss, UnusedShared
from .modules import Instance, Library, Module
from .opdef import OpTable
from .program import Distribution, Frame, Program, Value
from .signatures import STATIC_KINDS
from .sizes import ChosenValues
from .source import Span
from .statements import Elaboration
from .statics import NONE, UNKNOWN, BlockRef, Record
from .weight_book import Rule, WeightBook


@dataclass(frozen=True, eq=False)
class Spec:
    """A spec's root instance and everything `use` brought in, for one choice of sizes."""

    root: Instance
    instances: tuple[Instance, ...]
    library: Library
    ops: OpTable

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Lines of used files first: the spec's own come last and win."""
        ordered = (*(i for i in self.instances if i is not self.root), self.root)
        return tuple(
            Rule(pattern, instance.path, declaration)
            for instance in ordered
            for declaration in instance.module.of((syntax.Init, syntax.Freeze))
            for pattern in ((declaration.pattern,) if isinstance(declaration, syntax.Init) else declaration.patterns)
        )

    def book(self) -> WeightBook:
        models = tuple(block.name.text for instance in self.instances for block in instance.models)
        return WeightBook(self.library.problems, self.rules, models, self._init)

    def build(self, training: bool) -> Build:
        return Build(self.ops, self.library, self.library.problems, self.book(), training)

    def _init(self, rule: Rule, fan_in: int, fan_out: int) -> Distribution:
        home = next(i for i in self.instances if i.module.source is rule.pattern.span.source)
        body = Elaboration(self._scratch(), home, "init", ())
        body.scope.bind("fan_in", fan_in)
        body.scope.bind("fan_out", fan_out)
        assert isinstance(rule.declaration, syntax.Init)
        return distribution(body, rule.declaration.value)

    def _scratch(self) -> Build:
        """For expressions outside any program."""
        return Build(self.ops, self.library, self.library.problems, None, False)  # type: ignore[arg-type]


def instantiate(
    module: Module, size: str | None, overrides: Mapping[str, object], library: Library, ops: OpTable
) -> Spec:
    """The spec's instance and those of the files it uses."""
    instances: list[Instance] = []
    cache: dict[tuple[str, str], Instance] = {}

    def make(
        module: Module, overrides: Mapping[str, object], path: tuple[str, ...], chain: tuple[str, ...]
    ) -> Instance:
        instance = Instance(module, {}, path)
        scratch = Build(ops, library, library.problems, None, False)  # type: ignore[arg-type]

        def body() -> Elaboration:
            return Elaboration(scratch, instance, "size", ())

        instance.make_axis = lambda home, declaration: Elaboration(scratch, home, "axis", ()).make_axis(
            home, declaration, None
        )
        instance.values = ChosenValues(module, size, overrides, library.problems, body)
        instances.append(instance)
        for use in module.of(syntax.Use):
            try:
                _use(instance, use, body(), chain)
            except Mistake as mistake:
                library.problems.add(mistake.error)
            except Noted:
                pass
        return instance

    def _use(user: Instance, use: syntax.Use, body: Elaboration, chain: tuple[str, ...]) -> None:
        name = use.module[-1].text
        local = use.alias.text if use.alias else name
        used = library.used(use, user.module.source)
        if used is None:
            for entry in use.names or ():
                user.imports[(entry.alias or entry.name).text] = UNKNOWN
            user.imports.setdefault(local, UNKNOWN)
            return
        if used.source.name in chain:
            raise Mistake(CircularUse(use.span, (*chain[chain.index(used.source.name) :], used.source.name)))
        settings = {s.name.text: body.evaluate(s.value) for s in use.settings if s.name is not None}
        key = (used.source.name, local if use.alias or use.settings else name)
        if key not in cache or use.settings:
            cache[key] = make(used, settings, (*user.path, local), (*chain, used.source.name))
        instance = cache[key]
        for entry in use.names:
            found = instance.lookup(entry.name.text)
            if found is None:
                library.problems.add(UnknownName(entry.name.span, entry.name.text, instance.names))
                found = UNKNOWN
            user.imports[(entry.alias or entry.name).text] = found
        if not use.names:
            _import_models(user, instance, name, local, use.span)

    def _import_models(user: Instance, instance: Instance, name: str, local: str, at: Span) -> None:
        models = instance.models
        if len(models) == 1:
            user.imports[local] = BlockRef(models[0], instance)
            return
        for model in models:
            user.imports[model.name.text] = BlockRef(model, instance)
        if not models:
            for block in instance.module.of(syntax.Block):
                user.imports[block.name.text] = BlockRef(block, instance)

    root = make(module, overrides, (), (module.source.name,))
    return Spec(root, tuple(instances), library, ops)


# ---- programs -----------------------------------------------------------------------------------


def elaborate_model(spec: Spec, declaration: syntax.Block) -> Program | None:
    """A model as it runs outside training. None when it cannot be built; why is among the problems."""
    build = spec.build(training=False)
    several = len(spec.root.models) > 1
    path = (declaration.name.text,) if several else ()
    body = Elaboration(build, spec.root, "model", path, (Frame(declaration.name.text, None, declaration.span),))
    inputs = _begin(spec, declaration, body)
    if inputs is None:
        return None
    body.run(declaration.body)
    result = body.checked_result(declaration)
    if result is UNKNOWN:
        return None
    outputs = result if isinstance(result, tuple) else (result,)
    names = ("output",) if len(outputs) == 1 else tuple(f"output{i}" for i in range(len(outputs)))
    return _program(body, declaration, "model", inputs, tuple(zip(names, outputs, strict=True)), ())


def elaborate_objective(spec: Spec, declaration: syntax.Objective) -> Program | None:
    """An objective, in training mode, with the models it calls inlined."""
    build = spec.build(training=True)
    name = declaration.name.text
    body = Elaboration(build, spec.root, "objective", ("objective", name), (Frame(name, None, declaration.span),))
    inputs = _begin(spec, declaration, body)
    if inputs is None:
        return None
    body.run(declaration.body)
    if not body.losses and not any(isinstance(s, syntax.Loss) for s in declaration.body):
        spec.library.problems.add(NoLoss(declaration.name.span, f"objective `{name}` has no `loss`"))
    trains = tuple(pattern.text for pattern in declaration.trains)
    return _program(body, declaration, "objective", inputs, (), trains)


def _begin(spec: Spec, declaration: syntax.Block | syntax.Objective, body: Elaboration) -> tuple[Value, ...] | None:
    """Binds the inputs. None when the program is too large to build."""
    problems = spec.library.problems
    try:
        check_size(declaration, spec.root, spec.library)
    except Mistake as mistake:
        problems.add(mistake.error)
        return None
    inputs: list[Value] = []
    for parameter in declaration.parameters:
        name = parameter.name
        with body.noted():
            body.scope.bind(name.text, UNKNOWN)
            body.scope.bind(name.text, _input(body, parameter, inputs))
    return tuple(inputs)


def _input(body: Elaboration, parameter: syntax.Parameter, inputs: list[Value]) -> object:
    """A program's parameter: an input tensor, or a static parameter's default."""
    name, type = parameter.name, parameter.type
    static = type is None or type.kind.text in STATIC_KINDS
    if static and parameter.default is not None:
        return body.evaluate(parameter.default)
    if type is None:
        raise Mistake(
            BadType(
                parameter.span, f"the input `{name.text}` needs a type", f"for example `{name.text}: real[seq, dim]`"
            )
        )
    if static:
        raise Mistake(BadArguments(parameter.span, name.text, f"is static ({type.kind.text}) and needs a default"))
    value = Value(name.text, body.value_type(type, per_example=True), name.span)
    inputs.append(value)
    return value


def _program(
    body: Elaboration,
    declaration: syntax.Block | syntax.Objective,
    kind: str,
    inputs: tuple[Value, ...],
    outputs: tuple,
    trains: tuple[str, ...],
) -> Program:
    bindings = {name: value for name, value in body.scope.bound.items() if isinstance(value, Value)}
    for name, value in body.scope.bound.items():
        if isinstance(value, Record) and value.main is not None:
            bindings[name] = value.main
    return Program(
        declaration.name.text, kind, inputs, tuple(body.build.book.weights.values()), tuple(body.build.nodes), outputs,
        tuple(body.losses), declaration.span, trains, bindings,
    )  # fmt: skip


def check_shared(spec: Spec) -> None:
    """Every shared declaration of the spec is read by a model or objective."""
    for declaration in spec.root.module.of(syntax.Shared):
        if declaration.name.text not in spec.root.used:
            spec.library.problems.add(UnusedShared(declaration.name.span, declaration.name.text))


LATER = {
    syntax.Hook: "`hook`", syntax.Memory: "`memory`", syntax.Extern: "`extern`", syntax.Generate: "`generate`",
    syntax.Recipe: "`recipe`",
}  # fmt: skip


def check_later(module: Module, spec: Spec) -> None:
    """Constructs that parse and cannot be compiled yet."""
    for declaration in module.file.declarations:
        what = LATER.get(type(declaration))
        if what is not None:
            spec.library.problems.add(NotBuiltYet(declaration.name.span, what))
        if isinstance(declaration, syntax.Freeze) and declaration.where is not None:
            spec.library.problems.add(NotBuiltYet(declaration.where.span, "`freeze ... where`"))


__all__ = ["NONE", "Spec", "elaborate_model", "elaborate_objective", "instantiate"]
