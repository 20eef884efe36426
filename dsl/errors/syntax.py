"""E1xx: what the parser cannot read."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span


@record
class UnexpectedText(SpecError, code="E101"):
    """Something else was wanted here.

    The text up to this place could be read; what follows does not fit. The message says what may stand here.

    Wrong:
        axis seq
        model m(x: real[seq]) -> real[seq]
            return x
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x
    """

    found: str
    wanted: str
    after: str | None = None
    within: Span | None = None
    help: str | None = None

    def describe(self) -> Diagnostic:
        where = f" after {self.after}" if self.after else ""
        secondary = (Label(self.within, "in this bracket"),) if self.within else ()
        title = f"found {self.found}{where}, expected {self.wanted}"
        return self.say(title, f"expected {self.wanted}", *secondary, help=self.help)


@record
class Tab(SpecError, code="E102"):
    """A tab outside of a comment or string.

    How wide a tab is depends on the editor, so indentation by tabs cannot be read safely. Use four spaces.
    """

    def describe(self) -> Diagnostic:
        return self.say("tabs are not allowed", "a tab", help="indent with four spaces")


@record
class UnclosedBracket(SpecError, code="E103"):
    """A bracket is opened and never closed.

    A line break inside brackets does not end the statement, so everything below was read as part of it.

    Wrong:
        axis seq
        model m(x: real[seq] -> real[seq]:
            return x
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return x
    """

    bracket: str
    noticed: Span | None = None

    def describe(self) -> Diagnostic:
        secondary = (Label(self.noticed, "still open here"),) if self.noticed else ()
        return self.say(f"`{self.bracket}` is never closed", "opened here", *secondary)


@record
class BracketMismatch(SpecError, code="E104"):
    """A closing bracket of the other kind, or without an opening one.

    Round brackets hold arguments and groups, square brackets hold axes and indices.

    Wrong:
        size dim = (8 + 8]
    Right:
        size dim = (8 + 8)
    """

    found: str
    opening: Span | None

    def describe(self) -> Diagnostic:
        if self.opening is None:
            return self.say(f"`{self.found}` closes nothing", "no bracket is open here")
        return self.say(
            f"`{self.found}` does not close `{self.opening.text}`",
            "closed by the wrong bracket",
            Label(self.opening, "opened here"),
        )


@record
class BadIndentation(SpecError, code="E105"):
    """The indentation of a line fits no line above it.

    Declarations start at the left edge. The lines of a body are indented alike, and more than the line with the `:`.

    Wrong:
        axis seq
        model m(x: real[seq]) -> real[seq]:
                y = x
            return y
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            y = x
            return y
    """

    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", help=self.help)


@record
class UnknownCharacter(SpecError, code="E106"):
    """A character that has no meaning in a spec.

    Names are ASCII letters, digits and underscores. Comments and strings may hold any visible character.

    Wrong:
        size dim = 8 % 3
    Right:
        size dim = 8 mod 3
    """

    found: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"unexpected character {self.found}", "", help=self.help)


@record
class ReservedWord(SpecError, code="E107"):
    """A word of the language stands where a name is wanted.

    Most words of the language may also be names. These may not: `and`, `or`, `not`, `mod`, `in`, `if`, `elif`,
    `else`, `for`, `return`. Choose another name.

    Wrong:
        size mod = 3
    Right:
        size modulus = 3
    """

    word: str

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.word}` is a word of the language and cannot be a name",
            "a name is wanted here",
            help=f"choose another name, such as `{self.word}_`",
        )


@record
class UnterminatedString(SpecError, code="E108"):
    """A string or docstring has no end.

    A string ends on the line it starts on. A docstring starts and ends with three double quotes.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        weights huggingface:
            config "hidden_size = dim
            tensor "head" = head.weight
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        weights huggingface:
            config "hidden_size" = dim
            tensor "head" = head.weight
    """

    docstring: bool

    def describe(self) -> Diagnostic:
        if self.docstring:
            return self.say("the docstring is never closed", "opened here", help='end it with `"""`')
        return self.say("the string is never closed", "opened here", help='end it with `"` on the same line')


@record
class MalformedNumber(SpecError, code="E109"):
    """A number that cannot be read.

    `32`, `50_000`, `0.1`, `5e5` and `1e-6` are numbers. Digits are needed on both sides of a point, and underscores
    stand between digits.

    Wrong:
        size dim = 12x
    Right:
        size dim = 12
    """

    found: str
    reason: str

    def describe(self) -> Diagnostic:
        return self.say(f"malformed number `{self.found}`", self.reason)


@record
class TooDeep(SpecError, code="E110"):
    """Constructs are nested too deeply.

    Give inner parts names of their own: bind them first, then use the name.
    """

    limit: int

    def describe(self) -> Diagnostic:
        return self.say(f"nested more than {self.limit} levels deep", "here", help="bind an inner part to a name first")


@record
class HiddenCharacter(SpecError, code="E111"):
    """A character that cannot be seen, or that changes the direction of the text around it.

    Such characters make a spec read differently from what it means, so they are refused everywhere, comments included.
    """

    code_point: int

    def describe(self) -> Diagnostic:
        help = "a line ends with a line feed, with or without this before it" if self.code_point == 13 else "delete it"
        return self.say(f"hidden character U+{self.code_point:04X}", "here", help=help)


@record
class BadTarget(SpecError, code="E112"):
    """The left side of `=` or `<-` cannot be bound.

    A binding names a value: `x = ...`, several names at once: `q, k = ...`, or a member of a family: `skip[i] = ...`.

    Wrong:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            x + 1 = x
            return x
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            x = x + 1
            return x
    """

    def describe(self) -> Diagnostic:
        return self.say(
            f"cannot bind to `{_short(self.at)}`",
            "not a name",
            help="bind to `name`, to `name, name` or to `name[i]`",
        )


@record
class BadLabel(SpecError, code="E113"):
    """`as` follows something that is not a call.

    `as` names the weights that a call creates, so it stands right after a call.

    Wrong:
        axis seq
        size dim = 8
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return (x + x) as twice
    Right:
        axis seq
        size dim = 8
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as twice
    """

    def describe(self) -> Diagnostic:
        return self.say(f"`as` must follow a call, not `{_short(self.at)}`", "not a call")


@record
class BadMapping(SpecError, code="E114"):
    """A side of `->` is not an axis or a list of axes.

    Each side of a mapping is one name or one list in round brackets.

    Wrong:
        axis seq
        size dim = 8
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> 2 * dim)
    Right:
        axis seq
        size dim = 8
        axis wide = 2 * dim
        model m(x: real[seq, dim]) -> real[seq, wide]:
            return linear(x, dim -> wide)
    """

    help: str = "declare an axis, and name it here"

    def describe(self) -> Diagnostic:
        title = "each side of `->` is one name or one list in brackets"
        return self.say(title, f"`{_short(self.at)}` is neither", help=self.help)


@record
class BadDeclaration(SpecError, code="E115"):
    """A part of a declaration that must be a name is something else, or has the wrong word.

    Wrong:
        size classes = 10
        model m(label: id in classes or nothing) -> real:
            return 1.0
    Right:
        size classes = 10
        model m(label: id in classes or none) -> real:
            return 1.0
    """

    what: str

    def describe(self) -> Diagnostic:
        return self.say(self.what, "")


@record
class NotADeclaration(SpecError, code="E116"):
    """A line at the left edge does not start a declaration.

    A file is a list of declarations. Statements stand in the body of a `model`, `block`, `objective`, `hook`,
    `generate` or `recipe`, indented.

    Wrong:
        bloc layer(x: real) -> real:
            return x
    Right:
        block layer(x: real) -> real:
            return x
    """

    found: str
    near: str | None
    misplaced: bool

    def describe(self) -> Diagnostic:
        if self.near:
            return self.say(f"{self.found} does not start a declaration", "", help=f"did you mean `{self.near}`?")
        if self.misplaced:
            return self.say(
                f"{self.found} does not start a declaration",
                "a statement at the left edge",
                help="indent it into the body of the `model` or `block` it belongs to",
            )
        words = "`use`, `size`, `option`, `axis`, `block`, `model`, `objective`, ..."
        return self.say(f"{self.found} does not start a declaration", f"expected one of {words}")


def _short(span: Span) -> str:
    text = " ".join(span.text.split())
    return text if len(text) <= 40 else text[:37] + "..."
