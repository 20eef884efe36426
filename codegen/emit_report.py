"""report.html: spec, graph, kernels and their code side by side, linked line by line. One file, offline, no server.

    spec.weft:14  x = x * scale     <->   x = mul(x, scale)    <->   x = x * scale (Triton)   <->   mul.f32 %f3, ...

A line carries tokens: the spec lines it serves and, for a kernel's line and what it was compiled to, that line. Lines
that share a token are linked. All text of a spec is escaped by the template, and the page allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import fx

from ..dsl.source import Source, Span
from .emit import Imports, function_lines
from .origin import origin
from .spec_comment import comment_of_line

# Where an instruction comes from: the last place in the kernel's own file, which called what is named before it.
_PLACE = re.compile(r"kernels\.py:(\d+):\d+")


@dataclass(frozen=True)
class ReportKernel:
    """A kernel to be shown. `spec`: the line it serves, as `olmo2.weft:14`; `facts`: what it takes, in words; `code`:
    what it was compiled to, "" for nothing, in the language `code_name`."""

    name: str
    direction: str
    spec: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()
    code: str = ""
    code_name: str = "PTX"


@dataclass(frozen=True)
class Line:
    """`id` is its anchor, `to` the anchor that its number leads to ("" for none), `tokens` what links it to others."""

    id: str
    number: int
    text: str
    tokens: str
    to: str = ""


@dataclass(frozen=True)
class Part:
    """A file, a graph or a kernel of a panel."""

    title: str
    note: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Panel:
    title: str
    parts: tuple[Part, ...]


def report(
    main: Source, graphs: Mapping[str, fx.GraphModule], kernels: Sequence[ReportKernel] = (), title: str = ""
) -> str:
    """The page. Graphs are shown by name; panels with nothing to show are left out."""
    places = _Places(main, graphs)
    shown = [_graph(number, name, graph, places) for number, (name, graph) in enumerate(graphs.items())]
    made = [_kernel(number, kernel, places) for number, kernel in enumerate(kernels)]
    code = [part for number, kernel in enumerate(kernels) if (part := _code(number, kernel, made[number])) is not None]
    first: dict[str, str] = {}
    for line in (line for part in (*shown, *made) for line in part.lines):
        for token in line.tokens.split():
            first.setdefault(token, line.id)
    code_name = kernels[0].code_name if kernels else ""
    panels = [
        Panel("spec", places.parts(first)),
        Panel("graph", tuple(shown)),
        Panel("kernels", tuple(made)),
        Panel(code_name, tuple(code)),
    ]
    script, style = _asset("report.js.j2"), _asset("report.css.j2")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title or _shown_name(main),
            panels=[panel for panel in panels if panel.parts],
            script=Markup(script),
            style=Markup(style),
            script_hash=_hash(script),
            style_hash=_hash(style),
        )
    )


class _Places:
    """Anchors of spec lines, by the comment that generated code has for them."""

    def __init__(self, main: Source, graphs: Mapping[str, fx.GraphModule]) -> None:
        used = {span.source for graph in graphs.values() for node in graph.graph.nodes for span in _spans(node)}
        self.sources = [main, *sorted(used - {main}, key=lambda source: source.name)]
        self.numbers = {source: number for number, source in enumerate(self.sources)}
        self.by_comment: dict[str, str] = {}
        self.by_name: dict[str, str] = {}
        for source in self.sources:
            for line in range(1, len(source.text.splitlines()) + 1):
                self.by_comment.setdefault(comment_of_line(source, line), self.anchor(source, line))
                self.by_name.setdefault(f"{source.name}:{line}", self.anchor(source, line))

    def anchor(self, source: Source, line: int) -> str:
        return f"s{self.numbers[source]}-{line}"

    def of(self, node: fx.Node) -> list[str]:
        """The line a node is for, and the calls that lead there."""
        return list(dict.fromkeys(self.anchor(span.source, span.line) for span in _spans(node)))

    def parts(self, first: Mapping[str, str]) -> tuple[Part, ...]:
        found = []
        for source in self.sources:
            anchors = [self.anchor(source, line) for line in range(1, len(source.text.splitlines()) + 1)]
            lines = zip(anchors, source.text.splitlines(), strict=True)
            found.append(
                Part(
                    _shown_name(source),
                    "",
                    tuple(
                        Line(anchor, number, text, anchor if anchor in first else "", first.get(anchor, ""))
                        for number, (anchor, text) in enumerate(lines, 1)
                    ),
                )
            )
        return tuple(found)


def _spans(node: fx.Node) -> list[Span]:
    """Innermost first."""
    known = origin(node)
    spans = (known.span, *(frame.span for frame in reversed(known.scope)))
    return [span for span in spans if span is not None]


def _shown_name(source: Source) -> str:
    """Without the folders of a machine."""
    return source.name if source.name.startswith("std/") else os.path.basename(source.name)


def _graph(number: int, name: str, graph: fx.GraphModule, places: _Places) -> Part:
    lines = []
    for count, (text, node) in enumerate(function_lines(name, graph, Imports(), ("self",)), 1):
        found = [] if node is None else places.of(node)
        lines.append(Line(f"g{number}-{count}", count, text, " ".join(found), found[0] if found else ""))
    return Part(name, f"{len(graph.graph.nodes):,} nodes", tuple(lines))


def _kernel(number: int, kernel: ReportKernel, places: _Places) -> Part:
    """From where its own function begins: what stands before is the same in all kernels."""
    lines = kernel.text.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith(f"def {kernel.name}(")), 0)
    while start and lines[start - 1].startswith("@"):
        start -= 1
    own = places.by_name.get(kernel.spec, "")
    at = ""
    made = []
    for count, text in enumerate(lines[start:], start + 1):
        said = text.strip()
        if said.startswith("# "):
            at = places.by_comment.get(said[2:], at)
        anchor = f"k{number}-{count}"
        tokens = " ".join(dict.fromkeys(token for token in (anchor, at or own, own) if token))
        made.append(Line(anchor, count, text, tokens, at or own))
    facts = [kernel.direction, kernel.spec and f"for {os.path.basename(kernel.spec)}"]
    facts += [f"{name} {value}" for name, value in kernel.facts]
    return Part(kernel.name, ", ".join(fact for fact in facts if fact), tuple(made))


def _code(number: int, kernel: ReportKernel, made: Part) -> Part | None:
    if not kernel.code:
        return None
    tokens = {line.number: line.tokens for line in made.lines}
    at = 0
    lines = []
    for count, text in enumerate(_instructions(kernel.code), 1):
        found = [int(place) for place in _PLACE.findall(text)] if ".loc" in text else []
        # Line 0 says that an instruction belongs to no line in particular.
        at = found[-1] if found and found[-1] in tokens else at
        lines.append(
            Line(f"p{number}-{count}", count, text, tokens.get(at, ""), f"k{number}-{at}" if at in tokens else "")
        )
    return Part(kernel.name, f"{len(lines):,} lines", tuple(lines))


def _instructions(code: str) -> Iterable[str]:
    """Without the names of files, which are those of the machine that compiled."""
    return (line.expandtabs(4) for line in code.splitlines() if ".file" not in line)


def _asset(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    """As a content security policy names a script or style that it allows."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    package = (__package__ or "").removesuffix(".")
    return Environment(
        loader=PackageLoader(package, "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
