"""`weft compile`: a spec to a folder of readable Python that needs torch, for a GPU triton, and nothing of Weft."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from weft.codegen.emit import KernelOp

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
    inspect = None if target == "cpu" else partial(_taken, target)
    passes, rows = BASIC_PASSES if target == "cpu" else GPU_PASSES, []
    measured = None if target == "cpu" else spec_files.measured(file, tuning, tuned_for)
    if measured is not None:
        table, choices = measured
        passes, rows = with_choices(passes, choices), plain_rows(table, choices.device)
    folder = compile_to(checked, out, types[precision], passes, __version__, target, inspect, rows)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if as_json:
        import json

        print(json.dumps({"version": 1, "folder": str(folder), "files": [str(f.relative_to(folder)) for f in files]}))
        return
    print(f"{folder}: {checked.model.name} with {len(checked.weights):,} weights, {len(files)} files")
    parts = (("model.py", "what runs"), ("kernels.py", "its kernels"), ("reference.py", "the unfused graph"))
    for name, what in parts:
        if not (folder / name).is_file():
            continue
        lines = len((folder / name).read_text(encoding="utf-8").splitlines())
        print(f"  {name:13} {lines:6,} lines: {what}")


def _taken(target: str, ops: tuple[KernelOp, ...]) -> list[dict[str, Any]]:
    """What each kernel takes on the target: compiled here, one after another, without a GPU."""
    from rich.console import Console

    from weft import spec_files
    from weft.codegen.logits.op import LogitsOp
    from weft.codegen.origin import user_span
    from weft.views import kernels, planned_kernels

    planned = []
    for op in ops:
        if isinstance(op, LogitsOp):
            span = op.span
        else:
            span = user_span(next(node for node in reversed(op.meaning.graph.nodes) if node.op == "call_function"))
        planned += planned_kernels.of_op(op, span, target, ROWS)
    with Console(stderr=True).status(f"compiling {len(planned)} kernels for {target}"):
        rows = kernels.compiled(planned, spec_files.cache_folder() / "kernels", workers=2)
    found = kernels.data(rows)["kernels"]
    for row in found:
        # The same spec gives the same bytes wherever it lies and however long compiling took.
        row["spec"] = os.path.basename(row["spec"])
        del row["compile_s"]
    return found
