"""`weft inspect`: what a spec means, for people or as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

EXAMPLES = """\b
Examples:
  weft inspect specs/olmo2.weft graph --size 7b
  weft inspect specs/olmo2.weft graph --size 7b --svg olmo2.svg
  weft inspect specs/olmo2.weft params --size 32b
  weft inspect specs/olmo2.weft causality
"""

View = Literal["graph", "axes", "params", "causality", "decode"]


def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The spec; - is standard input.")],
    view: Annotated[View, typer.Argument(metavar="VIEW", help="graph, axes, params, causality or decode.")],
    size: Annotated[str | None, typer.Option(help="Preset of the spec [default: the first one].")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="graph: also show what library blocks do inside.")] = False,
    objective: Annotated[
        str | None, typer.Option("--of", metavar="NAME", help="Which model or objective [default: the model].")
    ] = None,
    svg: Annotated[str | None, typer.Option(metavar="OUT", help="graph: write a drawing instead of text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """graph: every operation by block and loop turn, with types and spec lines.
    axes: every axis and its length.
    params: every weight, how it starts, and totals.
    causality: how far ahead each value looks, and what objectives demand.
    decode: what the derived decoder computes per row and what it caches.
    """
    from weft import spec_files
    from weft.faults import CommandFault

    if view != "graph" and (svg or full):
        raise CommandFault(f"{'--svg' if svg else '--full'} goes with graph, not with {view}", 2)
    settings = spec_files.overrides(set_ or [])
    source = spec_files.read(file)
    if size is None:
        size = spec_files.first_preset(source)
    checked = spec_files.checked_source(source, size, settings)
    shown = f"{source.name} at size {size}" if size else source.name
    if svg:
        from weft.views import svg as drawing

        spec_files.write(svg, drawing.draw(spec_files.program(checked, objective), shown))
        print(f"wrote {svg}")
        return
    data, text = _view(checked, view, objective, full)
    if as_json:
        import json

        print(json.dumps({"version": 1, "file": source.name, "size": size, view: data()}, indent=2))
    else:
        # Made first: what cannot be shown leaves no title behind.
        body = text()
        print(f"{shown}\n\n{body}")


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
            from weft.views import decode

            model = spec_files.program(checked, of)
            if model.losses:
                raise CommandFault(f"{model.name} is an objective: decode shows a model", 2)
            return lambda: decode.data(model), lambda: decode.text(model)
