"""Adding rows into a table, the transpose of reading rows from it: in a fixed order, without atomics."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Positions of a program: enough to be worth its start, few enough that all processors have some.
TILE = 32
# Tiles of a launch at most, each of which has two rows of parts.
MOST_TILES = 1 << 14
# Entries of a row and parts of a run that a program holds.
BLOCK_E = 512
BLOCK_T = 16
WARPS = 4


class Tiling(NamedTuple):
    """Positions and entries of a program, and its warps."""

    tile: int
    block_e: int
    warps: int


_measured: dict[tuple[int, torch.dtype], Tiling] = {}


def use(width: int, dtype: torch.dtype, tiling: Tiling) -> None:
    """From now on rows of `width` entries are added in this tiling, which is part of the order of the sums."""
    _measured[width, dtype] = tiling


def tiling_of(width: int, dtype: torch.dtype) -> Tiling:
    """The tiling in use: the default one unless another was measured to be better."""
    return _measured.get((width, dtype)) or Tiling(TILE, block_entries(width), WARPS)


def add_rows(index: Tensor, rows: Tensor, count: int) -> Tensor:
    """`rows [*index.shape, entries]` added into `[count, entries]` at `index`, ids in 0 .. count - 1; sums in at least
    float32, rounded once."""
    ids = index.reshape(-1)
    flat = rows.reshape(ids.shape[0], rows.shape[-1])
    if rows.device.type == "cpu" and not interprets():
        wide = torch.zeros((count, flat.shape[1]), dtype=_wide(rows))
        return wide.index_add_(0, ids, flat.to(wide.dtype)).to(rows.dtype)
    sums = flat.new_zeros((count, flat.shape[1]))
    if flat.numel():
        _add(ids, flat.contiguous(), sums)
    return sums


def _add(ids: Tensor, rows: Tensor, sums: Tensor) -> None:
    """`rows [N, entries]` into `sums`, which are zero."""
    in_order, order = torch.sort(sort_keys(ids, sums.shape[0]), stable=True)
    add_in_order(in_order, order, None, rows, sums)


def sort_keys(ids: Tensor, count: int) -> Tensor:
    """Ids below `count`: shorter keys sort faster."""
    return ids.to(torch.int32) if count < 2**31 else ids


def add_in_order(ids: Tensor, order: Tensor, weight: Tensor | None, rows: Tensor, sums: Tensor) -> None:
    """Into `sums [count, entries]`, which are zero, at the sorted `ids [N]`: the rows `order [N]` of `rows`, each times
    `weight [N]`."""
    # Here, because a model on a CPU reads tables too, without Triton.
    from . import scatter_kernels

    kernels: Any = scatter_kernels

    n_rows, width = ids.shape[0], rows.shape[1]
    tile, block, warps = tiling_of(width, rows.dtype)
    tile = longest_tile(tile, n_rows)
    tiles = -(-n_rows // tile)
    parts = rows.new_empty((tiles, 2, width), dtype=_wide(rows))
    grid = (tiles, -(-width // block))
    kernels.sum_runs[grid](
        ids, order, order if weight is None else weight, rows, sums, parts, n_rows, WIDTH=width,
        IS_WEIGHTED=weight is not None, TILE=tile, BLOCK_E=block, num_warps=warps,
    )  # fmt: skip
    if tiles > 1:
        last = ids[tile - 1 :: tile].contiguous()
        run_end = torch.searchsorted(ids, last, right=True)
        # The last tile has none after it.
        kernels.join_parts[(tiles - 1, grid[1])](
            ids, run_end, parts, sums, n_rows, WIDTH=width, TILE=tile, BLOCK_E=block, BLOCK_T=BLOCK_T, num_warps=warps,
        )  # fmt: skip


def longest_tile(tile: int, positions: int) -> int:
    """Positions of a program: more where there are so many that the parts of runs would fill the memory."""
    while positions > MOST_TILES * tile:
        tile *= 2
    return tile


@cache
def interprets() -> bool:
    """Whether kernels run on a CPU, in Triton's interpreter."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def block_entries(width: int) -> int:
    """Entries of a program's block."""
    return min(BLOCK_E, max(16, 1 << (width - 1).bit_length()))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
