"""`weft inspect FILE report`, and report.html of an artifact: what codegen/emit_report.py shows of compiled kernels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from weft.codegen.cost import roofline
from weft.codegen.targets import devices_of

from . import planned_kernels
from .kernels import KernelRow, Planned, compiled
from .table import amount

if TYPE_CHECKING:
    from torch import fx

    from weft.codegen.emit_report import ReportKernel
    from weft.dsl.check import Checked


def page(checked: Checked, of: str | None, targets: Sequence[str], rows: int) -> str:
    """Of one program, or of the objectives, or of the model where there are none; kernels compiled for `targets`."""
    import torch

    from weft import spec_files
    from weft.codegen.lower import empty_weights, lower

    chosen = [spec_files.program(checked, of)] if of is not None else [*checked.objectives.values()]
    programs = chosen or [spec_files.program(checked, None)]
    graphs = {
        program.name: lower(program, empty_weights(program.weights, torch.bfloat16, "meta"), torch.bfloat16)
        for program in programs
    }
    return of_graphs(checked, graphs, [planned_kernels.fused(program) for program in programs], targets, rows)


def of_graphs(
    checked: Checked,
    references: Mapping[str, fx.GraphModule],
    made: Iterable[fx.GraphModule],
    targets: Sequence[str],
    rows: int,
) -> str:
    """References by name as they are, and the kernels of the graphs made of them, each once."""
    from rich.console import Console

    from weft import spec_files
    from weft.codegen.emit_report import report

    planned: dict[object, Planned] = {}
    for target in targets:
        spec_files.known_target(target)
    for graph in made:
        for target in targets:
            for one in planned_kernels.of_graph(graph, target, rows):
                planned.setdefault((one.kernel, one.target, one.spec), one)
    kernels = list(planned.values())
    with Console(stderr=True).status(f"compiling {len(kernels)} kernels"):
        compiled_rows = compiled(kernels, spec_files.cache_folder() / "kernels", workers=2) if kernels else []
    size = f" at size {checked.size}" if checked.size else ""
    title = os.path.basename(checked.source.name) + size
    return report(checked.source, references, shown(kernels, compiled_rows), title)


def shown(planned: Sequence[Planned], rows: Sequence[KernelRow]) -> list[ReportKernel]:
    """Each kernel with what it takes and its code. `rows`: the kernels compiled, in the same order."""
    from weft.codegen.emit_report import ReportKernel

    return [
        ReportKernel(
            one.kernel.name,
            one.direction,
            one.spec,
            one.kernel.text,
            _facts(row),
            row.made.assembly,
            "assembly" if one.target.startswith("hip:") else "PTX",
        )
        for one, row in zip(planned, rows, strict=True)
    ]


def _facts(row: KernelRow) -> tuple[tuple[str, str], ...]:
    found = [("on", row.made.target)]
    taken = row.made.resources
    if row.made.error is not None:
        found.append(("does not compile:", row.made.error.strip().splitlines()[-1]))
    if taken is not None:
        found += [("registers", str(taken.registers)), ("spills", str(taken.spill_stores + taken.spill_loads))]
        found.append(("shared", amount(taken.shared)))
    if row.work is not None:
        device = devices_of(row.made.target)[0]
        least = roofline(row.work, device).microseconds
        found += [("moves", amount(row.work.bytes)), ("at least", f"{least:,.1f} us on {device.name}")]
    return tuple(found)
