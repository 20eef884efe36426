"""`weft train`: a spec's objective on files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft train specs/olmo2.weft --size tiny --data docs/*.md --steps 200 --out runs/docs
  weft train specs/olmo2.weft --size tiny --data text.jsonl --field body --steps 5000 --lr 1e-3 --out runs/web
  weft train specs/olmo2.weft --config run.toml --steps 20000 --out runs/web --resume
  weft train specs/olmo2.weft --config run.toml --processes 8 --out runs/web
  torchrun --nnodes 2 --nproc-per-node 8 -m weft train specs/olmo2.weft --config run.toml --out runs/web

\b
Ctrl-C saves a checkpoint and stops; --resume goes on from the last one, bit for bit as if nothing had happened.
"""

# Options that take every word up to the next option: `--data a.txt b.txt`, and what a shell makes of `docs/*.md`.
GREEDY = ("--data",)


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec (or a checkpoint folder to go on from).")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATH...", help="Files, folders or globs of text, JSONL or parquet.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps in all.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for checkpoints and logs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="TOML or JSON with settings; options given here win.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="Which objective, where a spec has several.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=CKPT", help="Start the weights below a path as another checkpoint's; repeatable."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=FILE", help="Read an optional input from a file of `weft entropies`; repeatable."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="bytes, bytes4 or a `tokenizers` JSON file [default: bytes].")
    ] = None,
    begin_mark: Annotated[
        bool, typer.Option("--begin-mark", help="Put the begin mark in front of every document.")
    ] = False,
    field: Annotated[str | None, typer.Option(help="JSONL field or parquet column [default: text].")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest example in tokens [default: 1024].")] = None,
    tokens_per_step: Annotated[int | None, typer.Option(help="Tokens of one step [default: 8192].")] = None,
    patches_per_step: Annotated[
        int | None, typer.Option(help="Patches of one step, exactly; --tokens-per-step then limits it only when given.")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches per step, to save memory [default: 1].")] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations of layers again in the backward, to save memory.")
    ] = False,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [default: the spec's].")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, linear or constant [default: cosine].")] = None,
    warmup_steps: Annotated[int | None, typer.Option(help="[default: 2% of the steps]")] = None,
    decay: Annotated[float | None, typer.Option(help="Weight decay [default: the spec's].")] = None,
    clip: Annotated[float | None, typer.Option(help="Gradient norm; 0 does not clip [default: the spec's].")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float64 [default: auto].")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ... [default: auto].")] = None,
    tuning: Annotated[
        str | None, typer.Option(metavar="FILE", help="From `weft tune` [default: tuning.json beside the spec].")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes on this machine, each with a GPU and a part of every weight [default: 1]."),
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(help="Of a lazy table each process has some columns or some rows [default: columns]."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and draws [default: 0].")] = None,
    eval_fraction: Annotated[
        float | None, typer.Option(help="Share of the documents held out for evaluation [default: 0.05].")
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; 0: none [default: 250].")] = None,
    eval_tokens: Annotated[
        int | None, typer.Option(help="Tokens of one evaluation, at most [default: 131072].")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints [default: 500].")] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints kept [default: 3].")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between printed lines [default: 10].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """AdamW with the groups that the spec asks for, on packed batches of whole examples: no padding.

    Documents are read as bytes unless a tokenizer is given. Logs go to OUT/metrics.jsonl and, where it is installed,
    TensorBoard. Every setting of a --config file is listed in docs/manual.md.
    """
    given = {
        "size": size, "data": tuple(data) if data else None, "steps": steps, "out": out, "resume": resume or None,
        "objective": objective, "tokenizer": tokenizer, "begin_mark": begin_mark or None,
        "patches_per_step": patches_per_step, "field": field, "max_length": max_length,
        "tokens_per_step": tokens_per_step, "accumulate": accumulate, "recompute": recompute or None,
        "lr": lr, "schedule": schedule,
        "warmup_steps": warmup_steps, "decay": decay, "clip": clip, "precision": precision, "device": device,
        "tuning": tuning, "threads": threads, "seed": seed, "eval_fraction": eval_fraction, "eval_every": eval_every,
        "eval_tokens": eval_tokens, "save_every": save_every, "keep": keep, "log_every": log_every,
        "processes": processes, "tables": tables,
    }  # fmt: skip
    from weft import spec_files

    settings = {name: value for name, value in given.items() if value is not None}
    settings["spec"] = file
    if set_:
        settings["overrides"] = {name: spec_files.typed(value) for name, value in spec_files.overrides(set_).items()}
    if weights:
        settings["weights"] = spec_files.named(weights, "--weights", "NAME=CKPT")
    if column:
        settings["columns"] = spec_files.named(column, "--column", "INPUT=FILE")
    if file.endswith(".weft"):
        # Mistakes in the spec are shown in colour and before torch is imported, which takes seconds.
        spec_files.checked(file, size, spec_files.overrides(set_ or []))

    from weft.processes import place_in, start, stop_with_the_starter
    from weft.runtime.documents import find_files
    from weft.runtime.run_config import make_config, read_config_file

    layers = [read_config_file(config)] if config else []
    place = place_in(os.environ)
    started = {} if place is None else {"processes": place.count}
    whole = make_config(*layers, settings, started)
    for source in whole.data:
        if not Path(source).expanduser().exists():
            find_files((source,))  # a pattern, or it says what is not there
    if place is None and whole.processes > 1:
        raise SystemExit(start(whole.processes))
    stop_with_the_starter(os.environ)
    from weft.runtime.progress import Reporter
    from weft.runtime.ranks import joined
    from weft.runtime.train import train

    with Reporter(sys.stderr) as reporter, joined(place, whole.device) as ranks:
        result = train(whole, reporter, ranks)
    if as_json and ranks.is_first:
        import json

        print(
            json.dumps(
                {
                    "step": result.step,
                    "tokens": result.tokens,
                    "reason": result.reason,
                    "checkpoint": str(result.checkpoint),
                    "losses": result.losses,
                }
            )
        )
    if result.reason in _SIGNALS:
        raise SystemExit(_SIGNALS[result.reason])


# As a shell reports a process that a signal ended, so that a script does not take a stopped run for a finished one.
_SIGNALS = {"Ctrl-C": 130, "SIGTERM": 143}
