"""What is done row by row with the results of a grouped linear, before they are stored: the row program of a fused
call, entry by entry of a tile.

    gate, up = grouped(..);  y = silu_swiglu(gate, up)      ->      y = grouped(.., silu(gate) * up)

Any call whose program has one entry of each operand for each of its results' will do, whatever it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..rowwise.fused import FusedOp
from ..rowwise.row_program import Axis, Constant, Kind, Load, Map, Source, Val, extent
from ..rowwise.steps import constant_text, map_text


@dataclass(frozen=True)
class Epilogue:
    """`pieces`: of each operand of the call, which piece of the linear it is; None: a tensor of the group's own."""

    call: FusedOp
    pieces: tuple[int | None, ...]

    @property
    def key(self) -> object:
        return self.call.key, self.pieces

    @property
    def shape(self) -> object:
        """Equal where one call can serve the rows of another group: what is computed, and of what."""
        others = tuple((source.by_row, source.dims, source.dtype) for source in self.others)
        results = tuple(result.dims for result in self.call.program.results)
        return tuple(self.lines("real")), self.pieces, others, results

    @property
    def gradient(self) -> object:
        """Equal where it can also make the other's gradient, if that has the same shape."""
        derivative = self.call.derivative
        return self.saved, None if derivative is None else derivative.wiring

    @property
    def results(self) -> int:
        return len(self.call.program.results)

    @property
    def others(self) -> tuple[Source, ...]:
        """The operands that are not pieces, of which each group has its own."""
        by_place = {source.place: source for source in self.call.program.sources}
        return tuple(by_place[place] for place, piece in enumerate(self.pieces) if piece is None)

    @property
    def saved(self) -> tuple[int, ...]:
        """The pieces that the gradient of the call reads."""
        if self.call.backward is None:
            return ()
        read = {source.place for source in self.call.backward.program.sources if source.place < len(self.pieces)}
        return tuple(piece for place, piece in enumerate(self.pieces) if piece is not None and place in read)

    def lines(self, real: str) -> list[str]:
        """From the sums `acc_j`, whose rows are `own`, to the results `made_r`."""
        names: dict[Val, str] = {}
        lines: list[str] = []
        numbers = {source.place: number for number, source in enumerate(self.others)}

        def read(value: Val) -> str:
            return constant_text(value) if isinstance(value, Constant) else names[value]

        for value in self.call.program.values:
            if isinstance(value, Constant):
                continue
            names[value] = f"value_{len(names)}"
            if isinstance(value, Map):
                text = map_text(value, read, real)
            else:
                assert isinstance(value, Load)
                assert value.source is not None
                piece = self.pieces[value.source.place]
                text = f"acc_{piece}" if piece is not None else _load(numbers[value.source.place], value.source, real)
            lines.append(f"{names[value]} = {text}")
        return [*lines, *(f"made_{store.place} = {read(store.value)}" for store in self.call.program.stores)]


def _load(number: int, source: Source, real: str) -> str:
    if not source.by_row:
        return f"tl.load(other_{number} + offs_n, mask=mask_n, other=0.0).to({real})[None, :]"
    at = f"other_{number} + own[:, None] * stride_other_{number} + offs_n[None, :]"
    return f"tl.load({at}, mask=mask_m[:, None] & mask_n[None, :], other=0.0).to({real})"


def epilogue_of(call: FusedOp, pieces: Sequence[int | None], width: int, dtype: torch.dtype) -> Epilogue | None:
    """None where the call does more than one entry needs: it reduces, gathers, looks at other rows, or takes an axis
    apart; or where its gradient reads more than its operands. `width`: entries of each piece."""
    program, derivative = call.program, call.derivative
    if any(not isinstance(value, Load | Map | Constant) for value in program.values):
        return None
    loads = [value for value in program.values if isinstance(value, Load)]
    if any(load.index is not None or load.shift or load.in_runs for load in loads):
        return None
    layouts = set(program.layouts)
    if len(layouts) != 1 or not all(isinstance(axis, Axis) for axis in program.layouts[0]):
        return None
    sources = {load.source for load in loads if load.source is not None}
    if extent(program.layouts[0]) != width or any(source.dtype != dtype for source in sources):
        return None
    if len(sources) != len(pieces) or any(load.kind is not Kind.REAL for load in loads):
        return None
    stored = [store.value for store in program.stores]
    if any(not isinstance(value, Map) or value.kind is not Kind.REAL or not value.by_row for value in stored):
        return None
    if any(store.sum_rows for store in program.stores) or program.runs is not None:
        return None
    if any(result.dtype != dtype or result.is_saved or not result.by_row for result in program.results):
        return None
    if derivative is not None and (derivative.saved or derivative.gathered):
        return None
    return Epilogue(call, tuple(pieces))
