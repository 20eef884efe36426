"""`weft inspect FILE decode`: the derived decoder: what is computed once, what per row, what is cached.

This view needs torch: it shows the graphs that generation runs, not a prediction of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

from weft.spec_files import print_errors

from .table import amount, table

if TYPE_CHECKING:
    from weft.codegen.decode import CacheSpec, DecodeGraphs
    from weft.dsl.program import Program


def data(program: Program) -> dict[str, Any]:
    graphs = _derive(program)
    plan = graphs.plan
    return {
        "model": plan.program.name,
        "axis": plan.axis.name,
        "inputs_per_row": [value.name for value in plan.row_inputs],
        "inputs_once": [value.name for value in plan.once_inputs],
        "operations_per_row": len(plan.rows),
        "operations_once": len(plan.once),
        "operations_last_row_only": len(plan.tail),
        "carried": [{"name": value.name, "type": str(value.type)} for value in plan.carried],
        "caches": [
            {
                "name": cache.name,
                "shape": ["batch", *cache.before, "capacity" if cache.slots is None else cache.slots, *cache.after],
                "dtype": str(cache.dtype).removeprefix("torch."),
                "at": cache.span,
            }
            for cache in graphs.caches
        ],
        "bytes_per_row": _bytes_per_row(graphs),
    }


def text(program: Program) -> str:
    graphs = _derive(program)
    plan = graphs.plan
    inputs = ", ".join(f"{value.name}: {value.type}" for value in plan.row_inputs)
    lines = [f"model {plan.program.name} goes on row by row along {plan.axis.name}, fed with {inputs}", ""]
    if plan.once:
        given = ", ".join(value.name for value in plan.once_inputs)
        carried = Counter(f"{value.name}: {value.type}" for value in plan.carried)
        made = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in carried.items())
        lines += [f"once per sequence: {len(plan.once)} operations{f' on {given}' if given else ''}, giving {made}"]
    else:
        lines += ["once per sequence: nothing"]
    lines += [
        f"per row: {len(plan.rows)} operations, {len(plan.tail)} of them for the last row of a prompt only",
        "",
        _cache_table(graphs),
        "",
    ]
    growing = _bytes_per_row(graphs)
    if growing:
        lines.append(
            f"{amount(growing)} per row and sequence in float32, {amount(growing / 2)} in bfloat16: "
            f"{amount(growing * 4096)} for 4,096 rows in float32"
        )
    return "\n".join(lines)


def _derive(program: Program) -> DecodeGraphs:
    import torch

    from weft.codegen.decode import derive
    from weft.codegen.lower import empty_weights
    from weft.dsl.causality import why_not_generated

    error = why_not_generated(program)
    if error is not None:
        print_errors([error], file=sys.stderr)
        raise SystemExit(1)
    # Shapes are enough: a 32B model's decoder is shown without its weights.
    weights = empty_weights(program.weights, torch.float32, "meta")
    return derive(program, weights, torch.float32)


def _cache_table(graphs: DecodeGraphs) -> str:
    """Equal caches of several layers are one line."""
    counted: dict[tuple[str, str, str, str], int] = {}
    for cache in graphs.caches:
        what = cache.name.split("_", 2)[-1]
        slots = "one per row" if cache.slots is None else f"the last {cache.slots}"
        shape = " x ".join(map(str, (*cache.before, *cache.after))) or "1"
        key = (what, slots, shape, cache.span)
        counted[key] = counted.get(key, 0) + 1
    if not counted:
        return "cached: nothing, every row stands alone"
    rows = [(what, f"{count} x", slots, shape, span) for (what, slots, shape, span), count in counted.items()]
    return table(("cached", "count", "slots", "entry", "read by"), rows, right=(1,))


def _bytes_per_row(graphs: DecodeGraphs) -> int:
    return sum(_entry_bytes(cache) for cache in graphs.caches if cache.slots is None)


def _entry_bytes(cache: CacheSpec) -> int:
    return prod((*cache.before, *cache.after)) * cache.dtype.itemsize
