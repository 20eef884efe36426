"""`weft compile`: a spec to a folder of readable Python that needs torch and nothing of Weft."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft compile specs/olmo2.weft --size tiny -o build/olmo2-tiny
  python -c 'import weft; print(weft.load("build/olmo2-tiny"))'
"""


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec; - is standard input.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float64.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """model.py runs the graph after the compiler's passes, reference.py the unfused graph, as the spec says.

    The same spec, size and versions give the same bytes.
    """
    from weft import __version__, spec_files
    from weft.faults import CommandFault

    settings = spec_files.overrides(set_ or [])
    source = spec_files.read(file)
    checked = spec_files.checked_source(source, size, settings)
    spec_files.program(checked, None)  # says so when there is no model

    import torch

    from weft.codegen.artifact import compile_to
    from weft.codegen.pipeline import BASIC_PASSES

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if precision not in types:
        raise CommandFault(f"--precision is one of {', '.join(types)}, not {precision}", 2)
    folder = compile_to(checked, out, types[precision], BASIC_PASSES, __version__)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if as_json:
        import json

        print(json.dumps({"version": 1, "folder": str(folder), "files": [str(f.relative_to(folder)) for f in files]}))
        return
    print(f"{folder}: {checked.model.name} with {len(checked.weights):,} weights, {len(files)} files")
    for name, what in (("model.py", "what runs"), ("reference.py", "the unfused graph")):
        lines = len((folder / name).read_text(encoding="utf-8").splitlines())
        print(f"  {name:13} {lines:6,} lines: {what}")
