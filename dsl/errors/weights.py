"""E5xx: weights, patterns, objectives, limits."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span
from .names import did_you_mean


@record
class DuplicatePath(SpecError, code="E501"):
    """Two calls make a weight of one path.

    The path names a weight in checkpoints, so it must be unique. It is made of the scope, the `as` label (or the
    binding and the callee), and the weight's own name. Give one of the calls a label.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            x = x + rms_norm(linear(x, dim -> dim))
            x = x + rms_norm(x)
            return x
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            x = x + rms_norm(linear(x, dim -> dim)) as mixed_norm
            x = x + rms_norm(x) as last_norm
            return x
    """

    path: str
    first: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"two weights have the path `{self.path}`",
            "the second is made here",
            Label(self.first, "the first is made here"),
            help="name one of the calls: `... as other_name`; two loops need two variable names",
        )


@record
class SharedShape(SpecError, code="E502"):
    """A weight that several calls share gets another shape in one of them.

    Wrong:
        size dim = 8
        size wide = 16
        axis seq
        block mix[row, width](x: real[row, width]) -> real[row, width]:
            return linear(x, width -> width)
        shared both: mix()
        model m(x: real[seq, dim], y: real[seq, wide]) -> real[seq, wide]:
            return y + linear(both(x), dim -> wide) + both(y)
    Right:
        size dim = 8
        axis seq
        block mix[row, width](x: real[row, width]) -> real[row, width]:
            return linear(x, width -> width)
        shared both: mix()
        model m(x: real[seq, dim], y: real[seq, dim]) -> real[seq, dim]:
            return both(x) + both(y)
    """

    path: str
    had: str
    found: str
    first: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"the shared weight `{self.path}` has shape {self.found} here, not {self.had}",
            f"shape {self.found} in this call",
            Label(self.first, f"shape {self.had} in the call before"),
            help="one shared instance has one set of weights: call it along axes of one length",
        )


@record
class PatternMatchesNothing(SpecError, code="E503"):
    """A pattern of `init`, `freeze`, `optimise` or `trains` matches no weight.

    Patterns are paths: `*` stands for one part, `**` for any number of parts. A pattern also covers everything below
    what it matches. `weft inspect FILE params` lists the paths.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        init heads.weight = zeros
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        init head.weight = zeros
    """

    pattern: str
    paths: tuple[str, ...]

    def describe(self) -> Diagnostic:
        near = did_you_mean(self.pattern, self.paths)
        help = near or "`weft inspect FILE params` lists the paths"
        return self.say(f"`{self.pattern}` matches no weight", "", help=help)


@record
class UnusedShared(SpecError, code="E504"):
    """A shared weight or block is declared and never read.

    A weight no call reaches would be a dead entry in every checkpoint.

    Wrong:
        size dim = 8
        axis seq
        shared table: real[dim]
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x
    Right:
        size dim = 8
        axis seq
        shared table: real[dim]
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return x * table
    """

    name: str

    def describe(self) -> Diagnostic:
        return self.say(f"shared `{self.name}` is never used", "declared here")


@record
class BadDistribution(SpecError, code="E505"):
    """An `init` is not a distribution with numbers.

    The distributions are `zeros`, `ones`, `constant(c)`, `normal(std)`, `trunc_normal(std, cut=k)`,
    `uniform(low, high)`, `eye` and `copy(path)`. Their numbers may use `fan_in` and `fan_out`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        init head.weight = gaussian(0.02)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        init head.weight = normal(0.02)
    """

    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", help=self.help)


@record
class TooLarge(SpecError, code="E506"):
    """The program would be larger than the limits: 200,000 operations, 64 nested calls, 16 axes of one value.

    Loops and blocks are unrolled, so the size is counted before anything is built. Blocks that call blocks twice grow
    as a power of two. A check may go through 25,000 operations and statements, those of all presets together; calls
    of a block and turns of a loop that are like earlier ones count a fifth.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            for i in 0 .. 10_000_000:
                x = x + 1
            return x
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            for i in 0 .. 10:
                x = x + 1
            return x
    """

    what: str
    notes: tuple[str, ...] = ()

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", notes=self.notes)


@record
class BadSetting(SpecError, code="E507"):
    """`optimise` is given a setting it does not know, or one of the wrong sort.

    Settings of `adamw`: `lr`, `betas`, `eps`, `decay`, `clip`. The lines may set these too, `schedule` (`shared`,
    `constant`, `falling`) and, for tables, `lazy` (`true`: rows are updated when they are read next) and with it
    `moments` (`entry`, or `row`: one moment for each row).

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        optimise by adamw(learning_rate=3e-4)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        optimise by adamw(lr=3e-4)
    """

    what: str
    help: str | None = None
    other: Span | None = None  # the `optimise` before this one, or what does not fit
    other_text: str = "the first is here"

    def describe(self) -> Diagnostic:
        labels = () if self.other is None else (Label(self.other, self.other_text),)
        return self.say(self.what, "", *labels, help=self.help)


@record
class NoLoss(SpecError, code="E508"):
    """An objective has no `loss`, or names one twice.

    Each `loss name = value` is the mean of its rows over the whole optimiser step; the total is their sum.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim)
        objective o(x: real[seq, dim]):
            y = m(x)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim)
        objective o(x: real[seq, dim]):
            loss = mean(m(x)^2, over=dim)
    """

    what: str
    first: Span | None = None  # the loss of the same name

    def describe(self) -> Diagnostic:
        if self.first is None:
            return self.say(self.what)
        return self.say(self.what, "again here", Label(self.first, "first here"), help="name it: `loss other = ..`")


@record
class BadWeightMap(SpecError, code="E509"):
    """A line of `weights` does not fit the model: an unknown size, a pattern without weights, axes that do not match.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        weights huggingface:
            config "hidden_size" = dims
            tensor "lm_head.weight" = head.weight
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return linear(x, dim -> dim) as head
        weights huggingface:
            config "hidden_size" = dim
            tensor "lm_head.weight" = head.weight
    """

    what: str
    help: str | None = None
    first: Span | None = None  # the line that says something else

    def describe(self) -> Diagnostic:
        labels = () if self.first is None else (Label(self.first, "first here"),)
        return self.say(self.what, "", *labels, help=self.help)
