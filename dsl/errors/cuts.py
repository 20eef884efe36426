"""E27x: segments and cuts."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span


@record
class NotSegmented(SpecError, code="E271"):
    """A cut is used before a `segment` statement has made its segments.

    `axis patch cut from seq` says only what the axis is. Where its segments end is decided in each model, by
    `segment seq into patch ends where ..`, in front of everything that groups rows by it.

    Wrong:
        size dim = 4
        axis seq
        axis patch cut from seq
        model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
            p = pool(x, seq -> patch)
            segment seq into patch ends where f
            return spread(p, patch -> seq)
    Right:
        size dim = 4
        axis seq
        axis patch cut from seq
        model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
            segment seq into patch ends where f
            p = pool(x, seq -> patch)
            return spread(p, patch -> seq)
    """

    cut: str
    along: str
    declared: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.cut} has no segments yet",
            f"groups the rows of {self.along} by {self.cut}",
            Label(self.declared, "declared here"),
            help=f"write `segment {self.along} into {self.cut} ends where ..` in front of it",
        )


@record
class SegmentedTwice(SpecError, code="E272"):
    """Two `segment` statements make one cut.

    A model has one set of segments for each axis cut from another. A second set is a second axis.

    Wrong:
        size dim = 4
        axis seq
        axis patch cut from seq
        model m(x: real[seq, dim], f: flag[seq], g: flag[seq]) -> real[seq, dim]:
            segment seq into patch ends where f
            segment seq into patch ends where g
            return spread(pool(x, seq -> patch), patch -> seq)
    Right:
        size dim = 4
        axis seq
        axis patch cut from seq
        axis line cut from seq
        model m(x: real[seq, dim], f: flag[seq], g: flag[seq]) -> real[seq, dim]:
            segment seq into patch ends where f
            segment seq into line ends where g
            return spread(pool(x, seq -> patch), patch -> seq) + spread(pool(x, seq -> line), line -> seq)
    """

    cut: str
    first: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.cut} is segmented twice",
            "the second time here",
            Label(self.first, "first here"),
            help=f"declare a second axis cut from the same one, and use it here in the place of {self.cut}",
        )


@record
class BadSegment(SpecError, code="E273"):
    """A `segment` statement must name an axis and a cut declared from it.

    Wrong:
        size dim = 4
        axis seq
        axis patch
        model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
            segment seq into patch ends where f
            return x
    Right:
        size dim = 4
        axis seq
        axis patch cut from seq
        model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
            segment seq into patch ends where f
            return spread(pool(x, seq -> patch), patch -> seq)
    """

    axis: str
    into: str
    found: str

    def describe(self) -> Diagnostic:
        return self.say(
            f"`segment {self.axis} into {self.into}`: {self.into} is {self.found}",
            f"not a cut of {self.axis}",
            help=f"declare it with `axis {self.into} cut from {self.axis}`",
        )
