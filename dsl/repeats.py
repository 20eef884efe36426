"""Turns of a loop that are all alike, so that a check need not go through each of them.

A deep model is one layer written once and repeated. To find mistakes under a preset of 64 layers, one turn is enough
when the next would start from values of the same types and the body never looks at the loop variable: by induction all
others do the same. What a shortened program cannot tell is noticed here, and then the preset is checked in full:

    two loops of one path     their turns could make one weight twice
    causality                 a shift in each turn moves the frontier further at each; check.py compares `Turns.ends`

A shortened program is for finding mistakes only; it is never compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import syntax
from .names_read import all_words
from .program import Constant, Value, Weight
from .record import record
from .statics import Record


@dataclass(eq=False)
class Turns:
    """What was left out. `ends` pairs a value at the start of the last turn run with the one at its end."""

    ends: list[tuple[Value, Value]] = field(default_factory=list)
    loops: dict[tuple[str, ...], syntax.For] = field(default_factory=dict)
    is_sound: bool = True

    def enter(self, path: tuple[str, ...], loop: syntax.For) -> None:
        """Notes a loop at a path."""
        if path in self.loops:
            self.is_sound = False
        self.loops[path] = loop

    def skipped(self, before: Mapping[str, object], after: Mapping[str, object]) -> None:
        for name, value in before.items():
            later = after.get(name)
            if isinstance(value, Value) and isinstance(later, Value) and later is not value:
                self.ends.append((value, later))


def alike(before: Mapping[str, object], after: Mapping[str, object]) -> bool:
    """Whether a turn that starts from `after` does what one that starts from `before` did."""
    return before.keys() == after.keys() and all(_alike(value, after[name]) for name, value in before.items())


def _alike(a: object, b: object) -> bool:
    if a is b:
        return True
    if isinstance(a, Value) and isinstance(b, Value):
        fixed = isinstance(a, Constant | Weight) or isinstance(b, Constant | Weight)
        return not fixed and a.type == b.type
    if isinstance(a, bool | int | float) and type(a) is type(b):
        return a == b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Record) and isinstance(b, Record):
        return a.what == b.what and alike(a.fields, b.fields)
    return False


@record
class LoopText:
    """What the text of a loop tells. `is_plain`: one turn does what another does that starts from like values."""

    is_plain: bool
    words: frozenset[str]

    @staticmethod
    def of(loop: syntax.For, is_counted: bool) -> LoopText:
        """Plain: no word of the body is the loop variable, and nothing but plain bindings leaves it. A number is never
        called: under `for layer in 0 .. layers` the text `layer(x)` means a block."""
        words = frozenset(all_words(loop.body, callees=not is_counted))
        return LoopText(loop.variable.text not in words and not _has_effects(loop.body), words)


def _has_effects(statements: tuple[syntax.Statement, ...]) -> bool:
    for statement in statements:
        match statement:
            case syntax.Bind(targets):
                if any(target.index is not None for target in targets):
                    return True
            case syntax.For() | syntax.Routed():
                if _has_effects(statement.body):
                    return True
            case syntax.If():
                if _has_effects((*statement.body, *statement.orelse)):
                    return True
            case syntax.Match():
                if any(_has_effects(arm.body) for arm in statement.arms):
                    return True
            case syntax.Loss() | syntax.Segment() | syntax.OptionalInput():
                return True
    return False


def has_numbered_patterns(declarations: tuple[syntax.Declaration, ...]) -> bool:
    """Whether a pattern names single turns, as `freeze layer.3` does: then every turn's weights count."""
    return any(word.isdigit() for declaration in declarations for word in _pattern_parts(declaration))


def _pattern_parts(declaration: syntax.Declaration) -> list[str]:
    match declaration:
        case syntax.Init():
            # `copy(layer.3.x)` names a path too.
            text = declaration.value.span.text
            copied = re.split(r"\W+", text) if text.startswith("copy") else []
            return [*declaration.pattern.parts, *copied]
        case syntax.Freeze():
            patterns = [*declaration.patterns]
        case syntax.Optimise():
            patterns = [line.pattern for line in declaration.lines]
        case syntax.Objective():
            patterns = [*declaration.trains]
        case syntax.Weights():
            patterns = [pattern for entry in declaration.tensors for pattern in entry.patterns]
        case _:
            patterns = []
    return [part for pattern in patterns for part in pattern.parts]
