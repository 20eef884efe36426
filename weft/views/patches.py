"""`weft inspect CKPT patches --text ...`: where a model cuts a text, and how hard each next byte was to foresee.

The same reading as text for a terminal, as JSON, and as a picture: a grid of bytes with a bar below each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from weft.faults import CommandFault

if TYPE_CHECKING:
    from rich.console import Console

    from weft.runtime.model import Model
    from weft.runtime.tokens import Tokens

# Colours that neighbours differ by; of a terminal, and of a picture in light and in dark.
_STYLES = ("black on cyan", "black on yellow", "black on green", "black on magenta")
_LIGHT = ("#bfe3f5", "#fbe3a6", "#c8ecc4", "#ecd0f2")
_DARK = ("#0f4a66", "#5c4708", "#1f5130", "#552a66")
_ROW = 48  # bytes of a row of the picture
_CELL, _TEXT, _BAR = 16, 18, 30


@dataclass(frozen=True)
class Patch:
    """A segment, or (`number` None) tokens between segments. `text` has escapes where bytes cannot be shown."""

    number: int | None
    begin: int
    length: int
    text: str
    is_open: bool  # nothing said that it ends: the text does


@dataclass(frozen=True)
class Reading:
    """A text as a model reads it. `pieces` are what to show of each token; `surprise` is None where the model neither
    binds it nor predicts tokens."""

    title: str
    pieces: tuple[str, ...]
    surprise: tuple[float, ...] | None
    surprise_name: str
    cuts: Mapping[str, tuple[Patch, ...]]


# -- reading ---------------------------------------------------------------------------------------


def read(model: Model, tokens: Tokens, text: str, begin_mark: bool, title: str) -> Reading:
    """What the model's own `segment` statements make of a text."""
    import torch

    from weft.runtime.cut_lengths import cuts_of, with_cuts
    from weft.runtime.entropies import measure_batch, measure_of
    from weft.runtime.errors import RuntimeFault

    program = model.program
    found = cuts_of(program)
    if not found:
        raise CommandFault(f"{program.name} cuts no axis: it has no `segment` that its result depends on")
    ids = [tokens.begin] if begin_mark and tokens.begin is not None else []
    ids += tokens.encode(text)
    if not ids:
        raise CommandFault("the text is empty: give --text with at least one character", 2)
    import numpy as np

    try:
        measure = measure_of(model)
    except RuntimeFault:
        measure = None
    if measure is not None and max(ids) >= measure.vocab:
        raise CommandFault(f"token id {max(ids)} is not in the model's vocabulary of {measure.vocab}")
    values = None if measure is None else measure_batch(model, measure, [np.array(ids)])[0].tolist()
    flags = _flags(model.run(with_cuts(program, found), [torch.tensor(ids)]))
    cuts, left = {}, iter(flags)
    for name, node in found.items():
        ends, *inside = [next(left) for _ in node.outputs]
        if len(ends) == len(ids):
            cuts[name] = patches(ids, tokens, ends, inside[0] if inside else None)
    pieces = tuple(shown(tokens, [index]) for index in ids)
    word = (measure.bound or "entropy") if measure is not None else ""
    return Reading(title, pieces, None if values is None else tuple(values), word, cuts)


def _flags(result: Any) -> list[list[bool]]:
    found = list(result.values()) if isinstance(result, dict) else [result]
    return [one[0].tolist() for one in found]


def patches(
    ids: Sequence[int], tokens: Tokens, ends: Sequence[bool], inside: Sequence[bool] | None
) -> tuple[Patch, ...]:
    """Flags of one text to its segments, and to what lies between them."""
    found: list[Patch] = []
    number = begin = 0
    for row in range(len(ids)):
        is_last = row + 1 == len(ids)
        is_in = inside is None or inside[row]
        changes = not is_last and inside is not None and inside[row + 1] != inside[row]
        if (is_in and ends[row]) or changes or is_last:
            text = shown(tokens, ids[begin : row + 1])
            is_open = is_in and is_last and not ends[row]
            found.append(Patch(number if is_in else None, begin, row + 1 - begin, text, is_open))
            number, begin = number + is_in, row + 1
    return tuple(found)


def shown(tokens: Tokens, ids: Sequence[int]) -> str:
    """Text of tokens: marks as `<begin>`, what is no whole or no visible character as `\\xe2`, `\\n`."""
    from weft.runtime.tokens import bytes_of

    parts, run = [], bytearray()
    for index in ids:
        own = bytes_of(tokens, index)
        if own is not None:
            run += own
            continue
        parts += [_visible(bytes(run)), {tokens.begin: "<begin>", tokens.end: "<end>"}.get(index, f"<{index}>")]
        run.clear()
    return "".join([*parts, _visible(bytes(run))])


def _visible(text: bytes) -> str:
    letters = text.decode("utf-8", errors="backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in letters)


# -- as data and text ------------------------------------------------------------------------------


def data(reading: Reading) -> dict[str, object]:
    cuts = {
        name: {
            "mean": _mean(found),
            "patches": [
                {"number": p.number, "begin": p.begin, "length": p.length, "text": p.text, "open": p.is_open}
                for p in found
            ],
        }
        for name, found in reading.cuts.items()
    }
    tokens = [{"text": piece} for piece in reading.pieces]
    for token, value in zip(tokens, reading.surprise or (), strict=False):
        token[reading.surprise_name] = value  # type: ignore[assignment]
    return {"tokens": tokens, "cuts": cuts}


def show(reading: Reading, console: Console) -> None:
    """Each cut: the text with its patches in turns of colour, then a line for each patch with its entropies."""
    from rich.text import Text

    console.print(Text(reading.title), soft_wrap=True)
    for name, found in reading.cuts.items():
        count = sum(patch.number is not None for patch in found)
        console.print(Text(f"\n{name}: {count} of {_mean(found):.2f} tokens on average"))
        line = Text()
        for i, patch in enumerate(found):
            # The bar is for eyes and terminals without colour.
            line.append("" if i == 0 else "|", style="dim")
            line.append(patch.text, style=_STYLES[i % len(_STYLES)] if patch.number is not None else "dim")
        console.print(line)
        console.print()
        width = min(max(len(patch.text) for patch in found), 32)
        for i, patch in enumerate(found):
            row = Text(f"{'' if patch.number is None else patch.number:>5}  {patch.length:>4}  ")
            style = _STYLES[i % len(_STYLES)] if patch.number is not None else "dim"
            row.append(patch.text, style=style).append(" " * (width - len(patch.text)))
            for value in (reading.surprise or ())[patch.begin : patch.begin + patch.length]:
                row.append(f" {value:5.2f}")
            row.append("  ..." if patch.is_open else "", style="dim")
            console.print(row, soft_wrap=True)
    if reading.surprise is not None:
        console.print(Text(f"\nafter each token, {reading.surprise_name} of the next; ... is still open"), style="dim")


def _mean(found: Sequence[Patch]) -> float:
    lengths = [patch.length for patch in found if patch.number is not None]
    return sum(lengths) / len(lengths) if lengths else 0.0


# -- as a picture ----------------------------------------------------------------------------------


def picture(reading: Reading, path: str) -> str:
    """SVG, or a page around it when `path` ends in .html. No scripts; all text is escaped."""
    drawing = _svg(reading)
    if os.path.splitext(path)[1].lower() not in (".html", ".htm"):
        return drawing
    title = escape(reading.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n</head>\n<body>\n{drawing}</body>\n</html>\n"
    )


def _svg(reading: Reading) -> str:
    top, body = 30.0, []
    for name, found in reading.cuts.items():
        top, drawn = _drawn_cut(reading, name, found, top)
        body += drawn
    width = _ROW * _CELL + 2 * _CELL
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 10:.0f}" '
        f'viewBox="0 0 {width} {top + 10:.0f}" role="img">\n<style>{_style()}</style>\n'
    )
    title = f'<text class="note" x="{_CELL}" y="20">{escape(reading.title)}</text>\n'
    return head + title + "\n".join(body) + "\n</svg>\n"


def _drawn_cut(reading: Reading, name: str, found: Sequence[Patch], top: float) -> tuple[float, list[str]]:
    count = sum(patch.number is not None for patch in found)
    body = [f'<text class="note" x="{_CELL}" y="{top + 14:.0f}">{escape(name)}: {count} of {_mean(found):.2f}</text>']
    top += 24
    most = max(reading.surprise or (0.0,)) or 1.0
    height = _TEXT + (_BAR if reading.surprise else 0) + 8
    for i, patch in enumerate(found):
        kind = "gap" if patch.number is None else f"p{i % len(_LIGHT)}"
        for row in range(patch.begin, patch.begin + patch.length):
            x, y = _CELL * (1 + row % _ROW), top + height * (row // _ROW)
            hint = f"{row}: {reading.pieces[row]}, {'between' if patch.number is None else f'patch {patch.number}'}"
            bar = ""
            if reading.surprise is not None:
                value = reading.surprise[row]
                hint += f", {reading.surprise_name} {value:.3f}"
                tall = max(_BAR * value / most, 0.0)
                bar = f'<rect class="bar" x="{x + 3}" y="{y + _TEXT + 2:.1f}" width="{_CELL - 6}" height="{tall:.1f}"/>'
            letter = f'<text x="{x + _CELL / 2:.0f}" y="{y + 13:.1f}">{_letter(reading.pieces[row])}</text>'
            cell = f'<rect class="{kind}" x="{x}" y="{y:.1f}" width="{_CELL}" height="{_TEXT}"/>'
            body.append(f"<g><title>{escape(hint)}</title>{cell}{letter}{bar}</g>")
        if patch.number is not None:
            body.append(_edge(patch, top, height))
    rows = -(-len(reading.pieces) // _ROW)
    return top + height * rows + 6, body


def _edge(patch: Patch, top: float, height: float) -> str:
    """A line where the patch begins."""
    x, y = _CELL * (1 + patch.begin % _ROW), top + height * (patch.begin // _ROW)
    return f'<path class="edge" d="M{x} {y:.1f}v{_TEXT}"/>'


def _letter(piece: str) -> str:
    """One cell holds one character; what is longer is a dot, and its hint tells."""
    return escape(piece) if len(piece) == 1 else "·"


def _style() -> str:
    light = "".join(f".p{i} {{ fill: {colour} }} " for i, colour in enumerate(_LIGHT))
    dark = "".join(f".p{i} {{ fill: {colour} }} " for i, colour in enumerate(_DARK))
    return (
        "svg { font: 12px ui-monospace, Menlo, Consolas, monospace; background: #fff } "
        "text { text-anchor: middle; fill: #1f2328 } .note { text-anchor: start; fill: #57606a } "
        ".gap { fill: #eaeef2 } .bar { fill: #cf222e } .edge { stroke: #1f2328; stroke-width: 1.5 } "
        f"{light}@media (prefers-color-scheme: dark) {{ svg {{ background: #0d1117 }} text {{ fill: #e6edf3 }} "
        ".note { fill: #9198a1 } .gap { fill: #21262d } .bar { fill: #ff7b72 } .edge { stroke: #e6edf3 } "
        f"{dark}}}"
    )
