"""`weft export`: a checkpoint of ours as it is published elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft export runs/web --to models/mine
"""


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the folder of a run.")],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Folder to write.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Which `weights NAME:` block of the spec is meant.")
    ] = "huggingface",
    as_json: Annotated[bool, typer.Option("--json", help="Print the coverage table as JSON.")] = False,
) -> None:
    """The spec's `weights` block read backwards: config.json and safetensors that transformers loads."""
    from pathlib import Path

    from weft.runtime.run_folder import latest_checkpoint
    from weft.runtime.transfer import export_checkpoint
    from weft.views.coverage import show

    show(export_checkpoint(latest_checkpoint(Path(checkpoint)), Path(to), format_), as_json, f"wrote {to}")
