"""The spec line that a piece of generated code serves, as the text of a comment."""

from __future__ import annotations

import os

from ..dsl.source import Span

LONGEST = 110


def comment(span: Span) -> str:
    """`olmo2.weft:14  x = x + attention(x)`: nothing in it ends a comment."""
    line = span.source.line_text(span.line).strip()
    text = f"{os.path.basename(span.source.name)}:{span.line}  {line}"
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST]
