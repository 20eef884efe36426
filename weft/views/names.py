"""Names for people: in a flat program many values are called `add` or `mul`, and a reader must tell them apart.

A value keeps the name of its binding. One without a binding is called after the operation, or the library block, that
made it. The second value of a name that is shown gets a number: `add`, `add.2`. Turns of a loop that are shown as one
share their names, so that what follows the loop reads a name that stands in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .outline import Call, Step, outline, readers, walk

if TYPE_CHECKING:
    from weft.dsl.program import Node, Program, Value, Weight


class Names:
    """Names of the values that an outline shows."""

    def __init__(self, program: Program, full: bool = False) -> None:
        self._names: dict[Value, str] = {value: value.name for value in program.inputs}
        self._taken = {value.name: 1 for value in program.inputs}
        self._joined: list[Call] = []
        read = readers(program)
        for _, entry, closed in walk(outline(program), full):
            if isinstance(entry, Step):
                for value in entry.node.outputs:
                    self._add(value, value.name)
            elif closed:
                self._add_results(entry, read)

            if isinstance(entry, Call) and entry.turns:
                self._joined.append(entry)
        for call in self._joined:
            shown = list(call.nodes())
            for turn in call.turns:
                for node, like in zip(turn.nodes(), shown, strict=True):
                    for value, name in zip(node.outputs, like.outputs, strict=True):
                        self._names.setdefault(value, self[name])

    def _add_results(self, call: Call, read: dict[Value, set[Node]]) -> None:
        ops = {value: node.op.name for node in call.nodes() for value in node.outputs}
        for value in call.results(read):
            self._add(value, call.frame.name if value.name == ops[value] else value.name)

    def _add(self, value: Value, name: str) -> None:
        if value in self._names:
            return
        self._taken[name] = self._taken.get(name, 0) + 1
        count = self._taken[name]
        self._names[value] = name if count == 1 else f"{name}.{count}"

    def __getitem__(self, value: Value) -> str:
        return self._names.get(value, value.name)

    def operand(self, value: Value, scope: tuple[str, ...]) -> str:
        """A constant by its number, a weight by its path below the scope it is used in, a value by its name."""
        number = getattr(value, "number", None)
        if number is not None:
            return f"{number:g}" if isinstance(number, float) else str(number)
        return local_path(value, scope) if hasattr(value, "path") else self[value]


def local_path(weight: Weight | Value, scope: tuple[str, ...]) -> str:
    """`layer.0.attention.q.linear.weight` as `q.linear.weight` inside `layer 0` and `attention`."""
    parts = str(getattr(weight, "path", "")).split(".")
    start = 0
    for name in scope:
        if start < len(parts) - 1 and parts[start] == name:
            start += 1
    return ".".join(parts[start:])
