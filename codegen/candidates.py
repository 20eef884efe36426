"""Which configurations are worth measuring, by family: the safe default first, then what differs least from it.

What a device cannot run fails when it is measured, and is noted.
"""

from __future__ import annotations

import torch

from .choices import TORCH
from .configuration import Configuration
from .gpu.linear_tiles import Tiles
from .gpu.scatter import Tiling, tiling_of
from .grouped.op import GroupedOp
from .logits.kernels import Tile, default_tile
from .logits.op import LogitsOp
from .rowwise.plan import RowPlan
from .rowwise.row_program import WORD
from .score.configurations import (
    candidate_configurations,
    candidate_decode_configurations,
    default_configuration,
    default_decode_configuration,
)
from .score.decode import DecodePlan
from .score.plan import AttentionPlan
from .subjects import (
    attention_configuration,
    grouped_default,
    linear_configuration,
    logits_default,
    logits_in_tiles,
    nearest_first,
    row_configuration,
    row_default,
    table_configuration,
)

MOST_ROWS = 128
_PROGRAMS = (128, 256, 512, 1024)
_ENTRIES = (1 << 24, 1 << 25, 1 << 26, 1 << 27, 1 << 28)
_LINEAR_TILES = (
    (128, 128, 64), (128, 256, 64), (256, 128, 64), (128, 128, 32), (128, 64, 64), (64, 128, 64), (64, 64, 64),
    (64, 256, 32), (256, 64, 32), (32, 128, 64), (16, 128, 64),
)  # fmt: skip


def of_rows(plan: RowPlan) -> tuple[Configuration, ...]:
    """A kernel that goes through a row in blocks gains from stages; others load once."""
    default = row_default(plan)
    fewest = WORD if plan.program.packs else 1
    rows = [r for r in (plan.block_rows * factor // 4 for factor in (1, 2, 4, 8, 16)) if fewest <= r <= MOST_ROWS]
    stages = (1, 2, 3, 4) if any(one.loop for one in plan.passes) else (plan.stages,)
    programs = _PROGRAMS if plan.has_sums else (plan.programs,)
    found = [
        row_configuration(plan, r, warps, s, p) for r in rows for warps in (1, 2, 4, 8, 16) for s in stages
        for p in programs
    ]  # fmt: skip
    return nearest_first(default, found)


def of_attention(plan: AttentionPlan, kernel: str, target: str) -> tuple[Configuration, ...]:
    """`kernel`: a name of score.kernels.KERNELS."""
    default = attention_configuration(default_configuration(plan, kernel, target))
    return nearest_first(default, map(attention_configuration, candidate_configurations(plan, kernel, target)))


def of_decoding(plan: DecodePlan, kernel: str, target: str) -> tuple[Configuration, ...]:
    """`kernel`: a name of score.decode.DECODE_KERNELS."""
    default = attention_configuration(default_decode_configuration(plan, kernel, target))
    return nearest_first(default, map(attention_configuration, candidate_decode_configurations(plan, kernel, target)))


def of_logits(op: LogitsOp) -> tuple[Configuration, ...]:
    """Sizes of blocks, and tiles where the form allows them."""
    found = [Configuration((("ENTRIES", entries),)) for entries in _ENTRIES]
    if not (op.form.top and op.form.gradients):
        tile = default_tile(op.form, op.dtype)
        found += [logits_in_tiles(tile)]
        if op.dtype.itemsize == 2:
            found += [
                logits_in_tiles(Tile(m, v, 64, warps, 3)) for m, v in ((64, 64), (128, 128), (64, 128))
                for warps in (4, 8)
            ]  # fmt: skip
    return tuple(dict.fromkeys((logits_default(op), *found)))


def of_table(width: int, dtype: torch.dtype) -> tuple[Configuration, ...]:
    default = tiling_of(width, dtype)
    widest = max(16, 1 << (width - 1).bit_length())
    blocks = [entries for entries in (128, 256, 512, 1024) if entries <= widest] or [widest]
    found = [Tiling(tile, block, warps) for tile in (8, 16, 32, 64, 128) for block in blocks for warps in (1, 2, 4, 8)]
    return nearest_first(table_configuration(default), map(table_configuration, found))


def of_linear(dtype: torch.dtype) -> tuple[Configuration, ...]:
    """The matrix library first: it is the safe choice."""
    if dtype.itemsize > 2:
        tiles = [Tiles(32, 32, 32, 4, 2), Tiles(64, 64, 32, 4, 2), Tiles(64, 64, 32, 8, 2)]
    else:
        tiles = [Tiles(*tile, warps, stages) for tile in _LINEAR_TILES for stages in (3, 4) for warps in (4, 8)]
    return (Configuration(implementation=TORCH), *map(linear_configuration, tiles))


def of_grouped(op: GroupedOp, product: str) -> tuple[Configuration, ...]:
    """The default, then whose product it is not by default, then other tiles."""
    linear = of_linear(op.dtype)
    ours = nearest_first(linear_configuration(op.default_tiles(product)), linear[1:])
    return tuple(dict.fromkeys((grouped_default(op, product), ours[0], linear[0], *ours[1:])))


def of_plain_attention() -> tuple[Configuration, ...]:
    """Ours first."""
    return (Configuration(), Configuration(implementation=TORCH))
