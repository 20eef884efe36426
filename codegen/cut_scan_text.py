"""The kernels that number segments as others need them: text for an ahead-of-time compiler, where a graph launches
them, bytes for a roofline. They are the same for all cuts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import fx

from .cost import SEGMENT, Work
from .gpu.cut_scans import BLOCK_N, BLOCK_W, WARPS, capped, scan
from .kernel_text import KernelText

_FILE = Path(__file__).parent / "gpu" / "cut_scan_kernels.py"
SCAN, CAP = "scan_cuts", "cap_cuts"


@dataclass(frozen=True)
class CutScan:
    """A launch of the kernel `name`, and of a scan whether rows may be in no segment, and which numbers it makes
    besides each row's own."""

    name: str
    has_gaps: bool = False
    closed: bool = False
    before: bool = False


def cut_scans(module: fx.GraphModule) -> list[tuple[CutScan, fx.Node]]:
    """The launches of a graph."""
    found = []
    for node in module.graph.nodes:
        if node.target is capped:
            found.append((CutScan(CAP), node))
        elif node.target is scan:
            given: tuple[Any, ...] = node.args
            found.append((CutScan(SCAN, given[1] is not None, given[4], given[5]), node))
    return found


def cut_scan_kernel(made: CutScan) -> KernelText:
    results = ("own", "closed", "before", "bounds", "rows", "counts")
    operands = ("ends", "inside", "offsets", *results) if made.name == SCAN else ("ends", "offsets", "capped")
    numbers = ("n_rows", "n_examples") if made.name == SCAN else ("n_rows", "n_examples", "at_most")
    pointers = tuple(f"{name}_ptr" for name in operands)
    flags = (("HAS_GAPS", made.has_gaps), ("CLOSED", made.closed), ("BEFORE", made.before))
    constants = (*flags, ("BLOCK_N", BLOCK_N), ("BLOCK_W", BLOCK_W)) if made.name == SCAN else (("BLOCK_N", BLOCK_N),)
    return KernelText(
        name=made.name,
        text=_FILE.read_text(encoding="utf-8").partition("from __future__ import annotations\n")[2],
        arguments=(*((pointer, "*i32") for pointer in pointers), *((number, "i32") for number in numbers)),
        constants=constants,
        divisible=pointers,
        warps=WARPS,
        stages=3,
    )


def cut_scan_work(made: CutScan, rows: int, examples: int = 1) -> Work:
    """Of a launch over `rows` rows in segments of SEGMENT rows. Flags are counted once, however many programs count
    them in the cache."""
    words, offsets = 4 * -(-rows // 32), 4 * (examples + 1)
    if made.name == CAP:
        return Work(words + offsets, words)
    along_rows = 1 + made.closed + made.before + made.has_gaps
    bounds = 4 * (-(-rows // SEGMENT) + 1)
    return Work((1 + made.has_gaps) * words + offsets, 4 * rows * along_rows + bounds + 8)
