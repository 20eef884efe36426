"""Rows of text in columns. Plain characters: the output is read in terminals, logs and pull requests alike."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their longest cell; those numbered in `right` are aligned to the right."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([text(lines[0]), "  ".join("-" * width for width in widths), *map(text, lines[1:])])


def columns(rows: Sequence[tuple[str, str]], gap: int = 2, limit: int = 88) -> list[str]:
    """Left text, and right text lined up; a left text beyond `limit` pushes only its own right text."""
    width = max((len(left) for left, _ in rows if len(left) <= limit), default=0)
    return [f"{left.ljust(width)}{' ' * gap}{right}".rstrip() for left, right in rows]


def count(number: int) -> str:
    """`7,298,011,136 (7.30 B)`: exact, and readable when large."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number:,} ({number / size:.2f} {unit})"
    return f"{number:,}"


def amount(size: float) -> str:
    """Bytes in the unit people would say."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
