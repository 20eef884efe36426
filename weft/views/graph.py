"""`weft inspect FILE graph`: the program as an outline, by block and loop turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .names import Names
from .outline import Call, Step, as_data, outline, readers, walk
from .table import columns

if TYPE_CHECKING:
    from weft.dsl.program import Node, Program, Value

# A library block with more weights than these says only how many; --full and the params view name them.
FEW = 2


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
    names = Names(program, full)
    read = readers(program)
    rows = [(_signature(program), f"line {program.span.line}")]
    scope: list[str] = []
    for depth, entry, closed in walk(root, full):
        del scope[2 * depth :]
        rows.append(("  " * (depth + 1) + _line(entry, closed, names, tuple(scope), read), _place(entry, program)))
        if isinstance(entry, Call):
            index = entry.frame.index
            # Two places per level, so that a level can be taken off whether or not it has a number.
            scope += [entry.frame.name, "" if index is None else str(index)]
    for name, value in program.outputs:
        rows.append((f"  return {'' if name == 'output' else name + ' = '}{names[value]}: {value.type}", ""))
    for term in program.losses:
        only = f" only {names[term.only]}" if term.only is not None else ""
        rows.append((f"  loss {term.name} = {names[term.value]}: {term.value.type}{only}", f"line {term.span.line}"))
    total = f"{root.operations:,} operations, {len(program.weights):,} weights"
    return "\n".join([*columns(rows, limit=100), f"  ({total})"])


def _signature(program: Program) -> str:
    inputs = ", ".join(f"{value.name}: {value.type}" for value in program.inputs)
    return f"{program.kind} {program.name}({inputs})"


def _line(entry: Step | Call, closed: bool, names: Names, scope: tuple[str, ...], read: dict[Value, set[Node]]) -> str:
    if isinstance(entry, Step):
        node = entry.node
        made = ", ".join(f"{names[value]}: {value.type}" for value in node.outputs)
        return f"{made} = {node.op.name}({', '.join(names.operand(value, scope) for value in node.inputs)})"
    if not closed:
        return f"{entry.title}:"
    results = ", ".join(f"{names[value]}: {value.type}" for value in entry.results(read)) or "nothing"
    operands = entry.operands()
    weights = [value for value in operands if hasattr(value, "path")]
    if len(weights) > FEW:
        operands = [value for value in operands if value not in weights]
    words = [names.operand(value, scope) for value in operands] + [f"{len(weights)} weights"] * (len(weights) > FEW)
    return f"{results} = {entry.title}({', '.join(words)})  [{entry.operations} operations]"


def _place(entry: Step | Call, program: Program) -> str:
    span = entry.frame.span if isinstance(entry, Call) else entry.node.span
    if span.source.name == program.span.source.name:
        return f"line {span.line}"
    return f"{span.source.name}:{span.line}"
