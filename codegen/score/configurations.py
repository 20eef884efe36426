"""Tile sizes and launch options of attention kernels: a safe default for each target, and candidates to measure.

Defaults are chosen by what ahead-of-time compilation shows: no spilled register for heads of 64 and 128 entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decode import DecodePlan
    from .plan import AttentionPlan


@dataclass(frozen=True)
class Configuration:
    block_m: int
    block_n: int
    warps: int
    stages: int


def default_configuration(plan: AttentionPlan, kernel: str, target: str) -> Configuration:
    if target == "interpreter":
        return Configuration(32, 32, 1, 1)
    if kernel == "attention_delta":
        return Configuration(32, 0, 4, 1)
    return Configuration(64, 64, 4, 2)


def default_decode_configuration(plan: DecodePlan, kernel: str, target: str) -> Configuration:
    """BLOCK_M holds the new rows of a group's heads, or, when merging, all stretches."""
    if kernel == "attention_merge":
        return Configuration(64, 0, 4, 1)
    block_m = max(16, 1 << (plan.rows * plan.attention.group - 1).bit_length())
    return Configuration(block_m, 16 if target == "interpreter" else 64, 4, 2)
