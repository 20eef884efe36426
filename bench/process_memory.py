"""What this process holds, as Linux counts it, in bytes."""

import re
from collections.abc import Callable
from pathlib import Path


def held(field: str) -> int:
    """VmRSS or VmHWM of this process. (The maximum getrusage reports may be that of the process that started it.)"""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {field}: peak memory is measured on Linux only")
    return int(found[1]) * 1024


def high_water(run: Callable[[], object]) -> int:
    """How far this process rises above what it holds while `run` runs: the highest mark is counted from here."""
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return held("VmHWM") - before
