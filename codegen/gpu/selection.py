"""The largest scores of rows against keys as registered operators: scores are computed in float32 and never stored.

    top            scores, index [rows, *groups, k] of  scale * x [rows, *groups, D] . keys [*groups, n, D]
    pairs          scores, slot of the sums of two sides of keys [*groups, 2, n, D]: slot = i * n + j

Which entries are taken has no gradient. That of a score that was taken is a number for one row and one key: the
gradient of x is a bag of keys, that of the keys a bag's of its table (bags.py). On a CPU without Triton's interpreter,
and in float64, torch computes and sorts all scores, which says what these mean.

Letters in shapes: R rows, G groups, n keys of a group, D entries, k of them taken.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functions.gathers import top as top_by_torch
from ..functions.gathers import top_pairs as top_pairs_by_torch
from ..functions.taken_scores import backward_of_pairs, backward_of_top, save
from .bags import add_op, bag_op
from .products import precision
from .rowwise import most_registers
from .scatter import interprets

# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)
# Lines of a program that combines two sides.
BLOCK_L = 8
PAIR_WARPS = 4
# Indices have 31 bits.
MOST = 2**31
# More of them are sorted by torch: a program holds all that are taken.
MOST_TAKEN = 64


class Tile(NamedTuple):
    """Rows, keys and entries that a program holds at a time, and launch options."""

    block_m: int
    block_n: int
    block_d: int
    warps: int
    stages: int


def top(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, *groups, D]`, `keys [*groups, n, D]`: the `count` largest scores, in at least float32, and their int64
    indices, `[R, *groups, count]`; largest first, ties to the lowest."""
    groups = keys.shape[:-2]
    x, keys = _alike(x.reshape(x.shape[0], prod(groups), x.shape[-1]), keys.reshape(prod(groups), *keys.shape[-2:]))
    scores, index = top_op(x, keys, count, scale)
    shape = (x.shape[0], *groups, count)
    return scores.reshape(shape), index.reshape(shape)


def top_pairs(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, *groups, 2, D]`, `keys [*groups, 2, n, D]`: the `count` largest sums of a score of each side, and `i * n +
    j`, `[R, *groups, count]`."""
    *groups, sides, entries, width = keys.shape
    x, keys = _alike(x.reshape(x.shape[0], -1, sides, width), keys.reshape(-1, sides, entries, width))
    scores, slot = pairs_op(x, keys, count, scale)
    shape = (x.shape[0], *groups, count)
    return scores.reshape(shape), slot.reshape(shape)


def _alike(x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, keys.dtype)
    return x.to(wide), keys.to(wide)


# -- the operators -----------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{LIBRARY}::top", mutates_args=())
def top_op(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, G, D]`, `keys [G, n, D]` of one type: `[R, G, count]` twice."""
    if not launches(x):
        scores, index = top_by_torch(_all_scores(x, keys, scale), count)
        return scores.contiguous(), index.contiguous()
    scores, index = _top(x.contiguous(), keys.contiguous(), count, scale)
    return scores, index.to(torch.int64)


@top_op.register_fake
def _(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], count)
    return x.new_empty(shape, dtype=_wide(x)), x.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op(f"{LIBRARY}::pairs", mutates_args=())
def pairs_op(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, G, 2, D]`, `keys [G, 2, n, D]` of one type: `[R, G, count]` twice."""
    if not launches(x):
        scores = _all_scores(x.flatten(1, 2), keys.flatten(0, 1), scale).unflatten(1, x.shape[1:3])
        found, slot = top_pairs_by_torch(scores[..., 0, :], scores[..., 1, :], count)
        return found.contiguous(), slot.contiguous()
    return _pairs(x.contiguous(), keys.contiguous(), count, scale)


@pairs_op.register_fake
def _(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], count)
    return x.new_empty(shape, dtype=_wide(x)), x.new_empty(shape, dtype=torch.int64)


top_op.register_autograd(backward_of_top(bag_op, add_op), setup_context=save)
pairs_op.register_autograd(backward_of_pairs(bag_op, add_op), setup_context=save)


def _all_scores(x: Tensor, keys: Tensor, scale: float) -> Tensor:
    wide = _wide(x)
    return scale * torch.einsum("rgd,gnd->rgn", x.to(wide), keys.to(wide))


# -- launches ----------------------------------------------------------------------------------------------------------


def launches(x: Tensor) -> bool:
    """Whether kernels score these rows: a score and its index are one whole number."""
    return x.dtype != torch.float64 and (x.device.type != "cpu" or interprets())


def _top(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """With int32 indices."""
    (rows, groups, width), entries = x.shape, keys.shape[1]
    scores = x.new_empty((rows, groups, count), dtype=torch.float32)
    index = x.new_empty((rows, groups, count), dtype=torch.int32)
    if scores.numel():
        tile = tile_of(rows, entries, width, count, x.dtype)
        has_tensor_cores = x.device.type == "cuda" and torch.version.hip is None
        options = {"maxnreg": most_registers(tile.warps)} if has_tensor_cores else {}
        _kernels().top_scores[(-(-rows // tile.block_m) * groups,)](
            x, keys, scores, index, rows, **top_constants(groups, entries, width, count, scale, tile),
            PRECISION=precision(x.dtype, has_tensor_cores), num_warps=tile.warps, num_stages=tile.stages, **options,
        )  # fmt: skip
    return scores, index


def _pairs(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    (rows, groups), entries = x.shape[:2], keys.shape[2]
    side = min(count, entries)
    side_scores, side_index = _top(x.flatten(1, 2), keys.flatten(0, 1), side, scale)
    scores = x.new_empty((rows, groups, count), dtype=torch.float32)
    slot = x.new_empty((rows, groups, count), dtype=torch.int64)
    if scores.numel():
        first, second = (places.to(x.device) for places in staircase(side, count))
        _kernels().top_pairs[(-(-rows * groups // BLOCK_L),)](
            side_scores, side_index, first, second, scores, slot, rows * groups,
            **pair_constants(entries, count), num_warps=PAIR_WARPS,
        )  # fmt: skip
    return scores, slot


@lru_cache(maxsize=64)
def staircase(side: int, count: int) -> tuple[Tensor, Tensor]:
    """Places (r, s) of two sides, int32, with (r + 1) (s + 1) <= count + 1: any other pair has more than `count` of
    them in front of it on both sides (memory_layers.md 2.4)."""
    r, s = torch.arange(side)[:, None], torch.arange(side)
    found = torch.nonzero((r + 1) * (s + 1) <= count + 1).to(torch.int32)
    return found[:, 0].contiguous(), found[:, 1].contiguous()


def top_constants(groups: int, entries: int, width: int, count: int, scale: float, tile: Tile) -> dict[str, Any]:
    return {
        "GROUPS": groups, "COUNT": entries, "WIDTH": width, "TOP": count, "LOG_K": log_of(count), "SCALE": scale,
        "BLOCK_M": tile.block_m, "LOG_N": log_of(tile.block_n), "BLOCK_D": tile.block_d,
    }  # fmt: skip


def pair_constants(entries: int, count: int) -> dict[str, Any]:
    side, taken = min(count, entries), log_of(count)
    candidates = len(staircase(side, count)[0])
    return {
        "COUNT": entries, "SIDE": side, "CANDIDATES": candidates, "TOP": count, "LOG_K": taken, "BLOCK_L": BLOCK_L,
        "LOG_C": max(taken, log_of(candidates)), "LOG_S": max(taken, log_of(side)),
    }  # fmt: skip


def tile_of(rows: int, entries: int, width: int, count: int, dtype: torch.dtype) -> Tile:
    """Small where there is little; float32 takes twice the memory."""
    block_d = min(64 if dtype.itemsize == 2 else 32, max(16, 1 << log_of(width)))
    block_n = max(16, min(64, 1 << log_of(entries)), 1 << log_of(count))
    return Tile(64, block_n, block_d, 8, 3) if rows > 16 else Tile(16, block_n, block_d, 4, 3)


def log_of(count: int) -> int:
    """Of the least power of two that is at least `count`, and two."""
    return max(1, (count - 1).bit_length())


def _kernels() -> Any:
    # Here, because a model on a CPU selects too, without Triton.
    from . import selection_kernels

    return selection_kernels


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
