"""`weft check`: every mistake of every file, for people or as JSON."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft check specs/olmo2.weft
  weft check specs/*.weft --size tiny
  weft check model.weft --size 7b --set kv_heads=8 --json
"""

BRIEF = True


def run(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Specs to check; - reads standard input.")],
    size: Annotated[str | None, typer.Option(help="Check only this preset of the spec (default: all of them).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a size or option; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Names, axes, shapes, weight paths and causality are checked; nothing is run and torch is not needed.

    Exits with 1 when there are mistakes, with 2 when a file cannot be read.
    """
    from weft import spec_files
    from weft.faults import CommandFault, report

    settings = spec_files.overrides(set_ or [])
    found = []
    unread = 0
    for path in files:
        try:
            source = spec_files.read(path)
        except CommandFault as fault:
            # One file that is not there does not keep the others from being checked.
            unread = report(fault)
            continue
        found.append((source, spec_files.check(source, size, settings).problems.errors))
    if as_json:
        _print_json(found)
    else:
        for _, errors in found:
            spec_files.print_errors(errors)
        _print_summary(found)
    if unread or any(errors for _, errors in found):
        raise typer.Exit(unread or 1)


def _print_summary(found: list) -> None:
    for source, errors in found:
        if errors:
            count = len(errors)
            print(f"{source.name}: {count} mistake{'s' * (count > 1)}", file=sys.stderr)
        else:
            print(f"{source.name}: no mistakes")


def _print_json(found: list) -> None:
    import json

    from weft.dsl.render import to_json

    files = [
        {
            "file": source.name,
            "ok": not errors,
            "diagnostics": [to_json(error.describe()) for error in errors],
        }
        for source, errors in found
    ]
    print(json.dumps({"version": 1, "files": files}, indent=2))
