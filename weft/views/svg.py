"""`weft inspect FILE graph --svg OUT`: the blocks of a program as nested boxes, top to bottom.

The drawing follows the spec's own structure, not a layout of thousands of nodes: a box per block call or loop, a line
per operation, equal turns of a loop drawn once as a stack. One file, no scripts, no fonts to load; hovering a line
shows its place in the spec. It reads in light and dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from .outline import Call, Step, operand, outline, readers

if TYPE_CHECKING:
    from weft.dsl.program import Program, Value

LINE = 20
PAD = 12
HEAD = 26
# Monospaced text at 12 px, as wide as any common font draws it.
CHARACTER = 7.3
LEAST_WIDTH = 220

_STYLE = """
svg { font: 12px ui-monospace, Menlo, Consolas, monospace; background: #fff; }
.box { fill: #f6f8fa; stroke: #8c959f; }
.turn { fill: #fff8e6; stroke: #bf8700; }
.library { fill: #eef6ff; stroke: #54aeff; }
.title { font-weight: 600; fill: #1f2328; }
.op { fill: #1f2328; }
.type { fill: #57606a; }
.wire { stroke: #8c959f; fill: none; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } .box { fill: #161b22; } .turn { fill: #272115; } .library { fill: #121d2f; }
  .title, .op { fill: #e6edf3; } .type { fill: #9198a1; }
}
"""


@dataclass
class _Item:
    """A line or a box with its place, relative to what holds it."""

    text: str
    type: str
    hint: str
    width: float
    height: float
    style: str = ""
    stack: int = 0
    children: tuple[_Item, ...] = ()


def draw(program: Program, caption: str) -> str:
    """The drawing as one SVG text."""
    root = outline(program)
    read = readers(program)
    parts: list[_Item] = [_line(f"{value.name}", str(value.type), "input") for value in program.inputs]
    parts.append(_box(root, read, closed=False))
    parts += [_line(f"{name}", str(value.type), "output") for name, value in program.outputs]
    parts += [_line(f"loss {term.name}", str(term.value.type), str(term.span)) for term in program.losses]
    width = max(item.width for item in parts) + 2 * PAD
    height = 2 * PAD + LINE + sum(item.height for item in parts) + PAD * (len(parts) - 1)
    body: list[str] = [f'<text class="type" x="{PAD}" y="{PAD + 10}">{escape(caption)}: {escape(program.name)}</text>']
    top: float = PAD + LINE
    for index, item in enumerate(parts):
        if index:
            middle = width / 2
            body.append(f'<path class="wire" d="M{middle:.0f} {top - PAD:.0f} V{top:.0f}" marker-end="url(#tip)"/>')
        _render(item, PAD, top, width - 2 * PAD, body)
        top += item.height + PAD
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(program.name, quote=True)}">\n<style>{_STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#8c959f"/></marker></defs>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _line(text: str, type: str, hint: str) -> _Item:
    return _Item(text, type, hint, (len(text) + len(type) + 2) * CHARACTER + 2 * PAD, LINE)


def _box(call: Call, read: dict[Value, set], closed: bool) -> _Item:
    if closed:
        made = ", ".join(value.name for value in call.results(read))
        type = ", ".join(str(value.type) for value in call.results(read))
        line = _line(f"{made} = {call.title}", type, f"{call.frame.span}, {call.operations} operations")
        line.style = "library"
        return line
    children = tuple(
        _box(child, read, child.is_library) if isinstance(child, Call) else _step(child) for child in call.children
    )
    title = call.title
    inner = max([item.width for item in children] + [len(title) * CHARACTER + 2 * PAD, LEAST_WIDTH])
    height = HEAD + sum(item.height for item in children) + sum(4 for item in children if item.children) + PAD
    stack = 2 if call.repeat > 1 else 0
    style = "turn" if call.frame.index is not None else "box"
    return _Item(
        title, "", str(call.frame.span), inner + 2 * PAD + 4 * stack, height + 4 * stack, style, stack, children
    )


def _step(step: Step) -> _Item:
    node = step.node
    made = ", ".join(value.name for value in node.outputs)
    operands = ", ".join(operand(value).rpartition(".linear.")[0] or operand(value) for value in node.inputs)
    types = ", ".join(str(value.type) for value in node.outputs)
    return _line(f"{made} = {node.op.name}({operands})", types, str(node.span))


def _render(item: _Item, left: float, top: float, width: float, out: list[str]) -> None:
    hint = f"<title>{escape(item.hint)}</title>"
    if not item.children:
        if item.style:
            out.append(
                f'<rect class="{item.style}" x="{left:.0f}" y="{top + 1:.0f}" width="{width:.0f}" '
                f'height="{LINE - 2}" rx="4"/>'
            )
        out.append(
            f'<text x="{left + PAD:.0f}" y="{top + 14:.0f}" xml:space="preserve">'
            f'<tspan class="op">{escape(item.text)}</tspan>'
            f'<tspan class="type">  {escape(item.type)}</tspan>{hint}</text>'
        )
        return
    own_width, own_height = width - 4 * item.stack, item.height - 4 * item.stack
    for behind in range(item.stack, -1, -1):
        out.append(
            f'<rect class="{item.style}" x="{left + 4 * behind:.0f}" y="{top + 4 * behind:.0f}" '
            f'width="{own_width:.0f}" height="{own_height:.0f}" rx="6"/>'
        )
    out.append(
        f'<text class="title" x="{left + PAD:.0f}" y="{top + 17:.0f}" xml:space="preserve">'
        f"{escape(item.text)}{hint}</text>"
    )
    y = top + HEAD
    for child in item.children:
        _render(child, left + PAD, y, own_width - 2 * PAD, out)
        y += child.height + (4 if child.children else 0)
