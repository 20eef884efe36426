"""Where a mistake was met: the calls and loop turns around it, told to the reader when they are part of the reason.

A mistake in a block of the standard library is the caller's as a rule, so it is shown at the call in the user's text:

    error[E311]: `static_axis`: real[seq, a, b] has several static axes: a, b
      --> spec.weft:5:12          in this call of `rms_norm`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .diagnostics import Diagnostic, Label, SpecError
from .errors.later import NotBuiltYet
from .errors.names import BoundInOneBranch, CircularUse, MisplacedStatement, NoResult, UnknownName
from .errors.signatures import LiteralAxis
from .errors.sizes import SizeNotSet
from .errors.weights import DuplicatePath
from .program import Frame, Scope
from .source import Source, Span

# These are wrong as written, whatever the block was called with and whichever turn of a loop it was.
TEXTUAL = (
    UnknownName, NotBuiltYet, LiteralAxis, NoResult, MisplacedStatement, BoundInOneBranch, CircularUse, SizeNotSet
)  # fmt: skip


@dataclass(frozen=True)
class Located(SpecError):
    """Another mistake with the place it was met from. `at` is where it is shown."""

    mistake: SpecError
    called: Label | None
    notes: tuple[str, ...]

    @property
    def code(self) -> str:  # type: ignore[override]
        return self.mistake.code

    def describe(self) -> Diagnostic:
        plain = self.mistake.describe()
        if self.called is None:
            return replace(plain, notes=(*plain.notes, *self.notes))
        inner = Label(plain.primary.span, plain.primary.text or "here")
        return replace(
            plain, primary=self.called, secondary=(inner, *plain.secondary), notes=(*plain.notes, *self.notes)
        )


def located(mistake: SpecError, frames: Scope, is_library: Callable[[Source], bool]) -> SpecError:
    """The mistake with what the reader needs of the calls and turns it was met in."""
    if isinstance(mistake, Located):
        return mistake
    called: Label | None = None
    outer = frames
    if is_library(mistake.at.source):
        inner = [index for index, frame in enumerate(frames) if frame.index is None]
        for index in reversed(inner):
            if not is_library(frames[index].span.source):
                called = Label(frames[index].span, f"in this call of `{frames[index].name}`")
                outer = frames[:index]
                break
    if called is None and isinstance(mistake, TEXTUAL):
        return mistake
    notes = _notes(mistake, outer)
    if called is None and not notes:
        return mistake
    at: Span = called.span if called is not None else mistake.at
    return Located(at, mistake, called, notes)


def _notes(mistake: SpecError, frames: Scope) -> tuple[str, ...]:
    """One line: the turns of loops, and the call that led into the block the mistake is in."""
    # The first frame is the model or objective itself.
    calls = [frame for frame in frames[1:] if frame.index is None]
    turns = [f"`{frame.name}` = {frame.index}" for frame in frames[1:] if frame.index is not None]
    if isinstance(mistake, DuplicatePath):
        turns = []  # the path says it
    where: list[str] = []
    if calls:
        call: Frame = calls[-1]
        where.append(f"`{call.name}` as called at {call.span}")
    if turns:
        where.append(", ".join(turns))
    if not where:
        return ()
    return ("first met in " + ", where ".join(where) if calls else "first met where " + where[0],)
