"""The lines of a rowwise kernel: names, addresses, masks and expressions of its values."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from ..gpu.triton_types import TRITON_TYPES
from ..origin import UNKNOWN, Origin
from ..spec_comment import comment
from .row_program import (
    WORD,
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
    Store,
    Val,
    Window,
    axes_of,
    extent,
)
from .tiles import Tiles

_STORED = {
    torch.float64: "tl.float64", torch.float32: "tl.float32", torch.float16: "tl.float16",
    torch.int64: "tl.int64", torch.int32: "tl.int32", torch.bool: "tl.int1",
}  # fmt: skip

# What the text of a kernel calls otherwise: the frame's variables, Triton, and the functions of the prelude.
RESERVED: tuple[str, ...] = (
    "row", "is_row", "tile", "start", "before", "n_rows", "run", "first", "end", "bounds_ptr", "BLOCK_R", "SAVES",
    "tl", "triton", "range", "float", "bool",
    "INTERPRETED", "to_bfloat16", "tanh", "softplus", "sign", "power", "factor",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One line of the kernel, below a comment with the spec line it serves if that differs from the line before."""

    text: str
    comment: str | None = None


class Writer:
    """Writes values of one kernel. `real` is Triton's name of the type that reals are computed in."""

    def __init__(self, tiles: Tiles) -> None:
        program = tiles.program
        self.tiles, self.program, self.axes = tiles, program, tiles.axes
        # A result may be wider than all that is read, where flags become numbers.
        is_double = any(tensor.dtype == torch.float64 for tensor in (*program.sources, *program.results))
        self.real = "tl.float64" if is_double else "tl.float32"
        self.names: dict[Val, str] = {}
        self.taken = set(RESERVED)
        self.pointers = {source: self.unique(f"{source.name}_ptr") for source in program.sources}
        self.strides = {source: self.unique(f"stride_{source.name}") for source in program.sources if source.by_row}
        self.results = [self.unique(f"{result.name}_ptr") for result in program.results]
        self.axis_names = {axis: self.unique(axis.name) for axis in self.axes}
        self.totals = {store: self.unique("total") for store in program.stores if store.sum_rows}
        self.last_comment: str | None = None

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

    def step(self, text: str, origin: Origin) -> Step:
        said = None if origin.span is None else comment(origin.span)
        if said == self.last_comment or said is None:
            return Step(text)
        self.last_comment = said
        return Step(text, said)

    def values(self, wanted: Iterable[Val], known: set[Val], made: set[Val]) -> list[Step]:
        """The steps of values and of what they need. What is in `known` or `made` is there; `made` grows."""
        steps = []
        for value in needed(wanted, known | made):
            made.add(value)
            text = self._text(value)
            if text is None:
                continue
            if value not in self.names:
                self.names[value] = self.unique(_base_name(value))
            steps.append(
                self.step(f"{self.names[value]} = {text}", UNKNOWN if isinstance(value, Load) else value.origin)
            )
        return steps

    def zero(self, value: Reduce) -> Step:
        self.names[value] = self.unique(_base_name(value))
        shape = ["1" if not value.by_row else "BLOCK_R"]
        shape += [str(self.tiles.block(axis)) if axis in value.axes else "1" for axis in self.axes]
        dtype = self.real if value.kind is Kind.REAL else "tl.int64"
        return self.step(
            f"{self.names[value]} = tl.full([{', '.join(shape)}], {_identity(value)}, {dtype})", value.origin
        )

    def accumulate(self, value: Reduce) -> Step:
        name, part = self.names[value], self._reduction(value)
        text = f"{name} + {part}" if value.how is How.SUM else f"tl.{value.how.value}imum({name}, {part})"
        return self.step(f"{name} = {text}", value.origin)

    def arange(self, axis: Axis) -> str:
        place = 1 + self.axes.index(axis)
        index = ", ".join(":" if i == place else "None" for i in range(1 + len(self.axes)))
        return f"tl.arange(0, {self.tiles.block(axis)})[{index}]"

    def _read(self, value: Val) -> str:
        match value:
            case Constant():
                return constant_text(value)
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
                return map_text(value, self._read, self.real)
            case Reduce():
                return self._reduction(value)
        raise AssertionError(value)

    def _reduction(self, value: Reduce) -> str:
        assert value.arg is not None
        text = self._read(value.arg)
        masks = [
            f"in_{self.axis_names[axis]}" for axis in self.axes if axis in value.over and self.tiles.is_masked(axis)
        ]
        if masks:
            # The numbers along an axis are narrow, and the identity is not.
            text = f"{text}.to(tl.int64)" if value.kind is not Kind.REAL else text
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
                if isinstance(entry, Window):
                    constant += entry.start * stride
                name = self.axis_names[entry.axis if isinstance(entry, Window) else entry]
                terms.append(name if stride == 1 else f"{name} * {stride}")
        if constant:
            terms.append(str(constant))
        return " + ".join(terms)

    def _mask(self, by_row: bool, axes: Iterable[Axis]) -> str | None:
        present = set(axes)
        masks = ["is_row"] if by_row else []
        masks += [f"in_{self.axis_names[axis]}" for axis in self.axes if axis in present and self.tiles.is_masked(axis)]
        return " & ".join(masks) or None

    def _load(self, value: Load) -> str:
        source = value.source
        assert source is not None
        terms = [self.pointers[source]]
        if value.index is not None:
            index = self._read(value.index)
            terms.append(f"{index}.to(tl.int64) * {source.entries}" if source.entries != 1 else index)
        elif source.by_row:
            row = _row_of(value)
            terms.append(f"{row} * {self.strides[source]}")
        address = self._address(value.layout, extent(value.layout))
        if address:
            terms.append(address)
        mask = self._mask(value.by_row, value.axes)
        if value.in_runs:
            assert value.index is not None
            mask = " & ".join(part for part in (mask, f"({self._read(value.index)} >= 0)") if part)
        if value.shift and not value.reads_nearest:
            assert mask is not None
            mask += f" & (row >= {-value.shift})" if value.shift < 0 else f" & (row < n_rows - {value.shift})"
        text = f"tl.load({' + '.join(terms)}" + (f", mask={mask}, other=0)" if mask else ")")
        if value.kind is Kind.REAL and TRITON_TYPES[source.dtype] != TRITON_TYPES[_dtype(self.real)]:
            return f"{text}.to({self.real})"
        return f"({text} != 0)" if value.kind is Kind.FLAG else text

    def store(self, store: Store) -> list[Step]:
        result = self.program.results[store.place]
        value, axes = self._read(store.value), axes_of(store.layout)
        entries = extent(store.layout)
        if store.sum_rows:
            # Rows beyond the last one hold anything.
            text = f"tl.sum(tl.where(is_row, {value}, 0.0), axis=0, keep_dims=True)"
            if self.is_added_in_memory(store):
                own = f"{self.results[store.place]} + tl.program_id(0) * {entries}"
                pointer = f"{own} + {self._address(store.layout, entries)}"
                mask = self._mask(False, axes)
                guard = f", mask={mask}" if mask else ""
                other = ", other=0" if mask else ""
                return [
                    self.step(f"before = tl.load({pointer}{guard}{other})", store.value.origin),
                    Step(f"tl.store({pointer}, before + {text}{guard})"),
                ]
            return [self.step(f"{self.totals[store]} += {text}", store.value.origin)]
        if result.is_packed:
            return self._store_packed(store)
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
        guard = "if SAVES: " if result.is_saved else ""
        return [self.step(f"{guard}tl.store({pointer}, {written}, mask={mask})", store.value.origin)]

    def _store_packed(self, store: Store) -> list[Step]:
        """A flag for each row, without axes: WORD of them are the bits of a word."""
        flags = self._read(store.value)
        if isinstance(store.value, Constant) or not store.value.by_row:
            flags = f"tl.full([BLOCK_R], {flags}, tl.int1)"
        bits, word = self.unique("bits"), self.unique("word")
        return [
            self.step(
                f"{bits} = tl.reshape(({flags} & is_row).to(tl.int32), [BLOCK_R // {WORD}, {WORD}])", store.value.origin
            ),
            Step(f"{word} = tile * (BLOCK_R // {WORD}) + tl.arange(0, BLOCK_R // {WORD})"),
            Step(
                f"tl.store({self.results[store.place]} + {word}, tl.sum({bits} << tl.arange(0, {WORD})[None, :], 1), "
                f"mask={word} * {WORD} < n_rows)"
            ),
        ]

    def _cast(self, text: str, kind: Kind, dtype: torch.dtype) -> str:
        if kind is Kind.REAL and dtype == torch.bfloat16:
            return f"to_bfloat16({text})"
        if kind is Kind.REAL and dtype != _dtype(self.real):
            return f"{text}.to({_STORED[dtype]})"
        return text

    def _shape(self, by_row: bool, axes: Iterable[Axis]) -> str:
        present = set(axes)
        sizes = ["BLOCK_R" if by_row else "1"]
        return f"[{', '.join(sizes + [str(self.tiles.block(a)) if a in present else '1' for a in self.axes])}]"

    def is_added_in_memory(self, store: Store) -> bool:
        """A sum over rows that no program can hold is added up in memory, each program in its own."""
        return store.sum_rows and self.tiles.is_looped and self.tiles.cut in axes_of(store.layout)

    def end_of_sum(self, store: Store) -> tuple[str, str, Step]:
        """The name of a sum over rows, the shape it is held in, and the step that writes it."""
        axes = axes_of(store.layout)
        entries = extent(store.layout)
        address = self._address(store.layout, entries)
        by_run = self.program.results[store.place].by_run
        program = "run.to(tl.int64)" if by_run else "tl.program_id(0)"
        pointer = f"{self.results[store.place]} + {program} * {entries}" + (f" + {address}" if address else "")
        shape = self._shape(False, axes)
        mask = self._mask(False, axes)
        name = self.totals[store]
        if not axes:
            # The sum is a block of one entry, and so must its place be.
            pointer += f" + tl.zeros({shape}, tl.int32)"
        guard = f", mask={mask}" if mask else ""
        written = self._cast(name, Kind.REAL, self.program.results[store.place].dtype) if by_run else name
        return name, shape, Step(f"tl.store({pointer}, {written}{guard})")


def needed(wanted: Iterable[Val], known: set[Val]) -> list[Val]:
    """What values need, operands first, as far as it is not known."""
    found: dict[Val, None] = {}
    for root in wanted:
        stack = [(root, iter(root.operands))] if root not in known and root not in found else []
        while stack:
            value, rest = stack[-1]
            following = next((v for v in rest if v not in known and v not in found), None)
            if following is None:
                found.setdefault(value)
                stack.pop()
            else:
                stack.append((following, iter(following.operands)))
    return list(found)


def grouped(steps: list[Step]) -> tuple[Step, ...]:
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


def map_text(value: Map, read: Callable[[Val], str], real: str) -> str:
    """A function of operands, whose names `read` knows; `real` is Triton's name of what is computed in."""
    assert value.function is not None
    # Between two operands a number takes the other's type; anywhere else Triton makes it a float32.
    is_between = value.function.text.startswith("(")
    names = [read(operand) if is_between else _exactly(read(operand), operand, real) for operand in value.args]
    text = value.function.text.format(*names, real=real)
    return text[1:-1] if _is_wrapped(text) else text


def constant_text(value: Constant) -> str:
    return repr(value.number) if not isinstance(value.number, float) else _number(value.number)


def _exactly(text: str, value: Val, real: str) -> str:
    if isinstance(value, Constant) and isinstance(value.number, float) and real == "tl.float64":
        exact = value.number == torch.tensor(value.number, dtype=torch.float32).item()
        return text if exact or value.number != value.number else f"tl.full([], {text}, tl.float64)"
    return text


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


def _row_of(load: Load) -> str:
    if not load.shift:
        return "row"
    row = f"row {'+' if load.shift > 0 else '-'} {abs(load.shift)}"
    if not load.reads_nearest:
        return f"({row})"
    return f"tl.minimum({row}, n_rows - 1)" if load.shift > 0 else f"tl.maximum({row}, 0)"
