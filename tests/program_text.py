"""A typed program as text, in which two programs differ where anything about them does: for comparing two ways to make
one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from weft.dsl.axes import Axis
from weft.dsl.length import Length
from weft.dsl.program import Constant, Node, Program, Value, Weight
from weft.dsl.source import Span
from weft.dsl.value_type import EnumType


class _Names:
    """Values by number, in the order in which they are met."""

    def __init__(self) -> None:
        self.known: dict[Value, str] = {}

    def bind(self, value: Value) -> str:
        self.known[value] = f"%{len(self.known)}"
        return f"{self.known[value]} {value.name}: {self.show(value.type)} {self.show(value.span)}"

    def show(self, it: object) -> str:
        match it:
            case Constant():
                return f"{it.number!r} ({it.name}: {self.show(it.type)})"
            case Weight():
                return f"{it.path} {self.show(it.type)}"
            case Value():
                return self.known.get(it, f"? {it.name}")
            case Axis():
                return f"{it.name} {type(it.kind).__name__} {it.size}"
            case Span():
                return f"{it.source.name}:{it.start}-{it.end}"
            case Length() | EnumType():
                return str(it)
            case Node():
                return "\n".join((it.op.name, *map(self.show, it.inputs), *map(self.bind, it.outputs)))
            case Mapping():
                return ", ".join(f"{name} = {self.show(item)}" for name, item in it.items())
            case tuple():
                return "(" + ", ".join(map(self.show, it)) + ")"
        if is_dataclass(it) and not isinstance(it, type):
            return f"{type(it).__name__}({', '.join(self.show(getattr(it, one.name)) for one in fields(it))})"
        return repr(it)


def lines_of(program: Program) -> list[str]:
    """One line for each input, weight, node and result."""
    names = _Names()
    lines = [names.bind(value) for value in program.inputs]
    for weight in program.weights:
        told = (weight.name, weight.span, weight.init, weight.outputs, weight.frozen, weight.arms, weight.kernel)
        lines.append(f"{names.show(weight)} {names.show(told)}")
    for node in program.nodes:
        read = f"{node.op.name}({', '.join(map(names.show, node.inputs))}) {names.show(node.attrs)}"
        made = ", ".join(map(names.bind, node.outputs))
        lines.append(f"{made} = {read} {names.show(node.span)} {names.show(node.scope)} {node.precise}")
    lines += [f"{name}: {names.show(value)}" for name, value in program.outputs]
    lines += [f"{loss.name}: {names.show((loss.value, loss.only, loss.span))}" for loss in program.losses]
    lines.append(names.show(program.bindings))
    lines.append(names.show(program.optional))
    lines += [f"{names.show(axis)} by {names.show(tag)}" for axis, tag in program.selected.items()]
    return lines
