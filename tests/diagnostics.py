"""Checking a text for a test: the commands a spec's first line may name, and its mistakes as the terminal shows them.

# weft check wide.weft --size small --set dim=3
# weft generate open.weft
"""

from __future__ import annotations

import importlib
import pkgutil
import shlex
from dataclasses import dataclass
from itertools import pairwise

from weft.codegen.ops import OPS
from weft.dsl import errors
from weft.dsl.causality import check_generates
from weft.dsl.check import Result, check, check_all
from weft.dsl.diagnostics import SpecError
from weft.dsl.render import render
from weft.dsl.source import Source

for _module in pkgutil.iter_modules(errors.__path__):
    importlib.import_module(f"{errors.__name__}.{_module.name}")

CLASSES: dict[str, type[SpecError]] = dict(sorted(SpecError.by_code.items()))


@dataclass(frozen=True)
class Command:
    """What to do with a spec: its first line, or a check of all sizes."""

    name: str = "check"
    size: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()


def command(text: str) -> Command:
    first = text.split("\n", 1)[0]
    if not first.startswith("# weft "):
        return Command()
    words = shlex.split(first)[2:]
    options = list(pairwise(words))
    sizes = [value for option, value in options if option == "--size"]
    sets = tuple(tuple(value.split("=", 1)) for option, value in options if option == "--set")
    return Command(words[0], sizes[0] if sizes else None, sets)  # type: ignore[arg-type]


def checked(text: str, name: str = "spec.weft", size: str | None = None, **overrides: object) -> Result:
    """A spec checked as its first line says, or under the size and overrides given, or under all sizes."""
    asked = command(text)
    size = size or asked.size
    settings = dict(asked.overrides) | overrides
    source = Source(name, text)
    return check_all(source, OPS, settings) if size is None else check(source, OPS, size, settings)


def mistakes(text: str, name: str = "spec.weft", size: str | None = None, **overrides: object) -> tuple[SpecError, ...]:
    result = checked(text, name, size, **overrides)
    if command(text).name == "generate" and result.checked is not None:
        model = result.checked.model
        found = check_generates(model, model.outputs[0][1], model.inputs)
        return () if found is None else (found,)
    return result.problems.errors


def codes(text: str, **settings: object) -> list[str]:
    """The codes of a text's mistakes, in their order."""
    return [error.code for error in mistakes(text, **settings)]  # type: ignore[arg-type]


def rendered(found: tuple[SpecError, ...]) -> str:
    return "\n\n".join(render(error.describe(), color=False) for error in found) + "\n"
