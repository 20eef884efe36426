"""What the kernels of BLT move at the sizes of 1B, beside what one pass over their operands would.

A row of 16,384 bytes in 4,096 patches, 2 slots, width 1,024, an entropy model of 768, 6 tables of 500,002 rows;
bfloat16.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu_bench import patches
from bench.gpu_bench.context import Context
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.views.kernels import Planned
from weft.views.planned_kernels import fused, of_graph

MOST = 1.2
BYTES, PATCHES, SLOTS, WIDTH = 16384, 4096, 2, 1024
ROW, SLOT_ROWS = BYTES * WIDTH * 2, PATCHES * SLOTS * WIDTH * 2
POOL = (
    "model m(x: real[seq, width], f: real[seq]) -> real[patch, width]:\n    segment seq into patch ends where f > 0\n"
)
OWN = """
model m(
    q: real[seq, slots, heads, head_dim], k: real[seq, heads, head_dim], v: real[seq, heads, head_dim], f: real[seq]
) -> real[patch, slots, heads, head_dim]:
    segment seq into patch ends where f > 0
    p = pool(q, seq -> patch, by=max)
    return attend(p, k, v, over=head_dim, along=seq, mask=same(patch))
"""


def graph(text: str) -> fx.GraphModule:
    return fused(check(Source("blt.weft", patches.BLT_1B.spec + text), OPS).value().models["m"])


def pooled(by: str) -> str:
    return f"{POOL}    return pool(x, seq -> patch, by={by})\n"


@dataclass(frozen=True)
class Line:
    """A line of the table: a small spec, the kernels that are meant, in which pass, and the bytes of one pass."""

    text: str
    kernels: tuple[str, ...]
    direction: str
    least: float


TABLE = {
    "entropy of a head": Line(
        patches.ENTROPY, ("m_logits_statistics", "m_logits_merge"), "forward", BYTES * (768 * 2 + 4)
    ),
    "max": Line(pooled("max"), ("pool_runs",), "forward", 33.6e6 + 8.4e6),
    # The rows that have the maximum share the gradient: rows are read again to find them.
    "max, back": Line(pooled("max"), ("share_max",), "backward", 2 * 33.6e6 + 8.4e6),
    "mean": Line(pooled("mean"), ("pool_runs",), "forward", 33.6e6 + 8.4e6),
    "mean, back": Line(pooled("mean"), ("spread_runs",), "backward", 33.6e6 + 8.4e6),
    "sum": Line(pooled("sum"), ("pool_runs",), "forward", 33.6e6 + 8.4e6),
    "sum, back": Line(pooled("sum"), ("spread_runs",), "backward", 33.6e6 + 8.4e6),
    "hashes": Line(patches.HASHES, ("x_kernel",), "forward", 268e6),
    # One gradient for all tables: read by the sort of each of seven, which writes the rows that were read.
    "hashes, back": Line(patches.HASHES, ("sum_runs", "join_parts"), "backward", 6 * 2 * ROW + ROW),
    "slots attend to bytes": Line(OWN, ("attend_runs",), "forward", 2 * SLOT_ROWS + 2 * ROW),
    "slots attend to bytes, back": Line(OWN, ("attend_runs_backward",), "backward", 3 * SLOT_ROWS + 4 * ROW),
    "bytes attend to slots": Line(patches.SLOTS, ("attend_kernel",), "forward", 2 * ROW + 2 * SLOT_ROWS),
    "bytes attend to slots, back": Line(
        patches.SLOTS, ("attend_backward_kernel",), "backward", 3 * ROW + 4 * SLOT_ROWS
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_planned_bytes(name: str) -> None:
    line = TABLE[name]
    planned = of_graph(graph(line.text), "cuda:90", BYTES)
    found = [one for one in planned if one.kernel.name in line.kernels and one.direction == line.direction]
    assert {one.kernel.name for one in found} == set(line.kernels)
    assert 0.95 * line.least <= moved(found) <= MOST * line.least, (moved(found) / line.least, line)


def moved(found: list[Planned]) -> float:
    total = 0.0
    for one in found:
        assert one.work is not None
        total += one.work.bytes * one.count
    return total


class Moved(TorchDispatchMode):
    """Bytes of all tensors that functions read, and of those that they make; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            flat, _ = pytree.tree_flatten((args, kwargs, made))
            self.bytes += sum(x.nbytes for x in flat if isinstance(x, Tensor))
        return made


def test_planned_bytes_of_the_boundary_scan() -> None:
    """A number of 32 bits in; which patch a byte is in, and the last that has ended, out. Among what runs is the rule
    that decides, which packs its flags for the scan."""
    shape = replace(patches.TINY, rows=BYTES)
    surprise = torch.randn(BYTES, generator=torch.Generator().manual_seed(0))
    run = patches.scanned(Context(torch.device("cpu"), True, time.monotonic() + 600, frozenset()), shape)
    with Moved() as counter:
        found = run(surprise)
    assert counter.bytes <= MOST * (4 + 8) * BYTES
    for got, want in zip(found, patches.scanned_by_torch(surprise), strict=True):
        assert got.dtype == torch.int32
        assert torch.equal(got, want.to(torch.int32))


def test_planned_bytes_of_the_kernels_of_the_boundary_scan() -> None:
    """The same as it is planned, with surprise in bfloat16, and patches counted: where each begins is written too."""
    planned = of_graph(graph(patches.SCAN), "cuda:90", BYTES)
    found = [one for one in planned if one.kernel.name in ("gt_kernel", "scan_cuts")]
    assert len(found) == 2
    least = (2 + 8) * BYTES + 4 * PATCHES
    assert least <= moved(found) <= 1.05 * least
