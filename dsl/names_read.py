"""Which names a text binds and which it reads, without running it.

For branches that are not taken, blocks that nothing calls, sizes that nothing reads, and loops whose turns are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache

from . import syntax
from .source import Span


def bound_names(statements: tuple[syntax.Statement, ...]) -> list[str]:
    """Names that statements bind where they stand, loops' own variables left out."""
    names: list[str] = []
    for statement in statements:
        match statement:
            case syntax.Bind():
                names += [target.name.text for target in statement.targets]
            case syntax.Param() | syntax.OptionalInput():
                names.append(statement.name.text)
            case syntax.LocalAxis():
                names.append(statement.declaration.name.text)
            case syntax.For() | syntax.Routed():
                names += bound_names(statement.body)
            case syntax.If():
                names += bound_names(statement.body) + bound_names(statement.orelse)
            case syntax.Match():
                names += [name for arm in statement.arms for name in bound_names(arm.body)]
    return names


def family_names(statements: tuple[syntax.Statement, ...]) -> set[str]:
    """Names that statements bind by index."""
    names: set[str] = set()
    for statement in statements:
        match statement:
            case syntax.Bind():
                names |= {target.name.text for target in statement.targets if target.index is not None}
            case syntax.For() | syntax.Routed():
                names |= family_names(statement.body)
            case syntax.If():
                names |= family_names((*statement.body, *statement.orelse))
            case syntax.Match():
                names |= {name for arm in statement.arms for name in family_names(arm.body)}
    return names


# Words of masks and inits that are no names.
MASK_WORDS = ("query", "key", "copy", "fan_in", "fan_out", "turn")


def names_read(node: object) -> Iterator[syntax.Name]:
    """Every name read below a node. An argument that is a bare name may be a choice such as `by=max` and is left
    out when named; so are patterns."""
    match node:
        case syntax.Name():
            yield node
        case tuple():
            for item in node:
                yield from names_read(item)
        case syntax.For():
            yield from names_read(node.over)
            for name in names_read(node.body):
                if name.text != node.variable.text:
                    yield name
        case syntax.Match():
            yield from names_read(node.arms)
        case syntax.Param() | syntax.Init():
            # A distribution's name is no name of the spec.
            yield from names_read(getattr(node, "type", None))
            value = node.init if isinstance(node, syntax.Param) else node.value
            yield from names_read(value.arguments if isinstance(value, syntax.Call) else None)
        case syntax.Argument(syntax.Identifier(), syntax.Name() | syntax.Call(syntax.Name(), _, None)):
            if isinstance(node.value, syntax.Call):
                yield from names_read(node.value.arguments)
        case _ if type(node).__module__ == syntax.__name__:
            for field in _children(type(node)):
                yield from names_read(getattr(node, field))


@lru_cache(maxsize=4096)
def set_of_names_read(node: syntax.Expression) -> frozenset[str]:
    """Those of an expression that is run again and again."""
    return frozenset(name.text for name in names_read(node))


def all_words(node: object, callees: bool = True) -> Iterator[str]:
    """Every word below a node that could be read as a name, choices and parents of axes included. Without `callees`,
    plain names that are called are left out."""
    match node:
        case syntax.Name() | syntax.Identifier():
            yield node.text
        case tuple():
            for item in node:
                yield from all_words(item, callees)
        case syntax.Setting() | syntax.Argument():
            yield from all_words(node.value, callees)
        case syntax.Call(syntax.Name()) if not callees:
            yield from all_words(node.arguments, callees)
        case _ if type(node).__module__ == syntax.__name__:
            for field in _children(type(node)):
                yield from all_words(getattr(node, field), callees)


def first_line(span: Span) -> Span:
    """The first line of a construct with a body."""
    return Span(span.source, span.start, span.start + len(span.text.split("\n", 1)[0].rstrip()))


@cache
def _children(kind: type) -> tuple[str, ...]:
    return tuple(name for name in kind.__dataclass_fields__ if name != "span")
