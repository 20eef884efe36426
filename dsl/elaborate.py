"""Files to typed programs: instances with their sizes, then each model and objective elaborated."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field

from . import syntax
from .axes import Axis, Cut, Selected
from .body import Build
from .count import check_size
from .diagnostics import Mistake
from .distributions import distribution
from .errors.axes import MissingRows
from .errors.later import NotBuiltYet
from .errors.names import BadArguments, did_you_mean
from .errors.routing import NotSelected
from .errors.signatures import BadType
from .errors.weights import BadDistribution, NoLoss, UnusedShared
from .instances import Instances, scratch_build
from .modules import Instance, Library, Module, Named
from .names_read import bound_names, names_read
from .opdef import OpTable
from .program import Distribution, Frame, Program, Value, Weight
from .record import record
from .repeats import Turns, has_numbered_patterns
from .side_calls import SIDES
from .signatures import STATIC_KINDS
from .sizes import Given
from .source import Span
from .statements import Elaboration
from .statics import NONE, UNKNOWN, Record
from .weight_book import Rule, WeightBook
from .work import Abandoned


@record(eq=False)
class Spec:
    """A spec's root instance and everything `use` brought in, for one choice of sizes."""

    root: Instance
    instances: tuple[Instance, ...]
    library: Library
    ops: OpTable
    size: str | None = None
    shorten: bool = False  # find mistakes only: turns of loops that are alike are left out
    expanded: set[int] = field(default_factory=set)  # declarations of the blocks that were called, by id
    shortened: list[tuple[Program, Turns]] = field(default_factory=list)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Lines of used files first: the spec's own come last and win."""
        ordered = (*(i for i in self.instances if i is not self.root), self.root)
        return tuple(
            Rule(pattern, instance.path, declaration, _where(declaration))
            for instance in ordered
            for declaration in instance.module.of((syntax.Init, syntax.Freeze))
            for pattern in ((declaration.pattern,) if isinstance(declaration, syntax.Init) else declaration.patterns)
        )

    def book(self) -> WeightBook:
        models = {instance.path: tuple(block.name.text for block in instance.models) for instance in self.instances}
        return WeightBook(self.library.problems, self.rules, models, self._init)

    def build(self, training: bool) -> Build:
        turns = Turns() if self.shorten else None
        # Causality is asked of objectives only: of a model, the types are enough.
        nodes = training or not self.shorten
        return Build(
            self.ops, self.library, self.library.problems, self.book(), training, nodes, turns, expanded=self.expanded
        )

    def _init(self, rule: Rule, fan_in: int, fan_out: int, turn: int) -> Distribution:
        home = next(i for i in self.instances if i.module.source is rule.pattern.span.source)
        body = Elaboration(self._scratch(), home, "init", ())
        body.scope.bind("fan_in", fan_in)
        body.scope.bind("fan_out", fan_out)
        body.scope.bind("turn", turn)
        assert isinstance(rule.declaration, syntax.Init)
        return distribution(body, rule.declaration.value)

    def _scratch(self) -> Build:
        return scratch_build(self.library, self.ops)


def _where(declaration: syntax.Init | syntax.Freeze) -> tuple[str, str] | None:
    """`freeze layer where kind == text`: the tag's name and its value."""
    match declaration:
        case syntax.Freeze(_, syntax.Comparison((syntax.Name(tag), syntax.Name(member)), ("==",))):
            return tag, member
    return None


def instantiate(
    module: Module, size: str | None, overrides: Mapping[str, Given], library: Library, ops: OpTable,
    shorten: bool = False,
) -> Spec:  # fmt: skip
    """The spec's instance and those of the files it uses."""
    instances = Instances(size, library, ops)
    root = instances.make(module, overrides, (), (module.source.name,))
    declarations = [d for instance in instances.made for d in instance.module.file.declarations]
    may_shorten = shorten and not has_numbered_patterns(tuple(declarations))
    return Spec(root, tuple(instances.made), library, ops, size, may_shorten)


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
    try:
        body.run(declaration.body)
    except Abandoned:
        return None
    result = body.checked_result(declaration)
    if result is UNKNOWN:
        return None
    outputs = result if isinstance(result, tuple) else (result,)
    at = body.result[1] if body.result else declaration.span
    for output in outputs:
        if isinstance(output, Value) and output.type.missing:
            spec.library.problems.add(MissingRows(at, declaration.name.text, "a model gives every row"))
            return None
    names = _output_names(declaration, len(outputs))
    return _program(spec, body, declaration, "model", inputs, tuple(zip(names, outputs, strict=True)), ())


def _output_names(declaration: syntax.Block, count: int) -> tuple[str, ...]:
    """One result is called `output`; several have the names that `return a, b` gives them, or numbers."""
    last = declaration.body[-1]
    if count > 1 and isinstance(last, syntax.Return) and isinstance(last.value, syntax.Tuple):
        names = tuple(item.text for item in last.value.items if isinstance(item, syntax.Name))
        if len(set(names)) == count:
            return names
    return ("output",) if count == 1 else tuple(f"output{i}" for i in range(count))


def elaborate_objective(spec: Spec, declaration: syntax.Objective) -> Program | None:
    """An objective, in training mode, with the models it calls inlined."""
    build = spec.build(training=True)
    name = declaration.name.text
    body = Elaboration(build, spec.root, "objective", ("objective", name), (Frame(name, None, declaration.span),))
    inputs = _begin(spec, declaration, body)
    if inputs is None:
        return None
    try:
        body.run(declaration.body)
    except Abandoned:
        return None
    # A `return` in its place is a mistake of its own.
    if not body.losses and not _has_loss(declaration.body):
        spec.library.problems.add(NoLoss(declaration.name.span, f"objective `{name}` has no `loss`"))
    trains = tuple(pattern.text for pattern in declaration.trains)
    return _program(spec, body, declaration, "objective", inputs, (), trains)


def _has_loss(statements: tuple[syntax.Statement, ...]) -> bool:
    return any(
        isinstance(statement, syntax.Loss | syntax.Return)
        or (isinstance(statement, syntax.Routed) and _has_loss(statement.body))
        or (isinstance(statement, syntax.Match) and any(_has_loss(arm.body) for arm in statement.arms))
        for statement in statements
    )


def _begin(spec: Spec, declaration: syntax.Block | syntax.Objective, body: Elaboration) -> tuple[Value, ...] | None:
    """Binds the inputs. None when the program is too large to build."""
    problems = spec.library.problems
    try:
        check_size(declaration, spec.root, spec.library)
    except Mistake as mistake:
        problems.add(mistake.error)
        return None
    except Abandoned:
        return None
    inputs: list[Value] = []
    for parameter in declaration.parameters:
        name = parameter.name
        with body.noted():
            body.scope.bind(name.text, UNKNOWN)
            body.scope.bound[name.text] = _input(body, parameter, inputs)
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
    body.build.inputs[name.text] = value
    return value


def _program(
    spec: Spec,
    body: Elaboration,
    declaration: syntax.Block | syntax.Objective,
    kind: str,
    inputs: tuple[Value, ...],
    outputs: tuple,
    trains: tuple[str, ...],
) -> Program:
    once = {name: value for name, value in body.scope.bound.items() if name not in body.scope.rebound}
    bindings = {name: value for name, value in once.items() if isinstance(value, Value)}
    for name, value in once.items():
        if isinstance(value, Record) and value.main is not None:
            bindings[name] = value.main
    program = Program(
        declaration.name.text, kind, inputs, tuple(body.build.book.weights.values()), tuple(body.build.nodes), outputs,
        tuple(body.losses), declaration.span, trains, bindings, _optional(body, inputs), _selected(spec, body, inputs),
        _shown(body),
    )  # fmt: skip
    if body.build.turns is not None:
        spec.shortened.append((program, body.build.turns))
    return program


def _selected(spec: Spec, body: Elaboration, inputs: tuple[Value, ...]) -> dict[Axis, Value]:
    """The tag of each declared selection. Whoever gives rows of one must know which rows of the whole they are."""
    along = {value.type.rows for value in inputs}
    for axis, (tag, at) in body.build.selected.items():
        if axis in along and tag not in inputs:
            assert isinstance(axis.kind, Selected)
            repair = f"rows of {axis.name} are an input, so the tag is to be one, too"
            error = NotSelected(at, axis.name, axis.kind.tag, "no input", axis.span, None, repair)
            spec.library.problems.add(error)
    return {axis: tag for axis, (tag, _) in body.build.selected.items()}


def _shown(body: Elaboration) -> dict[Axis, Axis]:
    """The cuts of rows that stand among others, by the owner of the rows."""
    owned = ((cut.kind.owner, cut) for cut in body.build.cuts if isinstance(cut.kind, Cut))
    return {owner: cut for owner, cut in owned if owner is not None}


def _optional(body: Elaboration, inputs: tuple[Value, ...]) -> dict[str, Value]:
    """Inputs with a default, of the program and of the models it calls; an input of the program hides one of its
    name. None along an axis that no other input has: its lengths would be unknown while it is not given."""
    taken = {value.name for value in inputs}
    rows = {axis for value in inputs for axis in value.type.axes}
    return {
        name: value
        for name, value in body.build.optional.items()
        if value is not None and name not in taken and (value.type.rows is None or value.type.rows in rows)
    }


def check_shared(spec: Spec) -> None:
    """Every shared declaration of the spec is read by a model or objective."""
    for declaration in spec.root.module.of(syntax.Shared):
        if declaration.name.text not in spec.root.used:
            spec.library.problems.add(UnusedShared(declaration.name.span, declaration.name.text))


def check_copies(spec: Spec, program: Program) -> None:
    """Every weight that starts as a copy has a weight of its shape to copy."""
    weights = {weight.path: weight for weight in program.weights}
    told: set[Span] = set()  # a line is told of once, and near names are searched for once
    for weight in program.weights:
        source = weight.init.source
        if source is None or (source in weights and weights[source].shape == weight.shape):
            continue
        at = _copied_at(spec, weight)
        if at in told:
            continue
        told.add(at)
        others = tuple(path for path in weights if path != weight.path)
        if source not in weights:
            what = f"`{weight.path}` starts as a copy of `{source}`, which is no weight"
            spec.library.problems.add(BadDistribution(at, what, did_you_mean(source, others)))
        else:
            what = f"`{weight.path}` has shape {weight.shape}, its source `{source}` {weights[source].shape}"
            spec.library.problems.add(BadDistribution(at, what))


def _copied_at(spec: Spec, weight: Weight) -> Span:
    book = spec.book()
    for rule in reversed(spec.rules):
        if isinstance(rule.declaration, syntax.Init) and book.applies(rule.pattern.text, rule.prefix, weight.path):
            return rule.declaration.value.span
    return weight.span


def check_declarations(spec: Spec) -> None:
    """What no program reads must hold too: axes, sizes, options, and blocks that nothing calls."""
    body = Elaboration(spec.build(training=False), spec.root, "block", ())
    module = spec.root.module
    chosen = module.presets.get(spec.size or "")
    kept = (syntax.OptionDeclaration, syntax.SizeDefault)
    names = [
        *(d.name.text for d in module.of(kept)),
        *(s.name.text for s in (chosen.settings if chosen else ()) if s.name.text in module.settable),
        *(d.name.text for d in module.of(syntax.Axis) if d.index is None),
    ]
    for name in names:
        with body.noted():
            spec.root.lookup(name)
    for block in spec.root.module.of(syntax.Block):
        if block.form == "block" and id(block) not in spec.expanded:
            _check_uncalled(spec, block)


def _check_uncalled(spec: Spec, block: syntax.Block) -> None:
    """A block whose signature says all is elaborated as a model would be; of others, names are checked. One that reads
    `query(..)` or `key(..)` captures names where it is used, as a mask does, and is checked there."""
    own = {*bound_names(block.body), *(parameter.name.text for parameter in block.parameters), *spec.root.names}
    if any(name.text in SIDES and name.text not in own for name in names_read(block.body)):
        return
    build = spec.build(training=False)
    build.is_uncalled = True
    body = Elaboration(build, spec.root, "block", (), (Frame(block.name.text, None, block.span),))
    concrete = not block.axes and all(_is_concrete(p) for p in block.parameters)
    if concrete:
        inputs = _begin(spec, block, body)
        if inputs is not None:
            with suppress(Abandoned):
                body.run(block.body)
                body.checked_result(block)
        return
    for axis in block.axes:
        body.scope.bind(axis.text, UNKNOWN)
    for parameter in block.parameters:
        body.scope.bind(parameter.name.text, UNKNOWN)
    body.check_names(block.body)


def _is_concrete(parameter: syntax.Parameter) -> bool:
    type = parameter.type
    return type is not None and not type.any_axes and type.kind.text not in STATIC_KINDS


LATER = {
    syntax.Hook: "`hook`", syntax.Memory: "`memory`", syntax.Extern: "`extern`", syntax.Recipe: "`recipe`",
}  # fmt: skip


def check_later(module: Module, spec: Spec) -> None:
    """Constructs that parse and cannot be compiled yet."""
    for declaration in module.file.declarations:
        what = LATER.get(type(declaration))
        if what is not None and isinstance(declaration, Named):
            spec.library.problems.add(NotBuiltYet(declaration.name.span, what))
        if isinstance(declaration, syntax.Freeze) and declaration.where is not None and _where(declaration) is None:
            spec.library.problems.add(BadType(declaration.where.span, "weights are chosen by `tag == member`"))


__all__ = ["NONE", "Spec", "elaborate_model", "elaborate_objective", "instantiate"]
