"""What stays in memory between the forward and the backward of a fused call, for people."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .derivative import Derivative
    from .row_program import RowProgram


@dataclass(frozen=True)
class Kept:
    """What a backward reads of its forward. `how`: it is an operand, a result, or was saved for this alone."""

    name: str
    how: Literal["operand", "result", "saved"]
    bytes_per_row: int


def kept(program: RowProgram, derivative: Derivative) -> tuple[Kept, ...]:
    """Row by row; weights and tables are there anyway."""
    own = {source.place for source in program.sources}
    found = [
        Kept(source.name, "operand", source.entries * source.dtype.itemsize)
        for source in derivative.program.sources
        if source.by_row and source.place in own
    ]
    for place in derivative.saved:
        result = program.results[place]
        how = "saved" if result.is_saved else "result"
        found.append(Kept(result.name, how, prod(result.dims) * result.dtype.itemsize))
    return tuple(found)
