"""E26x: masks."""

from __future__ import annotations

from ..diagnostics import Diagnostic, SpecError
from ..record import record


@record
class BadMask(SpecError, code="E261"):
    """What is given as a mask is not a predicate over a query row and a key row.

    A mask is a comparison such as `key(position) <= query(position)`, a named mask
    (`causal`, `window(512)`, `same(picture)`), or masks joined by `and`, `or`, `not`.

    Wrong:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return attend(x, x, x, over=dim, along=seq, mask=x > 0)
    Right:
        size dim = 8
        axis seq
        model m(x: real[seq, dim]) -> real[seq, dim]:
            return attend(x, x, x, over=dim, along=seq, mask=causal)
    """

    what: str
    help: str | None = None

    def describe(self) -> Diagnostic:
        return self.say(self.what, "", help=self.help)
