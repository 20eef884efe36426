"""E6xx: `generate` programs."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span


@record
class BadEvent(SpecError, code="E601"):
    """What a `generate` program waits for is one token: `on token == N`, with a number of the vocabulary.

    Wrong:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 16:
                append(3)
    Right:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 15:
                append(3)
    """

    what: str
    help: str | None = None
    first: Span | None = None

    def describe(self) -> Diagnostic:
        labels = () if self.first is None else (Label(self.first, "first here"),)
        return self.say(self.what, "", *labels, help=self.help)


@record
class BadRows(SpecError, code="E602"):
    """A model that is called, or rows that are appended, in a `generate` program: what is given makes no row.

    Inputs along one axis are given together, one row of it for each request: a token is `append(N)`, a picture all
    that an input has for each picture. Which rows of the text they are follows from the axis.

    Wrong:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab, loud: real[seq]) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim) * loud, dim -> vocab)
        generate g():
            on token == 3:
                append(tokens=4)
    Right:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab, loud: real[seq]) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim) * loud, dim -> vocab)
        generate g():
            on token == 3:
                append(tokens=4, loud=0.5)
    """

    what: str
    help: str | None = None
    declared: Span | None = None

    def describe(self) -> Diagnostic:
        labels = () if self.declared is None else (Label(self.declared, "declared here"),)
        return self.say(self.what, "", *labels, help=self.help)


@record
class TurnChangesType(SpecError, code="E603"):
    """A loop of a `generate` program leaves a name with another type than it began with.

    Such a loop is run, not unrolled: every turn begins with what the one before it left, so a name that is bound
    before the loop and in it has one type.

    Wrong:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 3:
                total = normal()
                for i in 0 .. 4:
                    total = normal(per=dim)
                append(4)
    Right:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 3:
                total = normal()
                for i in 0 .. 4:
                    total = total + normal()
                append(4)
    """

    name: str
    before: str
    after: str

    def describe(self) -> Diagnostic:
        help = f"bind `{self.name}` before the loop to a value of the type that a turn leaves"
        return self.say(
            f"`{self.name}` is `{self.before}` when a turn begins, and `{self.after}` when it ends", "", help=help
        )


@record
class WeightInGenerate(SpecError, code="E604"):
    """A `generate` program makes a weight, which nothing would train.

    Weights belong to models and objectives; a `generate` program calls the model and computes with what it gives.

    Wrong:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 3:
                x = linear(m(tokens=4), vocab -> dim)
                append(3)
    Right:
        size dim = 8
        size vocab = 16
        axis seq
        model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
            return linear(embed(tokens, vocab -> dim), dim -> vocab)
        generate g():
            on token == 3:
                append(3)
    """

    path: str

    def describe(self) -> Diagnostic:
        return self.say(f"a `generate` program makes no weights; this is `{self.path}`", "nothing would train it")


@record
class NothingToGoOn(SpecError, code="E605"):
    """The last rows that an event of a `generate` program appends score no token, so that the text cannot go on.

    A picture is followed by a token, such as the one that ends pictures.

    Wrong:
        size dim = 8
        size vocab = 16
        enum modality: text, image
        axis seq
        axis word = seq where kind == text
        axis place = seq where kind == image
        model m(kind: modality[seq], ids: id[word] in vocab, seen: real[place, dim]):
            x = join((embed(ids, vocab -> dim), seen), (word, place) -> seq)
            return linear(take(x, seq -> word), dim -> vocab)
        generate g():
            on token == 3:
                append(seen=normal(per=dim))
    Right:
        size dim = 8
        size vocab = 16
        enum modality: text, image
        axis seq
        axis word = seq where kind == text
        axis place = seq where kind == image
        model m(kind: modality[seq], ids: id[word] in vocab, seen: real[place, dim]):
            x = join((embed(ids, vocab -> dim), seen), (word, place) -> seq)
            return linear(take(x, seq -> word), dim -> vocab)
        generate g():
            on token == 3:
                append(seen=normal(per=dim))
                append(4)
    """

    axis: str

    def describe(self) -> Diagnostic:
        what = f"the last row that is appended is one of {self.axis}, which scores no token"
        return self.say(what, "", help="append the token that ends it: `append(N)`")
