"""`weft verify`: what the compiler makes of a spec, compared with the spec in float64."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft verify specs/olmo2.weft --size tiny
  weft verify specs/olmo2.weft --size tiny --set layers=1 --grad --dtype bfloat16
  weft verify model.weft --grad --json
"""


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec; - is standard input.")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    grad: Annotated[bool, typer.Option("--grad", help="Compare gradients too: of each region, and by weight.")] = False,
    dtype: Annotated[str, typer.Option(help="Type that is checked: float32, bfloat16 or float64.")] = "float32",
    tuning: Annotated[
        str | None, typer.Option(metavar="FILE", help="From `weft tune` [default: tuning.json beside the spec].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Every fused region, the results of every model and objective, and derived decoding, on small random inputs.

    Runs on the GPU if there is one, else through Triton's interpreter. Exits with 1 and names the first offender when
    an error is over its limit.
    """
    from weft import spec_files
    from weft.faults import CommandFault

    settings = spec_files.overrides(set_ or [])
    checked = spec_files.checked(file, size, settings)
    spec_files.program(checked, None)  # says so when there is no model

    import torch

    from weft.runtime.verify import Part, verify

    # Triton's interpreter is numpy, which warns of what a processor does without a word: log of 0 is -inf.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"triton\.")
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype not in types:
        raise CommandFault(f"--dtype is one of {', '.join(types)}, not {dtype}", 2)
    found = list(verify(checked, types[dtype], grad, _passes(file, tuning)))
    parts = [part for part in found if isinstance(part, Part)]
    skipped = [part for part in found if not isinstance(part, Part)]
    first = next((part for part in parts if not part.is_ok), None)
    if as_json:
        import json

        print(json.dumps({
            "version": 1,
            "file": checked.source.name,
            "dtype": dtype,
            "ok": first is None,
            "first": None if first is None else first.to_json(),
            "parts": [part.to_json() for part in parts],
            "not_compared": [{"program": s.program, "kind": s.kind, "why": s.why} for s in skipped],
        }, indent=2))  # fmt: skip
    else:
        _print_table(parts)
        for part in skipped:
            print(f"{part.program}: {part.kind} is not compared: {part.why}")
        if first is None:
            print(f"{checked.source.name}: {len(parts)} parts agree with float64 in {dtype}")
    if first is not None:
        said = first.note or f"off by {_short(first.error)}, more than {_short(first.limit)}"
        at = f", {first.place}" if first.place else ""
        print(f"weft: {first.program}: {first.kind} {first.name}: {said}{at}", file=sys.stderr)
        raise typer.Exit(1)


def _passes(file: str, tuning: str | None):
    """Those for a GPU, with what was measured on the device that runs them here."""
    from pathlib import Path

    from weft import spec_files
    from weft.codegen.pipeline import GPU_PASSES, with_choices
    from weft.runtime.measured import choices_for, device_name, table_for
    from weft.runtime.verify import prepare

    table = table_for(tuning, None if file == spec_files.STDIN else Path(file))
    return GPU_PASSES if table is None else with_choices(GPU_PASSES, choices_for(table, device_name(prepare())))


def _print_table(parts: list) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for program in dict.fromkeys(part.program for part in parts):
        table = Table(title=program, title_justify="left", box=None, pad_edge=False)
        table.add_column("part", overflow="fold")
        table.add_column("spec line", no_wrap=True)
        table.add_column("error", justify="right", no_wrap=True)
        table.add_column("limit", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for part in parts:
            if part.program == program:
                verdict = Text("ok", "green") if part.is_ok else Text("WRONG", "bold red")
                place = part.place.partition("  ")[0]  # the line's text is for --json and for the offender
                name = Text(f"{part.kind} {part.name}")
                table.add_row(name, Text(place), _short(part.error), _short(part.limit), verdict)
        console.print(table)


def _short(error: float) -> str:
    return f"{error:.1e}" if math.isfinite(error) else "no result"
