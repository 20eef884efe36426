"""Diagnostics for people (terminal text, as rustc prints it) and for machines (JSON)."""

from __future__ import annotations

import unicodedata
from typing import Any

from .diagnostics import Diagnostic, Label
from .source import Source, Span

WIDEST = 120  # columns of source text shown; longer lines are cut around the label
CONTEXT = 40  # columns kept in front of the label when a line is cut
TAB = "    "

_RED, _YELLOW, _BLUE, _CYAN, _BOLD, _PLAIN = (
    "\x1b[1;31m",
    "\x1b[1;33m",
    "\x1b[1;34m",
    "\x1b[1;36m",
    "\x1b[1m",
    "\x1b[0m",
)


def render(diagnostic: Diagnostic, color: bool) -> str:
    """The diagnostic as terminal text, without a final newline.

    Labels stand under their lines in the order of the source; the file of the primary label comes first. No character
    of a spec reaches the terminal unless it can be seen: escape sequences in a spec stay text.
    """
    paint = _paint if color else _no_paint
    loud = _YELLOW if diagnostic.severity == "warning" else _RED
    labels = (diagnostic.primary, *diagnostic.secondary)
    gutter = max(len(str(label.span.line)) for label in labels) + 1
    head = paint(f"{diagnostic.severity}[{diagnostic.code}]", loud)
    out = [head + paint(f": {visible(diagnostic.title)}", _BOLD)]
    bar = paint(" " * gutter + " |", _BLUE)
    for number, source in enumerate(_sources(labels)):
        arrow = "-->" if number == 0 else ":::"
        here = [label for label in labels if label.span.source is source]
        first = diagnostic.primary if number == 0 else min(here, key=lambda label: label.span.start)
        place = f"{visible(source.name)}:{first.span.line}:{first.span.column}"
        out += [paint(" " * gutter + arrow, _BLUE) + f" {place}", bar]
        for line in sorted({label.span.line for label in here}):
            on_line = [label for label in here if label.span.line == line]
            text, marks = _line(source, line, on_line, diagnostic.primary)
            out.append(paint(f"{line:>{gutter}} |", _BLUE) + (f" {text}" if text else ""))
            for label, column, width in marks:
                is_primary = label is diagnostic.primary
                mark = ("^" if is_primary else "-") * width
                said = mark + (f" {visible(label.text)}" if label.text else "")
                out.append(f"{bar} {' ' * column}{paint(said, loud if is_primary else _BLUE)}")
    remarks = [("note", note) for note in diagnostic.notes]
    if diagnostic.help:
        remarks.append(("help", diagnostic.help))
    for word, text in remarks:
        lead = f"{' ' * gutter} = {word}: "
        lines = [visible(line) for line in text.split("\n")]
        out.append(paint(f"{' ' * gutter} =", _BLUE) + f" {paint(word, _CYAN)}: {lines[0]}")
        out += [" " * len(lead) + line for line in lines[1:]]
    return "\n".join(out)


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """The diagnostic as plain data: positions are 1-based, ends are exclusive, columns count characters."""
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "title": _encodable(diagnostic.title),
        **_place(diagnostic.primary.span),
        "label": _encodable(diagnostic.primary.text),
        "labels": [{**_place(label.span), "text": _encodable(label.text)} for label in diagnostic.secondary],
        "notes": [_encodable(note) for note in diagnostic.notes],
        "help": None if diagnostic.help is None else _encodable(diagnostic.help),
    }


def visible(text: str) -> str:
    """Text without what a terminal would obey or could not print."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\t":
        return TAB
    # Cf are marks without width, among them those that reverse the direction of the text.
    if character.isprintable() and unicodedata.category(character) != "Cf":
        return character
    return f"\\u{{{ord(character):x}}}"


def _width(text: str) -> int:
    """Terminal columns of text that is visible."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _line(source: Source, line: int, labels: list[Label], primary: Label) -> tuple[str, list[tuple[Label, int, int]]]:
    """A source line as shown, and of each label the column and width of its mark. The primary label comes first."""
    text = source.line_text(line).rstrip("\r")
    line_start = labels[0].span.start - labels[0].span.column + 1
    labels = sorted(labels, key=lambda label: (label is not primary, label.span.start, label.span.end))
    places = []
    for label in labels:
        start = min(label.span.start - line_start, len(text))
        end = max(start, min(label.span.end - line_start, len(text)))
        places.append((_width(visible(text[:start])), max(1, _width(visible(text[start:end])))))
    shown = visible(text.rstrip())
    total = _width(shown)
    if total <= WIDEST:
        return shown, [(label, *place) for label, place in zip(labels, places, strict=True)]
    low = max(0, min(places[0][0] - CONTEXT, total - WIDEST))
    high = min(total, low + WIDEST)
    front, back = ("..." if low else ""), ("..." if high < total else "")
    cut, column = [], 0
    for character in shown:
        if low <= column and column + _columns(character) <= high:
            cut.append(character)
        column += _columns(character)
    marks = []
    for label, (start, width) in zip(labels, places, strict=True):
        left = min(max(start, low), high)
        right = min(max(start + width, low), high)
        marks.append((label, len(front) + left - low, max(1, right - left)))
    return front + "".join(cut) + back, marks


def _sources(labels: tuple[Label, ...]) -> list[Source]:
    found: list[Source] = []
    for label in labels:
        if not any(label.span.source is source for source in found):
            found.append(label.span.source)
    return found


def _place(span: Span) -> dict[str, Any]:
    end_line, end_column = span.source.line_and_column(span.end)
    return {
        "file": _encodable(span.source.name),
        "line": span.line,
        "column": span.column,
        "end_line": end_line,
        "end_column": end_column,
    }


def _encodable(text: str) -> str:
    """Text that UTF-8 can hold: lone surrogates become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _paint(text: str, color: str) -> str:
    return f"{color}{text}{_PLAIN}"


def _no_paint(text: str, color: str) -> str:
    return text
