"""The kernels of gradients of tables as an ahead-of-time compiler needs them. They are the same for every table."""

from __future__ import annotations

from pathlib import Path

import torch

from .cost import Work
from .gpu.scatter import BLOCK_T, TILE, WARPS, block_entries
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText

_FILE = Path(__file__).parent / "gpu" / "scatter_kernels.py"


def scatter_kernels(width: int, dtype: torch.dtype) -> tuple[KernelText, KernelText]:
    """For rows of `width` entries of `dtype`."""
    real = TRITON_TYPES[torch.promote_types(dtype, torch.float32)]
    ids, rows, order = ("ids_ptr", "*i32"), ("rows_ptr", f"*{TRITON_TYPES[dtype]}"), ("order_ptr", "*i64")
    sums, parts = ("sums_ptr", f"*{TRITON_TYPES[dtype]}"), ("parts_ptr", f"*{real}")
    count = ("n_rows", "i32")
    constants = (("WIDTH", width), ("TILE", TILE), ("BLOCK_E", block_entries(width)))
    return (
        _text("sum_runs", (ids, order, rows, sums, parts, count), constants),
        _text(
            "join_parts", (ids, ("run_end_ptr", "*i64"), parts, sums, count), (*constants, ("BLOCK_T", BLOCK_T))
        ),
    )  # fmt: skip


def scatter_work(width: int, dtype: torch.dtype, rows: int, count: int) -> dict[str, Work]:
    """By kernel: what adding `rows` rows into a table of `count` moves, where no run of equal ids crosses two tiles
    and, for what such runs add, where every run does."""
    real = torch.promote_types(dtype, torch.float32)
    crossing = -(-rows // TILE)
    added = float(rows * width)
    ids, order = 4, 8
    return {
        "sum_runs": Work(
            read=rows * (width * dtype.itemsize + ids + order),
            written=min(rows, count) * width * dtype.itemsize,
            vector=added,
            vector_type=TRITON_TYPES[real],
        ),
        "join_parts": Work(
            read=2 * crossing * width * real.itemsize,
            written=crossing * width * dtype.itemsize,
            vector=2.0 * crossing * width,
            vector_type=TRITON_TYPES[real],
        ),
    }


def _text(name: str, arguments: tuple[tuple[str, str], ...], constants: tuple[tuple[str, int], ...]) -> KernelText:
    return KernelText(
        name=name,
        text=_FILE.read_text(encoding="utf-8"),
        arguments=arguments,
        constants=constants,
        divisible=tuple(argument for argument, type in arguments if type.startswith("*")),
        warps=WARPS,
        stages=3,
    )
