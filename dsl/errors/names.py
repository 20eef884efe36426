"""E3xx: names, sizes, presets, options, files."""

from __future__ import annotations

from dataclasses import dataclass

from ..diagnostics import Diagnostic, Label, SpecError
from ..source import Span
from ..suggest import suggest


def did_you_mean(name: str, candidates: tuple[str, ...]) -> str | None:
    near = suggest(name, candidates)
    return f"did you mean `{near}`?" if near else None


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        notes = (self.reason,) if self.reason else ()
        return self.say(
            f"unknown name `{self.name}`", "not declared", notes=notes, help=did_you_mean(self.name, self.candidates)
        )


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say(
            f"unknown size or option `{self.name}`", "nothing reads it", help=did_you_mean(self.name, self.candidates)
        )


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class SizeNotSet(SpecError, code="E305"):
    """A size is used but no preset, default or override gives it a number.

    Give it in the preset that is compiled, or with a default: `size dim = 64`.

    Wrong:
        size tiny: dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, width]:
            return linear(x, dim -> width)
    Right:
        size tiny: dim = 8, width = 16
        axis seq
        model m(x: real[seq, dim]) -> real[seq, width]:
            return linear(x, dim -> width)
    """

    name: str
    preset: str | None

    def describe(self) -> Diagnostic:
        where = f"in size `{self.preset}`" if self.preset else "and no size was chosen"
        return self.say(
            f"`{self.name}` has no number {where}",
            "used here",
            help=f"set `{self.name}` there, or give it a default: `size {self.name} = 64`",
        )


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say(
            f"the length of `{self.name}` {self.what}", "", help="a length is a whole number; `/` must divide"
        )


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say(
            f"no spec `{self.name}.weft`",
            "looked beside this file and in the shipped specs",
            help=did_you_mean(self.name, self.candidates),
        )


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say("circle of " + " -> ".join(f"`{name}`" for name in self.chain), "closes the circle here")


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say(f"{self.found} cannot be called", "called here")


@dataclass(frozen=True)
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
    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.callee}`: {self.what}", "", help=self.help)


@dataclass(frozen=True)
class WrongArgument(SpecError, code="E312"):
    """An argument is not of the sort its parameter takes.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq]:
            return sum(x, over=3)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq]:
            return sum(x, over=dim)
    """

    parameter: str
    found: str
    wanted: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.parameter}` is {self.found}, not {self.wanted}", f"wanted {self.wanted}", help=self.help
        )


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        notes = (f"fields: {', '.join(self.candidates)}",) if self.candidates else ()
        return self.say(
            f"{self.found} has no field `{self.field}`", "", notes=notes, help=did_you_mean(self.field, self.candidates)
        )


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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

    family: str
    index: str
    members: tuple[str, ...]

    def describe(self) -> Diagnostic:
        known = ", ".join(self.members) or "none yet"
        return self.say(f"`{self.family}` has no member {self.index}", "", notes=(f"members: {known}",))


@dataclass(frozen=True)
class BoundInOneBranch(SpecError, code="E317"):
    """A name is read after an `if` that binds it in one branch only.

    Bind it in both branches, or before the `if`.

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

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.name}` is bound in one branch of an `if` only",
            "read here",
            Label(self.branch, "bound only here"),
            help=f"bind `{self.name}` before the `if`, or in both branches",
        )


@dataclass(frozen=True)
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

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.name}` {self.what}")


@dataclass(frozen=True)
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
