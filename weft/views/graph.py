"""`weft inspect FILE graph`: the program as an outline, by block and loop turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .outline import Call, Step, as_data, operand, outline, readers, walk
from .table import columns

if TYPE_CHECKING:
    from weft.dsl.program import Program, Value


def data(program: Program) -> dict[str, Any]:
    return {
        "name": program.name,
        "kind": program.kind,
        "inputs": [{"name": value.name, "type": str(value.type)} for value in program.inputs],
        "outputs": [{"name": name, "type": str(value.type)} for name, value in program.outputs],
        "losses": [{"name": term.name, "type": str(term.value.type)} for term in program.losses],
        "graph": as_data(outline(program)),
    }


def text(program: Program, full: bool) -> str:
    """One line per operation or call: what it makes, of what, and the line of the spec on the right."""
    root = outline(program)
    read = readers(program)
    rows = [(_signature(program), f"line {program.span.line}")]
    for depth, entry, closed in walk(root, full):
        rows.append(("  " * (depth + 1) + _line(entry, closed, read), _place(entry, program)))
    for name, value in program.outputs:
        rows.append((f"  return {'' if name == 'output' else name + ' = '}{value.name}: {value.type}", ""))
    for term in program.losses:
        only = f" only {term.only.name}" if term.only is not None else ""
        rows.append((f"  loss {term.name} = {term.value.name}: {term.value.type}{only}", f"line {term.span.line}"))
    total = f"{root.operations:,} operations, {len(program.weights):,} weights"
    return "\n".join([*columns(rows), f"  ({total})"])


def _signature(program: Program) -> str:
    inputs = ", ".join(f"{value.name}: {value.type}" for value in program.inputs)
    return f"{program.kind} {program.name}({inputs})"


def _line(entry: Step | Call, closed: bool, read: dict[Value, set]) -> str:
    if isinstance(entry, Step):
        node = entry.node
        made = ", ".join(_made(value) for value in node.outputs)
        return f"{made} = {node.op.name}({', '.join(operand(value) for value in node.inputs)})"
    if not closed:
        return f"{entry.title}:"
    results = ", ".join(_made(value) for value in entry.results(read)) or "nothing"
    weights = [operand(value) for node in entry.nodes() for value in node.inputs if hasattr(value, "path")]
    with_ = f" with {', '.join(dict.fromkeys(weights))}" if weights else ""
    return f"{results} = {entry.title}{with_}  [{entry.operations} operations]"


def _made(value: Value) -> str:
    return f"{value.name}: {value.type}"


def _place(entry: Step | Call, program: Program) -> str:
    span = entry.frame.span if isinstance(entry, Call) else entry.node.span
    if span.source.name == program.span.source.name:
        return f"line {span.line}"
    return f"{span.source.name}:{span.line}"
