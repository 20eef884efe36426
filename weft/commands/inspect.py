"""`weft inspect`: what a spec means, for people or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from weft.codegen.choices import Choices

EXAMPLES = """\b
Examples:
  weft inspect specs/olmo2.weft graph --size 7b
  weft inspect specs/olmo2.weft graph --size 7b --svg olmo2.svg
  weft inspect specs/olmo2.weft params --size 32b
  weft inspect specs/olmo2.weft causality
  weft inspect specs/olmo2.weft kernels --size 7b --target cuda:90 --target hip:gfx942
  weft inspect specs/olmo2.weft cost --size 7b --device h100
  weft inspect specs/olmo2.weft report --size tiny -o report.html
  weft inspect runs/blt patches --text "Hello, world."
  weft inspect specs/olmo2.weft ptx --size tiny --kernel silu_swiglu_kernel
"""

View = Literal["graph", "axes", "params", "causality", "decode", "kernels", "cost", "ptx", "sass", "report", "patches"]
KERNEL_VIEWS = ("kernels", "cost", "ptx", "sass")


def run(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The spec, - is standard input; patches: or a checkpoint.")
    ],
    view: Annotated[View, typer.Argument(metavar="VIEW", help="One of those above.")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec [default: the first one].")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="graph: also show what library blocks do inside.")] = False,
    objective: Annotated[
        str | None, typer.Option("--of", metavar="NAME", help="Which model or objective [default: the model].")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="report, patches: a file to write.")
    ] = None,
    svg: Annotated[str | None, typer.Option(metavar="OUT", help="graph: write a drawing instead of text.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="kernels: cuda:80, cuda:90, cuda:100 or hip:gfx942; repeatable [cuda:90]."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="cost: a100, h100, h200, b200 or mi300x.")] = None,
    kernel: Annotated[str | None, typer.Option(metavar="NAME", help="ptx, sass: one kernel [default: all].")] = None,
    tuning: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="kernels: from `weft tune` [default: tuning.json beside the spec]."),
    ] = None,
    tuned_for: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="kernels: whose measurements, if a file has several devices'."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="cost: rows of a step, all examples together.")] = 16384,
    shown_text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="patches: what to cut; - is standard input.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="patches: bytes, bytes4 or a file [default: the run's own].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """graph: every operation by block and loop turn, with types and spec lines.
    axes: every axis and its length.
    params: every weight, how it starts, and totals.
    causality: how far ahead each value looks, and what objectives demand.
    decode: what the derived decoder computes per row and what it caches, and what `generate` programs do.
    kernels: every kernel that a GPU would launch in a training step and in a step of the decoder, compiled here for
    GPUs that need not be there, linears that are made for the rows of a loss alone, and for each operator whether
    torch's kernel or ours was chosen, by measurement or by default.
    cost: what each kernel moves and computes, and the least time that takes on a device; in a decoder's step, for 32
    sequences of 4096 rows.
    ptx, sass: the code of kernels.
    report: spec, graph, kernels and PTX side by side, linked line by line, as a page for a browser.
    patches: where a model cuts a text, with the entropy after each byte; as text, or as a picture (.svg, .html).
    """
    from weft import spec_files
    from weft.faults import CommandFault

    given = {"--target": target, "--device": device, "--kernel": kernel, "--tuning": tuning, "--tuned-for": tuned_for}
    if view == "report":
        del given["--target"]
    if view not in KERNEL_VIEWS and any(given.values()):
        option = next(name for name, value in given.items() if value)
        raise CommandFault(f"{option} goes with kernels, cost, ptx and sass, not with {view}", 2)
    if view == "patches":
        _patches(file, size, set_ or [], shown_text, tokenizer, out, as_json)
        return
    if shown_text is not None or tokenizer is not None:
        raise CommandFault(
            f"{'--text' if shown_text is not None else '--tokenizer'} goes with patches, not with {view}", 2
        )
    if (view == "report") != (out is not None):
        raise CommandFault("report is written to a file: -o report.html" if out is None else "-o goes with report", 2)
    if view != "graph" and (svg or full):
        raise CommandFault(f"{'--svg' if svg else '--full'} goes with graph, not with {view}", 2)
    settings = spec_files.overrides(set_ or [])
    source = spec_files.read(file)
    if size is None:
        size = spec_files.first_preset(source)
    checked = spec_files.checked_source(source, size, settings)
    shown = f"{source.name} at size {size}" if size else source.name
    if out is not None:
        from weft.views import report

        spec_files.write(out, report.page(checked, objective, target or ["cuda:90"], rows))
        print(f"wrote {out}")
        return
    if svg:
        from weft.views import svg as drawing

        spec_files.write(svg, drawing.draw(spec_files.program(checked, objective), shown))
        print(f"wrote {svg}")
        return
    if view in KERNEL_VIEWS:
        measured = spec_files.measured(file, tuning, tuned_for)
        choices = None if measured is None else measured[1]
        data, lines = _kernels(checked, view, objective, target or ["cuda:90"], device, kernel, rows, choices)
    else:
        data, lines = _view(checked, view, objective, full)
    if as_json:
        import json

        print(json.dumps({"version": 1, "file": source.name, "size": size, view: data()}, indent=2))
    else:
        # Made first: what cannot be shown leaves no title behind.
        body = lines()
        print(f"{shown}\n\n{body}")


def _patches(
    file: str,
    size: str | None,
    set_: list[str],
    text: str | None,
    tokenizer: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Of a checkpoint, or of a spec with weights as they start."""
    import sys
    from pathlib import Path

    from weft import spec_files
    from weft.faults import CommandFault

    if text is None:
        raise CommandFault('patches needs a text: --text "..." (or --text - for standard input)', 2)
    if out is not None and not out.lower().endswith((".svg", ".html", ".htm")):
        raise CommandFault(f"{out}: a picture is written as .svg or .html", 2)
    settings = spec_files.overrides(set_)
    if not Path(file).is_dir():
        source = spec_files.read(file)
        size = size or spec_files.first_preset(source)
        checked = spec_files.checked_source(source, size, settings)
    elif size is not None or settings:
        raise CommandFault(f"{file} is a checkpoint, whose sizes are fixed: --size and --set are for specs", 2)
    else:
        checked = None

    from weft.runtime.entropies import measure_of
    from weft.runtime.model import Model
    from weft.runtime.tokens import load_tokens, marks_begin
    from weft.trained_models import open_checkpoint
    from weft.views import patches

    run = None
    if checked is None:
        opened = open_checkpoint(file, None)
        model, run, title = opened.model, opened.manifest.run, str(opened.folder)
    else:
        model = Model(checked)
        title = f"{checked.source.name}{f' at size {size}' if size else ''}, with weights as they start"
    name = tokenizer or (run or {}).get("tokenizer", "bytes")
    vocabulary = load_tokens(name, measure_of(model).vocab, (run or {}).get("end_token"))
    given = sys.stdin.read() if text == "-" else text
    reading = patches.read(model, vocabulary, given, marks_begin(name, run), title)
    if out is not None:
        spec_files.write(out, patches.picture(reading, out))
        print(f"wrote {out}")
    elif as_json:
        import json

        print(json.dumps({"version": 1, "file": file, "size": size, "patches": patches.data(reading)}, indent=2))
    else:
        from rich.console import Console

        color = spec_files.wants_color(sys.stdout)
        console = Console(force_terminal=color, no_color=not color, highlight=False, markup=False, emoji=False)
        patches.show(reading, console)


def _kernels(
    checked,
    view: str,
    of: str | None,
    targets: list[str],
    device: str | None,
    kernel: str | None,
    rows: int,
    measured: Choices | None,
):
    """As `_view`, of the kernels of a step. They are kept between calls: compiling takes seconds a kernel."""
    from rich.console import Console

    from weft import spec_files
    from weft.views import choices, counted_rows, kernels, planned_kernels

    on = spec_files.known_device(device) if device is not None else None
    for target in targets:
        spec_files.known_target(target)
    if of is None:
        planned = planned_kernels.of_spec(checked, targets, rows, measured)
        programs = list(checked.objectives.values()) or [checked.model]
    else:
        programs = [spec_files.program(checked, of)]
        planned = planned_kernels.of_program(programs[0], targets, rows, measured)
    with Console(stderr=True).status(f"compiling {len(planned)} kernels"):
        made = kernels.compiled(planned, spec_files.cache_folder() / "kernels", workers=2)
    chosen = [] if view != "kernels" else choices.of_programs(programs, measured)
    counted = [] if view != "kernels" else counted_rows.of_programs(programs)
    on_device = None if measured is None else measured.device
    texts = {
        "kernels": lambda: "\n\n".join(
            (kernels.text(made), counted_rows.text(counted), choices.text(chosen, on_device))
        ),
        "cost": lambda: kernels.cost(made, on),
        "ptx": lambda: kernels.ptx(made, kernel),
        "sass": lambda: kernels.sass(made, kernel),
    }
    more = {"choices": choices.data(chosen), "counted_rows": counted_rows.data(counted)}
    return lambda: kernels.data(made, on) | more, texts[view]


def _view(checked, view: str, of: str | None, full: bool):
    """The view's data and its text, each made when asked for."""
    from weft import spec_files
    from weft.faults import CommandFault

    match view:
        case "graph":
            from weft.views import graph

            program = spec_files.program(checked, of)
            return lambda: graph.data(program), lambda: graph.text(program, full)
        case "axes":
            from weft.views import axes

            return lambda: axes.data(checked), lambda: axes.text(checked)
        case "params":
            from weft.views import params

            return lambda: params.data(checked), lambda: params.text(checked)
        case "causality":
            from weft.views import causality

            programs = [spec_files.program(checked, of)] if of else [checked.model, *checked.objectives.values()]
            return lambda: causality.data(programs), lambda: causality.text(programs)
        case _:
            from weft.views import decode, generate

            model = spec_files.program(checked, of)
            if model.losses:
                raise CommandFault(f"{model.name} is an objective: decode shows a model", 2)
            told = [one for one in checked.generates.values() if one.model is model]
            if not told:
                return lambda: decode.data(model), lambda: decode.text(model)
            return (
                lambda: {**decode.data(model), "generate": generate.data(told)},
                lambda: f"{decode.text(model)}\n\n{generate.text(told)}",
            )
