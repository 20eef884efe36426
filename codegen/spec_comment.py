"""The spec line that a piece of generated code serves, as the text of a comment."""

from __future__ import annotations

import os

from ..dsl.source import Source, Span

LONGEST = 110


def comment(span: Span) -> str:
    """`olmo2.weft:14  x = x + attention(x)`: nothing in it ends a comment."""
    return comment_of_line(span.source, span.line)


def comment_of_line(source: Source, line: int) -> str:
    """The same for a line by number, from 1."""
    text = f"{os.path.basename(source.name)}:{line}  {source.line_text(line).strip()}"
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST]
