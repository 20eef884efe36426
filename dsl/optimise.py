"""`optimise by adamw(...)`: the optimiser's settings and its lines by pattern."""

from __future__ import annotations

from . import syntax
from .diagnostics import Mistake, Noted
from .elaborate import Spec
from .errors.names import did_you_mean
from .errors.weights import BadSetting, PatternMatchesNothing
from .program import Optimiser, OptimiserLine, OptimiserSetting, Program, Weight
from .source import Span
from .statements import Elaboration
from .static_math import number_of
from .statics import UNKNOWN, describe

# What each optimiser takes, and which of it a line may set for some weights.
SETTINGS: dict[str, tuple[str, ...]] = {"adamw": ("lr", "betas", "eps", "decay", "clip")}
LINE_SETTINGS = ("lr", "betas", "eps", "decay", "clip", "lazy", "schedule", "moments")
WORDS: dict[str, tuple[str, ...]] = {"schedule": ("shared", "constant", "falling"), "moments": ("entry", "row")}


def optimiser(spec: Spec, programs: tuple[Program, ...]) -> Optimiser | None:
    """The spec's optimiser, or None when it names none."""
    declarations = spec.root.module.of(syntax.Optimise)
    problems = spec.library.problems
    for extra in declarations[1:]:
        first = declarations[0].call.span
        problems.add(BadSetting(extra.call.span, "a second `optimise`", "one spec has one optimiser", first))
    if not declarations:
        return None
    declaration: syntax.Optimise = declarations[0]
    call = declaration.call
    kind = call.callee.text if isinstance(call.callee, syntax.Name) else ""
    if kind not in SETTINGS:
        help = did_you_mean(kind, tuple(SETTINGS)) or f"optimisers: {', '.join(SETTINGS)}"
        problems.add(BadSetting(call.callee.span, f"`{kind}` is not an optimiser", help))
        return None
    body = Elaboration(spec.build(training=True), spec.root, "optimise", ())
    settings: list[tuple[str, OptimiserSetting]] = []
    for argument in call.arguments:
        with body.noted():
            name = argument.name.text if argument.name else ""
            settings.append((name, _setting(body, name, argument.value, SETTINGS[kind], argument.span)))
    lines = (_line(spec, body, line, programs) for line in declaration.lines)
    return Optimiser(kind, tuple(settings), tuple(line for line in lines if line is not None))


def _line(
    spec: Spec, body: Elaboration, line: syntax.OptimiseLine, programs: tuple[Program, ...]
) -> OptimiserLine | None:
    book = spec.book()
    paths = tuple(weight.path for program in programs for weight in program.weights)
    # A declared table that nothing reads under this choice of options is no mistake.
    declared = {declaration.name.text for declaration in spec.root.module.of(syntax.Shared)}
    if not any(book.applies(line.pattern.text, (), path) for path in paths):
        if line.pattern.parts[0] in declared:
            return None
        spec.library.problems.add(PatternMatchesNothing(line.pattern.span, line.pattern.text, paths))
    settings: list[tuple[str, OptimiserSetting]] = []
    for setting in line.settings:
        with body.noted():
            value = _setting(body, setting.name.text, setting.value, LINE_SETTINGS, setting.span)
            if setting.name.text == "lazy" and value is True:
                _want_tables(spec, line, setting.span, programs)
            settings.append((setting.name.text, value))
    by_rows = any(setting.name.text == "lazy" for setting in line.settings) and ("lazy", False) not in settings
    if ("moments", "row") in settings and not by_rows:
        what = "`moments=row` is for tables that are updated by rows"
        spec.library.problems.add(BadSetting(line.pattern.span, what, "add `lazy=true` to the line"))
    return OptimiserLine(line.pattern.text, tuple(settings))


def _want_tables(spec: Spec, line: syntax.OptimiseLine, at: Span, programs: tuple[Program, ...]) -> None:
    """Rows can be left alone until they are read only where something reads rows, and nothing reads the rest."""
    book = spec.book()
    for program in programs:
        for node in program.nodes:
            for place, value in enumerate(node.inputs):
                if not isinstance(value, Weight) or place == node.op.table:
                    continue
                if book.applies(line.pattern.text, (), value.path):
                    what = f"`{value.path}` cannot be lazy: `{node.op.name}` reads all of it"
                    help = "lazy is for tables of which `embed`, `bag` or `x[index]` reads some rows"
                    raise Mistake(BadSetting(at, what, help, node.span, "here"))


def _setting(
    body: Elaboration, name: str, value: syntax.Expression, known: tuple[str, ...], at: Span
) -> OptimiserSetting:
    if name not in known:
        raise Mistake(
            BadSetting(at, f"unknown setting `{name}`", did_you_mean(name, known) or f"settings: {', '.join(known)}")
        )
    if name in WORDS:
        if not isinstance(value, syntax.Name) or value.text not in WORDS[name]:
            raise Mistake(BadSetting(value.span, f"`{name}` is one of {', '.join(WORDS[name])}"))
        return value.text
    found = body.evaluate(value)
    if found is UNKNOWN:
        raise Noted
    if name == "lazy":
        if not isinstance(found, bool):
            raise Mistake(BadSetting(value.span, f"`lazy` is {describe(found)}; it takes true or false"))
        return found
    items = found if isinstance(found, tuple) else (found,)
    numbers = tuple(number_of(item) for item in items)
    wanted = 2 if name == "betas" else 1
    if len(numbers) != wanted or any(n is None or isinstance(n, bool) or n < 0 for n in numbers):
        what = "two numbers" if wanted == 2 else "one number, not below 0"
        raise Mistake(BadSetting(value.span, f"`{name}` is {describe(found)}; it takes {what}"))
    plain = tuple(float(n) for n in numbers if n is not None)
    return plain if wanted == 2 else plain[0]
