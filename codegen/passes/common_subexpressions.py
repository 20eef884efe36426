"""Equal calls become one.

    a = linear(x, w); b = linear(x, w)      ->      a = linear(x, w)

Every function of a reference graph is pure: random draws get their counters as arguments. A function that writes to
its arguments (a decoding cache) is marked with `writes_to_arguments` and left alone.
"""

from __future__ import annotations

from typing import Any

from torch import fx


def join_common_subexpressions(module: fx.GraphModule) -> None:
    seen: dict[object, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "get_attr") or getattr(node.target, "writes_to_arguments", False):
            continue
        key = (node.op, node.target, _key(node.args), _key(node.kwargs))
        known = seen.setdefault(key, node)
        if known is not node:
            node.replace_all_uses_with(known)
            module.graph.erase_node(node)


def _key(argument: Any) -> object:
    """Hashable, and equal only for equal arguments: 1, 1.0 and True are three."""
    match argument:
        case tuple() | list():
            return (type(argument).__name__, *map(_key, argument))
        case dict():
            return tuple((name, _key(value)) for name, value in sorted(argument.items()))
        case slice():
            return ("slice", _key(argument.start), _key(argument.stop), _key(argument.step))
        case bool() | int() | float():
            return (type(argument).__name__, repr(argument))
        case _:
            try:
                hash(argument)
            except TypeError:
                return ("identity", id(argument))
            return argument
