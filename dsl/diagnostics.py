"""Mistakes as data: what a diagnostic is, and how errors are collected.

An error class (dsl/errors/) is made where the mistake is seen; `describe` words it; `render.py` prints it. The terminal
text, the JSON form and an editor's form all come from one `Diagnostic`.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import ClassVar

from .record import record
from .source import Span


@record
class Label:
    """A span and what to say beside it. The text may be empty."""

    span: Span
    text: str = ""


@record
class Diagnostic:
    """One mistake, worded. `title` alone must be enough in a log: lower case, no full stop, what is, then what was
    wanted."""

    code: str
    title: str
    primary: Label
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: str = "error"


@record
class SpecError:
    """Base of every mistake a spec can contain.

    A subclass is a frozen dataclass `class UnknownName(SpecError, code="E301")` whose first field
    is `at: Span`. Its docstring is the page `weft explain E301` prints and the error index: one line that says what is
    wrong, a paragraph of cause and
    repair, then `Wrong:` and `Right:` with an indented spec each, which the tests run.
    """

    at: Span

    code: ClassVar[str] = ""
    by_code: ClassVar[dict[str, type[SpecError]]] = {}

    def __init_subclass__(cls, code: str = "", **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if code:
            # A slots dataclass would make the class twice; the second must be of the same name.
            known = SpecError.by_code.get(code)
            assert known is None or known.__name__ == cls.__name__, f"{code} is used twice"
            cls.code = code
            SpecError.by_code[code] = cls

    @property
    def cause(self) -> tuple[Hashable, ...] | None:
        """What is wrong, for mistakes that show wherever one thing is read: of those with one cause, or with one that
        starts with it, the first is told."""
        return None

    def describe(self) -> Diagnostic:
        raise NotImplementedError(type(self).__name__)

    def say(
        self,
        title: str,
        label: str = "",
        *secondary: Label,
        notes: tuple[str, ...] = (),
        help: str | None = None,
    ) -> Diagnostic:
        """A diagnostic of this error, with the primary label at `self.at`."""
        return Diagnostic(self.code, title, Label(self.at, label), secondary, notes, help)

    @classmethod
    def page(cls) -> str:
        """What `weft explain` prints."""
        return inspect.cleandoc(cls.__doc__ or "")


class Mistake(Exception):
    """Carries one SpecError from a rule that cannot go on to the statement that can."""

    def __init__(self, error: SpecError) -> None:
        super().__init__()
        self.error = error

    def __str__(self) -> str:
        # Not in the constructor: most are noted many times over, and wording one searches for near names.
        return self.error.describe().title


class Noted(Exception):
    """Stops a rule whose operand is unknown: the cause has been noted, so nothing more is said."""


class SpecErrors(Exception):
    """A spec with errors, as a library caller meets it: the text is what the terminal would show."""

    def __init__(self, errors: tuple[SpecError, ...], text: str) -> None:
        super().__init__(text)
        self.errors = errors


class Problems:
    """Collects errors over a run, without repeating one: the same class at the same place is reported once."""

    def __init__(self) -> None:
        self._errors: dict[tuple[str, int, str], SpecError] = {}
        self.work = 0  # statements and operations that were gone through to find them, see work.py
        self.built = 0  # those of programs, rather than of counting how large one will be

    def add(self, error: SpecError) -> None:
        self._errors.setdefault((error.at.source.name, error.at.start, error.code), error)

    def __bool__(self) -> bool:
        return bool(self._errors)

    def __len__(self) -> int:
        return len(self._errors)

    @property
    def errors(self) -> tuple[SpecError, ...]:
        """By file, then by position; one for each cause."""
        ordered = [self._errors[key] for key in sorted(self._errors)]
        causes = {error.cause for error in ordered}
        told: set[tuple[Hashable, ...]] = set()
        result: list[SpecError] = []
        for error in ordered:
            cause = error.cause
            if cause is not None:
                cause = next((cause[:n] for n in range(1, len(cause)) if cause[:n] in causes), cause)
                if cause in told:
                    continue
                told.add(cause)
            result.append(error)
        return tuple(result)
