"""How much of a text one check goes through, and where it stops: somebody waits for it."""

from __future__ import annotations

from .diagnostics import Problems
from .errors.weights import TooLarge
from .source import Span

# Statements and operations of all programs of a check together: two seconds are enough for as many of any sort. With a
# mistake in one, what is left would mostly tell the same again.
LIMIT = 25_000
LIMIT_WITH_MISTAKES = 20_000
# What is done in the time that one operation is elaborated in:
COPIED = 5  # operations that are copied
COUNTED = 2  # statements that are counted
WALKED = 4  # values whose frontiers are found


class Abandoned(Exception):
    """Ends the elaboration of a program that grows past a limit, or that is large and has a mistake."""


def went_through(problems: Problems, steps: int, at: Span) -> None:
    """Counts so many statements and operations. Raises Abandoned past the limit, which is then a mistake."""
    problems.work += steps
    if problems.work > LIMIT_WITH_MISTAKES and problems:
        raise Abandoned
    if problems.work > LIMIT:
        what = f"the check goes through over {LIMIT:,} operations and statements, which is the limit"
        problems.add(TooLarge(at, what, ("of all presets together: `--size NAME` checks one",)))
        raise Abandoned
