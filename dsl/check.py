"""The front end's entry: a spec's text to typed programs, or its mistakes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from . import syntax
from .axes import Axis
from .causality import check_targets, frontiers
from .diagnostics import Mistake, Problems, SpecErrors
from .elaborate import (
    Spec,
    check_copies,
    check_declarations,
    check_later,
    check_shared,
    elaborate_model,
    elaborate_objective,
    instantiate,
)
from .errors.weights import PatternMatchesNothing
from .located import located
from .modules import Library, Module
from .opdef import OpTable
from .optimise import optimiser
from .program import Optimiser, Program, Value, Weight
from .record import record
from .repeats import Turns
from .sizes import asked_for, check_choice, check_settings
from .source import Source
from .weight_map import WeightMap, weight_maps
from .work import Abandoned

if TYPE_CHECKING:
    from .generation import Generation


@record(eq=False)
class Checked:
    """A spec without mistakes, for one choice of sizes.

    `sizes` and `options` are the numbers chosen, by name, defaults included.
    """

    source: Source
    files: tuple[Source, ...]
    size: str | None
    overrides: Mapping[str, object]
    sizes: Mapping[str, int]
    options: Mapping[str, object]
    models: Mapping[str, Program]
    objectives: Mapping[str, Program]
    optimiser: Optimiser | None
    weight_maps: Mapping[str, WeightMap]
    presets: tuple[str, ...] = ()
    docstring: str | None = None
    generates: Mapping[str, Generation] = field(default_factory=dict)

    @property
    def model(self) -> Program:
        """The main model: the only one, or the one named like the file, or the last."""
        named = Path(self.source.name).stem
        return self.models.get(named) or list(self.models.values())[-1]

    @property
    def weights(self) -> dict[str, Weight]:
        """Every weight of the spec by path: of its models first, then those that objectives add."""
        programs = (*self.models.values(), *self.objectives.values())
        return {weight.path: weight for program in reversed(programs) for weight in program.weights}


@record
class Result:
    """What checking found: `checked` is None when there are errors."""

    checked: Checked | None
    problems: Problems = field(repr=False)

    def value(self) -> Checked:
        """The checked spec; raises SpecErrors, worded as on the terminal."""
        if self.checked is None:
            from .render import render  # wanted for mistakes only

            text = "\n\n".join(render(error.describe(), color=False) for error in self.problems.errors)
            raise SpecErrors(self.problems.errors, text)
        return self.checked


def _library(problems: Problems) -> Library:
    return Library(load_used, prelude_sources(), problems, usable)


def read_source(path: Path) -> Source:
    """The text of a spec file. Raises OSError, or ValueError when it is not UTF-8 text."""
    data = path.read_bytes()
    try:
        return Source(str(path), data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from None


def load_used(name: str, user: Source) -> Source | None:
    """The file that `use NAME` means: beside the user's file, then among the shipped specs."""
    relative = name.replace(".", "/") + ".weft"
    beside = Path(user.name).parent / relative
    if beside.is_file():
        return read_source(beside)
    shipped = files("weft.specs") / relative
    return Source(str(shipped), shipped.read_text("utf-8")) if shipped.is_file() else None


def usable(user: Source) -> tuple[str, ...]:
    """The names that a `use` in this file could give."""
    try:
        beside = [item.stem for item in Path(user.name).parent.glob("*.weft")]
    except (OSError, ValueError):
        beside = []
    shipped = [item.name.removesuffix(".weft") for item in files("weft.specs").iterdir() if item.name.endswith(".weft")]
    return (*beside, *shipped)


_DEFINES = re.compile(r"^(?:block|mask|model)\s+([A-Za-z_]\w*)", re.MULTILINE)


@cache
def prelude_sources() -> dict[str, Source]:
    """The standard library: which file defines a name. Files are parsed only when a spec uses one of their names."""
    table: dict[str, Source] = {}
    for item in sorted((files("weft.specs") / "std").iterdir(), key=lambda entry: entry.name):
        if item.name.endswith(".weft"):
            source = Source(f"std/{item.name}", item.read_text("utf-8"))
            for name in _DEFINES.findall(source.text):
                table.setdefault(name, source)
    return table


def check(
    source: Source, ops: OpTable, size: str | None = None, overrides: Mapping[str, object] | None = None
) -> Result:
    """Checks a spec for one choice of sizes. Without `size`, the sizes' defaults; a single preset is taken, and
    `overrides` come on top of it."""
    library = _library(Problems())
    module = library.module(source)
    if size is None and len(module.presets) == 1:
        size = next(iter(module.presets))
    return _check(library, source, ops, size, overrides or {})


def check_all(source: Source, ops: OpTable, overrides: Mapping[str, object] | None = None) -> Result:
    """Checks a spec under every preset; the result is the first preset's."""
    problems = Problems()
    library = _library(problems)
    module = library.module(source)
    first, *others = module.presets or (None,)
    result = _check(library, source, ops, first, overrides or {})
    shorten = True
    for size in others:
        # Only the mistakes of these are wanted: see repeats.py.
        try:
            _check(library, source, ops, size, overrides or {}, shorten)
        except _TurnsDiffer:
            shorten = False  # under one preset as under the next
            _check(library, source, ops, size, overrides or {})
    return result if not problems else Result(None, problems)


class _TurnsDiffer(Exception):
    """A program without the turns that are like others would not show all mistakes."""


def _check(
    library: Library, source: Source, ops: OpTable, size: str | None, overrides: Mapping[str, object],
    shorten: bool = False,
) -> Result:  # fmt: skip
    try:
        return _checked(library, source, ops, size, overrides, shorten)
    except Abandoned:
        return Result(None, library.problems)


def _checked(
    library: Library, source: Source, ops: OpTable, size: str | None, overrides: Mapping[str, object], shorten: bool
) -> Result:
    problems = library.problems
    module = library.module(source)
    given = asked_for(size, overrides)
    check_choice(module, size, given, problems)
    if problems and (size is not None and size not in module.presets):
        return Result(None, problems)
    check_settings(module, problems)
    spec = instantiate(module, size, given, library, ops, shorten)
    check_later(module, spec)
    # What is declared twice is a mistake, and its second text stands for nothing.
    models = {m.name.text: elaborate_model(spec, m) for m in spec.root.models if module.stands_for(m)}
    objectives = {
        o.name.text: elaborate_objective(spec, o) for o in module.of(syntax.Objective) if module.stands_for(o)
    }
    check_declarations(spec)
    told = _generations(spec, module, models)
    if problems:
        return Result(None, problems)
    if any(not _is_like_whole(program, turns, problems) for program, turns in spec.shortened):
        raise _TurnsDiffer
    built = {name: program for name, program in models.items() if program is not None}
    aims = {name: program for name, program in objectives.items() if program is not None}
    _check_whole(spec, built, aims)
    optimise = optimiser(spec, (*built.values(), *aims.values()))
    maps = weight_maps(spec, built)
    if problems:
        return Result(None, problems)
    sizes, options = _chosen(spec)
    sources = tuple(dict.fromkeys(instance.module.source for instance in spec.instances))
    docstring = module.file.docstring.text if module.file.docstring else None
    checked = Checked(
        source,
        sources,
        size,
        dict(overrides),
        sizes,
        options,
        built,
        aims,
        optimise,
        maps,
        tuple(module.presets),
        docstring,
        told,
    )
    return Result(checked, problems)


def _generations(spec: Spec, module: Module, models: Mapping[str, Program | None]) -> dict[str, Generation]:
    declared = [g for g in module.of(syntax.Generate) if module.stands_for(g)]
    if not declared:
        return {}
    from .elaborate_generate import elaborate_generate  # few specs have one

    made = {g.name.text: elaborate_generate(spec, g, models, {}) for g in declared}
    return {name: generation for name, generation in made.items() if generation is not None}


def _check_whole(spec: Spec, models: Mapping[str, Program], objectives: Mapping[str, Program]) -> None:
    """What concerns all programs together: causality, patterns, shared declarations."""
    problems = spec.library.problems
    for program in objectives.values():
        targets = [
            (node.inputs[0], node.op.target_shift(node), node)
            for node in program.nodes
            if node.op.target_shift is not None
        ]
        leaks = Problems()
        check_targets(program, targets, leaks, problems)
        for leak in leaks.errors:
            # Where it meets in the standard library, the call in the user's text is shown.
            scope = next((node.scope for node in program.nodes if node.span == leak.at), ())
            problems.add(located(leak, scope, spec.library.is_standard))
    check_shared(spec)
    for program in (*models.values(), *objectives.values()):
        check_copies(spec, program)
    for declaration in spec.root.module.of(syntax.Objective):
        _check_trains(spec, declaration, objectives.get(declaration.name.text))
    book = spec.book()
    matched: set[tuple[str, int]] = set()
    rules = spec.rules
    for program in (*models.values(), *objectives.values()):
        for weight in program.weights:
            book.weights.setdefault(weight.path, weight)
            for rule in rules:
                if book.holds(rule, weight):
                    matched.add((rule.pattern.span.source.name, rule.pattern.span.start))
    book.check_rules(matched)


def _is_like_whole(program: Program, turns: Turns, work: Problems) -> bool:
    """Whether a shortened program shows every mistake of the whole one: each turn left out would start where the last
    one run ended, also as to what it may look at, whether weights or targets are in it."""
    if not turns.is_sound:
        return False
    targets = {node.inputs[0]: node for node in program.nodes if node.op.target_shift is not None}
    if not targets or not turns.ends:
        return True
    from_weight: set[Value] = set(program.weights)
    from_target: set[Value] = set()
    for node in program.nodes:
        if any(value in from_weight or isinstance(value, Weight) for value in node.inputs):
            from_weight.update(node.outputs)
        if node in targets.values() or any(value in from_target for value in node.inputs):
            from_target.update(node.outputs)
    sources = dict.fromkeys((*targets, *program.inputs))
    known = [frontiers(program, source, work=work) for source in sources]
    return all(
        before not in from_target
        and after not in from_target
        and (before in from_weight) == (after in from_weight)
        and all(table.get(before) == table.get(after) for table in known)
        for before, after in turns.ends
    )


def _check_trains(spec: Spec, declaration: syntax.Objective, program: Program | None) -> None:
    if program is None:
        return
    book, paths = spec.book(), tuple(weight.path for weight in program.weights)
    for pattern in declaration.trains:
        if not any(book.applies(pattern.text, (), path) for path in paths):
            spec.library.problems.add(PatternMatchesNothing(pattern.span, pattern.text, paths))


def _chosen(spec: Spec) -> tuple[dict[str, int], dict[str, object]]:
    sizes: dict[str, int] = {}
    options: dict[str, object] = {}
    for name in spec.root.values:
        try:
            value = spec.root.values[name]
        except Mistake:
            continue  # a size of other presets, which nothing reads under this one
        if isinstance(value, Axis) and value.size is not None:
            sizes[name] = value.size
        else:
            options[name] = value
    return sizes, options


def presets_of(source: Source) -> tuple[str, ...]:
    """The names of a spec's sizes, in order. Mistakes in the text are left to `check`."""
    return tuple(Library(load_used, {}, Problems()).module(source).presets)
