"""`weft import`: a Hugging Face folder to a checkpoint of ours."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft import specs/olmo2.weft --from models/OLMo-2-1B -o checkpoints/olmo2-1b
  weft generate checkpoints/olmo2-1b --tokenizer models/OLMo-2-1B/tokenizer.json --prompt "The weft is"
"""


def run(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A spec with a `weights huggingface:` block.")],
    from_: Annotated[str, typer.Option("--from", metavar="HF_DIR", help="Folder with config.json and safetensors.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="CKPT", help="Folder of the checkpoint to write.")],
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
    result = import_checkpoint(Path(spec), Path(from_), Path(out), size, spec_files.overrides(set_ or []))
    show(result.coverage, as_json, f"wrote {result.checkpoint}")
