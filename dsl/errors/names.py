"""E3xx: names, arguments, files. Sizes and options are in sizes.py."""

from __future__ import annotations

from collections.abc import Hashable

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span, declaration_start
from ..suggest import suggest

# What a reader of other code would write, and what it is here.
ELSEWHERE = {
    "batch": "there is no batch axis: a spec says what happens to one example",
    "batch_size": "there is no batch axis: a spec says what happens to one example",
    "range": "a range is written `0 .. n`, without its end",
    "cat": "`concat` joins values along an axis",
    "matmul": "`dot(a, b, over=A)` contracts two values, `linear(x, A -> B)` makes a weight of its own",
    "einsum": "`dot(a, b, over=A)` contracts two values by name",
    "attention": "`attend(q, k, v, over=D, along=A)` is attention; the projections around it are calls of `linear`",
    "self": "weights are made where they are used: `linear(x, A -> B)`, or `param w: real[A, B]`",
    "torch": "a spec runs no code of the host; operators are called by name: `softmax(x)`",
    "ragged": "an axis with a length for each example has no `=`: `axis seq`",
    "loss": "a loss is stated: `loss name = value`",
    "len": "`length(axis)` is the length in each example, `size(axis)` that of a static axis",
    "shape": "`size(axis)` is the length of a static axis",
    "arange": "`position(seq)` is the number of each row, `index(A)` of each entry of a static axis",
}


def did_you_mean(name: str, candidates: tuple[str, ...]) -> str | None:
    near = suggest(name, candidates)
    return f"did you mean `{near}`?" if near else None


@record
class UnknownName(SpecError, code="E301"):
    """A name that nothing declares.

    Every name is declared: by the file (`axis`, `size`, `block`, ...), by `use`, by a binding above, or by the
    standard library. Correct the spelling, or declare it.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x + y
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim], y: real[seq, dim]) -> real[seq, dim]:
            return x + y
    """

    name: str
    candidates: tuple[str, ...] = ()
    reason: str | None = None
    is_axis: bool = False  # read where an axis is wanted, which only the file declares

    @property
    def cause(self) -> tuple[Hashable, ...]:
        place = () if self.is_axis else (declaration_start(self.at),)
        return ("unknown name", self.at.source.name, self.name, *place)

    def describe(self) -> Diagnostic:
        notes = (self.reason,) if self.reason else ()
        habit = None if self.reason else ELSEWHERE.get(self.name)
        help = did_you_mean(self.name, self.candidates) or habit
        return self.say(f"unknown name `{self.name}`", "not declared", notes=notes, help=help)


@record
class DuplicateName(SpecError, code="E302"):
    """One name is declared twice in a file.

    Axes, sizes, options, enums, blocks, models, masks and shared values share one set of names. Rename one of the two.

    Wrong:
        axis seq
        size seq = 4
    Right:
        axis seq
        size width = 4
    """

    name: str
    first: Span

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.name}` is declared twice", "again here", Label(self.first, "first here"))


@record
class FileNotFound(SpecError, code="E307"):
    """`use` names a file that is neither beside the spec nor among the shipped specs.

    `use llama` reads `llama.weft` from the folder of the spec, then from the specs that come with Weft.

    Wrong:
        use lama
    Right:
        use llama
    """

    name: str
    candidates: tuple[str, ...] = ()
    reason: str | None = None

    def describe(self) -> Diagnostic:
        if self.reason is not None:
            return self.say(f"`{self.name}` cannot be read: {self.reason}", "used here")
        return self.say(
            f"no spec `{self.name}.weft`",
            "looked beside this file and in the shipped specs",
            help=did_you_mean(self.name, self.candidates),
        )


@record
class CircularUse(SpecError, code="E308"):
    """Files use each other in a circle, or a block calls itself.

    A spec has no recursion: blocks are copied into their callers, so a circle would never end.

    Wrong:
        size dim = 8
        axis seq
        block f(x: real[seq, dim]) -> real[seq, dim]:
            return f(x)
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return f(x)
    Right:
        size dim = 8
        axis seq
        block f(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim)
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return f(x)
    """

    chain: tuple[str, ...]
    verb: str = "needs"

    def describe(self) -> Diagnostic:
        circle = " -> ".join(f"`{name}`" for name in self.chain)
        return self.say(f"`{self.chain[0]}` {self.verb} itself: {circle}", "closes the circle here")


@record
class NotCallable(SpecError, code="E310"):
    """Something that is not a block, model or operator is called.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return dim(x)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return silu(x)
    """

    found: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"{self.found} cannot be called", "called here", help=self.help)


@record
class BadArguments(SpecError, code="E311"):
    """A call's arguments do not fit: too many, missing, given twice, or of an unknown name.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return rms_norm(x, epsilon=1e-6)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return rms_norm(x, eps=1e-6)
    """

    callee: str
    what: str  # goes on from the callee: `has no parameter ...`
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.callee}` {self.what}", "", help=self.help)


@record
class WrongArgument(SpecError, code="E312"):
    """An argument is not of the sort its parameter takes.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return rms_norm(x, eps=x)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return rms_norm(x, eps=1e-6)
    """

    parameter: str
    found: str
    wanted: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.parameter}` is {self.found}, not {self.wanted}", f"wanted {self.wanted}", help=self.help
        )


@record
class NoSuchField(SpecError, code="E313"):
    """A field is read that the value does not have.

    Records (results of `topk`, `nearest`, a model's run) have named fields; other values have none.

    Wrong:
        size dim = 8
        size top = 2
        axis seq
        model m(x: real[seq, dim]) -> real[seq, top]:
            return topk(x, over=dim, k=top).scores
    Right:
        size dim = 8
        size top = 2
        axis seq
        model m(x: real[seq, dim]) -> real[seq, top]:
            return topk(x, over=dim, k=top).score
    """

    field: str
    found: str
    candidates: tuple[str, ...] = ()
    why: str | None = None

    def describe(self) -> Diagnostic:
        notes = (f"fields: {', '.join(self.candidates)}",) if self.candidates else ()
        help = self.why or did_you_mean(self.field, self.candidates)
        return self.say(f"{self.found} has no field `{self.field}`", "", notes=notes, help=help)


@record
class NotStatic(SpecError, code="E314"):
    """A static value was wanted where the spec computes a tensor.

    `if`, `for`, family indices, sizes and masks' constants are decided when the spec is checked. For a choice that
    depends on data use `where(condition, a, b)`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            if x > 0:
                x = x * 2
            return x
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return where(x > 0, x * 2, x)
    """

    found: str
    wanted: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.wanted} must be known when the spec is checked; this is {self.found}", "", help=self.help
        )


@record
class StaticArithmetic(SpecError, code="E315"):
    """Arithmetic on static values that has no result: a division by zero, a power out of range, a sum with a mask.

    Wrong:
        size dim = 8
        size zero = 0
        axis half = dim / zero
        axis seq
        model m(x: real[seq, half]) -> real[seq, half]:
            return x
    Right:
        size dim = 8
        axis half = dim / 2
        axis seq
        model m(x: real[seq, half]) -> real[seq, half]:
            return x
    """

    what: str

    def describe(self) -> Diagnostic:
        return self.say(self.what)


@record
class NoSuchMember(SpecError, code="E316"):
    """A family is read at an index that was never bound.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            for i in 0 .. 2:
                skip[i] = x * i
            return skip[2]
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            for i in 0 .. 2:
                skip[i] = x * i
            return skip[1]
    """

    family: str  # in words, such as `the list`
    index: str
    members: tuple[str, ...]

    def describe(self) -> Diagnostic:
        known = ", ".join(self.members) or "none yet"
        return self.say(f"{self.family} has no member {self.index}", "", notes=(f"members: {known}",))


@record
class BoundInOneBranch(SpecError, code="E317"):
    """A name is read after an `if` that binds it in one branch only, or to values of two types.

    Bind it in both branches to values of one type, or before the `if`. The arms of a `match` and of a `routed by` join
    what all of them bind, in the same way.

    Wrong:
        size dim = 8
        option gated: flag = true
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            if gated:
                y = x * 2
            return y
    Right:
        size dim = 8
        option gated: flag = true
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            y = x
            if gated:
                y = x * 2
            return y
    """

    name: str
    branch: Span
    types: tuple[str, str] | None = None
    word: str = "an `if`"

    @property
    def cause(self) -> tuple[Hashable, ...]:
        return ("branches", self.at.source.name, self.name, self.branch.start)

    def describe(self) -> Diagnostic:
        of_if = self.word == "an `if`"
        branches, every = ("two branches", "both branches") if of_if else ("arms", "all arms")
        if self.types is not None:
            one, other = self.types
            return self.say(
                f"`{self.name}` has two types in the {branches} of {self.word}: `{one}` and `{other}`",
                "read here",
                Label(self.branch, "bound here"),
                help=f"a name is visible after {self.word} when {every} give it one type",
            )
        if not of_if:
            return self.say(
                f"`{self.name}` is bound in some arms of {self.word} only",
                "read here",
                Label(self.branch, "bound in arms of this"),
                help=f"bind `{self.name}` in all arms, or read it in the arm that binds it",
            )
        return self.say(
            f"`{self.name}` is bound in one branch of an `if` only",
            "read here",
            Label(self.branch, "bound only here"),
            help=f"bind `{self.name}` before the `if`, or in both branches",
        )


@record
class NoResult(SpecError, code="E318"):
    """A block or model does not return a value, or has statements after its `return`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            y = x * 2
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x * 2
    """

    name: str
    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.name}` {self.what}", "", help=self.help)


@record
class MisplacedStatement(SpecError, code="E319"):
    """A statement stands where it has no meaning: `loss` outside an objective, `return` in one.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            loss = mean(x, over=dim)
            return x
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
        objective o(x: real[seq, dim]):
            loss = mean(m(x), over=dim)
    """

    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", help=self.help)
