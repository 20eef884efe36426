"""`weft latents`: pictures to latents by a trained autoencoder, in a folder that a model of latents trains on."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft train specs/vae.weft --size tiny --data pictures --steps 2000 --out runs/vae
  weft latents runs/vae --data captions.jsonl --out latents
  weft train specs/lmfusion.weft --size tiny --data latents/captions.jsonl --out runs/lmfusion
"""

GREEDY = ("--data",)


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the folder of a run.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to write.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH...", help="JSONL that names pictures, or folders of pictures.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Pictures encoded together.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: cuda if present].")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """The spec's model `encode` is run on every picture, without noise; what it gives is divided by its spread.

    DIR/latents.safetensors has the latents and, in its metadata, the factor they were multiplied by. Each JSONL file is
    written again with `latents.safetensors#N` in the place of its pictures.
    """
    from pathlib import Path

    from weft.faults import CommandFault, want_checkpoint

    if not data:
        raise CommandFault("give --data PATH...", 2)
    want_checkpoint(checkpoint)

    import torch

    from weft.runtime.checkpoint import WEIGHTS
    from weft.runtime.latents import make_latents
    from weft.trained_models import open_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    opened = open_checkpoint(checkpoint, device)
    digest = next(entry.sha256 for entry in opened.manifest.files if entry.name == WEIGHTS)
    made = make_latents(opened.model, data, Path(out), digest, at_once)
    if as_json:
        import json

        record = {"pictures": made.pictures, "shape": made.shape, "factor": made.factor, "files": made.files}
        print(json.dumps({"version": 1, **record, "out": out}, indent=2))
        return
    shape = " x ".join(map(str, made.shape))
    print(f"{made.pictures:,} pictures as latents of {shape}, multiplied by {made.factor:.6g} to a variance of 1")
    print(f"wrote {', '.join(str(Path(out) / name) for name in made.files)}")
