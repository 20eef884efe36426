"""A row program as a kernel: tiles, loops, addresses and masks, in the order of the text.

resident   all entries of a row at once, several rows a tile: everything that fits
columns    an axis that no reduction runs over is cut into blocks, one for each program of the grid's second side
looped     a row longer than a block: one pass over it for each reduction that waits for another, and one to store
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..origin import UNKNOWN, Origin
from ..spec_comment import comment
from .row_program import (
    Axis,
    Constant,
    How,
    Iota,
    Kind,
    Layout,
    Load,
    Map,
    Part,
    Reduce,
    RowProgram,
    Store,
    Val,
    extent,
)

RESIDENT = 16384  # entries of one row that a program may hold of a value
TILE = 4096  # entries that a tile of several rows is filled up to
COLUMNS = 2048  # entries of a block of a row that is cut
PER_THREAD = 16  # entries a thread should hold of a value

TRITON_TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "i1",
}  # fmt: skip
_STORED = {
    torch.float64: "tl.float64", torch.float32: "tl.float32", torch.float16: "tl.float16",
    torch.int64: "tl.int64", torch.int32: "tl.int32", torch.bool: "tl.int1",
}  # fmt: skip

# What the text of a kernel calls otherwise: the frame's variables, Triton, and the functions of the prelude.
RESERVED = (
    "row", "is_row", "tile", "start", "before", "n_rows", "BLOCK_R", "tl", "triton", "range", "float", "bool",
    "INTERPRETED", "to_bfloat16", "tanh", "softplus", "sign", "power",
)  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """A parameter of the kernel: its name in the text, Triton's name of its type. `divisible`: by 16."""

    name: str
    type: str
    divisible: bool = True


@dataclass(frozen=True)
class Step:
    """One line of the kernel, below a comment with the spec line it serves if that differs from the line before."""

    text: str
    comment: str | None = None


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

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def row_index(self) -> str:
        """Puts the rows into the first dimension of all."""
        return f"[{', '.join([':'] + ['None'] * len(self.program.axes))}]" if self.program.axes else ""


def plan(program: RowProgram, block_rows: int | None = None, warps: int | None = None) -> RowPlan:
    """The default plan; `block_rows` and `warps` override it (tuning)."""
    return _Planner(program).plan(block_rows, warps)


class _Planner:
    def __init__(self, program: RowProgram) -> None:
        self.program = program
        self.axes = program.axes
        self.values = program.values
        self.real = "tl.float64" if any(s.dtype == torch.float64 for s in program.sources) else "tl.float32"
        self.names: dict[Val, str] = {}
        self.taken = set(RESERVED)
        self.pointers = {source: self.unique(f"{source.name}_ptr") for source in program.sources}
        self.strides = {source: self.unique(f"stride_{source.name}") for source in program.sources if source.by_row}
        self.results = [self.unique(f"{result.name}_ptr") for result in program.results]
        self.axis_names = {axis: self.unique(axis.name) for axis in self.axes}
        self.totals = {store: self.unique("total") for store in program.stores if store.sum_rows}
        self.cut = self._cut()
        self.is_looped = self.cut is not None and any(
            isinstance(value, Reduce) and self.cut in value.over for value in self.values
        )
        self.last_comment: str | None = None

    # -- choices -----------------------------------------------------------------------------------

    def _cut(self) -> Axis | None:
        """The axis that is not held whole, if any."""
        if not self.axes:
            return None
        free = [axis for axis in self.axes if self._is_free(axis)]
        longest = max(free, key=lambda axis: axis.size, default=None)
        if longest is not None and self._entries() > TILE and longest.size > COLUMNS // 2:
            return longest
        return max(self.axes, key=lambda axis: axis.size) if self._entries() > RESIDENT else None

    def _is_free(self, axis: Axis) -> bool:
        reduced = any(isinstance(value, Reduce) and axis in value.over for value in self.values)
        return not reduced and all(axis in store.layout for store in self.program.stores)

    def _entries(self) -> int:
        return max((_padded(value.axes) for value in self.values), default=1)

    def block(self, axis: Axis) -> int:
        if axis is not self.cut:
            return _power_of_two(axis.size)
        others = max(_padded(value.axes - {axis}) for value in self.values)
        room = RESIDENT // 4 if self.is_looped else COLUMNS
        return min(_power_of_two(axis.size), max(16, room // others))

    def is_masked(self, axis: Axis) -> bool:
        return axis.size % self.block(axis) != 0

    # -- the plan ----------------------------------------------------------------------------------

    def plan(self, block_rows: int | None, warps: int | None) -> RowPlan:
        held = max((self._held(value.axes) for value in self.values), default=1)
        rows = block_rows or max(1, min(64, TILE // (2 * held)))
        threads = rows * held // PER_THREAD
        passes = self._passes()
        in_memory = [store for store in self.totals if self._is_added_in_memory(store)]
        return RowPlan(
            program=self.program,
            arguments=self._arguments(),
            numbering=self._numbering(),
            sums=tuple(self._sum(store) for store in self.totals if store not in in_memory),
            passes=passes,
            summary=self._summary(),
            real=self.real,
            block_rows=rows,
            columns=1 if self.cut is None or self.is_looped else -(-self.cut.size // self.block(self.cut)),
            warps=warps or max(1, min(16, _power_of_two(threads // 32))),
            stages=2,
            is_accumulated=bool(in_memory),
        )

    def _held(self, axes: Iterable[Axis]) -> int:
        total = 1
        for axis in axes:
            total *= self.block(axis)
        return total

    def _is_added_in_memory(self, store: Store) -> bool:
        return self.is_looped and self.cut in store.layout

    def _arguments(self) -> tuple[Argument, ...]:
        program = self.program
        found = [Argument(name, f"*{TRITON_TYPES[source.dtype]}") for source, name in self.pointers.items()]
        found += [Argument(name, "i32", source.entries % 16 == 0) for source, name in self.strides.items()]
        for place, result in enumerate(program.results):
            dtype = result.dtype if result.by_row else torch.float64 if self.real == "tl.float64" else torch.float32
            found.append(Argument(self.results[place], f"*{TRITON_TYPES[dtype]}"))
        return (*found, Argument("n_rows", "i32", False))

    def _numbering(self) -> tuple[str, ...]:
        lines = []
        for axis in self.axes:
            if axis is self.cut and self.is_looped:
                continue
            first = f"tl.program_id(1) * {self.block(axis)} + " if axis is self.cut else ""
            lines.append(f"{self.axis_names[axis]} = {first}{self._arange(axis)}")
            if self.is_masked(axis):
                lines.append(f"in_{self.axis_names[axis]} = {self.axis_names[axis]} < {axis.size}")
        return tuple(lines)

    def _arange(self, axis: Axis) -> str:
        place = 1 + self.axes.index(axis)
        index = ", ".join(":" if i == place else "None" for i in range(1 + len(self.axes)))
        return f"tl.arange(0, {self.block(axis)})[{index}]"

    def _summary(self) -> str:
        sizes = ", ".join(f"{self.axis_names[axis]} {axis.size}" for axis in self.axes)
        made = ", ".join(result.name for result in self.program.results)
        return f"{made}, for each row" + (f" of {sizes}." if sizes else ".")

    # -- passes ------------------------------------------------------------------------------------

    def _passes(self) -> tuple[Pass, ...]:
        if not self.is_looped:
            steps: list[Step] = []
            done: set[Val] = set()
            for store in self.program.stores:
                self._emit(store.value, done, steps)
                steps += self._store(store)
            return (Pass((), _grouped(steps), None),)
        return self._looped_passes()

    def _looped_passes(self) -> tuple[Pass, ...]:
        cut = self.cut
        assert cut is not None
        stage: dict[Val, int] = {}
        for value in self.values:
            waits = isinstance(value, Reduce) and cut in value.over
            stage[value] = max((stage[operand] for operand in value.operands), default=0) + waits
        header = (
            f"for start in range(0, {cut.size}, {self.block(cut)}):",
            f"{self.axis_names[cut]} = start + {self._arange(cut)}",
        )
        outside: set[Val] = set()
        passes = []
        for number in range(max(stage.values()) + 1):
            before: list[Step] = []
            inside: list[Step] = []
            after: list[Step] = []
            in_loop: set[Val] = set()
            reductions = [
                value
                for value in self.values
                if isinstance(value, Reduce) and cut in value.over and stage[value] == number + 1
            ]
            stores = [s for s in self.program.stores if cut in s.layout and stage[s.value] == number]
            wanted = [value.operands[0] for value in reductions] + [store.value for store in stores]
            for value in self._needed(wanted):
                if cut not in value.axes and value not in outside:
                    self._emit(value, outside, before)
            for value in reductions:
                self._emit(value.operands[0], in_loop | outside, inside, in_loop, outside)
                before.append(self._zero(value))
                inside.append(self._accumulate(value))
                outside.add(value)
            for store in stores:
                self._emit(store.value, in_loop | outside, inside, in_loop, outside)
                inside += self._store(store)
            if number == max(stage.values()):
                for store in self.program.stores:
                    if cut not in store.layout:
                        self._emit(store.value, outside, after)
                        after += self._store(store)
            numbering = (
                (f"in_{self.axis_names[cut]} = {self.axis_names[cut]} < {cut.size}",) if self.is_masked(cut) else ()
            )
            if inside:
                passes.append(Pass(_grouped(before), _grouped(inside), header, numbering))
                before = []
            if after or before:
                passes.append(Pass((), _grouped(before + after), None))
        return tuple(passes)

    def _needed(self, wanted: Sequence[Val]) -> list[Val]:
        """What the wanted values need that is not made inside the loop, operands first."""
        stores = tuple(Store(0, value, ()) for value in wanted)
        return list(RowProgram("", (), (), stores).values)

    def _emit(
        self,
        value: Val,
        done: set[Val],
        steps: list[Step],
        also: set[Val] | None = None,
        outside: set[Val] | None = None,
    ) -> None:
        """The steps of a value and of what it needs, where they are not there yet."""
        for needed in self._needed([value]):
            if needed in done or (also is not None and needed in also):
                continue
            if outside is not None and needed in outside:
                continue
            (done if also is None else also).add(needed)
            text = self._text(needed)
            if text is None:
                continue
            if needed not in self.names:
                self.names[needed] = self.unique(_base_name(needed))
            serves = UNKNOWN if isinstance(needed, Load) else needed.origin
            steps.append(self._step(f"{self.names[needed]} = {text}", serves))

    def _zero(self, value: Reduce) -> Step:
        self.names[value] = self.unique(_base_name(value))
        shape = ["1" if not value.by_row else "BLOCK_R"]
        shape += [str(self.block(axis)) if axis in value.axes else "1" for axis in self.axes]
        dtype = self.real if value.kind is Kind.REAL else "tl.int64"
        return self._step(
            f"{self.names[value]} = tl.full([{', '.join(shape)}], {_identity(value)}, {dtype})", value.origin
        )

    def _accumulate(self, value: Reduce) -> Step:
        name, part = self.names[value], self._reduction(value)
        text = f"{name} + {part}" if value.how is How.SUM else f"tl.{value.how.value}imum({name}, {part})"
        return self._step(f"{name} = {text}", value.origin)

    # -- text --------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """A name of the text like one of the spec; a spec may use words that mean something in Python."""
        if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
            name = f"_{name}" if name.isascii() and name.isidentifier() else "value"
        found, number = name, 1
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found

    def _step(self, text: str, origin: Origin) -> Step:
        said = None if origin.span is None else comment(origin.span)
        if said == self.last_comment or said is None:
            return Step(text)
        self.last_comment = said
        return Step(text, said)

    def _read(self, value: Val) -> str:
        match value:
            case Constant():
                return repr(value.number) if not isinstance(value.number, float) else _number(value.number)
            case Iota():
                assert value.axis is not None
                return self.axis_names[value.axis]
            case _:
                return self.names[value]

    def _text(self, value: Val) -> str | None:
        match value:
            case Constant() | Iota():
                return None
            case Load():
                return self._load(value)
            case Map():
                assert value.function is not None
                text = value.function.text.format(*map(self._read, value.args), real=self.real)
                return text[1:-1] if _is_wrapped(text) else text
            case Reduce():
                return self._reduction(value)
        raise AssertionError(value)

    def _reduction(self, value: Reduce) -> str:
        assert value.arg is not None
        text = self._read(value.arg)
        masks = [f"in_{self.axis_names[axis]}" for axis in self.axes if axis in value.over and self.is_masked(axis)]
        if masks:
            text = f"tl.where({' & '.join(masks)}, {text}, {_identity(value)})"
        for axis in self.axes:
            if axis in value.over:
                text = f"tl.{value.how.value}({text}, axis={1 + self.axes.index(axis)}, keep_dims=True)"
        return text

    def _address(self, layout: Layout, entries: int) -> str:
        terms, constant, stride = [], 0, entries
        for entry in layout:
            stride //= entry.size
            if isinstance(entry, Part):
                constant += entry.index * stride
            else:
                name = self.axis_names[entry]
                terms.append(name if stride == 1 else f"{name} * {stride}")
        if constant:
            terms.append(str(constant))
        return " + ".join(terms)

    def _mask(self, by_row: bool, axes: Iterable[Axis]) -> str | None:
        present = set(axes)
        masks = ["is_row"] if by_row else []
        masks += [f"in_{self.axis_names[axis]}" for axis in self.axes if axis in present and self.is_masked(axis)]
        return " & ".join(masks) or None

    def _load(self, value: Load) -> str:
        source = value.source
        assert source is not None
        terms = [self.pointers[source]]
        if value.index is not None:
            index = self._read(value.index)
            terms.append(f"{index}.to(tl.int64) * {source.entries}" if source.entries != 1 else index)
        elif source.by_row:
            terms.append(f"row * {self.strides[source]}")
        address = self._address(value.layout, extent(value.layout))
        if address:
            terms.append(address)
        mask = self._mask(value.by_row, value.axes)
        text = f"tl.load({' + '.join(terms)}" + (f", mask={mask}, other=0)" if mask else ")")
        if value.kind is Kind.REAL and TRITON_TYPES[source.dtype] != TRITON_TYPES[_dtype(self.real)]:
            return f"{text}.to({self.real})"
        return f"({text} != 0)" if value.kind is Kind.FLAG else text

    def _store(self, store: Store) -> list[Step]:
        result = self.program.results[store.place]
        value, axes = self._read(store.value), [entry for entry in store.layout if isinstance(entry, Axis)]
        entries = extent(store.layout)
        if store.sum_rows:
            # Rows beyond the last one hold anything.
            text = f"tl.sum(tl.where(is_row, {value}, 0.0), axis=0, keep_dims=True)"
            if self._is_added_in_memory(store):
                pointer = f"{self.results[store.place]} + tl.program_id(0) * {entries} + {self._address(store.layout, entries)}"
                mask = self._mask(False, axes)
                guard = f", mask={mask}" if mask else ""
                other = ", other=0" if mask else ""
                return [
                    self._step(f"before = tl.load({pointer}{guard}{other})", store.value.origin),
                    Step(f"tl.store({pointer}, before + {text}{guard})"),
                ]
            return [self._step(f"{self.totals[store]} += {text}", store.value.origin)]
        pointer = f"{self.results[store.place]} + row * {entries}"
        address = self._address(store.layout, entries)
        pointer += f" + {address}" if address else ""
        mask = self._mask(True, axes)
        shape = self._shape(True, axes)
        lacks = not store.value.by_row or set(axes) - store.value.axes
        written = self._cast(value, store.value.kind, result.dtype)
        if lacks:
            written = (
                f"tl.broadcast_to({written}, {shape})"
                if not isinstance(store.value, Constant)
                else (f"tl.full({shape}, {value}, {self.real})")
            )
        return [self._step(f"tl.store({pointer}, {written}, mask={mask})", store.value.origin)]

    def _cast(self, text: str, kind: Kind, dtype: torch.dtype) -> str:
        if kind is Kind.REAL and dtype == torch.bfloat16:
            return f"to_bfloat16({text})"
        if kind is Kind.REAL and dtype != _dtype(self.real):
            return f"{text}.to({_STORED[dtype]})"
        return text

    def _shape(self, by_row: bool, axes: Iterable[Axis]) -> str:
        present = set(axes)
        sizes = ["BLOCK_R" if by_row else "1"]
        return f"[{', '.join(sizes + [str(self.block(a)) if a in present else '1' for a in self.axes])}]"

    def _sum(self, store: Store) -> RowSum:
        axes = [entry for entry in store.layout if isinstance(entry, Axis)]
        entries = extent(store.layout)
        address = self._address(store.layout, entries)
        pointer = f"{self.results[store.place]} + tl.program_id(0) * {entries}" + (f" + {address}" if address else "")
        shape = self._shape(False, axes)
        mask = self._mask(False, axes)
        name = self.totals[store]
        if not address:
            pointer += f" + tl.zeros({shape}, tl.int32)"
        guard = f", mask={mask}" if mask else ""
        return RowSum(name, shape, Step(f"tl.store({pointer}, {name}{guard})"))


def _grouped(steps: list[Step]) -> tuple[Step, ...]:
    """What is loaded for a spec line stands below its comment, with the line's other steps."""
    result = list(steps)
    for place, step in enumerate(steps):
        first = place
        while step.comment is not None and first > 0 and " = tl.load(" in result[first - 1].text:
            if result[first - 1].comment is not None:
                break
            first -= 1
        if first < place:
            result[first] = replace(result[first], comment=step.comment)
            result[place] = replace(step, comment=None)
    return tuple(result)


def _dtype(real: str) -> torch.dtype:
    return torch.float64 if real == "tl.float64" else torch.float32


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _padded(axes: Iterable[Axis]) -> int:
    total = 1
    for axis in axes:
        total *= _power_of_two(axis.size)
    return total


def _number(number: float) -> str:
    if number != number:
        return 'float("nan")'
    if number in (float("inf"), float("-inf")):
        return f'float("{number}")'
    return repr(number)


def _identity(value: Reduce) -> str:
    is_real = value.kind is Kind.REAL
    match value.how:
        case How.SUM:
            return "0.0" if is_real else "0"
        case How.MAX:
            return 'float("-inf")' if is_real else "-9223372036854775808"
        case How.MIN:
            return 'float("inf")' if is_real else "9223372036854775807"


def _is_wrapped(text: str) -> bool:
    """Whether the first parenthesis closes at the end."""
    if not text.startswith("("):
        return False
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place == len(text) - 1
    return False


def _base_name(value: Val) -> str:
    known = value.origin.value
    match value:
        case Load():
            assert value.source is not None
            parts = [str(entry.index) for entry in value.layout if isinstance(entry, Part)]
            return "_".join([value.source.name, *parts])
        case Map():
            assert value.function is not None
            return known.name if known is not None and known.name.isidentifier() else value.function.name
        case Reduce():
            return value.how.value
        case _:
            return "value"
