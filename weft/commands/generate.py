"""`weft generate`: continue a prompt with a trained checkpoint."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .sampling_options import Device, IgnoreEnd, Precision, Temperature, Threads, Tokenizer, TopK, TopP, Tuning

EXAMPLES = """\b
Examples:
  weft generate runs/first --prompt "def main():"
  weft generate runs/first --prompt "import " --tokens 400 --temperature 0.8 --top-p 0.95 --seed 7
  weft generate runs/first --prompt "one" --prompt "two" --json
  git diff | weft generate runs/first --prompt -
"""


def run(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint, or the folder of a run.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to continue; - is standard input. Repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=0, help="At most this many new tokens.")] = 200,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text; prompt i uses seed + i.")] = 0,
    tokenizer: Tokenizer = None,
    of: Annotated[
        str | None, typer.Option("--of", metavar="NAME", help="Which model, where a spec has several.")
    ] = None,
    ignore_end: IgnoreEnd = False,
    precision: Precision = None,
    device: Device = None,
    tuning: Tuning = None,
    threads: Threads = None,
    mapped: Annotated[
        bool, typer.Option("--map", help="Use weights where they lie in the file: tables larger than memory.")
    ] = False,
    hot: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="With --map: keep the rows that are read most in fast memory, 0.05 of all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead of text.")] = False,
) -> None:
    """One prompt streams to standard output as it is made; several are continued together and printed in order.

    The step-by-step decoder is derived from the spec in the checkpoint: nobody wrote one.
    """
    from weft.faults import CommandFault, want_checkpoint

    prompts = [sys.stdin.read() if text == "-" else text for text in prompt or []]
    if hot is not None and not mapped:
        raise CommandFault("--hot keeps rows of tables that stay in their file: give --map too", 2)
    if not prompts:
        raise CommandFault('give a --prompt "..." (or --prompt - for standard input)', 2)
    want_checkpoint(checkpoint)

    from weft.text_generation import continue_text, open_text_model

    model = open_text_model(checkpoint, tokenizer, precision, device, threads, of, tuning, mapped, hot)
    printer = _Printer(prompts[0]) if len(prompts) == 1 and not as_json else None
    results = continue_text(
        model,
        prompts,
        tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_at_end=not ignore_end,
        write=printer.write if printer else None,
    )
    if as_json:
        import json

        rows = [
            {"prompt": text, "text": result.text, "tokens": list(result.tokens), "ended": result.ended}
            for text, result in zip(prompts, results, strict=True)
        ]
        found = {"version": 1, "continuations": rows}
        if hot is not None:
            found["hot"] = {path: reads.to_json() for path, reads in model.model.hot_reads().items()}
        print(json.dumps(found, indent=2))
    elif printer:
        printer.close()
    else:
        for index, (text, result) in enumerate(zip(prompts, results, strict=True)):
            print(f"--- {index + 1}")
            print(text + result.text)
    if not as_json:
        for path, reads in model.model.hot_reads().items():
            sys.stdout.flush()
            print(f"{path}: {reads}", file=sys.stderr)


class _Printer:
    """Text as it comes, behind its prompt. The prompt waits for it: a model that cannot start leaves no half line."""

    def __init__(self, prompt: str) -> None:
        self._waiting = prompt

    def write(self, text: str) -> None:
        sys.stdout.write(self._waiting + text)
        sys.stdout.flush()
        self._waiting = ""

    def close(self) -> None:
        self.write("\n")
