"""`weft entropies`: how hard each token is to foresee, in a file beside the data; and the threshold for patches."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

EXAMPLES = """\b
Examples:
  weft entropies runs/entropy --data docs --out docs.entropies
  weft entropies runs/entropy --data docs --patch-bytes 4.5
  weft train specs/blt.weft --size tiny --data docs --column surprise=docs.entropies --out runs/blt
"""

GREEDY = ("--data",)


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the folder of a run.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH...", help="Files, folders or globs of text, JSONL or parquet.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The file to write.")] = None,
    patch_bytes: Annotated[
        float | None, typer.Option(metavar="MEAN", help="Print the threshold for patches of this many tokens.")
    ] = None,
    rule: Annotated[Literal["entropy", "monotonic"], typer.Option(help="What is compared with it.")] = "entropy",
    longest: Annotated[int, typer.Option(min=0, help="Most tokens of a patch; 0: any number.")] = 0,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Read windows of so many tokens, each from its start [default: whole documents]."),
    ] = None,
    value: Annotated[
        str | None, typer.Option(metavar="NAME", help="A value the model binds [default: surprise, else the entropy].")
    ] = None,
    field: Annotated[str, typer.Option(help="JSONL field or parquet column.")] = "text",
    tokenizer: Annotated[str | None, typer.Option(metavar="FILE", help="[default: the run's own]")] = None,
    begin_mark: Annotated[
        bool | None, typer.Option("--begin-mark/--no-begin-mark", help="In front of documents [default: as the run].")
    ] = None,
    tokens_per_batch: Annotated[int, typer.Option(min=1, help="Tokens computed together.")] = 8192,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: cuda if present].")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """A language model gives the entropy of each next token; a model that binds `surprise` gives that.

    `weft train --column surprise=FILE` reads them instead of computing them at every step. Each document is read from
    its start: a window that training cuts from the middle of it gets the entropies of the document there. With
    --max-length, windows are read from their own start, as a run with the same --max-length computes them online.
    """
    from pathlib import Path

    from weft.faults import CommandFault, want_checkpoint

    if not data:
        raise CommandFault("give --data PATH...", 2)
    if out is None and patch_bytes is None:
        raise CommandFault("give --out FILE to write entropies, or --patch-bytes MEAN for a threshold", 2)
    if patch_bytes is not None and patch_bytes < 1:
        raise CommandFault(f"a patch has at least one token: --patch-bytes {patch_bytes:g} is none", 2)
    if out is not None and (Path(out).is_dir() or not Path(out).resolve().parent.is_dir()):
        raise CommandFault(f"{out}: a file in a folder that is there was wanted", 2)
    want_checkpoint(checkpoint)

    import numpy as np
    import torch

    from weft.runtime.calibrate import calibrate
    from weft.runtime.checkpoint import WEIGHTS
    from weft.runtime.columns import ColumnOrigin, write_column
    from weft.runtime.data import DataOptions, encode_documents
    from weft.runtime.entropies import measure_documents, measure_of
    from weft.runtime.tokens import load_tokens, marks_begin
    from weft.trained_models import open_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    opened = open_checkpoint(checkpoint, device)
    settings = opened.manifest.run or {}
    measure = measure_of(opened.model, value)
    name = tokenizer or settings.get("tokenizer", "bytes")
    vocabulary = load_tokens(name, measure.vocab, settings.get("end_token"))
    marked = marks_begin(name, opened.manifest.run) if begin_mark is None else begin_mark
    options = DataOptions(tuple(data), field=field, begin_mark=marked)
    names, documents, _ = encode_documents(options, vocabulary, measure.vocab)
    total = sum(map(len, documents))
    with _progress(total) as advance:
        values = measure_documents(opened.model, measure, documents, max_length or 0, tokens_per_batch, advance)
    mean = float(np.concatenate(values).mean(dtype=np.float64))
    record = {"documents": len(names), "tokens": total, "mean": mean}
    lines = [f"{len(names):,} documents, {total:,} tokens, {mean:.4f} nats on average"]
    if out is not None:
        digest = next(entry.sha256 for entry in opened.manifest.files if entry.name == WEIGHTS)
        origin = ColumnOrigin(measure.bound or "entropy", vocabulary.digest, marked, max_length or 0, digest)
        write_column(Path(out), origin, names, documents, values)
        record["out"] = out
        lines.append(f"wrote {out}")
    if patch_bytes is not None:
        examples = [part for one in values for part in _windows(one, max_length)]
        found = calibrate(examples, patch_bytes, rule, longest)
        statistics = found.statistics
        record["calibration"] = {
            "rule": rule, "wanted": patch_bytes, "threshold": found.threshold, "longest": longest,
            **statistics.to_json(),
        }  # fmt: skip
        lines.append(
            f"threshold = {found.threshold!r}: {statistics.segments:,} patches, {statistics.mean:.4f} on average"
        )
        lines += _bars(statistics.histogram)
    if as_json:
        import json

        print(json.dumps({"version": 1, **record}, indent=2))
    else:
        print("\n".join(lines))


def _windows(values, length: int | None):
    return [values[i : i + length] for i in range(0, len(values), length)] if length else [values]


def _bars(histogram) -> list[str]:
    """A line for each bin: lengths, patches, their share."""
    total, most = sum(histogram.values()), max(histogram.values())
    return [
        f"{length:>8}  {count:>9,}  {count / total:6.1%}  {'#' * round(40 * count / most)}".rstrip()
        for length, count in histogram.items()
    ]


def _progress(total: int):
    """A bar where a terminal is there; it is told how many tokens were done."""
    from contextlib import contextmanager

    @contextmanager
    def bar():
        if not sys.stderr.isatty():
            yield lambda tokens: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("entropies", total=total)
            yield lambda tokens: progress.advance(task, tokens)

    return bar()
