"""E2xx: axes, levels and kinds of values: what every operator asks of its operands."""

from __future__ import annotations

from collections.abc import Hashable

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span, declaration_start


def listed(names: tuple[str, ...]) -> str:
    """`dim`, `heads and dim`, `a, b and c`, `no axes`."""
    if not names:
        return "no axes"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@record
class KindMismatch(SpecError, code="E201"):
    """An operator wants another kind of value: real, int, id, flag or tag.

    Kinds are never converted in silence. `real(x)` makes a real of an int, an id or a flag, `int(x)` an int of a
    real, an id or a flag; a comparison makes a flag. Written numbers fit where they are used.

    Wrong:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x * position(seq)
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x * real(position(seq))
    """

    operator: str
    found: str
    wanted: str
    other: Span | None = None
    other_found: str = ""
    repair: str | None = None

    def describe(self) -> Diagnostic:
        secondary = () if self.other is None else (Label(self.other, f"this is {self.other_found}"),)
        return self.say(
            f"`{self.operator}` wants {self.wanted}, found {self.found}",
            f"this is {self.found}",
            *secondary,
            help=self.repair,
        )


@record
class NotContained(SpecError, code="E202"):
    """Two operands of a row-by-row operator each have a static axis that the other lacks.

    Joining them would make every pair of entries, which is seldom meant. Rename the axis if the two are the same
    thing, reduce one away, or write `outer(a, b)` (a product) where all pairs are meant.

    Wrong:
        size a = 2
        size b = 3
        axis seq
        model m(x: real[seq, a], y: real[seq, b]) -> real[seq, a, b]:
            return x * y
    Right:
        size a = 2
        size b = 3
        axis seq
        model m(x: real[seq, a], y: real[seq, b]) -> real[seq, a, b]:
            return outer(x, y)
    """

    operator: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    left_at: Span
    right_at: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"neither operand of `{self.operator}` has all axes of the other: {listed(self.left)}, and "
            f"{listed(self.right)}",
            "",
            Label(self.left_at, f"has {listed(self.left)}"),
            Label(self.right_at, f"has {listed(self.right)}"),
            help="where all pairs are meant: `outer(a, b)`",
        )


@record
class SidewaysLevels(SpecError, code="E203"):
    """Two values live along ordered axes of which neither owns the other.

    A value of an example, or of an owner such as a picture, meets the values below it by itself. Along two separate
    axes there is no row that belongs to a row. Reduce one of them (`mean(y, over=seq)`), go through a cut (`pool`,
    `spread`) or a selection (`take`, `join`), or let one attend to the other.

    Wrong:
        axis ask
        axis answer
        model m(x: real[ask], y: real[answer]) -> real[ask]:
            return x + y
    Right:
        axis ask
        axis answer
        model m(x: real[ask], y: real[answer]) -> real[ask]:
            return x + mean(y, over=answer)
    """

    operator: str
    left: str
    right: str
    left_at: Span
    right_at: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.operator}` meets a value along {self.left} with one along {self.right}; neither axis owns the "
            f"other",
            "",
            Label(self.left_at, f"along {self.left}"),
            Label(self.right_at, f"along {self.right}"),
            help=(
                f"reduce one of them, such as `mean(.., over={self.right})`, or use `pool`, `spread`, `take` or "
                f"`attend`"
            ),
        )


@record
class AxisMissing(SpecError, code="E204"):
    """An operator names an axis that its operand does not have.

    Wrong:
        size dim = 4
        size ffn = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, ffn -> dim)
    Right:
        size dim = 4
        size ffn = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, ffn]:
            return linear(x, dim -> ffn)
    """

    axis: str
    found: tuple[str, ...]
    value_at: Span
    same_length: str | None = None

    @property
    def cause(self) -> tuple[Hashable, ...] | None:
        # A name that lacks an axis lacks it wherever it is read.
        name = self.value_at.text
        place = (self.at.source.name, name, declaration_start(self.at))
        return ("no such axis", self.axis, self.found, *place) if name.isidentifier() else None

    def describe(self) -> Diagnostic:
        repair = None
        if self.same_length:
            change = f"`rename(x, {self.same_length} -> {self.axis})`"
            repair = f"{self.same_length} has the same length; if it is the same thing: {change}"
        return self.say(
            f"no axis {self.axis} here: the operand has {listed(self.found)}",
            f"{self.axis} is named here",
            Label(self.value_at, f"has {listed(self.found)}"),
            help=repair,
        )


@record
class AxisTwice(SpecError, code="E205"):
    """The result would have one axis twice.

    Axes are told apart by name, so no value has a name twice. Declare a second name of the same length: `axis out =
    dim`.

    Wrong:
        size dim = 4
        size heads = 2
        axis seq
        model m(x: real[seq, heads, dim]) -> real[seq, heads, dim]:
            return linear(x, dim -> heads)
    Right:
        size dim = 4
        size heads = 2
        axis seq
        axis mixed = heads
        model m(x: real[seq, heads, dim]) -> real[seq, heads, mixed]:
            return linear(x, dim -> mixed)
    """

    operator: str
    axis: str
    value_at: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"the result of `{self.operator}` would have the axis {self.axis} twice",
            f"adds {self.axis}",
            Label(self.value_at, f"has {self.axis} already"),
            help=f"declare a second name: `axis other = {self.axis}`",
        )


@record
class OverNeeded(SpecError, code="E206"):
    """The axis to reduce must be named, because there is not exactly one static axis.

    Wrong:
        size a = 2
        size b = 3
        axis seq
        model m(x: real[seq, a, b]) -> real[seq, a]:
            return sum(x)
    Right:
        size a = 2
        size b = 3
        axis seq
        model m(x: real[seq, a, b]) -> real[seq, a]:
            return sum(x, over=b)
    """

    operator: str
    found: tuple[str, ...]

    def describe(self) -> Diagnostic:
        count = "no static axis" if not self.found else f"the static axes {listed(self.found)}"
        return self.say(
            f"`{self.operator}` needs `over=`: its operand has {count}", "", help="name the axis: `over=..`"
        )


@record
class MissingRows(SpecError, code="E207"):
    """A value whose last rows are missing meets an operator that needs them all.

    `next` has nothing to say about the last rows. Row-by-row operators, `take` and `join` pass missing rows on,
    reductions and `loss` leave them out. Everywhere else say what stands in their place: `or(x, 0)`.

    Wrong:
        size dim = 4
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(next(x), dim -> dim)
    Right:
        size dim = 4
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(or(next(x), 0), dim -> dim)
    """

    operator: str
    why: str = ""

    def describe(self) -> Diagnostic:
        because = f": {self.why}" if self.why else ""
        return self.say(
            f"`{self.operator}` cannot take missing rows{because}",
            "some rows are missing",
            help="fill them: `or(x, 0)`",
        )


@record
class LengthMismatch(SpecError, code="E208"):
    """Two axes, or groups of axes, must have one length and do not.

    For `rename` the lengths must be equal as formulas, so that they are equal at every size; where they are equal
    only for the sizes in use, write `rename(x, a -> b, checked)`.

    Wrong:
        size dim = 6
        size half = 2
        axis pair = 2
        axis seq
        model m(x: real[seq, dim]) -> real[seq, pair, half]:
            return unflatten(x, dim -> (pair, half))
    Right:
        size dim = 6
        axis pair = 2
        axis half = dim / 2
        axis seq
        model m(x: real[seq, dim]) -> real[seq, pair, half]:
            return unflatten(x, dim -> (pair, half))
    """

    operator: str
    left: tuple[str, ...]
    left_length: str
    right: tuple[str, ...]
    right_length: str
    repair: str | None = None

    def describe(self) -> Diagnostic:
        left, right = (
            f"{listed(names)} {'have together' if len(names) > 1 else 'has'} length {length}"
            for names, length in ((self.left, self.left_length), (self.right, self.right_length))
        )
        return self.say(f"`{self.operator}`: {left}, {right}", "", help=self.repair)


@record
class WrongAxisKind(SpecError, code="E212"):
    """An operator wants a static axis where an ordered one is named, or the other way round.

    Static axes have one length for all examples (a size); ordered axes have a length per example.

    Wrong:
        size dim = 4
        axis seq
        model m(x: real[seq, dim]) -> real[dim]:
            return linear(x, seq -> dim)
    Right:
        size dim = 4
        axis seq
        model m(x: real[seq, dim]) -> real[dim]:
            return mean(x, over=seq)
    """

    operator: str
    axis: str
    wanted: str
    found: str

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.operator}` wants {self.wanted} here; {self.axis} is {self.found}", f"{self.axis} is {self.found}"
        )


@record
class LowerLevel(SpecError, code="E216"):
    """A value has an entry per row where one for the whole example, or for all examples, is wanted.

    Going down the tree of levels is free, going up needs a reduction: `mean(x, over=seq)`.

    Wrong:
        size dim = 4
        axis seq
        model m(x: real[seq, dim], w: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim, weight=w)
    Right:
        size dim = 4
        axis seq
        model m(x: real[seq, dim], w: real[seq, dim]) -> real[seq, dim]:
            return x * w
    """

    operator: str
    level: str
    wanted: str

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.operator}` wants {self.wanted} here, found one {self.level}", f"one {self.level}")


@record
class NotAlong(SpecError, code="E217"):
    """The operand does not live along the ordered axis that the operator works on.

    Wrong:
        size dim = 4
        axis ask
        axis answer
        model m(x: real[ask, dim]) -> real[dim]:
            return mean(x, over=answer)
    Right:
        size dim = 4
        axis ask
        model m(x: real[ask, dim]) -> real[dim]:
            return mean(x, over=ask)
    """

    operator: str
    axis: str
    found: str
    value_at: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.operator}` works along {self.axis}; the operand has one entry {self.found}",
            f"{self.axis} is named here",
            Label(self.value_at, f"one entry {self.found}"),
        )
