"""E27x: axes whose rows belong to rows of another."""

from __future__ import annotations

from ..diagnostics import Diagnostic, Label, SpecError
from ..record import record
from ..source import Span


@record
class RowsPerOwner(SpecError, code="E274"):
    """Two `flatten` or `unflatten` give the rows of one nested axis two numbers.

    `flatten(z, (picture, half) -> spot)` says that each picture has as many rows of `spot` as `half` has entries.

    Wrong:
        size dim = 4
        axis picture
        axis spot in picture
        axis four = 4
        axis nine = 9
        model m(x: real[picture, four, dim], y: real[picture, nine, dim]) -> real[spot, dim]:
            return flatten(x, (picture, four) -> spot) + flatten(y, (picture, nine) -> spot)
    Right:
        size dim = 4
        axis picture
        axis spot in picture
        axis four = 4
        model m(x: real[picture, four, dim], y: real[picture, four, dim]) -> real[spot, dim]:
            return flatten(x, (picture, four) -> spot) + flatten(y, (picture, four) -> spot)
    """

    axis: str
    owner: str
    found: str
    before: str
    first: Span

    def describe(self) -> Diagnostic:
        return self.say(
            f"a row of {self.owner} has {self.found} rows of {self.axis}, not {self.before}",
            f"{self.found} here",
            Label(self.first, f"{self.before} here"),
            help=f"declare a second axis in {self.owner}",
        )
