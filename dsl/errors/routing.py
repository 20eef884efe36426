"""E28x: arms of `match` and `routed by`, and axes selected by a tag."""

from __future__ import annotations

from collections.abc import Hashable

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span
from .axes import listed


@record
class NotATag(SpecError, code="E281"):
    """`match` and `routed by` choose by a tag: a value of an `enum`, one per row or one per example.

    A choice that is made when the spec is compiled (an option, a loop variable) is an `if`. A choice between numbers
    by a flag is `where(c, a, b)`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim], loud: flag[seq]) -> real[seq, dim]:
            routed by loud:
                x = linear(x, dim -> dim)
            return x
    Right:
        size dim = 8
        enum level: quiet, loud
        axis seq
        model m(x: real[seq, dim], kind: level[seq]) -> real[seq, dim]:
            routed by kind:
                x = linear(x, dim -> dim)
            return x
    """

    word: str
    found: str
    repair: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.word}` wants a tag per row or per example, found {self.found}", help=self.repair)


@record
class ArmMissing(SpecError, code="E282"):
    """A `match` has no arm for a tag.

    Every tag has exactly one arm, and there is no default: a tag that is added to an enum shows every place that has
    to say what it means. `text, image:` is one arm for both.

    Wrong:
        size dim = 8
        enum modality: text, image, sound
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            match kind:
                text:
                    y = linear(x, dim -> dim)
                image:
                    y = x
            return y
    Right:
        size dim = 8
        enum modality: text, image, sound
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            match kind:
                text:
                    y = linear(x, dim -> dim)
                image, sound:
                    y = x
            return y
    """

    tags: tuple[str, ...]
    enum: str
    declared: Span

    def describe(self) -> Diagnostic:
        missing = listed(tuple(f"`{tag}`" for tag in self.tags))
        return self.say(
            f"no arm for {missing} of the enum `{self.enum}`",
            f"{missing} {'is' if len(self.tags) == 1 else 'are'} missing",
            Label(self.declared, "declared here"),
            help=f"add an arm: `{', '.join(self.tags)}:`",
        )


@record
class BadArm(SpecError, code="E283"):
    """An arm of a `match` names what is no tag of its enum, or a tag that an earlier arm has.

    Wrong:
        size dim = 8
        enum modality: text, image
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            match kind:
                text:
                    y = linear(x, dim -> dim)
                image, text:
                    y = x
            return y
    Right:
        size dim = 8
        enum modality: text, image
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            match kind:
                text:
                    y = linear(x, dim -> dim)
                image:
                    y = x
            return y
    """

    what: str
    first: Span | None = None
    repair: str | None = None

    def describe(self) -> Diagnostic:
        labels = () if self.first is None else (Label(self.first, "the first one"),)
        return self.say(self.what, "", *labels, help=self.repair)


@record
class NotRowWise(SpecError, code="E284"):
    """Inside an arm for a tag per row, an operator reads other rows.

    An arm runs on the rows that have its tag; rows of other tags are not there. So only operators that work row by row
    have a meaning in it: `attend`, `previous`, `pool` and reductions over the rows stand between two `routed by`
    statements, where all rows are. What is to see the rows of one tag alone runs along a selected axis.

    Wrong:
        size dim = 8
        enum modality: text, image
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            routed by kind:
                q = linear(x, dim -> dim)
                y = attend(q, q, q, over=dim, along=seq)
            return y
    Right:
        size dim = 8
        enum modality: text, image
        axis seq
        model m(kind: modality[seq], x: real[seq, dim]) -> real[seq, dim]:
            routed by kind:
                q = linear(x, dim -> dim)
            return attend(q, q, q, over=dim, along=seq)
    """

    operator: str
    axis: str
    tag: str
    arms: Span
    other: str | None = None

    @property
    def cause(self) -> tuple[Hashable, ...]:
        # Each arm of a `routed by` meets it again.
        return ("row-wise", self.at.source.name, self.at.start, self.arms.start)

    def describe(self) -> Diagnostic:
        label = Label(self.arms, f"an arm runs on the rows of {self.axis} that have its tag")
        if self.other is not None:
            return self.say(
                f"`{self.operator}` makes rows of {self.other} in an arm for rows of {self.axis}",
                f"rows of {self.other}",
                label,
                help=f"move it out of the arms of `{self.tag}`, and read its result there",
            )
        return self.say(
            f"`{self.operator}` reads other rows of {self.axis} inside an arm for the tag of a row",
            "rows of other tags are not there",
            label,
            help=f"end the arms of `{self.tag}` before it, and begin new ones after it",
        )


@record
class NotSelected(SpecError, code="E285"):
    """The tag that selects the rows of an axis is not to be found, or is another one than before.

    `axis word = seq where kind == text` selects by what is called `kind` where the axis is used: a parameter or a
    value with one tag per row of seq. In one program it is one value.

    Wrong:
        size dim = 8
        enum modality: text, image
        axis seq
        axis word = seq where kind == text
        model m(x: real[seq, dim]) -> real[word, dim]:
            return take(x, seq -> word)
    Right:
        size dim = 8
        enum modality: text, image
        axis seq
        axis word = seq where kind == text
        model m(x: real[seq, dim], kind: modality[seq]) -> real[word, dim]:
            return take(x, seq -> word)
    """

    axis: str
    tag: str
    found: str
    declared: Span
    first: Span | None = None
    repair: str | None = None

    def describe(self) -> Diagnostic:
        labels = [Label(self.declared, "declared here")]
        if self.first is not None:
            labels.append(Label(self.first, "the tag of the first use"))
        return self.say(
            f"the rows of {self.axis} are selected by `{self.tag}`, which is {self.found} here",
            f"uses {self.axis}",
            *labels,
            help=self.repair,
        )


@record
class NotCovered(SpecError, code="E286"):
    """`join` puts rows back in their places and needs all of them: one part for each tag.

    Wrong:
        size dim = 8
        enum modality: text, image, sound
        axis seq
        axis word = seq where kind == text
        axis spot = seq where kind == image
        model m(kind: modality[seq], x: real[word, dim], y: real[spot, dim]) -> real[seq, dim]:
            return join((x, y), (word, spot) -> seq)
    Right:
        size dim = 8
        enum modality: text, image
        axis seq
        axis word = seq where kind == text
        axis spot = seq where kind == image
        model m(kind: modality[seq], x: real[word, dim], y: real[spot, dim]) -> real[seq, dim]:
            return join((x, y), (word, spot) -> seq)
    """

    whole: str
    tag: str
    lacking: tuple[str, ...]
    twice: str | None = None

    def describe(self) -> Diagnostic:
        if self.twice is not None:
            return self.say(
                f"`join` has two parts for the rows of {self.whole} where {self.tag} is {self.twice}",
                "rows in two parts",
                help="each row is in one part",
            )
        missing = listed(self.lacking)
        return self.say(
            f"`join` has no part for the rows of {self.whole} where {self.tag} is {missing}",
            f"rows of {missing} are missing",
            help=f"declare an axis for them, `axis rest = {self.whole} where {self.tag} == {self.lacking[0]}`, and "
            "give its rows",
        )
