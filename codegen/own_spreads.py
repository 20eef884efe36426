"""`spread(p, patch -> seq, own)` for decoding: what a row may know of its own open segment, written along the rows.

A segment is computed when it closes, so its rows cannot wait for it. What the frontier lets them read of it is known
when it opens, and is the same whether it is made for the segment or for each of its rows:

    spread(pool(x, by=first), own)    x at the first row of my segment, held
    spread(previous(p, k), own)       the segment k before mine: spread(previous(p, k - 1), before)
    spread(position(patch), own)      index(patch)
    spread(f(p, q), own)              f(spread(p, own), spread(q, own)) for an f that works row by row
"""

from __future__ import annotations

from dataclasses import replace

from ..dsl.axes import Axis
from ..dsl.causality import makers
from ..dsl.program import Constant, Node, Program, Value, Weight
from .ops.conversion import OPTIONAL_INPUT
from .ops.cut import HOLD, INDEX, SPREAD, IndexAttrs, PoolAttrs, SpreadAttrs
from .ops.joining import NoAttrs
from .ops.rows import POSITION
from .ops.shift import PREVIOUS, ShiftAttrs


def along_rows(program: Program) -> Program:
    """The program without reads of segments that are still open, as far as these rules go."""
    if not any(_is_own(node) for node in program.nodes):
        return program
    writer = _Writer(makers(program))
    for node in program.nodes:
        writer.node(node)
    return replace(program, nodes=tuple(writer.nodes))


def _is_own(node: Node) -> bool:
    return isinstance(node.attrs, SpreadAttrs) and node.op is SPREAD and node.attrs.which == "own"


class _Writer:
    """Nodes of the new program, and what each value along a cut is along the rows."""

    def __init__(self, maker: dict[Value, Node]) -> None:
        self.maker = maker
        self.nodes: list[Node] = []
        self.moved: dict[Value, Value] = {}

    def node(self, node: Node) -> None:
        if not _is_own(node):
            self.nodes.append(node)
            return
        attrs = node.attrs
        assert isinstance(attrs, SpreadAttrs)
        found = self.along(node.inputs[0], node, attrs)
        if found is None:
            self.nodes.append(node)
            return
        self.nodes.append(replace(node, op=OPTIONAL_INPUT, attrs=NoAttrs(), inputs=(found,)))

    def along(self, value: Value, at: Node, attrs: SpreadAttrs) -> Value | None:
        """`value`, which lies along the cut, at each row: that of its own segment. None: it is not known there."""
        if value.type.rows is not attrs.cut:
            return value
        if value in self.moved:
            return self.moved[value]
        node = self.maker.get(value)
        if node is None:
            return None
        before = len(self.nodes)
        found = self._along(node, value, at, attrs)
        if found is None:
            del self.nodes[before:]
        else:
            self.moved[value] = found
        return found

    def _along(self, node: Node, value: Value, at: Node, attrs: SpreadAttrs) -> Value | None:
        match node.attrs:
            case PoolAttrs(_, _, "first"):
                return self.add(replace(node, op=HOLD, attrs=attrs), value, attrs)
            case ShiftAttrs(by, _) if node.op is PREVIOUS and len(node.inputs) == 1:
                earlier = node.inputs[0]
                if by < -1:
                    shifted = replace(
                        node, attrs=replace(node.attrs, by=by + 1), outputs=(_like(value, value.type.axes),)
                    )
                    self.nodes.append(shifted)
                    earlier = shifted.outputs[0]
                spread = replace(
                    node, op=SPREAD, attrs=replace(attrs, which="before"), inputs=(earlier, *at.inputs[1:])
                )
                return self.add(spread, value, attrs)
            case _ if node.op is POSITION:
                return self.add(replace(node, op=INDEX, attrs=IndexAttrs(attrs.cut, "own")), value, attrs)
        if not node.op.is_row_wise(node) or node.op.is_random or len(node.outputs) != 1:
            return None
        inputs = []
        for read in node.inputs:
            moved = read if isinstance(read, Constant | Weight) else self.along(read, at, attrs)
            if moved is None:
                return None
            inputs.append(moved)
        return self.add(replace(node, inputs=tuple(inputs)), value, attrs)

    def add(self, node: Node, value: Value, attrs: SpreadAttrs) -> Value:
        output = _like(value, tuple(attrs.target if axis is attrs.cut else axis for axis in value.type.axes))
        self.nodes.append(replace(node, outputs=(output,)))
        return output


def _like(value: Value, axes: tuple[Axis, ...]) -> Value:
    return Value(value.name, value.type.with_axes(axes), value.span)
