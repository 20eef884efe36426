"""A row program: what a rowwise kernel computes for one row, in single assignment over named axes.

    out   = load(out_ptr, row, [dim])          square = mul(out, out)         total = sum(square, over dim)
    scale = rsqrt(add(mul(total, 1/dim), eps)) y = mul(out, scale)            store(y, row, [dim])

A value has an entry for each combination of its axes, and is one per row or one for all rows. Operands meet by axis
name, so there is nothing to reshape, permute or expand: those turn into the order in which loads and stores name the
axes. An axis that the spec takes apart (the halves of rotary positions) is written out: each part is a value of its
own, and a load names the part by number. So is one that it puts together (`concat`), of parts that are axes themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from math import prod

import torch

from ..origin import UNKNOWN, Origin
from .functions import Function

# Flags in an int32 of a packed result.
WORD = 32


class Kind(Enum):
    REAL = "real"  # computed in float32, or float64 where an input is
    INT = "int"
    FLAG = "flag"


@dataclass(frozen=True, eq=False)
class Axis:
    """A static axis. Identity is the object; `name` is for the kernel's text."""

    name: str
    size: int


@dataclass(frozen=True)
class Part:
    """One entry of an axis that is written out: number `index` of `size`."""

    index: int
    size: int


@dataclass(frozen=True)
class Window:
    """The entries that one of `parts`, laid end to end as one axis, has there: part `number`."""

    number: int
    parts: tuple[Axis, ...]

    @property
    def axis(self) -> Axis:
        return self.parts[self.number]

    @property
    def start(self) -> int:
        return sum(axis.size for axis in self.parts[: self.number])

    @property
    def size(self) -> int:
        return sum(axis.size for axis in self.parts)


Layout = tuple[Axis | Part | Window, ...]


def axes_of(layout: Layout) -> tuple[Axis, ...]:
    """What entries at a layout are numbered by."""
    windows = (entry.axis if isinstance(entry, Window) else entry for entry in layout)
    return tuple(entry for entry in windows if isinstance(entry, Axis))


def extent(layout: Layout) -> int:
    """Entries that a layout strides over, written-out axes included."""
    return prod(entry.size for entry in layout)


@dataclass(frozen=True)
class Source:
    """A tensor the kernel reads: `[rows, *dims]` or `[*dims]`, contiguous but for the stride of its rows.

    `place` is the operand of the fused call; `by_row`: it has a row for each of the kernel's rows. A source that is
    gathered from (`by_row` false, read through an index) has its own number of rows.
    """

    place: int
    name: str
    by_row: bool
    dims: tuple[int, ...]
    dtype: torch.dtype
    is_table: bool = False

    @property
    def entries(self) -> int:
        return prod(self.dims)


@dataclass(frozen=True, eq=False)
class Val:
    """One value. `axes` in no particular order; `by_row`: one per row."""

    axes: frozenset[Axis]
    by_row: bool
    kind: Kind
    origin: Origin = UNKNOWN

    @property
    def operands(self) -> tuple[Val, ...]:
        return ()

    def of(self, operands: tuple[Val, ...]) -> Val:
        """The same of other operands."""
        del operands
        return self


@dataclass(frozen=True, eq=False)
class Constant(Val):
    number: int | float | bool = 0


@dataclass(frozen=True, eq=False)
class Iota(Val):
    """0, 1, ... along `axis`."""

    axis: Axis | None = None


@dataclass(frozen=True, eq=False)
class Load(Val):
    """Entries of a source, at the kernel's row or `shift` rows after it, or at row `index` of a table. `in_runs`: rows
    that read the same row of the table lie side by side, and one whose index is -1 reads 0.

    Before the first row and after the last of all it reads the nearest: nobody takes what is made of it there, but a
    quotient by 0 would stay in products with 0. A gradient (`is_gradient`) reads 0 there.
    """

    source: Source | None = None
    layout: Layout = ()
    index: Val | None = None
    shift: int = 0
    in_runs: bool = False
    is_gradient: bool = False

    @property
    def operands(self) -> tuple[Val, ...]:
        return () if self.index is None else (self.index,)

    @property
    def reads_nearest(self) -> bool:
        return self.shift != 0 and not self.is_gradient

    def of(self, operands: tuple[Val, ...]) -> Val:
        return replace(self, index=operands[0]) if operands else self


@dataclass(frozen=True, eq=False)
class Map(Val):
    """`function` of operands that meet by axis."""

    function: Function | None = None
    args: tuple[Val, ...] = ()

    @property
    def operands(self) -> tuple[Val, ...]:
        return self.args

    def of(self, operands: tuple[Val, ...]) -> Val:
        return replace(self, args=operands)


class How(Enum):
    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, eq=False)
class Reduce(Val):
    how: How = How.SUM
    arg: Val | None = None
    over: frozenset[Axis] = frozenset()

    @property
    def operands(self) -> tuple[Val, ...]:
        assert self.arg is not None
        return (self.arg,)

    def of(self, operands: tuple[Val, ...]) -> Val:
        return replace(self, arg=operands[0])


def operands_first(roots: Iterable[Val]) -> tuple[Val, ...]:
    """Values and all that they are made of."""
    seen: dict[Val, None] = {}

    def visit(root: Val) -> None:
        stack: list[tuple[Val, Iterator[Val]]] = [(root, iter(root.operands))]
        while stack:
            value, rest = stack[-1]
            following = next((operand for operand in rest if operand not in seen), None)
            if following is None:
                seen.setdefault(value)
                stack.pop()
            else:
                stack.append((following, iter(following.operands)))

    for root in roots:
        if root not in seen:
            visit(root)
    return tuple(seen)


def at_row(value: Val, rows: int) -> Val:
    """The value so many rows after the kernel's: the same, of loads that are shifted."""
    if not rows:
        return value
    moved: dict[Val, Val] = {}
    for one in operands_first((value,)):
        new = tuple(moved[operand] for operand in one.operands)
        match one:
            case Load() if one.index is None and one.by_row:
                moved[one] = replace(one, shift=one.shift + rows)
            case _:
                moved[one] = one if new == one.operands else one.of(new)
    return moved[value]


@dataclass(frozen=True)
class Store:
    """Writes a value to result `place` at a layout. `sum_rows`: the result has no rows; it is the sum over all."""

    place: int
    value: Val
    layout: Layout
    sum_rows: bool = False


@dataclass(frozen=True)
class Result:
    """A tensor the kernel makes: `[rows, *dims]`, or `[*dims]` for a sum over rows. `is_saved`: for the backward alone,
    after all results that others read; it is made where a gradient will be asked for. `by_run`: it has a row for each
    run of rows. `is_packed`: it is flags, those of WORD rows in each int32."""

    name: str
    dims: tuple[int, ...]
    dtype: torch.dtype
    by_row: bool = True
    is_saved: bool = False
    by_run: bool = False
    is_packed: bool = False


@dataclass(frozen=True)
class RowProgram:
    """`sources` are its operands in the order of the call, `results` what it makes, `stores` how. `runs`: its sums are
    over the rows that hold one number, and not over all: which operand has the numbers, and which as many rows as there
    are of them."""

    name: str
    sources: tuple[Source, ...]
    results: tuple[Result, ...]
    stores: tuple[Store, ...]
    runs: tuple[int, int] | None = None

    @property
    def packs(self) -> bool:
        return any(result.is_packed for result in self.results)

    @property
    def values(self) -> tuple[Val, ...]:
        """Everything the stores need, operands first."""
        return operands_first(store.value for store in self.stores)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        stored = tuple(store.layout for store in self.stores)
        return stored + tuple(value.layout for value in self.values if isinstance(value, Load))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis, slower before faster as far as the layouts agree."""
        layouts = [axes_of(layout) for layout in self.layouts]
        layouts += [tuple(sorted(value.axes, key=lambda axis: axis.name)) for value in self.values if value.axes]
        after: dict[Axis, set[Axis]] = {}
        for layout in layouts[: len(self.layouts)]:
            for one, two in pairwise(layout):
                after.setdefault(two, set()).add(one)
        order: dict[Axis, None] = {}
        left = dict.fromkeys(axis for layout in layouts for axis in layout)
        while left:
            free = (axis for axis in left if not after.get(axis, set()) & left.keys())
            axis = next(free, next(iter(left)))  # the first of a circle, where layouts disagree
            order.setdefault(axis)
            del left[axis]
        return tuple(order)
