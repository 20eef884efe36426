"""A row program as a kernel: tiles, loops, addresses and masks, in the order of the text.

resident   all entries of a row at once, several rows a tile: everything that fits
columns    an axis that no reduction runs over is cut into blocks, one for each program of the grid's second side
looped     a row longer than a block: one pass over it for each reduction that waits for another, and one to store
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..gpu.rowwise import PROGRAMS, most_registers
from ..gpu.triton_types import TRITON_TYPES
from .row_program import WORD, Load, Map, Part, Reduce, RowProgram, Val, axes_of
from .steps import Step, Writer, grouped, needed
from .tiles import tiling

# Rows of a tile where a program takes a run, which nearly always has few.
MOST_OF_A_RUN = 4


@dataclass(frozen=True)
class Argument:
    """A parameter of the kernel: its name in the text, Triton's name of its type. `divisible`: by 16."""

    name: str
    type: str
    divisible: bool = True


@dataclass(frozen=True)
class RowSum:
    """A sum over all rows: each program adds up its own, `[programs, entries]`; the launcher adds those."""

    name: str
    shape: str
    store: Step


@dataclass(frozen=True)
class Pass:
    """What is done for a tile of rows: `before`, then `steps`, for all of a row or inside `loop` for each block."""

    before: tuple[Step, ...]
    steps: tuple[Step, ...]
    loop: tuple[str, str] | None  # the header, and the line that numbers the block's entries
    numbering: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowPlan:
    """All a template may know. `sources` and `program.results` say what the launcher passes, in this order: each
    source's pointer, the strides of the rows of those that have rows, each result's pointer, the number of rows."""

    program: RowProgram
    arguments: tuple[Argument, ...]
    numbering: tuple[str, ...]
    sums: tuple[RowSum, ...]
    passes: tuple[Pass, ...]
    summary: str
    real: str
    block_rows: int
    columns: int  # programs of the grid's second side
    warps: int
    stages: int
    is_accumulated: bool  # the sums over rows are added into memory that starts as zero
    saves: bool  # some results are for the backward alone; SAVES says whether they are written
    waits: bool  # a thread's entries wait in registers for one another
    programs: int = PROGRAMS  # that share the rows, where there are sums over rows

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def has_sums(self) -> bool:
        """Whether the number of programs that share the rows is part of the result."""
        return any(not result.by_row and not result.by_run for result in self.program.results)

    @property
    def registers(self) -> int | None:
        return most_registers(self.warps) if self.waits else None

    @property
    def row_index(self) -> str:
        """Puts the rows into the first dimension of all."""
        return f"[{', '.join([':'] + ['None'] * len(self.program.axes))}]" if self.program.axes else ""


def plan(program: RowProgram, block_rows: int | None = None, warps: int | None = None) -> RowPlan:
    """The default plan; `block_rows` and `warps` override it (tuning)."""
    chosen = tiling(program, 64 if program.runs is None else MOST_OF_A_RUN, block_rows)
    tiles = chosen.tiles
    write = Writer(tiles)
    in_memory = [store for store in write.totals if write.is_added_in_memory(store)]
    numbering = _numbering(write)
    passes = _looped(write) if tiles.is_looped else _whole(write)
    return RowPlan(
        program=program,
        arguments=_arguments(write),
        numbering=numbering,
        sums=tuple(RowSum(*write.end_of_sum(store)) for store in write.totals if store not in in_memory),
        passes=passes,
        summary=_summary(write),
        real=write.real,
        block_rows=max(chosen.rows, WORD) if program.packs else chosen.rows,
        columns=tiles.columns,
        warps=warps or chosen.warps,
        stages=2,
        is_accumulated=bool(in_memory),
        saves=any(result.is_saved for result in program.results),
        waits=any(map(_is_waited_for, tiles.values)),
    )


def _is_waited_for(value: Val) -> bool:
    """A reduction needs all entries of a thread, a function with a branch of its own all in one place, and the parts of
    an axis that is written out need each other; what is left the assembler computes one after the other."""
    match value:
        case Reduce():
            return True
        case Map(function=function):
            return function is not None and function.scratch > 0
        case Load(layout=layout):
            return any(isinstance(axis, Part) for axis in layout)
        case _:
            return False


def _arguments(write: Writer) -> tuple[Argument, ...]:
    program = write.program
    found = [Argument(name, f"*{TRITON_TYPES[source.dtype]}") for source, name in write.pointers.items()]
    found += [Argument(name, "i32", source.entries % 16 == 0) for source, name in write.strides.items()]
    for place, result in enumerate(program.results):
        dtype = (
            result.dtype
            if result.by_row or result.by_run
            else torch.float64
            if write.real == "tl.float64"
            else torch.float32
        )
        found.append(Argument(write.results[place], f"*{TRITON_TYPES[dtype]}"))
    found += [Argument("bounds_ptr", "*i32")] if program.runs is not None else []
    return (*found, Argument("n_rows", "i32", False))


def _numbering(write: Writer) -> tuple[str, ...]:
    lines = []
    for axis in write.axes:
        if axis is write.tiles.cut and write.tiles.is_looped:
            continue
        first = f"tl.program_id(1) * {write.tiles.block(axis)} + " if axis is write.tiles.cut else ""
        lines.append(f"{write.axis_names[axis]} = {first}{write.arange(axis)}")
        if write.tiles.is_masked(axis):
            lines.append(f"in_{write.axis_names[axis]} = {write.axis_names[axis]} < {axis.size}")
    return tuple(lines)


def _summary(write: Writer) -> str:
    sizes = ", ".join(f"{write.axis_names[axis]} {axis.size}" for axis in write.axes)
    made = ", ".join(result.name for result in write.program.results)
    return f"{made}, for each row" + (f" of {sizes}." if sizes else ".")


def _whole(write: Writer) -> tuple[Pass, ...]:
    steps: list[Step] = []
    made: set[Val] = set()
    for store in write.program.stores:
        steps += write.values([store.value], set(), made)
        steps += write.store(store)
    return (Pass((), grouped(steps), None),)


def _looped(write: Writer) -> tuple[Pass, ...]:
    """A value along the axis that is cut is computed again in every pass that needs it; the others once."""
    program, cut = write.program, write.tiles.cut
    assert cut is not None
    stage: dict[Val, int] = {}  # the number of the pass in which a value is first there
    for value in program.values:
        waits = isinstance(value, Reduce) and cut in value.over
        stage[value] = max((stage[operand] for operand in value.operands), default=0) + waits
    last = max(stage.values())
    name = write.axis_names[cut]
    header = f"for start in range(0, {cut.size}, {write.tiles.block(cut)}):", f"{name} = start + {write.arange(cut)}"
    numbering = (f"in_{name} = {name} < {cut.size}",) if write.tiles.is_masked(cut) else ()
    kept: set[Val] = set()
    passes = []
    for number in range(last + 1):
        reductions = [
            value
            for value in program.values
            if isinstance(value, Reduce) and cut in value.over and stage[value] == number + 1
        ]
        stores = [store for store in program.stores if cut in axes_of(store.layout) and stage[store.value] == number]
        roots = [value.operands[0] for value in reductions] + [store.value for store in stores]
        outside = [value for value in needed(roots, kept) if cut not in value.axes]
        before = write.values(outside, set(), kept)
        inside: list[Step] = []
        made: set[Val] = set()
        for value in reductions:
            inside += write.values(value.operands, kept, made)
            before.append(write.zero(value))
            inside.append(write.accumulate(value))
        for store in stores:
            inside += write.values([store.value], kept, made)
            inside += write.store(store)
        kept.update(reductions)
        if inside:
            passes.append(Pass(grouped(before), grouped(inside), header, numbering))
            before = []
        if number == last:
            for store in program.stores:
                if cut not in axes_of(store.layout):
                    before += write.values([store.value], set(), kept)
                    before += write.store(store)
        if before:
            passes.append(Pass((), grouped(before), None))
    return tuple(passes)
