"""E3xx: sizes, presets and options."""

from __future__ import annotations

from collections.abc import Hashable

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span
from ..suggest import suggest
from .names import did_you_mean


@record
class UnknownSize(SpecError, code="E303"):
    """A preset or an override sets a size or option that nothing uses.

    A setting that the spec does not know would be dropped in silence; it is an error instead. A size is known when a
    name in the file reads it, or when it has a default (`size dim = 64`).

    Wrong:
        size tiny: dim = 8, dmi = 9
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    Right:
        size tiny: dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    """

    name: str
    candidates: tuple[str, ...]

    @property
    def cause(self) -> tuple[Hashable, ...] | None:
        # The size that was meant has no number then, which is the same slip.
        near = suggest(self.name, self.candidates)
        return None if near is None else ("size", self.at.source.name, near)

    def describe(self) -> Diagnostic:
        return self.say(
            f"unknown size or option `{self.name}`", "nothing reads it", help=did_you_mean(self.name, self.candidates)
        )


@record
class UnknownPreset(SpecError, code="E304"):
    """The size asked for is not among the spec's presets.

    Presets are the named lines `size tiny: ...`. Choose one of them.

    Wrong:
        # weft check spec.weft --size small
        size tiny: dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    Right:
        # weft check spec.weft --size tiny
        size tiny: dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    """

    name: str
    presets: tuple[str, ...]

    def describe(self) -> Diagnostic:
        known = ", ".join(self.presets) or "none"
        return self.say(
            f"no size `{self.name}`",
            "",
            notes=(f"sizes of this spec: {known}",),
            help=did_you_mean(self.name, self.presets),
        )


@record
class SizeNotSet(SpecError, code="E305"):
    """A size is used but no preset, default or override gives it a number.

    Give it in the preset that is compiled, or with a default: `size dim = 64`.

    Wrong:
        size tiny: dim = 8
        size large: dim = 64, width = 256
        axis seq
        model m(x: real[seq, dim]) -> real[seq, width]:
            return linear(x, dim -> width)
    Right:
        size tiny: dim = 8, width = 16
        size large: dim = 64, width = 256
        axis seq
        model m(x: real[seq, dim]) -> real[seq, width]:
            return linear(x, dim -> width)
    """

    name: str
    preset: str | None
    presets: tuple[str, ...] = ()
    preset_at: Span | None = None

    @property
    def cause(self) -> tuple[Hashable, ...]:
        return ("size", (self.preset_at or self.at).source.name, self.name)

    def describe(self) -> Diagnostic:
        default = f"give it a default: `size {self.name} = 64`"
        if self.preset_at is not None:
            missing = Label(self.preset_at, f"does not set `{self.name}`")
            help = f"set `{self.name}` there, or {default}"
            return self.say(f"`{self.name}` has no number in size `{self.preset}`", "used here", missing, help=help)
        if self.preset is not None:
            title = f"`{self.name}` has no number: its file has no size `{self.preset}`"
            help = f"set it where the file is used: `use file({self.name} = ..)`, or {default}"
            return self.say(title, "used here", help=help)
        help = f"choose one of the sizes {', '.join(self.presets)}, or {default}"
        return self.say(f"`{self.name}` has no number, as no size was chosen", "used here", help=help)


@record
class BadSize(SpecError, code="E306"):
    """A size or an axis length is not a whole number from 0 to 2^48.

    `/` must divide exactly; use `//` to round down. Lengths are counted in entries, so they are never negative.

    Wrong:
        size dim = 10
        axis half = dim / 4
        axis seq
        model m(x: real[seq, dim]) -> real[seq, half]:
            return linear(x, dim -> half)
    Right:
        size dim = 12
        axis half = dim / 4
        axis seq
        model m(x: real[seq, dim]) -> real[seq, half]:
            return linear(x, dim -> half)
    """

    name: str
    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"the length of `{self.name}` {self.what}", "", help=self.help)


@record
class WrongOption(SpecError, code="E309"):
    """An option, size or constant is given a value of the wrong sort.

    An option of an enum takes one of its members, `real` takes a number, `int` a whole number, `flag` true or false.

    Wrong:
        enum rule: space, entropy
        option cut: rule = spaces
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x
    Right:
        enum rule: space, entropy
        option cut: rule = space
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x
    """

    name: str
    found: str
    wanted: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.name}` is {self.found}, not {self.wanted}", f"wanted {self.wanted}", help=self.help)
