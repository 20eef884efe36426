"""`weft compile`: a spec to a folder of readable Python that needs torch, for a GPU triton, and nothing of Weft."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import fx

    from weft.dsl.check import Checked

# Rows of a step, for bytes and operations in the manifest.
ROWS = 16384

EXAMPLES = """\b
Examples:
  weft compile specs/olmo2.weft --size tiny -o build/olmo2-tiny
  weft compile specs/olmo2.weft --size 7b --target cuda:90 --precision bfloat16 -o build/olmo2-7b
  python -c 'import weft; print(weft.load("build/olmo2-tiny"))'
"""


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec; - is standard input.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="cpu, cuda:80, cuda:90, cuda:100 or hip:gfx942; the GPU need not be here."),
    ] = "cpu",
    precision: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float64.")] = "float32",
    tuning: Annotated[
        str | None, typer.Option(metavar="FILE", help="From `weft tune` [default: tuning.json beside the spec].")
    ] = None,
    tuned_for: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Whose measurements, where the file has several devices'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """model.py runs the graph after the compiler's passes, reference.py the unfused graph, as the spec says.

    For a GPU kernels.py holds the generated kernels, each compiled here once: the manifest says what they take. The
    same folder runs on a CPU too, without them. What was measured on the GPU is written into the code and the manifest.
    report.html shows spec, graph, kernels and their code side by side.

    The same spec, size and versions give the same bytes.
    """
    from weft import __version__, spec_files
    from weft.faults import CommandFault

    if target != "cpu":
        spec_files.known_target(target)
    settings = spec_files.overrides(set_ or [])
    source = spec_files.read(file)
    checked = spec_files.checked_source(source, size, settings)
    spec_files.program(checked, None)  # says so when there is no model

    import torch

    from weft.codegen.artifact import compile_to
    from weft.codegen.pipeline import BASIC_PASSES, GPU_PASSES, with_choices
    from weft.runtime.tuning import plain_rows

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if precision not in types:
        raise CommandFault(f"--precision is one of {', '.join(types)}, not {precision}", 2)
    if target == "cpu" and (tuning or tuned_for):
        raise CommandFault("--tuning and --tuned-for go with a GPU as --target", 2)
    inspect = None if target == "cpu" else partial(_taken, checked, target, types[precision])
    passes, rows = BASIC_PASSES if target == "cpu" else GPU_PASSES, []
    measured = None if target == "cpu" else spec_files.measured(file, tuning, tuned_for)
    if measured is not None:
        table, choices = measured
        passes, rows = with_choices(passes, choices), plain_rows(table, choices.device)
    report = partial(_report, checked, target)
    folder = compile_to(checked, out, types[precision], passes, __version__, target, inspect, report, rows)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if as_json:
        import json

        print(json.dumps({"version": 1, "folder": str(folder), "files": [str(f.relative_to(folder)) for f in files]}))
        return
    print(f"{folder}: {checked.model.name} with {len(checked.weights):,} weights, {len(files)} files")
    parts = (
        ("model.py", "what runs"),
        ("kernels.py", "its kernels"),
        ("reference.py", "the unfused graph"),
        ("report.html", "all of it side by side, for a browser"),
    )
    for name, what in parts:
        if not (folder / name).is_file():
            continue
        lines = len((folder / name).read_text(encoding="utf-8").splitlines())
        print(f"  {name:13} {lines:6,} lines: {what}")


def _report(
    checked: Checked, target: str, references: Mapping[str, fx.GraphModule], made: Mapping[str, fx.GraphModule]
) -> str:
    """With kernels and their code where a GPU is compiled for; they are compiled once, here or for the manifest."""
    from weft.views.report import of_graphs

    return of_graphs(checked, references, made.values(), () if target == "cpu" else (target,), ROWS)


def _taken(checked: Checked, target: str, dtype: torch.dtype, graphs: Sequence[fx.GraphModule]) -> list[dict[str, Any]]:
    """What each kernel takes on the target, those of a decoding step with them: compiled here, one after another,
    without a GPU."""
    from rich.console import Console

    from weft import spec_files
    from weft.views import kernels, planned_kernels

    planned = planned_kernels.of_graphs(graphs, [target], ROWS)
    step = planned_kernels.decoding_step(checked.model, dtype)
    if step is not None:
        planned += planned_kernels.of_step(step, target)
    with Console(stderr=True).status(f"compiling {len(planned)} kernels for {target}"):
        rows = kernels.compiled(planned, spec_files.cache_folder() / "kernels", workers=2)
    found = kernels.data(rows)["kernels"]
    for row in found:
        # The same spec gives the same bytes wherever it lies and however long compiling took.
        row["spec"] = os.path.basename(row["spec"])
        del row["compile_s"]
    return found
