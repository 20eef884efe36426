"""E25x: arguments and results that do not fit the signature of a block or model."""

from __future__ import annotations

from collections.abc import Hashable

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span, declaration_start


@record
class LiteralAxis(SpecError, code="E251"):
    """A number stands where an axis is named.

    Axes are known by name: two axes called `2` could not be told apart. Declare one.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, 2, dim]) -> real[seq, 2, dim]:
            return x
    Right:
        size dim = 8
        axis pair = 2
        axis seq
        model m(x: real[seq, pair, dim]) -> real[seq, pair, dim]:
            return x
    """

    number: str

    @property
    def cause(self) -> tuple[Hashable, ...] | None:
        name = self.at.text
        return ("no axis", self.at.source.name, name) if name.isidentifier() else None

    def describe(self) -> Diagnostic:
        written = self.at.text
        if written.isidentifier():
            help = f"`{written}` is the number {self.number}; a size (`size {written} = {self.number}`) is an axis too"
            return self.say(f"`{written}` is a number, not an axis", "", help=help)
        help = f"declare it: `axis part = {self.number}`"
        return self.say(f"`{self.number}` is a number, not an axis", "", help=help)


@record
class NotAnAxis(SpecError, code="E252"):
    """A name that is no axis stands where an axis is wanted.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq]:
            return sum(x, over=x)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq]:
            return sum(x, over=dim)
    """

    found: str
    wanted: str = "an axis or a size"

    @property
    def cause(self) -> tuple[Hashable, ...]:
        return ("no axis", self.at.source.name, self.at.text, self.found, declaration_start(self.at))

    def describe(self) -> Diagnostic:
        return self.say(f"this is {self.found}, not {self.wanted}", f"{self.wanted} is wanted here")


@record
class BadType(SpecError, code="E253"):
    """A type that does not exist, or that cannot stand here.

    Types are `real`, `int`, `flag`, `id in A`, or an enum, each with axes in brackets; parameters of blocks may also
    be `axis`, `axes`, `size`, `number`, `mapping`, `mask`, `block`, `list`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: float[seq, dim]) -> real[seq, dim]:
            return x
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    """

    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", help=self.help)


@record
class ArgumentAxes(SpecError, code="E254"):
    """An argument has other axes than its parameter.

    A block names the axes it takes. A value of a coarser level (one per example) is accepted where no ordered axis is
    written; otherwise the axes must be the same ones, by name and not by length.

    Wrong:
        size dim = 8
        size wide = 8
        axis seq
        block f(x: real[seq, dim]) -> real[seq, dim]:
            return x * 2
        model m(x: real[seq, wide]) -> real[seq, dim]:
            return f(x)
    Right:
        size dim = 8
        size wide = 8
        axis seq
        block f(x: real[seq, dim]) -> real[seq, dim]:
            return x * 2
        model m(x: real[seq, wide]) -> real[seq, dim]:
            return f(linear(x, wide -> dim))
    """

    parameter: str
    found: str
    wanted: str
    declared: Span

    def describe(self) -> Diagnostic:
        found = f"`{self.found}`"
        if found != self.wanted:
            title = f"`{self.parameter}` is {found}, not {self.wanted}"
            return self.say(title, found, Label(self.declared, f"wanted {self.wanted}"))
        # The same words and other axes: names are told apart by where they are declared.
        help = None
        if self.declared.source is not self.at.source:
            help = "a block for other files takes its axes in brackets: `block f[row, width](x: real[row, width])`"
        return self.say(
            f"`{self.parameter}` is {found}, but along other axes than the ones declared there",
            "along axes of this name declared here",
            Label(self.declared, "along axes of its own file or block"),
            help=help,
        )


@record
class ResultAxes(SpecError, code="E255"):
    """A result has other axes or another kind than the signature says.

    Wrong:
        size dim = 8
        size wide = 16
        axis seq
        model m(x: real[seq, dim]) -> real[seq, wide]:
            return x
    Right:
        size dim = 8
        size wide = 16
        axis seq
        model m(x: real[seq, dim]) -> real[seq, wide]:
            return linear(x, dim -> wide)
    """

    name: str
    found: str
    wanted: str
    declared: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.name}` returns {self.found}, not {self.wanted}",
            f"{self.found}",
            Label(self.declared, f"the signature says {self.wanted}"),
        )


@record
class LocalAxisEscapes(SpecError, code="E256"):
    """A block returns a value with an axis that is local to it.

    A local axis is a new axis at every call, so a caller could not name it. Take the axis as a parameter.

    Wrong:
        size dim = 8
        axis seq
        block f(x: real[..]) -> real[..]:
            axis half = 4
            return linear(x, dim -> half)
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(f(x), dim -> dim)
    Right:
        size dim = 8
        axis half = 4
        axis seq
        block f(x: real[..], inner: axis) -> real[..]:
            return linear(x, dim -> inner)
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(f(x, half), half -> dim)
    """

    axis: str
    declared: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"the result has the local axis `{self.axis}`", "returned here", Label(self.declared, "local to this block")
        )
