"""Sums of weighted rows of a table, and products with rows of it, as registered operators: what is read is never
stored, and gradients are sums in a fixed order, without atomics.

    bag            y[l] = sum over n of  weight[l, n] table[index[l, n]]
    products       p[l, n] = table[index[l, n]] . x[l]

Each is the gradient of the other's operand, and both have a table's gradient in factors: row index[l, n] gets a number
times a line. The lists of all that read one table are sorted and added up once (shared_tables.py). On a CPU without
Triton's interpreter the functions of functions/row_tables.py run instead.

Letters in shapes: L lines, N rows that a line reads, E entries of a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functions.row_tables import Factors, products, sort_factors, sum_of_rows
from ..functions.row_tables import RowSums as RowSumsByTorch
from ..functions.row_tables import add_factors as add_by_torch
from .scatter import add_in_order, interprets, sort_keys

# Rows of a list and entries of a row that a program holds at a time.
BLOCK_N = 8
BLOCK_E = 512
# Parts of a list that a program adds at a time.
BLOCK_S = 8
WARPS = 4
# Programs that fill a device: fewer lines share their lists among several.
PROGRAMS = 512
# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)


def launches(x: Tensor) -> bool:
    return x.device.type != "cpu" or interprets()


# -- the operators -----------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{LIBRARY}::bag", mutates_args=())
def bag_op(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """`table [count, E]`, `index [L, N]`, `weight [L, N]` (None: 1): `[L, E]` in the table's type."""
    if launches(table):
        return _sum(table.contiguous(), index.contiguous(), None if weight is None else weight.contiguous())
    return sum_of_rows(table, index, weight)


@bag_op.register_fake
def _(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    return table.new_empty((index.shape[0], table.shape[1]))


@torch.library.custom_op(f"{LIBRARY}::products", mutates_args=())
def products_op(table: Tensor, index: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """`table [count, E]`, `index [L, N]`, `x [L, E]`: `[L, N]` of `dtype`."""
    if launches(table):
        return multiply(table.contiguous(), index.contiguous(), x.contiguous(), dtype)
    return products(table, index, x.to(table.dtype)).to(dtype)


@products_op.register_fake
def _(table: Tensor, index: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    return table.new_empty(index.shape, dtype=dtype)


@torch.library.custom_op(f"{LIBRARY}::add_bags", mutates_args=())
def add_op(index: Tensor, weight: Tensor | None, lines: Tensor, count: int) -> Tensor:
    """The gradient `[count, E]` of a table from one reader's factors."""
    return add_factors([(index, weight, lines)], count)


@add_op.register_fake
def _(index: Tensor, weight: Tensor | None, lines: Tensor, count: int) -> Tensor:
    return lines.new_empty((count, lines.shape[1]))


def _save_bag(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, index, weight = inputs
    # A gradient of the table alone reads no entry of it.
    ctx.save_for_backward(table if ctx.needs_input_grad[2] else None, index, weight)
    ctx.count = table.shape[0]


def _bag_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, index, weight = ctx.saved_tensors
    of_table = add_op(index, weight, grad, ctx.count) if ctx.needs_input_grad[0] else None
    of_weight = products_op(table, index, grad, weight.dtype) if ctx.needs_input_grad[2] else None
    return of_table, None, of_weight


bag_op.register_autograd(_bag_back, setup_context=_save_bag)


def _save_products(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, index, x, _ = inputs
    ctx.save_for_backward(table if ctx.needs_input_grad[2] else None, index, x)
    ctx.count = table.shape[0]


def _products_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, index, x = ctx.saved_tensors
    of_table = add_op(index, grad, x, ctx.count) if ctx.needs_input_grad[0] else None
    of_x = bag_op(table, index, grad).to(x.dtype) if ctx.needs_input_grad[2] else None
    return of_table, None, of_x, None


products_op.register_autograd(_products_back, setup_context=_save_products)


# -- gradients of tables from their factors ----------------------------------------------------------------------------


def add_factors(factors: Sequence[Factors], count: int) -> Tensor:
    """`[count, E]`: what `factors` add to each row of a table. All are sorted once, and each row is written once."""
    lines = factors[0][2]
    if not launches(lines):
        return add_by_torch(factors, count)
    ids, line, weight, lines = sort_factors(
        [(sort_keys(index, count), weight, gradient) for index, weight, gradient in factors]
    )
    sums = lines.new_zeros((count, lines.shape[1]))
    if ids.numel() and sums.numel():
        add_in_order(ids, line, weight, lines.contiguous(), sums)
    return sums


class RowSums(RowSumsByTorch):
    """The same for the rows alone that have a gradient, added up by kernels where there are any."""

    def stretch(self, begin: int, end: int) -> Tensor:
        if not launches(self.lines):
            return super().stretch(begin, end)
        starts = self._start[begin : end + 1]
        low, high = int(starts[0]), int(starts[-1])
        place = torch.arange(end - begin, device=starts.device).repeat_interleave(starts.diff())
        weight = None if self._weight is None else self._weight[low:high]
        sums = self.lines.new_zeros((end - begin, self.lines.shape[1]))
        if place.numel():
            add_in_order(place, self._line[low:high], weight, self.lines, sums)
        return sums


# -- launches ----------------------------------------------------------------------------------------------------------


def _sum(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    (lines, n), width = index.shape, table.shape[1]
    if not lines * n * width:
        return table.new_zeros((lines, width))
    block = block_entries(width)
    parts, splits, per_split = parts_of(table, lines, n)
    _kernels().sum_bags[(lines * splits * -(-width // block),)](
        table, index, index if weight is None else weight, parts, splits, per_split, N=n, WIDTH=width,
        IS_WEIGHTED=weight is not None, BLOCK_N=BLOCK_N, BLOCK_E=block, num_warps=WARPS,
    )  # fmt: skip
    return join_parts(parts, table.dtype)


def parts_of(table: Tensor, lines: int, n: int) -> tuple[Tensor, int, int]:
    """Room for the sums of `lines` lists of `n` rows, `[L, splits, E]`: in parts where lines are few. With how many
    there are, and how many rows each has."""
    width = table.shape[1]
    splits, per_split = splits_of(lines * -(-width // block_entries(width)), n)
    dtype = table.dtype if splits == 1 else _wide(table)
    return table.new_empty((lines, splits, width), dtype=dtype), splits, per_split


def join_parts(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """`parts [L, splits, E]` added up: `[L, E]`."""
    lines, splits, width = parts.shape
    if splits == 1:
        return parts.reshape(lines, width)
    block = block_entries(width)
    sums = parts.new_empty((lines, width), dtype=dtype)
    _kernels().join_bags[(lines * -(-width // block),)](
        parts, sums, splits, WIDTH=width, BLOCK_S=BLOCK_S, BLOCK_E=block, num_warps=WARPS
    )  # fmt: skip
    return sums


def splits_of(programs: int, n: int) -> tuple[int, int]:
    """Among how many programs the `n` rows of a list are shared where there are so many programs without, and how many
    rows each of them reads."""
    chunks = -(-n // BLOCK_N)
    wanted = min(chunks, -(-PROGRAMS // programs))
    per_split = BLOCK_N * -(-chunks // wanted)
    return -(-n // per_split), per_split


def are_few(rows: int) -> bool:
    """Whether several programs should multiply the rows of a list: there are not enough lists for one each."""
    return rows < PROGRAMS


def multiply(table: Tensor, index: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    (lines, n), width = index.shape, table.shape[1]
    found = table.new_empty((lines, n), dtype=dtype)
    if found.numel():
        _kernels().multiply_bags[(lines * -(-n // BLOCK_N),)](
            table, index, x, found, N=n, WIDTH=width, BLOCK_N=BLOCK_N, BLOCK_E=block_entries(width), num_warps=WARPS
        )  # fmt: skip
    return found


def block_entries(width: int) -> int:
    """Entries of a program's block."""
    return min(BLOCK_E, max(16, 1 << (width - 1).bit_length()))


def _kernels() -> Any:
    # Here, because a model on a CPU reads tables too, without Triton.
    from . import bag_kernels

    return bag_kernels


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
