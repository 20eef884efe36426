"""What groups of nodes have in common: equal layers are looked at once.

    shape = shapes.of_region(region)        equal for regions that build (rowwise/build.py) makes one program of

A shape holds all that a row program and its text follow from: functions, written arguments, how nodes feed each other,
types, names, spec lines, and whose gradient is asked for. It says nothing of the turn of a loop that nodes stand in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import fx

from ..facts import Fact
from ..origin import origin
from ..rowwise.build import Region, spec_name

Shape = tuple[object, ...]


class Shapes:
    """`wanted`: the nodes that a gradient is asked for. Nodes must not change while their shapes are asked for."""

    def __init__(self, facts: Mapping[fx.Node, Fact], wanted: Collection[fx.Node]) -> None:
        self.facts = facts
        self.wanted = wanted
        self._numbers: dict[object, int] = {}
        self._alone: dict[fx.Node, tuple[int, tuple[fx.Node, ...]]] = {}

    def of_region(self, region: Region) -> Shape:
        places: dict[fx.Node, int] = {}
        for node in region.inputs:
            places[node] = len(places)
        found: list[object] = [self._of_input(node) for node in region.inputs]
        outputs = set(region.outputs)
        for node in region.nodes:
            number, operands = self._of_node(node)
            found.append((number, node in outputs, *(places[operand] for operand in operands)))
            places[node] = len(places)
        return tuple(found)

    def _of_input(self, node: fx.Node) -> int:
        """What can be seen of a node from outside."""
        return self._number(("input", *self._seen(node)))

    def _of_node(self, node: fx.Node) -> tuple[int, tuple[fx.Node, ...]]:
        """A number for what a node is by itself, and its operands as often as it reads them."""
        known = self._alone.get(node)
        if known is None:
            operands: list[fx.Node] = []
            written = _frozen((node.args, node.kwargs), operands)
            known = self._alone[node] = self._number((node.target, written, *self._seen(node))), tuple(operands)
        return known

    def _seen(self, node: fx.Node) -> tuple[object, ...]:
        known = origin(node)
        axes = None if known.type is None else tuple(axis.name for axis in known.type.static_axes)
        line = None if known.span is None else (id(known.span.source), known.span.start, known.span.end)
        name = None if known.value is None else known.value.name
        return self.facts.get(node), axes, line, name, spec_name(node), node in self.wanted

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))


def _frozen(argument: Any, operands: list[fx.Node]) -> object:
    """An argument that can be compared: 1, 1.0 and true are three. Nodes go to `operands`, in order."""
    match argument:
        case fx.Node():
            operands.append(argument)
            return fx.Node
        case tuple() | list():
            return type(argument), *(_frozen(item, operands) for item in argument)
        case dict():
            return dict, *((name, _frozen(item, operands)) for name, item in argument.items())
        case slice():
            return slice, *(_frozen(item, operands) for item in (argument.start, argument.stop, argument.step))
        case float():
            return float, argument.hex()
    return type(argument), argument
