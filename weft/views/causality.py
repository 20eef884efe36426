"""`weft inspect FILE causality`: how far ahead each value looks, and what objectives demand.

For a source x (an input along an ordered axis, or what an objective predicts), a value's frontier is the latest row of
x that its row t may depend on: `t` for a causal model, `t+1` where the next row is read, `all` where everything is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .names import Names
from .outline import Call, Step, outline, readers, walk
from .table import columns

if TYPE_CHECKING:
    from weft.dsl.frontier import Frontier
    from weft.dsl.program import Node, Program, Value

_MEANING = """t: rows up to the row itself    t-1, t+1: one row less, one more    none: nothing of the source
end(p): up to the end of the row's own segment of p    all: every row"""


def data(programs: Sequence[Program]) -> list[dict[str, Any]]:
    return [_program_data(program) for program in programs]


def text(programs: Sequence[Program]) -> str:
    parts = [part for program in programs for part in _program_text(program)]
    return "\n\n".join([*(parts or ["no input has an ordered axis: there is no order to respect"]), _MEANING])


def _sources(program: Program) -> list[Value]:
    """What a frontier can be asked about: inputs along an ordered axis, and what targets are made of."""
    inputs = [value for value in program.inputs if value.type.rows is not None]
    return list(dict.fromkeys([*inputs, *(source for source, _, _ in _targets(program))]))


def _targets(program: Program) -> list[tuple[Value, int, Node]]:
    found = []
    for node in program.nodes:
        if node.op.target_shift is not None and program.kind == "objective":
            found.append((node.inputs[0], node.op.target_shift(node), node))
    return found


def _program_text(program: Program) -> list[str]:
    from weft.dsl.causality import frontiers

    parts = []
    for source in _sources(program):
        known = frontiers(program, source)
        axis = source.type.rows
        head = (
            f"{program.kind} {program.name}: what row t{f' of {axis.name}' if axis else ''} may know of {source.name}"
        )
        rows = [(f"  {source.name}: {source.type}", str(known[source]))]
        names = Names(program)
        read = readers(program)
        for depth, entry, closed in walk(outline(program), full=False):
            rows.append(
                ("  " * (depth + 1) + _title(entry, closed, names, read), _frontier(entry, closed, known, read))
            )
        for name, value in program.outputs:
            rows.append((f"  return {'' if name == 'output' else name + ' = '}{names[value]}", str(known[value])))
        parts.append("\n".join([head, *columns(rows, gap=3)]))
    for source, shift, node in _targets(program):
        wanted = f"t{shift - 1:+d}" if shift != 1 else "t"
        parts.append(
            f"{program.name} predicts {source.name} {shift} row{'s' * (shift != 1)} ahead (line {node.span.line}): "
            f"whatever it is compared with\nmay know rows up to {wanted}. It does not know more: checked."
        )
    return parts


def _title(entry: Step | Call, closed: bool, names: Names, read: dict) -> str:
    if isinstance(entry, Call) and not closed:
        return f"{entry.title}:"
    values = entry.results(read) if isinstance(entry, Call) else entry.node.outputs
    made = ", ".join(names[value] for value in values) or "nothing"
    by = entry.title if isinstance(entry, Call) else entry.node.op.name
    return made if made.partition(".")[0] == by else f"{made} = {by}"


def _frontier(entry: Step | Call, closed: bool, known: dict[Value, Frontier], read: dict) -> str:
    if isinstance(entry, Step):
        values = list(entry.node.outputs)
    elif closed:
        values = entry.results(read)
    else:
        return ""
    return ", ".join(dict.fromkeys(str(known[value]) for value in values))


def _program_data(program: Program) -> dict[str, Any]:
    from weft.dsl.causality import frontiers

    sources = []
    for source in _sources(program):
        known = frontiers(program, source)
        values = [
            {"name": value.name, "type": str(value.type), "frontier": str(known[value]), "at": str(node.span)}
            for node in program.nodes
            for value in node.outputs
        ]
        outputs = {name: str(known[value]) for name, value in program.outputs}
        axis = source.type.rows
        sources.append(
            {"source": source.name, "axis": axis.name if axis else None, "outputs": outputs, "values": values}
        )
    targets = [
        {"source": source.name, "rows_ahead": shift, "at": str(node.span)} for source, shift, node in _targets(program)
    ]
    return {"name": program.name, "kind": program.kind, "sources": sources, "targets": targets}
