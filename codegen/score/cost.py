"""What attention kernels must move and multiply: every tensor once, every allowed pair of rows once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .decode import DECODE_KERNELS, DecodePlan
from .kernels import KERNELS
from .plan import AttentionPlan

BITS = {"bf16": 16, "fp16": 16, "fp32": 32, "fp64": 64, "i1": 8, "u8": 8, "i8": 8, "i16": 16, "i32": 32, "i64": 64}

# Queries of a program that sums the gradient of a table, about.
TILE = 64

# What each kernel writes, besides gradients of captured values; all else is read.
WRITTEN = {
    "attention_forward": ("out", "lse"),
    "attention_delta": ("delta",),
    "attention_query_gradient": ("dq",),
    "attention_key_gradient": ("dk", "dv", "dbias"),
    "attention_decode": ("part", "part_max", "part_sum"),
    "attention_merge": ("out",),
}


@dataclass(frozen=True)
class KernelCost:
    """Bytes, and operations of products."""

    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Rows:
    """Of one call: packed query and key rows, and the pairs of them that the mask allows."""

    queries: int
    keys: int
    pairs: int


def kernel_cost(plan: AttentionPlan, name: str, rows: Rows) -> KernelCost:
    """Of one of KERNELS. Pointwise work is not counted."""
    moved = _moved(name, KERNELS[name](plan).arguments, lambda tensor: _entries(plan, tensor, rows))
    q, v = plan.q_width, plan.v_width
    products = {
        "attention_forward": q + v,
        "attention_delta": 0,
        "attention_query_gradient": 2 * q + v,
        "attention_key_gradient": 2 * q + 2 * v,
    }
    return KernelCost(*moved, 2 * rows.pairs * plan.heads * products[name])


def _moved(name: str, arguments: tuple[tuple[str, str], ...], entries: Callable[[str], int]) -> tuple[int, int]:
    """Bytes read and written of the tensors among a kernel's arguments."""
    read = written = 0
    for argument, type in arguments:
        if not type.startswith("*"):
            continue
        tensor = argument.removesuffix("_ptr")
        size = entries(tensor) * BITS[type[1:]] // 8
        if tensor in WRITTEN[name] or tensor.startswith("d_captured"):
            written += size
        else:
            read += size
    return read, written


def _entries(plan: AttentionPlan, name: str, rows: Rows) -> int:
    h, g, d, dv = plan.heads, plan.key_heads, plan.q_width, plan.v_width
    if found := re.fullmatch(r"(d_)?captured_(\d+)", name):
        captured = plan.form.captured[int(found[2])]
        if captured.is_table:
            tiles = -(-rows.queries // TILE) if found[1] else 1
            return tiles * (h if found[1] or captured.has_heads else 1) * captured.entries
        side = rows.queries if captured.side == "query" else rows.keys
        return side * (h if found[1] or captured.has_heads else 1)
    entries = {
        "q": rows.queries * h * d,
        "k": rows.keys * g * d,
        "v": rows.keys * g * dv,
        "out": rows.queries * h * dv,
        "lse": rows.queries * h,
        "bias": rows.keys * h,
        "q_low": rows.queries,
        "q_high": rows.queries,
        "k_low": rows.keys,
        "k_high": rows.keys,
    }
    like = {"dq": "q", "dk": "k", "dv": "v", "do": "out", "delta": "lse", "dbias": "bias"}
    return entries[like.get(name, name)]


def decode_cost(plan: DecodePlan, name: str, sequences: int, cached: int, splits: int) -> KernelCost:
    """Of one of DECODE_KERNELS, with `cached` rows of all sequences together read from the caches."""
    attention = plan.attention
    heads = sequences * plan.rows * attention.heads
    entries = {
        "q": heads * attention.q_width,
        "k": cached * attention.key_heads * attention.q_width,
        "v": cached * attention.key_heads * attention.v_width,
        "out": heads * attention.v_width,
        "position": sequences,
        "part": splits * heads * attention.v_width,
        "part_max": splits * heads,
        "part_sum": splits * heads,
    }
    for index, captured in enumerate(attention.form.captured):
        if captured.is_table:
            entries[f"captured_{index}"] = captured.entries * (attention.heads if captured.has_heads else 1)
            continue
        rows = cached if captured.side == "key" else sequences * plan.rows
        entries[f"captured_{index}"] = rows * (attention.heads if captured.has_heads else 1)
    moved = _moved(name, DECODE_KERNELS[name](plan).arguments, entries.__getitem__)
    per_pair = attention.q_width + attention.v_width if name == "attention_decode" else 0
    return KernelCost(*moved, 2 * cached * plan.rows * attention.heads * per_pair)
