"""`weft tune`: measure what is fast on this machine's GPU, and keep it in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from weft.runtime.tune import Answer, Timer

EXAMPLES = """\b
Examples:
  weft tune specs/olmo2.weft --size 7b -o specs/tuning.json
  weft tune specs/olmo2.weft --size 1b --budget 120 --rows 8192 -o tuning.json
  weft inspect specs/olmo2.weft kernels --size 7b --tuning specs/tuning.json
"""


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec; - is standard input.")],
    out: Annotated[
        str, typer.Option("-o", "--out", metavar="OUT", help="File that the measurements are added to.")
    ] = "tuning.json",
    size: Annotated[str | None, typer.Option(help="Preset of the spec.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Time in all.")] = 600.0,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cuda, cuda:1 ...")] = "cuda",
    precision: Annotated[str, typer.Option(help="Type of the computation: bfloat16 or float32.")] = "bfloat16",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step, all examples together.")] = 16384,
    length: Annotated[int, typer.Option(min=1, help="Rows of an example.")] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers as JSON.")] = False,
) -> None:
    """Times the candidates of every kernel of a step, and torch's matrix products and attention beside ours.

    The file is written after every kernel; what it holds already stays, and what failed in the same versions is not
    tried again. `--tuning FILE` of other commands reads it; a tuning.json beside a spec is read without being asked
    for.
    """
    from weft import spec_files
    from weft.faults import CommandFault

    checked = spec_files.checked(file, size, spec_files.overrides(set_ or []))
    spec_files.program(checked, None)  # says so when there is no model
    if Path(out).is_dir():
        raise CommandFault(f"{out}: is a folder, not a file", 2)

    import torch

    from weft.runtime.tune import TuneOptions, tune_spec
    from weft.runtime.tuning import read, write

    types = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if precision not in types:
        raise CommandFault(f"--precision is one of {', '.join(types)}, not {precision}", 2)
    where, timer = _device_and_timer(device)
    options = TuneOptions(rows, length, types[precision], budget)
    answers: list[Answer] = []
    for table, answer in tune_spec(checked, read(Path(out)), where, timer, options):
        write(Path(out), table)
        answers.append(answer)
        if not as_json:
            print(_line(answer), flush=True)
    if as_json:
        import json

        print(json.dumps({"version": 1, "file": out, "answers": [_data(answer) for answer in answers]}, indent=2))
        return
    better = sum(1 for one in answers if one.best is not None and one.best.configuration != one.default)
    print(f"{out}: {len(answers)} choices measured, {better} of them better than the default")
    if not answers:
        print("weft: the budget ended before anything was measured", file=sys.stderr)


def _device_and_timer(name: str) -> tuple[torch.device, Timer]:
    import torch

    from weft.faults import CommandFault
    from weft.runtime.model import usable_device
    from weft.runtime.tune import device_timer

    if torch.device(name).type != "cuda":
        raise CommandFault(f"--device is a GPU, not {name}: kernels are measured on the device that runs them", 2)
    if not torch.cuda.is_available():
        raise CommandFault("there is no GPU here: kernels are measured on the device that runs them")
    device = usable_device(name)
    return device, device_timer(device)


def _line(answer: Answer) -> str:
    from weft.views.choices import said

    place = f"{answer.place}  " if answer.place else ""
    start = f"{place}{answer.what}: "
    if answer.best is None or answer.best.microseconds is None:
        return f"{start}none of {answer.tried} ran ({answer.reason})"
    before = "" if answer.default_us is None else f", default {answer.default_us:,.1f} us"
    failed = f", {answer.failed} failed" if answer.failed else ""
    chosen = said(answer.best.configuration)
    return f"{start}{chosen} {answer.best.microseconds:,.1f} us{before} ({answer.tried} tried{failed})"


def _data(answer: Answer) -> dict[str, Any]:
    from weft.views.choices import said

    best = answer.best
    return {
        "spec": answer.place,
        "what": answer.what,
        "choice": None if best is None else said(best.configuration),
        "microseconds": None if best is None else best.microseconds,
        "default_microseconds": answer.default_us,
        "tried": answer.tried,
        "failed": answer.failed,
        "reason": answer.reason,
    }
