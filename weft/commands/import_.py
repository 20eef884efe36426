"""`weft import`: a published checkpoint to one of ours."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft import specs/olmo2.weft --from models/OLMo-2-1B -o checkpoints/olmo2-1b
  weft import specs/entropy_lm.weft --format meta --size 100m --from models/blt-entropy -o ours/entropy
  weft import specs/blt.weft --format meta --size 1b --from models/blt --weights entropy_lm=ours/entropy -o ours/blt
  weft generate checkpoints/olmo2-1b --tokenizer models/OLMo-2-1B/tokenizer.json --prompt "The weft is"
"""


def run(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A spec with a `weights` block.")],
    from_: Annotated[str, typer.Option("--from", metavar="DIR", help="Folder with config.json and safetensors.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="CKPT", help="Folder of the checkpoint to write.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Which `weights NAME:` block of the spec is read.")
    ] = "huggingface",
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CKPT", help="Fill new weights below a path from a checkpoint; repeatable."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Preset for sizes that config.json does not give.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the coverage table as JSON.")] = False,
) -> None:
    """Sizes are read from config.json, tensors are renamed, split, merged and transposed as the spec says.

    Every foreign tensor must be used and every weight filled, with the right shape, or nothing is written.
    """
    from pathlib import Path

    from weft import spec_files
    from weft.runtime.transfer import import_checkpoint
    from weft.views.coverage import show

    spec_files.read(spec)  # words what is wrong with the file itself
    parts = spec_files.named(weights or [], "--weights", "NAME=CKPT")
    settings = spec_files.overrides(set_ or [])
    result = import_checkpoint(Path(spec), Path(from_), Path(out), size, settings, format=format_, parts=parts)
    show(result.coverage, as_json, f"wrote {result.checkpoint}")
