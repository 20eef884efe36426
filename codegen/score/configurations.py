"""Tile sizes and launch options of attention kernels: a safe default for each target, and candidates to measure.

Defaults are chosen by what ahead-of-time compilation shows: no spilled register for 16-bit heads of common widths up to
256, without a formula (`bench/aot.py --heads` compiles them), and shared memory that the smallest device of a family
has. Known to spill: on cuda:80 gradients of keys for heads of 136 and 144 entries, and in float32 gradients for heads
of two parts; by a few bytes gradients for 88 entries on cuda:90 and cuda:100. None of the defaults has been timed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .plan import parts

if TYPE_CHECKING:
    from .decode import DecodePlan
    from .plan import AttentionPlan


@dataclass(frozen=True)
class Configuration:
    """BLOCK_M query rows, BLOCK_N key rows."""

    block_m: int
    block_n: int
    warps: int
    stages: int


_Table = dict[str, dict[int, Configuration]]
_FORWARD, _QUERY, _KEY = "attention_forward", "attention_query_gradient", "attention_key_gradient"

# By family of targets, kernel, and the widest head: 16-bit operands.
_DEFAULTS: dict[str, _Table] = {
    "cuda:80": {
        _FORWARD: {
            64: Configuration(64, 64, 4, 2), 128: Configuration(128, 32, 8, 2), 256: Configuration(64, 32, 8, 1),
        },
        _QUERY: {64: Configuration(64, 32, 4, 2), 128: Configuration(64, 32, 4, 2), 256: Configuration(32, 32, 8, 1)},
        _KEY: {64: Configuration(32, 64, 4, 2), 128: Configuration(32, 64, 8, 2), 256: Configuration(16, 32, 8, 1)},
    },
    "cuda:90": {
        _FORWARD: {
            64: Configuration(128, 64, 8, 3), 128: Configuration(128, 64, 8, 2), 256: Configuration(64, 32, 8, 2),
        },
        _QUERY: {64: Configuration(128, 64, 8, 2), 128: Configuration(128, 64, 8, 2), 256: Configuration(64, 32, 8, 2)},
        _KEY: {64: Configuration(64, 128, 8, 2), 128: Configuration(32, 128, 8, 2), 256: Configuration(32, 32, 8, 1)},
    },
    "cuda:100": {
        _FORWARD: {
            64: Configuration(128, 64, 4, 3), 128: Configuration(128, 64, 8, 2), 256: Configuration(64, 64, 8, 1),
        },
        _QUERY: {64: Configuration(128, 64, 8, 2), 128: Configuration(128, 64, 8, 2), 256: Configuration(64, 64, 8, 1)},
        _KEY: {64: Configuration(64, 64, 4, 2), 128: Configuration(64, 64, 8, 1), 256: Configuration(32, 32, 8, 1)},
    },
    "hip": {
        _FORWARD: {
            64: Configuration(128, 32, 4, 2), 128: Configuration(128, 32, 4, 2), 256: Configuration(128, 16, 8, 1),
        },
        _QUERY: {64: Configuration(64, 32, 4, 1), 128: Configuration(128, 32, 8, 1), 256: Configuration(64, 16, 8, 1)},
        _KEY: {64: Configuration(16, 64, 4, 1), 128: Configuration(16, 64, 4, 1), 256: Configuration(16, 32, 4, 1)},
    },
}  # fmt: skip
# float32 and float64 operands: for checks more than for speed.
_WIDE: _Table = {
    _FORWARD: {64: Configuration(32, 32, 8, 1), 128: Configuration(16, 16, 4, 1), 256: Configuration(16, 16, 8, 1)},
    _QUERY: {64: Configuration(32, 32, 4, 1), 128: Configuration(16, 16, 4, 1), 256: Configuration(16, 16, 8, 1)},
    _KEY: {64: Configuration(32, 32, 8, 1), 128: Configuration(32, 16, 8, 1), 256: Configuration(16, 16, 8, 1)},
}
_WIDEST = Configuration(16, 16, 4, 1)
# Where a head of two parts (`plan.parts`: 80 is 64 and 16, 160 is 128 and 32), 16-bit, would spill in the tile of one.
_OF_TWO_PARTS: dict[tuple[str, str, int], Configuration] = {
    ("cuda:80", _QUERY, 128): Configuration(64, 16, 4, 2),
    ("cuda:80", _KEY, 128): Configuration(16, 64, 8, 2),
    ("cuda:100", _QUERY, 128): Configuration(128, 32, 8, 2),
    ("cuda:100", _KEY, 128): Configuration(32, 64, 8, 1),
    ("cuda:80", _FORWARD, 256): Configuration(64, 16, 8, 1),
    ("cuda:80", _QUERY, 256): Configuration(32, 16, 4, 1),
    ("cuda:80", _KEY, 256): Configuration(16, 32, 8, 2),
    ("cuda:90", _QUERY, 256): Configuration(64, 16, 8, 2),
    ("cuda:90", _KEY, 256): Configuration(16, 64, 8, 2),
    ("cuda:100", _FORWARD, 256): Configuration(128, 64, 8, 1),
    ("cuda:100", _QUERY, 256): Configuration(64, 32, 8, 1),
    ("cuda:100", _KEY, 256): Configuration(16, 64, 8, 2),
}

# Where a formula or a mask that reads values of rows, 16-bit, would spill in the tile of others.
_WITH_VALUES: dict[tuple[str, str, int], Configuration] = {
    ("cuda:80", _FORWARD, 128): Configuration(128, 16, 8, 2),
    ("cuda:80", _QUERY, 128): Configuration(64, 16, 8, 2),
    ("cuda:100", _FORWARD, 64): Configuration(128, 32, 8, 3),
    ("cuda:100", _QUERY, 64): Configuration(128, 16, 8, 2),
    ("cuda:100", _KEY, 64): Configuration(16, 64, 8, 2),
    ("cuda:100", _KEY, 128): Configuration(32, 64, 8, 1),
}

# Where a score that reads a table would: each entry of the tile has an address of its own.
_WITH_TABLES: dict[tuple[str, str, int], Configuration] = {
    ("cuda:80", _FORWARD, 64): Configuration(64, 32, 4, 2),
    ("cuda:90", _FORWARD, 128): Configuration(128, 32, 8, 2),
    ("cuda:90", _QUERY, 128): Configuration(128, 16, 8, 2),
    ("cuda:100", _FORWARD, 128): Configuration(128, 16, 8, 2),
}

# Where a mask that reads ids of rows would.
_WITH_IDS: dict[tuple[str, str, int], Configuration] = {("cuda:90", _KEY, 128): Configuration(32, 64, 8, 2)}


def default_configuration(plan: AttentionPlan, kernel: str, target: str) -> Configuration:
    if target == "interpreter":
        return Configuration(32, 32, 1, 1)
    if kernel == "attention_delta":
        return Configuration(32, 0, 4, 1)
    size = _size(plan)
    if plan.dtype == "fp64":
        return _WIDEST
    if plan.dtype == "fp32":
        return _WIDE[kernel][size]
    family = _family(target)
    chosen = _DEFAULTS[family][kernel][size]
    if any(len(parts(*side)) > 1 for side in ((plan.q_width, "d"), (plan.v_width, "v"))):
        chosen = _OF_TWO_PARTS.get((family, kernel, size), chosen)
        if (family, kernel, size) == ("cuda:100", _KEY, 256) and plan.group > 1:
            # Loading ahead would spill within the loop over heads that share keys; without that loop, not doing so.
            chosen = replace(chosen, stages=1)
    chosen = _with_room(chosen, plan, kernel)
    if any(captured.is_table for captured in plan.form.captured) and (family, kernel, size) in _WITH_TABLES:
        return _WITH_TABLES[family, kernel, size]
    if plan.form.captured and plan.form.score is None and (family, kernel, size) in _WITH_IDS:
        return _WITH_IDS[family, kernel, size]
    if plan.form.captured and (family, kernel, size) in _WITH_VALUES:
        return _WITH_VALUES[family, kernel, size]
    if plan.form.score is None and not plan.has_bias:
        return chosen
    # Gradients of formulas hold more per score: half the tile that a loop moves over. Where sums lie in memory of the
    # tensor cores, half a tile of keys' gradients needs more registers, not less.
    if kernel == _KEY and not (family == "cuda:100" and size == 128):
        return replace(chosen, block_m=max(16, chosen.block_m // 2))
    return replace(chosen, block_n=max(16, chosen.block_n // 2)) if kernel == _QUERY else chosen


def _with_room(chosen: Configuration, plan: AttentionPlan, kernel: str) -> Configuration:
    """A smaller tile on the side that the loop moves over, where a program holds more than its table was chosen for."""
    is_ragged = any(part.mask for part in (*parts(plan.q_width, "d"), *parts(plan.v_width, "v")))
    if kernel == _FORWARD and is_ragged:
        # A head that does not fill its tile has a mask for each of its loads.
        return replace(chosen, block_n=max(16, chosen.block_n // 2))
    if kernel == _KEY and plan.group > 1 and _size(plan) == 64:
        # Around the loop over queries is one over the heads that share keys, with pointers to four rows of each.
        return replace(chosen, block_m=min(32, chosen.block_m))
    return chosen


def candidate_configurations(plan: AttentionPlan, kernel: str, target: str) -> tuple[Configuration, ...]:
    """To be compiled and timed, the default first. Those that do not fit a device fail to compile or launch."""
    default = default_configuration(plan, kernel, target)
    if kernel == "attention_delta":
        rows = (16, 32, 64, 128)
        found = [Configuration(block, 0, warps, 1) for block in rows for warps in (4, 8)]
    else:
        inner, outer = (16, 32, 64, 128), (64, 128)
        tiles = [(m, n) for m in outer for n in inner]
        if kernel == _KEY:
            tiles = [(m, n) for n in outer for m in inner]
        limit = 128 * 128 * 128 // _size(plan)
        found = [
            Configuration(m, n, warps, stages)
            for m, n in tiles
            if m * n <= limit
            for warps in (4, 8)
            for stages in (1, 2, 3, 4)
        ]
    return (default, *(configuration for configuration in found if configuration != default))


def default_decode_configuration(plan: DecodePlan, kernel: str, target: str) -> Configuration:
    """BLOCK_M holds the new rows of a group's heads, or, when merging, all stretches."""
    if kernel == "attention_merge":
        return Configuration(64, 0, 4, 1)
    block_m = max(16, 1 << (plan.rows * plan.attention.group - 1).bit_length())
    if target == "interpreter":
        return Configuration(block_m, 16, 1, 1)
    is_large = _size(plan.attention) == 256 or plan.attention.dtype in ("fp32", "fp64")
    return Configuration(block_m, 32 if is_large else 64, 4, 1 if is_large else 2)


def candidate_decode_configurations(plan: DecodePlan, kernel: str, target: str) -> tuple[Configuration, ...]:
    """As `candidate_configurations`; BLOCK_M says how many rows there are, and is not chosen."""
    default = default_decode_configuration(plan, kernel, target)
    if kernel == "attention_merge":
        found = [replace(default, warps=warps) for warps in (1, 2, 4, 8)]
    else:
        found = [
            Configuration(default.block_m, block, warps, stages)
            for block in (16, 32, 64, 128)
            for warps in (2, 4, 8)
            for stages in (1, 2, 3, 4)
        ]
    return tuple(dict.fromkeys((default, *found)))


def _size(plan: AttentionPlan) -> int:
    return next(size for size in (64, 128, 256) if max(plan.q_width, plan.v_width) <= size)


def _family(target: str) -> str:
    """Devices between the listed ones have less shared memory than the one before: they count as the oldest."""
    if target.startswith("hip"):
        return "hip"
    return target if target in _DEFAULTS else {"cuda:103": "cuda:100"}.get(target, "cuda:80")
