"""Options of the commands that choose tokens with a checkpoint: `generate` and `sample`."""

from __future__ import annotations

from typing import Annotated

import typer

Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Choose among the K likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Choose among the fewest that hold this probability.")]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="FILE", help="A `tokenizers` JSON file [default: the run's own].")
]
IgnoreEnd = Annotated[bool, typer.Option("--ignore-end", help="Go on after the mark between documents.")]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16 or float64 [default: as saved].")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: cuda if present].")]
Tuning = Annotated[str | None, typer.Option(metavar="FILE", help="Measurements that `weft tune` wrote.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of torch.")]
