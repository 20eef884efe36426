"""E2xx: what single operators ask: heads, ids, tables, divisions, cuts."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span
from .axes import listed


@record
class GroupMismatch(SpecError, code="E209"):
    """Query heads cannot be shared out evenly over key heads.

    `group=heads -> kv_heads` lets heads / kv_heads query heads read one key head; the division must come out whole.

    Wrong:
        size dim = 4
        size heads = 3
        size kv_heads = 2
        axis seq
        model m(q: real[seq, heads, dim], k: real[seq, kv_heads, dim]) -> real[seq, heads, dim]:
            return attend(q, k, k, over=dim, along=seq, group=heads -> kv_heads)
    Right:
        size dim = 4
        size heads = 4
        size kv_heads = 2
        axis seq
        model m(q: real[seq, heads, dim], k: real[seq, kv_heads, dim]) -> real[seq, heads, dim]:
            return attend(q, k, k, over=dim, along=seq, group=heads -> kv_heads)
    """

    heads: str
    heads_size: int
    groups: str
    groups_size: int

    def describe(self) -> Diagnostic:
        return self.say(
            f"{self.heads} ({self.heads_size}) is not a multiple of {self.groups} ({self.groups_size})",
            f"{self.heads_size} / {self.groups_size} is not whole",
        )


@record
class IdMismatch(SpecError, code="E210"):
    """An id counts entries of another axis than the one it is used on.

    An id may be used where its axis is the one looked up, or where that axis is at least as long. To bring any int
    into range write `wrap(x, axis)`, the remainder by the axis's length.

    Wrong:
        size vocab = 8
        size dim = 4
        size classes = 20
        axis seq
        model m(i: id[seq] in classes) -> real[seq, dim]:
            return embed(i, vocab -> dim)
    Right:
        size vocab = 8
        size dim = 4
        size classes = 20
        axis seq
        model m(i: id[seq] in classes) -> real[seq, dim]:
            return embed(i, classes -> dim)
    """

    operator: str
    found: str
    axis: str
    size: str

    def describe(self) -> Diagnostic:
        return self.say(
            f"`{self.operator}` looks up entries of {self.axis} ({self.size}), found {self.found}",
            f"this is {self.found}",
            help=f"`wrap(x, {self.axis})` brings any int into range",
        )


@record
class WeightAxes(SpecError, code="E211"):
    """A weight handed to an operator must have exactly the axes that the operator's own weight would have.

    They are matched by name, in any order, so one table {vocab, dim} serves `embed(i, vocab -> dim)` and `linear(x,
    dim -> vocab)`.

    Wrong:
        size vocab = 8
        size dim = 4
        size ffn = 6
        axis seq
        shared table: real[vocab, ffn]
        model m(i: id[seq] in vocab) -> real[seq, dim]:
            return embed(i, vocab -> dim, weight=table)
    Right:
        size vocab = 8
        size dim = 4
        axis seq
        shared table: real[vocab, dim]
        model m(i: id[seq] in vocab) -> real[seq, dim]:
            return embed(i, vocab -> dim, weight=table)
    """

    operator: str
    found: tuple[str, ...]
    wanted: tuple[str, ...]
    reason: str = ""

    def describe(self) -> Diagnostic:
        return self.say(
            f"the weight of `{self.operator}` must have {listed(self.wanted)}, found {listed(self.found)}",
            f"has {listed(self.found)}",
            notes=(self.reason,) if self.reason else (),
        )


@record
class InexactDivision(SpecError, code="E213"):
    """`/` of two ints would have to come out whole, which is not known when the spec is checked.

    `//` rounds down; `real(a) / real(b)` divides as reals do.

    Wrong:
        axis seq
        model m(x: real[seq]) -> int[seq]:
            return position(seq) / 2
    Right:
        axis seq
        model m(x: real[seq]) -> int[seq]:
            return position(seq) // 2
    """

    left: str
    right: str

    def describe(self) -> Diagnostic:
        return self.say(
            f"`/` of {self.left} and {self.right} is not known to be whole",
            help="`a // b` rounds down, `real(a) / real(b)` divides",
        )


@record
class AxisUnshared(SpecError, code="E214"):
    """Keys have an axis that queries lack.

    `attend` compares a query with the keys of its own batch entry, so axes of the keys are the contracted ones
    (`over=`), the one attended along (`along=`), the key heads (`group=`), or axes that the queries have too.

    Wrong:
        size dim = 4
        size heads = 4
        size kv_heads = 2
        axis seq
        model m(q: real[seq, heads, dim], k: real[seq, kv_heads, dim]) -> real[seq, heads, dim]:
            return attend(q, k, k, over=dim, along=seq)
    Right:
        size dim = 4
        size heads = 4
        size kv_heads = 2
        axis seq
        model m(q: real[seq, heads, dim], k: real[seq, kv_heads, dim]) -> real[seq, heads, dim]:
            return attend(q, k, k, over=dim, along=seq, group=heads -> kv_heads)
    """

    what: str
    axis: str
    found: tuple[str, ...]
    query_at: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"the {self.what} have the axis {self.axis}, which the queries lack",
            f"has {self.axis}",
            Label(self.query_at, f"has {listed(self.found)}"),
            help=f"if several query heads read one entry of it: `group=heads -> {self.axis}`",
        )


@record
class BadNumber(SpecError, code="E215"):
    """A static number is outside the range that the operator has a meaning for.

    Wrong:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return previous(x, 0)
    Right:
        axis seq
        model m(x: real[seq]) -> real[seq]:
            return previous(x, 1)
    """

    operator: str
    parameter: str
    found: str
    wanted: str

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.parameter}` of `{self.operator}` must be {self.wanted}, found {self.found}")


@record
class NotACut(SpecError, code="E218"):
    """`pool` and `spread` go between an axis and a cut of it.

    A cut is born in `segment seq into patch ends where ..` and declared `axis patch cut from seq`.

    Wrong:
        size dim = 4
        axis seq
        axis other
        model m(x: real[seq, dim]) -> real[other, dim]:
            return pool(x, seq -> other, by=mean)
    Right:
        size dim = 4
        axis seq
        model m(x: real[seq, dim]) -> real[dim]:
            return mean(x, over=seq)
    """

    operator: str
    axis: str
    cut: str
    wanted: str

    def describe(self) -> Diagnostic:
        return self.say(f"`{self.operator}`: {self.cut} is not {self.wanted} {self.axis}", f"{self.cut} is named here")
