"""Pools over segments, and values of segments at rows that stand alone, go to kernels.

    max_rows(x, own, bounds)     ->  gpu.segments.max_rows(x, own, bounds)
    spread(p, closed)            ->  gpu.segments.spread(p, closed)

Torch's own add gradients with atomics, in any order. Reductions over all rows of an example, which are few and long,
stay with torch: a program takes a whole segment.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from ..functions import cuts, open_cuts
from ..functions import segments as reference
from ..gpu import segments
from .cut_scans import is_bounds_of_scan

_POOLS: dict[Any, Any] = {
    reference.max_rows: segments.max_rows,
    reference.mean_rows: segments.mean_rows,
    reference.sum_rows: segments.sum_rows,
}
_BOUNDS = (cuts.bounds, cuts.bounds_inside, open_cuts.closing_bounds)


def use_segment_kernels(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op != "call_function" or node.kwargs:
            continue
        if node.target is cuts.spread:
            node.target = segments.spread
        elif node.target in _POOLS and len(node.args) == 3 and _are_segments(node.args[2]):
            node.target = _POOLS[node.target]


def _are_segments(bounds: Any) -> bool:
    return is_bounds_of_scan(bounds) or (isinstance(bounds, fx.Node) and bounds.target in _BOUNDS)
