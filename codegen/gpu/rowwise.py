"""Launches rowwise kernels: operands with contiguous rows, results made, sums over rows added up in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Programs that share the rows of a kernel with sums: each keeps a partial sum, so their number is part of the result.
# It is fixed in a plan, so that the same sums come out on every device.
PROGRAMS = 256


@dataclass(frozen=True)
class Made:
    """A result: `[rows, *dims]`, or `[*dims]` for a sum over rows. `is_saved`: for the backward alone. `by_run`: it has
    a row for each run of rows. `is_packed`: flags, those of 32 rows in each int32: `[words]`."""

    dims: tuple[int, ...]
    dtype: torch.dtype
    by_row: bool = True
    is_saved: bool = False
    by_run: bool = False
    is_packed: bool = False

    def lines(self, rows: Any) -> Any:
        """Of a result with rows, for so many rows of the kernel."""
        return (rows + 31) // 32 if self.is_packed else rows


@dataclass(frozen=True)
class RowKernel:
    """A kernel and what it takes.

    `sources`: which operands of the call it reads, in the order of its pointers, and whether each has rows (then the
    stride of its rows is passed too). `columns`: programs on the grid's second side. `is_accumulated`: it adds its sums
    over rows into memory that starts as zero. `runs`: a program takes the rows that hold one number; which operand has
    the numbers `[rows]`, in order, and which as many rows as there are of them. `waits`: entries of a thread wait in
    registers for one another, so that it gets all registers there are for it.
    """

    kernel: Any
    sources: tuple[tuple[int, bool], ...]
    results: tuple[Made, ...]
    block_rows: int
    columns: int
    warps: int
    stages: int
    is_accumulated: bool = False
    programs: int = PROGRAMS  # at most, where there are sums over rows
    runs: tuple[int, int] | None = None
    waits: bool = False

    def __call__(self, operands: Sequence[Tensor], saves: bool = True) -> tuple[Tensor, ...]:
        """Results that are for the backward alone have no rows where it does not save them."""
        read = [
            (rows_whole(operands[place]) if by_row else operands[place].contiguous()) for place, by_row in self.sources
        ]
        rows = next(t.shape[0] for t, (_, by_row) in zip(read, self.sources, strict=True) if by_row)
        like = read[0]
        tiles = -(-rows // self.block_rows)
        programs = min(tiles, self.programs) if any(not made.by_row for made in self.results) else tiles
        programs = max(programs, 1)
        bounds = []
        if self.runs is not None:
            count = operands[self.runs[1]].shape[0]
            programs = max(count, 1)
            bounds = [tiled_runs(operands[self.runs[0]], programs)]
        results = [
            self._empty(made, rows if saves or not made.is_saved else 0, programs, like) for made in self.results
        ]
        if rows:
            options: dict[str, Any] = {"SAVES": saves} if any(made.is_saved for made in self.results) else {}
            if self.waits and torch.version.hip is None:
                options["maxnreg"] = most_registers(self.warps)
            strides = [t.stride(0) for t, (_, by_row) in zip(read, self.sources, strict=True) if by_row]
            self.kernel[(programs, self.columns)](
                *read, *strides, *results, *bounds, rows,
                BLOCK_R=self.block_rows, **options, num_warps=self.warps, num_stages=self.stages,
            )  # fmt: skip
        return tuple(
            _of_runs(result, rows, operands[self.runs[1]])
            if made.by_run and self.runs is not None
            else result
            if made.by_row
            else result.sum(0).to(made.dtype)
            if rows
            else result[0].zero_().to(made.dtype)
            for made, result in zip(self.results, results, strict=True)
        )

    def _empty(self, made: Made, rows: int, programs: int, like: Tensor) -> Tensor:
        if made.by_run:
            return like.new_empty((programs, *made.dims), dtype=made.dtype)
        if made.by_row:
            return like.new_empty((made.lines(rows), *made.dims), dtype=made.dtype)
        wide = torch.promote_types(made.dtype, torch.float32)
        make = like.new_zeros if self.is_accumulated else like.new_empty
        return make((programs, *made.dims), dtype=wide)


def most_registers(warps: int) -> int:
    """Registers of a thread, so that a program of so many warps finds room on a processor of NVIDIA's. The assembler
    would rather spill a few of them than have one program less at a time, which nobody asked it for."""
    return min(255, 65536 // (32 * warps))


def tiled_runs(number: Tensor, count: int) -> Tensor:
    """int32 `[count + 1]`: where the rows of each number begin in `number [rows]`, whose numbers lie in order. Rows of
    none, -1, go with the rows before them; of the first ones number 0 takes care."""
    in_order = torch.cummax(number, 0).values
    runs = torch.arange(count + 1, dtype=number.dtype, device=number.device)
    bounds = torch.searchsorted(in_order, runs, out_int32=True)
    bounds[0] = 0
    return bounds


def _of_runs(result: Tensor, rows: int, table: Tensor) -> Tensor:
    return result[: table.shape[0]] if rows else result.zero_()[: table.shape[0]]


def rows_whole(x: Tensor) -> Tensor:
    """The entries of a row side by side; rows may be apart."""
    expected = 1
    for size, stride in zip(reversed(x.shape[1:]), reversed(x.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    return x
