"""Where a line of a spec is broken when it does not fit, or when a comment stands inside it.

x = linear(a, dim -> dim)           one line, if it fits
x = linear(                         brackets: one element a line
    a,
    dim -> dim,
)
x = a                               pipes: all or none
    |> norm
size 7b: layers = 32, dim = 4096,   lists: filled
    heads = 32
size tiny: layers = 4,  dim = 128   presets of the same settings below one another: a table
size 7b:   layers = 32, dim = 4096
"""

from __future__ import annotations

from dataclasses import dataclass, field

WIDTH = 110
STEP = 4


@dataclass(slots=True)
class Element:
    """What stands between two commas, or from one pipe to the next: text and brackets in turn.

    `before` are comments on lines of their own above it, `after` is the comment behind it, `later` those below it.
    """

    parts: list[str | Bracket] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    after: str | None = None
    comma: bool = False
    pipe: bool = False

    def add(self, text: str) -> None:
        if self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += text
        else:
            self.parts.append(text)


@dataclass(slots=True)
class Bracket:
    """A bracket and what is in it. `lone_tuple`: one element and a comma that makes it a tuple."""

    opening: str
    closing: str
    elements: list[Element]
    dangling: list[str]
    lone_tuple: bool

    @property
    def must_break(self) -> bool:
        if self.dangling:
            return True
        return any(
            element.before
            or element.after
            or any(isinstance(part, Bracket) and part.must_break for part in element.parts)
            for element in self.elements
        )

    def flat(self) -> str:
        inside = ", ".join("".join(_flat(part) for part in element.parts) for element in self.elements)
        return self.opening + inside + ("," if self.lone_tuple else "") + self.closing


def lay_out(elements: list[Element], indent: int, is_list: bool) -> str:
    """A logical line as text: `elements` are its parts at depth 0, `is_list` says whether it may be filled."""
    breaks = [
        number > 0 and bool(elements[number - 1].after or element.before or elements[number - 1].later)
        for number, element in enumerate(elements)
    ]
    whole = " " * indent + "".join(_joined(elements, 0, len(elements)))
    forced = any(breaks) or any(_breaks_inside(element) for element in elements)
    if any(breaks) or len(whole) > WIDTH:
        has_pipes = any(element.pipe for element in elements)
        if has_pipes:
            breaks = [known or element.pipe for known, element in zip(breaks, elements, strict=True)]
        elif is_list:
            breaks = _fill(elements, breaks, indent)
    elif not forced:
        return whole + _comment(elements[-1])
    lines: list[str] = []
    start = 0
    for number in range(1, len(elements) + 1):
        if number < len(elements) and not breaks[number]:
            continue
        own = indent if start == 0 else indent + STEP
        lines += [" " * own + comment for comment in elements[start].before]
        text = _render(_parts(elements, start, number), own, own, 0)
        lines.append(" " * own + text + _comment(elements[number - 1]))
        start = number
    return "\n".join(lines)


def cells(elements: list[Element]) -> tuple[str, ...]:
    """The elements of a logical line, each on one line."""
    return tuple("".join(_flat(part) for part in element.parts) for element in elements)


def table(rows: list[tuple[str, ...]]) -> list[str] | None:
    """Rows of equally many cells as lines with their cells below one another; None where that is too wide."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for head, *settings in rows:
        last = len(settings) - 1
        padded = (
            setting if number == last else f"{setting},".ljust(width + 1)
            for number, (setting, width) in enumerate(zip(settings, widths[1:], strict=True))
        )
        lines.append(" ".join((head.ljust(widths[0]), *padded)))
    return lines if max(map(len, lines)) <= WIDTH else None


def _comment(element: Element) -> str:
    return f"  {element.after}" if element.after else ""


def _breaks_inside(element: Element) -> bool:
    return any(isinstance(part, Bracket) and part.must_break for part in element.parts)


def _flat(part: str | Bracket) -> str:
    return part if isinstance(part, str) else part.flat()


def _parts(elements: list[Element], start: int, stop: int) -> list[str | Bracket]:
    """The parts of several elements on one line, with the commas and spaces between them."""
    out: list[str | Bracket] = []
    for number in range(start, stop):
        element = elements[number]
        if number > start:
            out.append(" ")
        out += element.parts
        if element.comma and number < len(elements) - 1:
            out.append(",")
    return out


def _joined(elements: list[Element], start: int, stop: int) -> list[str]:
    return [_flat(part) for part in _parts(elements, start, stop)]


def _fill(elements: list[Element], breaks: list[bool], indent: int) -> list[bool]:
    """Breaks at commas, where the next element would pass the margin."""
    out = list(breaks)
    start, own = 0, indent
    for number in range(1, len(elements)):
        if out[number] or own + len("".join(_joined(elements, start, number + 1))) > WIDTH:
            out[number] = True
            start, own = number, indent + STEP
    return out


def _render(parts: list[str | Bracket], column: int, indent: int, tail: int) -> str:
    """Parts from a column on; brackets that do not fit are broken and close at `indent`. `tail` columns follow."""
    out: list[str] = []
    for number, part in enumerate(parts):
        if isinstance(part, str):
            out.append(part)
            column += len(part)
            continue
        flat = part.flat()
        rest = 0
        for following in parts[number + 1 :]:
            # Axes in square brackets stay together where a round bracket can be broken instead.
            if isinstance(following, Bracket) and (following.opening == "(" or following.must_break):
                rest += 1
                break
            rest += len(_flat(following))
        else:
            rest += tail
        if (not part.must_break and column + len(flat) + rest <= WIDTH) or not (part.elements or part.dangling):
            out.append(flat)
            column += len(flat)
            continue
        out.append(_broken(part, indent))
        column = indent + 1
    return "".join(out)


def _broken(bracket: Bracket, indent: int) -> str:
    inner = indent + STEP
    margin = " " * inner
    lines = [bracket.opening]
    several = len(bracket.elements) > 1 or bracket.lone_tuple
    for element in bracket.elements:
        lines += [margin + comment for comment in element.before]
        text = _render(element.parts, inner, inner, 1)
        lines.append(margin + text + ("," if several else "") + _comment(element))
    lines += [margin + comment for comment in bracket.dangling]
    return "\n".join([*lines, " " * indent + bracket.closing])
