"""`weft fmt`: specs in the one canonical form."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft fmt model.weft                 rewrite it
  weft fmt --check specs/*.weft       only say which files would change
  weft fmt - < model.weft             print the formatted text
"""

BRIEF = True


def run(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Specs to format; - is standard input.")],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if a file would change.")] = False,
) -> None:
    """There are no options of style. Comments are kept, and formatting twice changes nothing.

    A file that does not parse is left alone and its mistakes are printed.
    """
    from weft import spec_files
    from weft.dsl.diagnostics import Problems
    from weft.dsl.format import format_text
    from weft.dsl.parser import parse
    from weft.faults import CommandFault, report

    failed = False
    unread = 0
    for path in files:
        try:
            source = spec_files.read(path)
        except CommandFault as fault:
            unread = report(fault)
            continue
        problems = Problems()
        parse(source, problems)
        if problems:
            spec_files.print_errors(problems.errors, file=sys.stderr)
            failed = True
            continue
        text = format_text(source)
        if path == spec_files.STDIN and not check:
            sys.stdout.write(text)
        elif text != source.text:
            if check:
                print(f"would reformat {source.name}")
                failed = True
            else:
                spec_files.write(path, text)
                print(f"reformatted {source.name}")
    if failed or unread:
        raise typer.Exit(unread or 1)
