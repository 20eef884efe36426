"""A row program: what a rowwise kernel computes for one row, in single assignment over named axes.

    out   = load(out_ptr, row, [dim])          square = mul(out, out)         total = sum(square, over dim)
    scale = rsqrt(add(mul(total, 1/dim), eps)) y = mul(out, scale)            store(y, row, [dim])

A value has an entry for each combination of its axes, and is one per row or one for all rows. Operands meet by axis
name, so there is nothing to reshape, permute or expand: those turn into the order in which loads and stores name the
axes. An axis that the spec takes apart (the halves of rotary positions) is written out: each part is a value of its
own, and a load names the part by number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from math import prod

import torch

from ..origin import UNKNOWN, Origin
from .functions import Function


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


Layout = tuple[Axis | Part, ...]


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


@dataclass(frozen=True, eq=False)
class Constant(Val):
    number: int | float | bool = 0


@dataclass(frozen=True, eq=False)
class Iota(Val):
    """0, 1, ... along `axis`."""

    axis: Axis | None = None


@dataclass(frozen=True, eq=False)
class Load(Val):
    """Entries of a source, at the kernel's row, or at row `index` of a table."""

    source: Source | None = None
    layout: Layout = ()
    index: Val | None = None

    @property
    def operands(self) -> tuple[Val, ...]:
        return () if self.index is None else (self.index,)


@dataclass(frozen=True, eq=False)
class Map(Val):
    """`function` of operands that meet by axis."""

    function: Function | None = None
    args: tuple[Val, ...] = ()

    @property
    def operands(self) -> tuple[Val, ...]:
        return self.args


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
    after all results that others read; it is made where a gradient will be asked for."""

    name: str
    dims: tuple[int, ...]
    dtype: torch.dtype
    by_row: bool = True
    is_saved: bool = False


@dataclass(frozen=True)
class RowProgram:
    """`sources` are its operands in the order of the call, `results` what it makes, `stores` how."""

    name: str
    sources: tuple[Source, ...]
    results: tuple[Result, ...]
    stores: tuple[Store, ...]

    @property
    def values(self) -> tuple[Val, ...]:
        """Everything the stores need, operands first."""
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

        for store in self.stores:
            if store.value not in seen:
                visit(store.value)
        return tuple(seen)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        stored = tuple(store.layout for store in self.stores)
        return stored + tuple(value.layout for value in self.values if isinstance(value, Load))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every axis, slower before faster as far as the layouts agree."""
        layouts = [tuple(entry for entry in layout if isinstance(entry, Axis)) for layout in self.layouts]
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
