"""E4xx: causality. A prediction that may look at what it is compared with, or a decoder that would have to."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span


@record
class Seen:
    """One step of a path: the expression there, its name, and how much of the source its rows may look at."""

    at: Span
    name: str
    sees: str


# A path through many layers repeats itself; the ends say where it enters and where it hurts.
_SHOWN = 6


def _labels(path: tuple[Seen, ...], at: Span) -> tuple[Label, ...]:
    shown = path if len(path) <= _SHOWN else (*path[: _SHOWN // 2], *path[-_SHOWN // 2 :])
    labels: dict[tuple[str, int, int], Label] = {}
    for step in shown:
        if step.at != at:
            labels[step.at.source.name, step.at.start, step.at.end] = Label(
                step.at, f"{step.name} sees {step.sees} here"
            )
    return tuple(labels.values())


@record
class TargetLeak(SpecError, code="E401"):
    """A prediction is compared with a row of the target that it may already have looked at.

    In an objective `next(x, k)` is what has to be predicted: row t is compared with row t+k of x. Whatever it is
    compared with, row by row, may depend on rows of x up to t+k-1 only; otherwise the loss can be driven to nothing by
    copying. The path printed is the shortest along which more of x enters. Usual repairs: a causal mask in `attend`;
    `previous(..)` for values that are fed back; `before` or `closed` instead of `own` for what is spread from segments.
    `shift(x, -1)` is `next` without the claim.

    Wrong:
        size dim = 8
        size vocab = 10
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            x = embed(tokens, vocab -> dim) as embed
            x = attend(x, x, x, over=dim, along=seq)
            return linear(x, dim -> vocab) as head
        objective o(tokens: id[seq] in vocab):
            loss text = cross_entropy(m(tokens), next(tokens))
    Right:
        size dim = 8
        size vocab = 10
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            x = embed(tokens, vocab -> dim) as embed
            x = attend(x, x, x, over=dim, along=seq, mask=causal)
            return linear(x, dim -> vocab) as head
        objective o(tokens: id[seq] in vocab):
            loss text = cross_entropy(m(tokens), next(tokens))
    """

    operand: str
    source: str
    sees: str
    may_see: str
    target_at: Span
    path: tuple[Seen, ...]

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.operand} sees {self.sees} of {self.source}, but has to predict the row after {self.may_see}",
            f"{self.operand} sees {self.sees} here, and may see {self.may_see}",
            *_labels(self.path, self.at),
            Label(self.target_at, f"claims that {self.source} is predicted from rows up to {self.may_see}"),
            help="mask=causal where rows attend, previous(..) for what is fed back, shift(..) where nothing is claimed",
        )


@record
class NotGenerated(SpecError, code="E402"):
    """A model cannot be run row by row, because its result at a row depends on rows that are not there yet.

    Generating appends one row at a time, so the result at row t may depend on rows of the input up to t, and on all
    rows of a prompt. The path printed is the shortest along which later rows enter.

    Wrong:
        size dim = 8
        size vocab = 10
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            x = embed(tokens, vocab -> dim) as embed
            x = attend(x, x, x, over=dim, along=seq)
            return linear(x, dim -> vocab) as head
    Right:
        size dim = 8
        size vocab = 10
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            x = embed(tokens, vocab -> dim) as embed
            x = attend(x, x, x, over=dim, along=seq, mask=causal)
            return linear(x, dim -> vocab) as head
    """

    output: str
    source: str
    sees: str
    culprit: str
    path: tuple[Seen, ...]

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.output} cannot be generated row by row: {self.culprit} sees {self.sees} of {self.source}, not t",
            f"{self.culprit} sees {self.sees} here",
            *_labels(self.path, self.at),
            help="mask=causal where rows attend; a prompt that is seen whole is an axis of its own, joined in front",
        )
