"""What is done row by row with the results of a grouped linear, before they are stored: the row program of a fused
call, entry by entry of a tile.

    gate, up = grouped(..);  y = silu_swiglu(gate, up)      ->      y = grouped(.., silu(gate) * up)
    q, k, v = grouped(..);  q, k = turn(q, k, cos, sin)     ->      q, k, v = grouped(.., turned by halves of a head)

Any call will do whose results have, whatever it computes, either one entry for each of all its operands; or each one
entry for each part of one operand, which is taken apart and put together again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..rowwise.fused import FusedOp
from ..rowwise.row_program import (
    Axis,
    Constant,
    Kind,
    Layout,
    Load,
    Map,
    Part,
    RowProgram,
    Source,
    Store,
    Val,
    extent,
    operands_first,
)
from ..rowwise.steps import constant_text, map_text

# In front of the part, the part, behind it.
Split = tuple[Layout, Part, Layout]


@dataclass(frozen=True)
class Parts:
    """How the entries of a piece stand: `[.., count, after]`, such as two halves of each head."""

    count: int
    after: int


@dataclass(frozen=True)
class Epilogue:
    """`pieces`: of each operand of the call, which piece of the linear it is; None: a tensor of the group's own.
    `parts`: of the pieces, where each result is made of one; None: each is made of all."""

    call: FusedOp
    pieces: tuple[int | None, ...]
    parts: Parts | None = None

    @property
    def key(self) -> object:
        return self.call.key, self.pieces

    @property
    def shape(self) -> object:
        """Equal where one call can serve the rows of another group: what is computed, and of what."""
        others = tuple((source.by_row, source.dims, source.dtype) for source in self.others)
        results = tuple(result.dims for result in self.call.program.results)
        texts = [self.lines("real")] if self.parts is None else [self.lines_of(piece, "real") for piece in self.read]
        return tuple(map(tuple, texts)), self.pieces, self.parts, others, results

    @property
    def gradient(self) -> object:
        """Equal where it can also make the other's gradient, if that has the same shape."""
        derivative = self.call.derivative
        return self.saved, None if derivative is None else derivative.wiring

    @property
    def read(self) -> tuple[int, ...]:
        """The pieces that the call reads."""
        return tuple(sorted(piece for piece in self.pieces if piece is not None))

    def left(self, pieces: int) -> tuple[int, ...]:
        """Of so many pieces those that the call does not read: results behind its own."""
        return tuple(piece for piece in range(pieces) if piece not in self.pieces)

    def places(self, pieces: int) -> tuple[int, ...]:
        """Which result each piece ends in, where it ends in one."""
        if self.parts is None:
            return ()
        stores = self.call.program.stores
        ends = {piece: store.place for store in stores for piece in _pieces_of(store, self.pieces)}
        return tuple(
            ends.get(piece, self.made + sum(one < piece for one in self.left(pieces))) for piece in range(pieces)
        )

    @property
    def made(self) -> int:
        """Results of the call."""
        return len(self.call.program.results)

    def results(self, pieces: int) -> int:
        return self.made + len(self.left(pieces))

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

    # -- the text ----------------------------------------------------------------------------------

    def lines(self, real: str) -> list[str]:
        """From the sums `acc_j` of all pieces, whose rows are `written`, to the results `made_r`."""
        stores = self.call.program.stores
        return self._lines({store: f"made_{store.place}" for store in stores}, real)

    def lines_of(self, piece: int, real: str) -> list[str]:
        """From the sums `acc_p` of the parts of one piece to those of its result, `made_p`."""
        own = [store for store in self.call.program.stores if piece in _pieces_of(store, self.pieces)]
        return self._lines({store: f"made_{_part(store.layout)}" for store in own}, real)

    def _lines(self, stores: dict[Store, str], real: str) -> list[str]:
        names: dict[Val, str] = {}
        lines: list[str] = []

        def read(value: Val) -> str:
            return constant_text(value) if isinstance(value, Constant) else names[value]

        for value in operands_first(store.value for store in stores):
            if isinstance(value, Constant):
                continue
            names[value] = f"value_{len(names)}"
            text = self._loaded(value, real) if isinstance(value, Load) else map_text(_map(value), read, real)
            lines.append(f"{names[value]} = {text}")
        return [*lines, *(f"{made} = {read(store.value)}" for store, made in stores.items())]

    def _loaded(self, load: Load, real: str) -> str:
        source = load.source
        assert source is not None
        piece = self.pieces[source.place]
        if piece is not None:
            return f"acc_{piece if self.parts is None else _part(load.layout)}"
        number = next(i for i, other in enumerate(self.others) if other.place == source.place)
        entry = "offs_n" if self.parts is None else f"(offs_n % {extent(load.layout)})"
        at, mask = f"other_{number}", "mask_n"
        if source.by_row:
            at, mask = f"{at} + written[:, None] * stride_other_{number}", f"mask_m[:, None] & {mask}[None, :]"
            entry = f"{entry}[None, :]"
        text = f"tl.load({at} + {entry}, mask={mask}, other=0.0).to({real})"
        return text if source.by_row else f"{text}[None, :]"


def _map(value: Val) -> Map:
    assert isinstance(value, Map)
    return value


def _pieces_of(store: Store, pieces: Sequence[int | None]) -> set[int]:
    """The pieces that a result is made of."""
    found = (_piece_of(load, pieces) for load in _loads(store))
    return {piece for piece in found if piece is not None}


def _piece_of(load: Load, pieces: Sequence[int | None]) -> int | None:
    return None if load.source is None else pieces[load.source.place]


def _loads(store: Store) -> list[Load]:
    return [value for value in operands_first((store.value,)) if isinstance(value, Load)]


# -- which calls will do ---------------------------------------------------------------------------


def epilogue_of(
    call: FusedOp, pieces: Sequence[int | None], widths: Sequence[int], dtype: torch.dtype
) -> Epilogue | None:
    """None where the call does more than one entry needs: it reduces, gathers, looks at other rows; or where its
    gradient reads more than its operands. `widths`: entries of each piece."""
    program = call.program
    if not _is_entry_by_entry(program, len(pieces), dtype):
        return None
    if call.derivative is not None and (call.derivative.saved or call.derivative.gathered):
        return None
    if set(pieces) >= set(range(len(widths))) and _is_flat(program, widths, dtype):
        return Epilogue(call, tuple(pieces))
    parts = _parts(program, pieces, widths, dtype)
    made = Epilogue(call, tuple(pieces), parts)
    return None if parts is None or made.saved else made


def _is_entry_by_entry(program: RowProgram, operands: int, dtype: torch.dtype) -> bool:
    if any(not isinstance(value, Load | Map | Constant) for value in program.values):
        return False
    loads = [value for value in program.values if isinstance(value, Load)]
    if any(load.index is not None or load.shift or load.in_runs or load.kind is not Kind.REAL for load in loads):
        return False
    if len({load.source for load in loads if load.source is not None}) != operands:
        return False
    stored = [store.value for store in program.stores]
    if any(not isinstance(value, Map) or value.kind is not Kind.REAL or not value.by_row for value in stored):
        return False
    if any(store.sum_rows for store in program.stores) or program.runs is not None:
        return False
    return all(result.dtype == dtype and not result.is_saved and result.by_row for result in program.results)


def _is_flat(program: RowProgram, widths: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether all operands and results have the same entries, in one order."""
    layouts = set(program.layouts)
    if len(layouts) != 1 or not all(isinstance(axis, Axis) for axis in program.layouts[0]):
        return False
    return {extent(program.layouts[0])} == set(widths) and all(source.dtype == dtype for source in program.sources)


def _parts(
    program: RowProgram, pieces: Sequence[int | None], widths: Sequence[int], dtype: torch.dtype
) -> Parts | None:
    """Of pieces that each end in a result of their own, part by part; what is read besides has entries of the last axes
    that a part has. The entries of pieces that are not read are in as many parts, so that tiles are alike."""
    loads = [value for value in program.values if isinstance(value, Load)]
    of_pieces = {load: _split(load.layout) for load in loads if _piece_of(load, pieces) is not None}
    split = {load: one for load, one in of_pieces.items() if one is not None}
    found = {Parts(part.size, extent(after)) for _, part, after in split.values()}
    if (
        len(split) < len(of_pieces)
        or len(found) != 1
        or {load.source and load.source.dtype for load in split} != {dtype}
    ):
        return None
    beside = [(*before, *after) for before, _, after in split.values()]
    others = [load.layout for load in loads if load not in split]
    if any(axes[len(axes) - len(layout) :] != layout for axes in beside for layout in others):
        return None
    parts = found.pop()
    if any(width % (parts.count * parts.after) for width in widths):
        return None
    return parts if _ends_apart(program, pieces, split, parts.count) else None


def _ends_apart(program: RowProgram, pieces: Sequence[int | None], split: Mapping[Load, Split], count: int) -> bool:
    """Whether each result is made of all parts of one piece, and of nothing else of pieces, entry by entry."""
    ends: dict[int, set[int]] = defaultdict(set)
    for store in program.stores:
        own, stored = _pieces_of(store, pieces), _split(store.layout)
        if len(own) != 1 or stored is None or stored[1].size != count:
            return False
        read = [split[load] for load in _loads(store) if load in split]
        if any((before, after) != (stored[0], stored[2]) for before, _, after in read):
            return False
        ends[own.pop()].add(store.place)
    results = [place for places in ends.values() for place in places]
    is_each = len(results) == len(set(results)) == len(program.results) == len(ends)
    return is_each and len(program.stores) == count * len(ends) and ends.keys() == set(pieces) - {None}


def _split(layout: Layout) -> Split | None:
    """At the one part of a layout."""
    places = [place for place, entry in enumerate(layout) if isinstance(entry, Part)]
    if len(places) != 1 or not all(isinstance(entry, Axis | Part) for entry in layout):
        return None
    place, part = places[0], layout[places[0]]
    assert isinstance(part, Part)
    return layout[:place], part, layout[place + 1 :]


def _part(layout: Layout) -> int:
    split = _split(layout)
    assert split is not None
    return split[1].index
