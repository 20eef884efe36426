"""How long something takes on the device, and what the device attains at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .context import Context

Run = Callable[[], object]


def microseconds(context: Context, run: Run) -> float:
    """Median of many runs, each of which finds the cache empty of its data."""
    if context.device.type == "cuda":
        from triton.testing import do_bench

        with torch.cuda.device(context.device):
            found: Any = do_bench(run, warmup=25, rep=100, return_mode="median")
        return 1000.0 * found
    run()
    return statistics.median(1e6 * seconds(context, run) for _ in range(2))


def seconds(context: Context, run: Run) -> float:
    """One run by the clock, with all that the host does."""
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    start = time.perf_counter()
    run()
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)
    return time.perf_counter() - start


def ceilings(context: Context) -> dict[str, float]:
    """Bytes per second of a large copy, read plus written, and FLOP/s of a large product of random bf16 matrices."""
    entries, side = (1 << 29, 8192) if context.device.type == "cuda" else (1 << 16, 64)
    return {"copy_bytes_per_s": _copy_rate(context, entries), "matmul_flops_per_s": _matmul_rate(context, side)}


def _copy_rate(context: Context, entries: int) -> float:
    source = torch.randn(entries, device=context.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2e6 * source.numel() * source.element_size() / microseconds(context, lambda: target.copy_(source))


def _matmul_rate(context: Context, side: int) -> float:
    a, b = (torch.randn(side, side, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    return 2e6 * side**3 / microseconds(context, lambda: a @ b)
