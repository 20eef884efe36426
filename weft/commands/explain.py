"""`weft explain`: the page of an error code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  weft explain E301
  weft explain --list
"""

BRIEF = True


def run(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="A code such as E301.")] = None,
    all_: Annotated[bool, typer.Option("--list", help="List all codes with their first lines.")] = False,
) -> None:
    """Each page says what is wrong, why it matters and how to repair it, with a wrong and a right spec."""
    from weft.error_index import error_classes
    from weft.faults import CommandFault

    pages = error_classes()
    if all_:
        for known, kind in pages.items():
            print(f"{known}  {kind.page().partition(chr(10))[0]}")
        return
    if code is None:
        raise CommandFault("name a code, or list them with --list", 2)
    wanted = code.upper().strip("[]")
    if wanted.isdigit():
        wanted = "E" + wanted
    if wanted not in pages:
        near = [known for known in pages if known[:-1] == wanted[:-1]]
        hint = f"; there are {', '.join(near)}" if near else ""
        raise CommandFault(f"no error has the code {code}{hint} (--list shows all)", 2)
    sys.stdout.write(f"{wanted}: {pages[wanted].page()}\n")
