"""What is done with the results of a grouped linear before they are stored (gpu/grouped.py): a fused call, whose own
kernels make its gradient, and all of it where the linear is the matrix library's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .fused import Fused


@dataclass(frozen=True)
class Epilogue:
    """`pieces`: of each operand of the call, which piece of the linear it is; None: a tensor of the group's own.
    `saved`: the pieces that the gradient reads.

    `parts`: more than one where a result is made of so many parts of one piece, instead of the same entries of all
    pieces. `left`: pieces that the call does not read, which are results behind its own. `places`: which of these
    results each piece ends in, where it ends in one alone.
    """

    call: Fused
    pieces: tuple[int | None, ...]
    saved: tuple[int, ...]
    parts: int = 1
    left: tuple[int, ...] = ()
    places: tuple[int, ...] = ()

    @property
    def made(self) -> int:
        """Results of the call."""
        return len(self.call.forward.results)

    @property
    def results(self) -> int:
        return self.made + len(self.left)

    def shapes(self, outputs: Sequence[int]) -> list[tuple[int, ...]]:
        """Of a row of each result; `outputs`: entries of each piece."""
        return [made.dims for made in self.call.forward.results] + [(outputs[piece],) for piece in self.left]

    @property
    def others(self) -> int:
        return self.pieces.count(None)

    def operands(self, pieces: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """Of the call: pieces by number, and the others in order."""
        left = iter(others)
        return [next(left) if piece is None else pieces[piece] for piece in self.pieces]

    def flat(self, others: Sequence[Tensor]) -> list[Tensor]:
        """As a kernel reads them: `[rows, entries]`, or `[1, entries]` of what has no rows."""
        by_row = dict(self.call.forward.sources)
        places = [place for place, piece in enumerate(self.pieces) if piece is None]
        return [
            one.flatten(1) if by_row[place] else one.reshape(1, -1) for place, one in zip(places, others, strict=True)
        ]

    def gradients(
        self, saved: Sequence[Tensor], others: Sequence[Tensor], grads: Sequence[Tensor], pieces: int
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Of the pieces and of the others; `grads` of the results."""
        kept: list[Tensor | None] = [None] * pieces
        for piece, value in zip(self.saved, saved, strict=True):
            kept[piece] = value
        found = self.call.gradients(self.operands(kept, others), (), grads[: self.made])
        of_pieces: list[Tensor | None] = [None] * pieces
        for piece, gradient in zip(self.left, grads[self.made :], strict=True):
            of_pieces[piece] = gradient
        for piece, gradient in zip(self.pieces, found, strict=True):
            if piece is not None:
                of_pieces[piece] = gradient
        return of_pieces, [one for piece, one in zip(self.pieces, found, strict=True) if piece is None]
