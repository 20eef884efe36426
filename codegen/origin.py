"""Where an fx node comes from: the spec expression, the program value it computes and how exactly it is computed.

Written here and read here only, so that no pass depends on the spelling of `node.meta`. A pass that replaces a node
calls `inherit`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..dsl.program import Node, Scope, Value
from ..dsl.source import Span
from ..dsl.value_type import ValueType

if TYPE_CHECKING:
    from torch import fx

_KEY = "weft_origin"


@dataclass(frozen=True)
class Origin:
    """`value` is set on the fx node that computes a program value, and `type` is then that value's; on the steps in
    between
    `type` is the type the whole expression is heading for. `node` is the program node; None for inputs, weights and
    plans."""

    span: Span | None
    type: ValueType | None
    scope: Scope = ()
    precise: bool = False
    value: Value | None = None
    node: Node | None = None


UNKNOWN = Origin(span=None, type=None)


def mark(fx_node: fx.Node, origin: Origin) -> fx.Node:
    """Writes the origin of a node. `span` and `type` are also plain meta entries, which torch's own printers show."""
    fx_node.meta[_KEY] = origin
    fx_node.meta["span"] = None if origin.span is None else str(origin.span)
    fx_node.meta["type"] = None if origin.type is None else str(origin.type)
    return fx_node


def origin(fx_node: fx.Node) -> Origin:
    """The origin of a node; `UNKNOWN` for one that a pass made without saying."""
    return fx_node.meta.get(_KEY, UNKNOWN)


def inherit(new: fx.Node, old: fx.Node) -> fx.Node:
    """A replacement comes from where the replaced node came from."""
    return mark(new, origin(old))


def defines(fx_node: fx.Node, value: Value) -> bool:
    """Notes that a node computes `value`. False when it already computes another: an op may pass its operand on."""
    known = origin(fx_node)
    if known.value is not None:
        return False
    mark(fx_node, replace(known, value=value, type=value.type, span=known.span or value.span))
    return True


def user_span(fx_node: fx.Node) -> Span | None:
    """The line of the user's own file that a node serves: of the standard library's lines, the call that led there."""
    known = origin(fx_node)
    spans = [known.span, *(frame.span for frame in reversed(known.scope))]
    own = [span for span in spans if span is not None and not span.source.name.startswith("std/")]
    return own[0] if own else known.span
