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
    source = torch.randn(entries, device=context.device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2.0 * source.numel() * source.element_size() / microseconds(context, lambda: target.copy_(source)) * 1e6
    del source, target
    a, b = (torch.randn(side, side, device=context.device).to(torch.bfloat16) for _ in range(2))
    matmul = 2.0 * side**3 / microseconds(context, lambda: a @ b) * 1e6
    return {"copy_bytes_per_s": copy, "matmul_flops_per_s": matmul}
