"""A row plan as others need it: text and arguments for a compiler, bytes and operations for a roofline."""

from __future__ import annotations

from math import prod

import torch

from ..cost import SEGMENT, Work
from ..emit_kernels import render, row_kernel
from ..kernel_text import KernelText
from .plan import RowPlan
from .row_program import WORD, Load, Map, Reduce, Result, Val

_HEAD = "import triton\nimport triton.language as tl\n\n"


def row_kernel_text(plan: RowPlan) -> KernelText:
    """The kernel alone in a module, as its launcher runs it."""
    return KernelText(
        name=f"{plan.name}_kernel",
        text=f"{_HEAD}{render('prelude.py.j2')}\n\n{row_kernel(plan)}",
        arguments=tuple((argument.name, argument.type) for argument in plan.arguments),
        constants=(("BLOCK_R", plan.block_rows), *((("SAVES", True),) if plan.saves else ())),
        divisible=tuple(argument.name for argument in plan.arguments if argument.divisible),
        warps=plan.warps,
        stages=plan.stages,
        registers=plan.registers,
    )


def row_work(plan: RowPlan, rows: int) -> Work:
    """What a launch over `rows` rows moves and computes: each operand once, a table as many rows as there are indices.

    Sums over rows are written once per program that shares them. An operation is one function of one entry, or one
    entry added up.
    """
    program = plan.program
    gathers = [value for value in program.values if isinstance(value, Load) and value.index is not None]
    read = sum(
        (rows if source.by_row else 1) * source.entries * source.dtype.itemsize
        for source in program.sources
        if not any(load.source == source for load in gathers)
    )
    read += sum(
        # Rows of a segment read the same row of it, which is moved once.
        _count(load, -(-rows // SEGMENT) if load.in_runs else rows) * load.source.dtype.itemsize
        for load in gathers
        if load.source is not None
    )
    shares = min(plan.programs, -(-rows // plan.block_rows))
    real = torch.float64 if plan.real == "tl.float64" else torch.float32
    written = sum(prod(result.dims) * _written(result, rows, shares, real.itemsize) for result in program.results)
    computed = [
        value.arg if isinstance(value, Reduce) else value
        for value in program.values
        if isinstance(value, (Map, Reduce))
    ]
    flops = sum(_count(value, rows) for value in computed if value is not None)
    return Work(read, written, vector=flops, vector_type="fp64" if real is torch.float64 else "fp32")


def _written(result: Result, rows: int, shares: int, real: int) -> int:
    """Bytes for each entry of a result."""
    if result.by_run:
        return -(-rows // SEGMENT) * result.dtype.itemsize
    lines = -(-rows // WORD) if result.is_packed else rows
    return lines * result.dtype.itemsize if result.by_row else shares * real


def _count(value: Val, rows: int) -> int:
    """Entries of a value."""
    return prod(axis.size for axis in value.axes) * (rows if value.by_row else 1)
