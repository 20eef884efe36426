"""What choices are made for, by family: the hash under which they are kept, the safe default, and how one is applied.

rows of a program, warps, stages, programs      a rowwise kernel, forward or backward
tiles, warps, stages                            an attention kernel, of training or of decoding
entries of a block, or tiles                    the logits of one linear
positions and entries of a program, warps       the gradient of tables of one width
the matrix library, or tiles of ours            one product of a linear, or of a grouped one: forward, or a gradient
ours, or torch's kernels                        attention under a plain mask
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from .choices import TORCH, Choices
from .configuration import Configuration, anonymous, kernel_hash
from .emit_kernels import render
from .gpu.attention_kernels import AttentionKey
from .gpu.linear_tiles import Tiles
from .gpu.scatter import Tiling
from .grouped.kernels import default_tiles
from .grouped.op import GroupedOp
from .grouped.text import kernel_text
from .kernel_text import KernelText
from .linear_text import linear_kernel
from .logits.kernels import Tile, default_tile
from .logits.op import LogitsOp
from .logits.text import kernel_texts
from .rowwise.kernel_texts import row_kernel_text
from .rowwise.plan import RowPlan
from .scatter_text import scatter_kernels
from .score.configurations import Configuration as AttentionTiles

# Of a linear `x [N, K]`, `weight [M, K]`: the products of its result and of both gradients.
PRODUCTS = ("forward", "x_gradient", "weight_gradient")


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# -- rowwise ---------------------------------------------------------------------------------------


@cache
def row_subject(plan: RowPlan) -> str:
    return kernel_hash(anonymous(row_kernel_text(plan)), ("BLOCK_R",))


def row_default(plan: RowPlan) -> Configuration:
    return row_configuration(plan, plan.block_rows, plan.warps, plan.stages, plan.programs)


def row_configuration(plan: RowPlan, rows: int, warps: int, stages: int, programs: int) -> Configuration:
    """The number of programs is free only where it is not that of the tiles."""
    constants: tuple[tuple[str, Any], ...] = (("BLOCK_R", rows), *((("PROGRAMS", programs),) if plan.has_sums else ()))
    return Configuration(constants, warps, stages)


def row_plan(plan: RowPlan, chosen: Configuration) -> RowPlan:
    constants = dict(chosen.constants)
    return replace(
        plan,
        block_rows=constants["BLOCK_R"],
        programs=constants.get("PROGRAMS", plan.programs),
        warps=chosen.warps,
        stages=chosen.stages,
    )


# -- attention -------------------------------------------------------------------------------------


def attention_subject(kernel: KernelText) -> str:
    """Of training or decoding: equal for all tiles."""
    return kernel_hash(anonymous(kernel), ("BLOCK_M", "BLOCK_N"))


def attention_configuration(tiles: AttentionTiles) -> Configuration:
    return Configuration((("BLOCK_M", tiles.block_m), ("BLOCK_N", tiles.block_n)), tiles.warps, tiles.stages)


def attention_tiles(chosen: Configuration) -> AttentionTiles:
    constants = dict(chosen.constants)
    return AttentionTiles(constants["BLOCK_M"], constants["BLOCK_N"], chosen.warps, chosen.stages)


def chosen_tiles(kernel: KernelText, choices: Choices) -> AttentionTiles | None:
    """Where tiles were measured; `kernel` in its default configuration."""
    choice = choices.best.get(attention_subject(kernel))
    return None if choice is None else attention_tiles(choice.configuration)


def plain_attention_subject(key: AttentionKey, high: int | None) -> str:
    """Whose kernels compute attention under a mask that torch knows."""
    return _hash("attention", key, high)


# -- logits ----------------------------------------------------------------------------------------


def logits_subject(op: LogitsOp) -> str:
    plain = replace(op, name="logits", in_tiles=False, entries=None, tile=None)
    texts = [kernel_hash(anonymous(text), ()) for text in kernel_texts(plain, "cuda:80", render).values()]
    return _hash("logits", op.form, op.width, op.vocabulary, op.dtype, texts)


def logits_default(op: LogitsOp) -> Configuration:
    """In blocks whose size follows that of x, but where the passes chose tiles."""
    if op.in_tiles:
        return logits_in_tiles(op.tile or default_tile(op.form, op.dtype))
    return Configuration((("ENTRIES", op.entries or 0),))


def logits_in_tiles(tile: Tile) -> Configuration:
    constants = (("BLOCK_D", tile.block_d), ("BLOCK_M", tile.block_m), ("BLOCK_V", tile.block_v))
    return Configuration(constants, tile.warps, tile.stages)


def logits_op(op: LogitsOp, chosen: Configuration) -> LogitsOp:
    constants = dict(chosen.constants)
    if "ENTRIES" in constants:
        return replace(op, in_tiles=False, entries=constants["ENTRIES"] or None, tile=None)
    tile = Tile(constants["BLOCK_M"], constants["BLOCK_V"], constants["BLOCK_D"], chosen.warps, chosen.stages)
    return replace(op, in_tiles=True, entries=None, tile=tile)


# -- gradients of tables ---------------------------------------------------------------------------


@cache
def table_subject(width: int, dtype: torch.dtype) -> str:
    """Of rows of `width` entries of `dtype`."""
    return _hash(*(kernel_hash(anonymous(text), ("TILE", "BLOCK_E")) for text in scatter_kernels(width, dtype)))


def table_configuration(tiling: Tiling) -> Configuration:
    return Configuration((("BLOCK_E", tiling.block_e), ("TILE", tiling.tile)), tiling.warps, 3)


def table_tiling(chosen: Configuration) -> Tiling:
    constants = dict(chosen.constants)
    return Tiling(constants["TILE"], constants["BLOCK_E"], chosen.warps)


# -- linears ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearKey:
    """A plain linear: `inputs` and `outputs` entries of a row, in `dtype`."""

    inputs: int
    outputs: int
    dtype: torch.dtype


@cache
def linear_subject(key: LinearKey, product: str) -> str:
    """Of one of PRODUCTS."""
    return _hash("linear", key, product, _linear_code())


@cache
def _linear_code() -> str:
    kernel = linear_kernel("forward", Tiles(16, 16, 16, 4, 2), torch.bfloat16, "cuda:80")
    return kernel_hash(anonymous(kernel), ("BLOCK_M", "BLOCK_N", "BLOCK_K"))


def linear_configuration(tiles: Tiles) -> Configuration:
    constants = (("BLOCK_K", tiles.block_k), ("BLOCK_M", tiles.block_m), ("BLOCK_N", tiles.block_n))
    return Configuration(constants, tiles.warps, tiles.stages)


def linear_tiles(chosen: Configuration) -> Tiles | None:
    """None where torch multiplies."""
    if chosen.implementation == TORCH:
        return None
    constants = dict(chosen.constants)
    return Tiles(constants["BLOCK_M"], constants["BLOCK_N"], constants["BLOCK_K"], chosen.warps, chosen.stages)


# -- grouped linears -------------------------------------------------------------------------------


def grouped_subject(op: GroupedOp, product: str) -> str:
    """Of one of PRODUCTS. Whose kernel it is, is part of the choice."""
    form = replace(op.form, detached=())  # which has no kernel of its own
    plain = GroupedOp("grouped", form, op.dtype, epilogue=op.epilogue if product == "forward" else None)
    kernel = kernel_text(plain, product, default_tiles(op.dtype), "cuda:80", render)
    return _hash("grouped", form, op.dtype, kernel_hash(anonymous(kernel), ("BLOCK_M", "BLOCK_N", "BLOCK_K")))


def grouped_default(op: GroupedOp, product: str) -> Configuration:
    tiles = op.ours.get(product)
    return Configuration(implementation=TORCH) if tiles is None else linear_configuration(tiles)


# -- candidates ------------------------------------------------------------------------------------


def nearest_first(default: Configuration, found: Iterable[Configuration]) -> tuple[Configuration, ...]:
    """The default, then the others by how little they differ from it: a budget may end before the last."""

    def distance(one: Configuration) -> tuple[int, float]:
        known = dict(default.constants)
        total = abs(_doublings(one.warps) - _doublings(default.warps)) + abs(one.stages - default.stages)
        for name, value in one.constants:
            total += abs(_doublings(value) - _doublings(known[name])) if name in known else 1
        return one.implementation != default.implementation, total

    return tuple(dict.fromkeys((default, *sorted(found, key=distance))))


def _doublings(number: int) -> int:
    return max(0, number).bit_length()
