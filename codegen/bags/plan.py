"""The weights of a row's lists as functions of Triton, which the kernels of bags call: all entries at once, in
registers, side by side in the order of the index. An axis is padded to a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from ..gpu.triton_types import TRITON_TYPES
from ..rowwise.axes import CannotFuse
from ..rowwise.derivative import Derivative
from ..rowwise.plan import Argument
from ..rowwise.row_program import Axis, Constant, Iota, Kind, Layout, Load, Result, RowProgram, Source, Val
from ..rowwise.steps import Step, Writer, grouped
from ..rowwise.tiles import Tiles, padded

# Entries that a program holds of each value beside the rows that it reads: those of its lists; where they are short, up
# to one for each thread.
MOST, THREADS = 1024, 128


@dataclass(frozen=True)
class Function:
    """`parameters` follow the row's number, and `arguments` are what the kernels call them. `result`: what it returns;
    None: it stores."""

    parameters: tuple[str, ...]
    arguments: tuple[str, ...]
    numbering: tuple[str, ...]
    steps: tuple[Step, ...]
    rank: int
    result: str | None = None

    @property
    def row_shape(self) -> str:
        return f"[{', '.join(['1'] * self.rank)}]"


@dataclass(frozen=True)
class BagPlan:
    """All a template may know. `arguments`: of the kernels, for what weights are made of; `gradients`: for what their
    gradients are stored in. `entries` of all lists of a row, padded; `real`, in which they are computed. `place`: where
    entry `number` of the index is among them, and `number`: which entry each of them is, -1 for none."""

    sources: tuple[Source, ...]
    results: tuple[Result, ...]
    owners: tuple[tuple[int, int], ...]
    arguments: tuple[Argument, ...]
    gradients: tuple[Argument, ...]
    weight: Function
    gradient: Function
    entries: int
    real: str
    place: str
    number: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.real == "tl.float64" else torch.float32


def bag_plan(program: RowProgram, derivative: Derivative, operands: int) -> BagPlan:
    """Of a program with so many operands. Raises CannotFuse."""
    if len(program.stores) != 1:
        raise CannotFuse("weights that are computed in parts")
    (store,) = program.stores
    layout = _whole(store.layout)
    forward, backward = _Row(program, layout, operands), _Row(derivative.program, layout, operands)
    for write in (forward, backward):
        _check(write)
    if forward.order != layout:
        raise CannotFuse("weights in another order than the index")
    if isinstance(store.value, Constant | Iota) or store.value.kind is not Kind.REAL:
        raise CannotFuse("weights that are the same for all rows")
    blocks = [forward.tiles.block(axis) for axis in layout]
    real = "tl.float64" if "tl.float64" in (forward.real, backward.real) else "tl.float32"
    forward.real = backward.real = real
    sources = sorted({*program.sources, *backward.read}, key=lambda source: source.place)
    return BagPlan(
        sources=tuple(sources),
        results=derivative.program.results,
        owners=derivative.owners,
        arguments=tuple(argument for source in sources for argument in _arguments(source)),
        gradients=tuple(
            Argument(f"d_operand_{place}_ptr", f"*{TRITON_TYPES[result.dtype]}")
            for place, result in enumerate(derivative.program.results)
        ),
        weight=forward.weight(store.value),
        gradient=backward.stores(),
        entries=prod(blocks),
        real=real,
        place=_place(layout, blocks),
        number=_number(layout, blocks),
    )


class _Row(Writer):
    """Writes what is computed of one row."""

    def __init__(self, program: RowProgram, layout: tuple[Axis, ...], operands: int) -> None:
        super().__init__(Tiles(program))
        self.layout = layout  # of the weights
        self.arriving_name = self.unique("d_weight")
        # Behind all operands: the gradient of the weights, which is in registers.
        self.arriving = next((source for source in program.sources if source.place == operands), None)

    @property
    def read(self) -> list[Source]:
        """What is read from memory."""
        return [source for source in self.program.sources if source is not self.arriving]

    @property
    def order(self) -> tuple[Axis, ...]:
        """Of the axes of weights, in the blocks of a program."""
        return tuple(axis for axis in self.axes if axis in self.layout)

    def weight(self, value: Val) -> Function:
        steps = self.values([value], set(), set())
        shape = self._shape(False, self.layout)
        result = f"tl.reshape(tl.broadcast_to({self.names[value]}, {shape}), [{padded(self.layout)}])"
        return self._function((), (), steps, result)

    def stores(self) -> Function:
        steps: list[Step] = []
        made: set[Val] = set()
        for store in self.program.stores:
            steps += self.values([store.value], set(), made)
            steps += self.store(store)
        results = tuple(self.results)
        return self._function((self.arriving_name,), results, steps, None)

    def _function(
        self, before: tuple[str, ...], results: tuple[str, ...], steps: list[Step], result: str | None
    ) -> Function:
        parameters = [(self.pointers[source], f"operand_{source.place}_ptr") for source in self.read]
        parameters += [
            (self.strides[source], f"operand_{source.place}_stride") for source in self.read if source.by_row
        ]
        parameters += [(name, f"d_operand_{place}_ptr") for place, name in enumerate(results)]
        return Function(
            parameters=(*before, *(name for name, _ in parameters)),
            arguments=tuple(argument for _, argument in parameters),
            numbering=self._numbering(),
            steps=grouped(steps),
            rank=1 + len(self.axes),
            result=result,
        )

    def _numbering(self) -> tuple[str, ...]:
        lines = []
        for axis in self.axes:
            lines.append(f"{self.axis_names[axis]} = {self.arange(axis)}")
            if self.tiles.is_masked(axis):
                lines.append(f"in_{self.axis_names[axis]} = {self.axis_names[axis]} < {axis.size}")
        return tuple(lines)

    def _load(self, value: Load) -> str:
        if value.source is not self.arriving or self.arriving is None:
            return super()._load(value)
        text = self.arriving_name
        if self.order != self.layout:
            blocks = ", ".join(str(self.tiles.block(axis)) for axis in self.layout)
            places = ", ".join(str(self.layout.index(axis)) for axis in self.order)
            text = f"tl.permute(tl.reshape({text}, [{blocks}]), [{places}])"
        return f"tl.reshape({text}, {self._shape(False, self.layout)})"


def _whole(layout: Layout) -> tuple[Axis, ...]:
    axes = tuple(entry for entry in layout if isinstance(entry, Axis))
    if len(axes) != len(layout):
        raise CannotFuse("weights that are computed in parts")
    return axes


def _check(write: _Row) -> None:
    program, tiles = write.program, write.tiles
    most = min(MOST, max(THREADS, padded(write.layout)))
    if not program.stores or tiles.cut is not None or max(map(padded, tiles.spans)) > most:
        raise CannotFuse("more than a row's lists")
    loads = [value for value in program.values if isinstance(value, Load)]
    if any(load.index is not None or load.shift or load.in_runs for load in loads):
        raise CannotFuse("weights that are read from other rows")
    if program.runs is not None or program.packs or any(not result.by_row for result in program.results):
        raise CannotFuse("sums over rows")


def _arguments(source: Source) -> list[Argument]:
    found = [Argument(f"operand_{source.place}_ptr", f"*{TRITON_TYPES[source.dtype]}")]
    if source.by_row:
        found.append(Argument(f"operand_{source.place}_stride", "i32", source.entries % 16 == 0))
    return found


def _place(layout: tuple[Axis, ...], blocks: list[int]) -> str:
    terms, stride, step = [], 1, 1
    for number, (axis, block) in reversed(list(enumerate(zip(layout, blocks, strict=True)))):
        term = "number" if stride == 1 else f"number // {stride}"
        term = f"{term} % {axis.size}" if number else term
        terms.append(term if step == 1 else f"({term}) * {step}")
        stride, step = stride * axis.size, step * block
    return "number" if stride == step else " + ".join(reversed(terms))


def _number(layout: tuple[Axis, ...], blocks: list[int]) -> tuple[str, ...]:
    lines = [f"entry = tl.arange(0, {prod(blocks)})"]
    if all(axis.size == block for axis, block in zip(layout, blocks, strict=True)):
        return (*lines, "number = entry")
    terms, masks, stride, step = [], [], 1, 1
    for axis, block in reversed(list(zip(layout, blocks, strict=True))):
        own = f"entry // {step} % {block}"
        terms.append(f"({own}) * {stride}")
        masks.append(f"({own} < {axis.size})")
        stride, step = stride * axis.size, step * block
    return (*lines, f"number = tl.where({' & '.join(reversed(masks))}, {' + '.join(reversed(terms))}, -1)")
