"""Where a mistake was met: the calls and loop turns around it, told to the reader when they are part of the reason.

A mistake in a block of the standard library is the caller's as a rule, so it is shown at the call in the user's text:

    error[E311]: `static_axis`: real[seq, a, b] has several static axes: a, b
      --> spec.weft:5:12          in this call of `rms_norm`
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

from .diagnostics import Diagnostic, Label, SpecError
from .errors.later import NotBuiltYet
from .errors.names import BoundInOneBranch, CircularUse, MisplacedStatement, NoResult, UnknownName
from .errors.signatures import LiteralAxis, LocalAxisEscapes
from .errors.sizes import SizeNotSet
from .errors.weights import DuplicatePath
from .program import Frame, Scope
from .record import record
from .source import Source, Span

# These are wrong as written, whatever the block was called with and whichever turn of a loop it was.
TEXTUAL = (
    UnknownName, NotBuiltYet, LiteralAxis, NoResult, MisplacedStatement, BoundInOneBranch, CircularUse, SizeNotSet,
    LocalAxisEscapes,
)  # fmt: skip


@record
class Located(SpecError):
    """Another mistake with the place it was met from. `at` is where it is shown."""

    mistake: SpecError
    called: Label | None
    turns: str

    @property
    def code(self) -> str:  # type: ignore[override]
        return self.mistake.code

    @property
    def cause(self) -> tuple[Hashable, ...] | None:
        return self.mistake.cause

    def describe(self) -> Diagnostic:
        plain = self.mistake.describe()
        notes = (*plain.notes, f"first met where {self.turns}") if self.turns else plain.notes
        if self.called is None:
            return replace(plain, notes=notes)
        if self.called.span is not self.at:
            return replace(plain, secondary=(*plain.secondary, self.called), notes=notes)
        inner = Label(plain.primary.span, plain.primary.text or "here")
        return replace(plain, primary=self.called, secondary=(inner, *plain.secondary), notes=notes)


def located(mistake: SpecError, frames: Scope, is_library: Callable[[Source], bool]) -> SpecError:
    """The mistake with what the reader needs of the calls and turns it was met in."""
    if isinstance(mistake, Located) or not frames:
        return mistake
    calls = [index for index, frame in enumerate(frames) if index and frame.index is None and not frame.is_arm]
    if is_library(mistake.at.source):
        for index in reversed(calls):
            if not is_library(frames[index].span.source):
                return Located(frames[index].span, mistake, _called(frames[index]), _turns(frames[:index]))
    if isinstance(mistake, TEXTUAL):
        return mistake
    # The paths of a weight say which turn it is of; so do those of another weight beside it.
    turns = "" if isinstance(mistake, DuplicatePath) else _turns(frames)
    called = _called(frames[calls[-1]]) if calls else None
    if called is None and not turns:
        return mistake
    return Located(mistake.at, mistake, called, turns)


def users_place(at: Span, frames: Scope, is_library: Callable[[Source], bool]) -> Span:
    """A place in the user's text: the place itself, or the call that led into the standard library."""
    if is_library(at.source):
        for frame in reversed(frames):
            if frame.index is None and not frame.is_arm and not is_library(frame.span.source):
                return frame.span
    return at


def _called(frame: Frame) -> Label:
    return Label(frame.span, f"in this call of `{frame.name}`")


def _turns(frames: Scope) -> str:
    return ", ".join(f"`{frame.name}` = {frame.index}" for frame in frames[1:] if frame.index is not None)
