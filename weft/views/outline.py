"""A flat program as the outline its author wrote: block calls and loop turns around operations.

Turns of a loop that do the same are one entry with a count; a call into the standard library is one line unless it is
asked for. The outline serves the text, the JSON and the SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from weft.dsl.axes import Axis
from weft.dsl.program import Frame, Node, Program, Value
from weft.dsl.source import Span

LIBRARY = "std/"


@dataclass(frozen=True, eq=False)
class Step:
    """One operation."""

    node: Node

    @property
    def line(self) -> int:
        return self.node.span.line

    @property
    def key(self) -> tuple:
        """Equal for operations that do the same in two turns of a loop."""
        node = self.node
        types = tuple((str(value.type), tuple(axis.size for axis in value.type.axes)) for value in node.outputs)
        numbers = tuple(getattr(value, "number", None) for value in node.inputs), _numbers(node.attrs)
        return node.op.name, types, numbers, node.span.source.name, node.span.start

    @property
    def operations(self) -> int:
        return 1

    def nodes(self) -> Iterator[Node]:
        yield self.node


@dataclass(eq=False)
class Call:
    """A block call or a loop turn. Turns of a loop that do the same are kept in the first of them."""

    frame: Frame
    children: list[Step | Call] = field(default_factory=list)
    turns: list[Call] = field(default_factory=list)  # further turns of a loop that do the same, shown as this one

    @property
    def repeat(self) -> int:
        return 1 + len(self.turns)

    @property
    def line(self) -> int:
        return self.frame.span.line

    @property
    def key(self) -> tuple:
        turn = self.frame.index is not None
        return "call", self.frame.name, turn, tuple((child.key, _repeat(child)) for child in self.children)

    @property
    def operations(self) -> int:
        return self.repeat * sum(child.operations for child in self.children)

    @property
    def title(self) -> str:
        """`attention`, `layer 3`, `layer 0 .. 31  (32 times)`."""
        if self.frame.index is None:
            return self.frame.name
        if self.repeat == 1:
            return f"{self.frame.name} {self.frame.index}"
        return f"{self.frame.name} {self.frame.index} .. {self.turns[-1].frame.index}  ({self.repeat} times)"

    @property
    def is_library(self) -> bool:
        """A block of the standard library: all it does stands in files that the user did not write."""
        return all(node.span.source.name.startswith(LIBRARY) for node in self.nodes())

    def nodes(self) -> Iterator[Node]:
        """The operations of the turn that is shown."""
        for child in self.children:
            yield from child.nodes()

    def operands(self) -> list[Value]:
        """What is read inside and made outside, weights included, numbers left out."""
        nodes = list(self.nodes())
        made = {value for node in nodes for value in node.outputs}
        read = dict.fromkeys(value for node in nodes for value in node.inputs)
        return [value for value in read if value not in made and not hasattr(value, "number")]

    def results(self, read: dict[Value, set[Node]]) -> list[Value]:
        """Values made inside that something outside reads."""
        nodes = list(self.nodes())
        inside = set(nodes)
        made = [value for node in nodes for value in node.outputs]
        return [value for value in made if value in read and (not read[value] or read[value] - inside)]


def _numbers(attrs: object) -> tuple:
    """The numbers, flags and words of an operation's settings, with those of the formula of a mask or a score."""
    if isinstance(attrs, bool | int | float | str):
        return (attrs,)
    if isinstance(attrs, tuple):
        return tuple(number for item in attrs for number in _numbers(item))
    if isinstance(attrs, Axis | Value | Node | Span) or not is_dataclass(attrs):
        return ()
    return tuple(number for entry in fields(attrs) for number in _numbers(getattr(attrs, entry.name)))


def _repeat(child: Step | Call) -> int:
    return child.repeat if isinstance(child, Call) else 1


def outline(program: Program, together: bool = True) -> Call:
    """The outline of a program; `together` joins equal turns."""
    root: Call | None = None
    stack: list[Call] = []
    for node in program.nodes:
        if root is None:
            root = Call(node.scope[0])
            stack = [root]
        kept = 1
        while kept < min(len(stack), len(node.scope)) and stack[kept].frame is node.scope[kept]:
            kept += 1
        del stack[kept:]
        for frame in node.scope[kept:]:
            call = Call(frame)
            stack[-1].children.append(call)
            stack.append(call)
        stack[-1].children.append(Step(node))
    if root is None:
        return Call(Frame(program.name, None, program.span))
    if together:
        _join_turns(root)
    return root


def _join_turns(call: Call) -> None:
    for child in call.children:
        if isinstance(child, Call):
            _join_turns(child)
    joined: list[Step | Call] = []
    for child in call.children:
        before = joined[-1] if joined else None
        if isinstance(child, Call) and isinstance(before, Call) and _follows(before, child):
            before.turns.append(child)
        else:
            joined.append(child)
    call.children = joined


def _follows(before: Call, turn: Call) -> bool:
    if turn.frame.index is None or before.frame.index is None:
        return False
    return (before.frame.span.start, before.key) == (turn.frame.span.start, turn.key)


def readers(program: Program) -> dict[Value, set[Node]]:
    """Who reads each value; values that the program returns are read by nobody inside and kept with an empty set."""
    read: dict[Value, set[Node]] = {value: set() for _, value in program.outputs}
    for term in program.losses:
        read.setdefault(term.value, set())
    for node in program.nodes:
        for value in node.inputs:
            read.setdefault(value, set()).add(node)
    return read


def walk(call: Call, full: bool) -> Iterator[tuple[int, Step | Call, bool]]:
    """Entries in order with their depth, and whether what is inside is left out."""

    def inner(entries: Iterable[Step | Call], depth: int) -> Iterator[tuple[int, Step | Call, bool]]:
        for entry in entries:
            closed = isinstance(entry, Call) and not full and entry.is_library
            yield depth, entry, closed
            if isinstance(entry, Call) and not closed:
                yield from inner(entry.children, depth + 1)

    yield from inner(call.children, 0)


def as_data(call: Call) -> dict[str, Any]:
    """The outline as JSON: nothing is left out."""
    return {
        "kind": "turn" if call.frame.index is not None else "block",
        "name": call.frame.name,
        "index": call.frame.index,
        "repeat": call.repeat,
        "at": str(call.frame.span),
        "operations": call.operations,
        "children": [as_data(c) if isinstance(c, Call) else _step_data(c) for c in call.children],
    }


def _step_data(step: Step) -> dict[str, Any]:
    return {
        "kind": "operation",
        "op": step.node.op.name,
        "inputs": [operand(value) for value in step.node.inputs],
        "outputs": [{"name": value.name, "type": str(value.type)} for value in step.node.outputs],
        "at": str(step.node.span),
    }


def operand(value: Value) -> str:
    """An operand for people: a weight by its path, a constant by its number, a value by its name."""
    path = getattr(value, "path", None)
    if path is not None:
        return path
    number = getattr(value, "number", None)
    return f"{number:g}" if isinstance(number, float) else str(number) if number is not None else value.name
