"""Calls of a block, and turns of a loop, that are alike: one is elaborated, the others are copied from it.

A deep model calls one block many times on values of the same types. What a call makes depends on what it is given and
on little around it (`_key`), so the nodes and weights of a later call are those of the first with other names in front
of their paths, and other values where the arguments were:

    layer.0.mix.weight, layer.0: linear(x)    ->    layer.1.mix.weight, layer.1: linear(x')

The copy is what elaboration would have made, node by node. Calls whose effects reach further are elaborated each time:
those that make segments, routes, or axes that their results have.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from . import syntax
from .axes import Axis
from .masks import Mask
from .opdef import AxisMapping, OpDef
from .program import Constant, Distribution, Node, Scope, Value, Weight
from .record import record
from .source import Span
from .statics import NONE, BlockRef, Builtin, Family, Member, Record
from .value_type import EnumType, Tag
from .weight_book import Made

if TYPE_CHECKING:
    from .block_call import BlockCalls
    from .body import Build
    from .modules import Instance


T = TypeVar("T")


class _Unlike(Exception):
    """Something that no two calls have alike."""


@record(eq=False)
class Call:
    """A call of a block, or a turn of a loop: its text, the file that the text is of, what it reads, and where its
    weights and nodes are."""

    text: syntax.Block | syntax.For
    home: Instance
    arguments: Mapping[str, object]
    path: tuple[str, ...]
    frames: Scope  # its own is the last
    place: Span  # in the user's text


@record(eq=False)
class Expansion:
    """What one call made."""

    call: Call
    result: object
    nodes: tuple[Node, ...]
    weights: tuple[Made, ...]
    steps: int
    loops: tuple[tuple[tuple[str, ...], syntax.For], ...]
    ends: tuple[tuple[Value, Value], ...]


@dataclass(eq=False)
class Expansions:
    """The expansions of one program, by what makes calls alike."""

    known: dict[Hashable, Expansion] = field(default_factory=dict)
    holders: dict[Node, bool] = field(default_factory=dict)  # whether a node's attributes hold values

    def holds_values(self, node: Node) -> bool:
        """Remembered: a node is asked about for every call that it is inside of."""
        found = self.holders.get(node)
        if found is None:
            found = self.holders[node] = _holds_values(node.attrs)
        return found

    def made(self, body: BlockCalls, call: Call, make: Callable[[], T]) -> T:
        """The result of a call: copied from an earlier one, or what `make` elaborates."""
        build = body.build
        key = _key(body, call)
        if key is None:
            return make()
        known = self.known.get(key)
        if known is not None:
            copy = _Copy(build, known, call)
            if copy.is_free():
                return copy.result()
        before = _Mark(build)
        result = make()
        expansion = before.since(build, call, result)
        if expansion is not None:
            self.known[key] = expansion
        return result


class _Mark:
    """How far an elaboration has come."""

    def __init__(self, build: Build) -> None:
        turns = build.turns
        self.problems, self.nodes, self.weights = len(build.problems), len(build.nodes), len(build.book.made)
        self.steps, self.depth, self.state = build.steps, build.book.depth, _state(build)
        self.loops, self.ends = (len(turns.loops), len(turns.ends)) if turns is not None else (0, 0)

    def since(self, build: Build, call: Call, result: object) -> Expansion | None:
        """What was made since; None where a copy of it would not be what elaboration makes."""
        if len(build.problems) > self.problems or _state(build) != self.state:
            return None
        nodes, weights = tuple(build.nodes[self.nodes :]), tuple(build.book.made[self.weights :])
        start = "".join(f"{part}." for part in call.path)
        if any(one.depth != self.depth or not one.path.startswith(start) for one in weights):
            return None  # of a model or of something shared
        if any(map(build.expansions.holds_values, nodes)) or not _is_copied(build, call, result):
            return None
        turns = build.turns
        loops = tuple(turns.loops.items())[self.loops :] if turns is not None else ()
        ends = tuple(turns.ends[self.ends :]) if turns is not None else ()
        return Expansion(call, result, nodes, weights, build.steps - self.steps, loops, ends)


# ---- which calls are alike --------------------------------------------------------------------------


def _state(build: Build) -> Hashable:
    """What a body may read of the program around it, and change."""
    selected = tuple((axis, tag) for axis, (tag, _) in build.selected.items())
    return tuple(build.cuts.items()), selected, len(build.owned), len(build.optional), build.routings


def _key(body: BlockCalls, call: Call) -> Hashable | None:
    """Two calls of one key make the same, but for paths and for values that are not known when a spec is checked.
    None: a call like no other."""
    build = body.build
    if build.sides is not None:
        return None
    cuts, selected, *_ = _state(build)  # type: ignore[misc]
    known = {*(tag for _, tag in selected), *(one for _, cut in cuts if cut is not None for one in cut.values)}
    slots: dict[Value, int] = {}
    try:
        given = tuple((name, _token(value, slots, known)) for name, value in call.arguments.items())
        arms = tuple((arm.tag, arm.name, arm.members, arm.axis) for arm in build.arms)
        around = tuple(id(declaration) for declaration, _ in build.calls)
        # The expansion keeps both, so that an id stays its own.
        key = (id(call.text), id(call.home), given, body.precise, arms, build.facts, cuts, selected)
        hash(key)
    except (_Unlike, TypeError):
        return None
    return (*key, around)


def _token(value: object, slots: dict[Value, int], known: set[Value]) -> Hashable:
    """What a block can tell of an argument."""
    match value:
        case Weight():
            return value
        case Constant():
            slots.setdefault(value, len(slots))
            return "constant", value.type, _number(value.number), slots[value]
        case Value():
            slots.setdefault(value, len(slots))
            # A tag, or the flags of a cut, is looked up by what it is.
            exact = value if isinstance(value.type.kind, Tag) or value in known else None
            return "value", value.type, slots[value], exact
        case bool() | int() | float():
            return _number(value)
        case str():
            return "text", value
        case tuple():
            return tuple(_token(item, slots, known) for item in value)
        case Record():
            parts = tuple((name, _token(item, slots, known)) for name, item in value.fields.items())
            main = None if value.main is None else _token(value.main, slots, known)
            return "record", value.what, parts, main, value.rebound
        case BlockRef():
            return "block", id(value.declaration), id(value.home)
        case Mask():
            return "mask", value.formula, tuple(_token(item, slots, known) for item in value.captures), value.span
        case Axis() | Member() | AxisMapping() | Distribution() | OpDef() | Builtin() | EnumType():
            return value
        case _ if value is NONE:
            return "none"
    raise _Unlike  # a family, for instance, to which a block may add members


def _number(value: float) -> Hashable:
    """True is not 1 here, nor is 0.0 the same as -0.0."""
    return type(value), value.hex() if isinstance(value, float) else value


def _leaves(value: object) -> Iterator[Value]:
    """The values of an argument or a result, in one order."""
    match value:
        case Value():
            yield value
        case tuple():
            for item in value:
                yield from _leaves(item)
        case Record():
            for item in (*value.fields.values(), value.main):
                yield from _leaves(item)
        case Mask():
            yield from value.captures
        case Family():
            yield from _leaves(tuple(value.members.values()))
        case dict():
            yield from _leaves(tuple(value.values()))


# ---- what may be copied -----------------------------------------------------------------------------


def _holds_values(attrs: object) -> bool:
    """Whether an operator's attributes hold values or nodes, which a copy would have to replace."""
    match attrs:
        case Value() | Node():
            return True
        case Axis() | Span() | EnumType() | type():
            return False
        case tuple():
            return any(_holds_values(item) for item in attrs)
    return is_dataclass(attrs) and any(_holds_values(getattr(attrs, one.name)) for one in fields(attrs))


def _is_copied(build: Build, call: Call, result: object) -> bool:
    """Whether a result can be told anew: values, of axes that were there before the call."""
    items = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
    if not all(isinstance(item, Value | Family) for item in items):
        return False
    given = [leaf for argument in call.arguments.values() for leaf in _leaves(argument)]
    axes: set[object] = {*_axes_of(given), *_named(call.arguments.values()), *build.enum_axes.values()}
    axes.update(one for one in (*call.home.axes.values(), *call.home.values.values()) if isinstance(one, Axis))
    for leaf in _leaves(result):
        if not axes.issuperset(_axes_of((leaf,))):
            return False
        # Without nodes a value that was there before is like one that was made, and these are looked up.
        if not build.make_nodes and leaf not in given and isinstance(leaf.type.kind, Tag):
            return False
    return True


def _axes_of(values: Iterable[Value]) -> Iterator[Axis]:
    for value in values:
        yield from value.type.axes


def _named(arguments: Iterable[object]) -> Iterator[Axis]:
    for argument in arguments:
        if isinstance(argument, Axis):
            yield argument
        elif isinstance(argument, tuple):
            yield from _named(argument)


# ---- copying ------------------------------------------------------------------------------------------


class _Copy:
    """Makes again what `known` made, for another call."""

    def __init__(self, build: Build, known: Expansion, call: Call) -> None:
        self.build, self.known, self.call = build, known, call
        before = (leaf for argument in known.call.arguments.values() for leaf in _leaves(argument))
        after = (leaf for argument in call.arguments.values() for leaf in _leaves(argument))
        self.values: dict[Value, Value] = dict(zip(before, after, strict=True))
        self.scopes: dict[int, Scope] = {}
        start, cut = "".join(f"{part}." for part in call.path), sum(len(part) + 1 for part in known.call.path)
        self.paths = tuple(start + one.path[cut:] for one in known.weights)

    def is_free(self) -> bool:
        """Whether its weights would be new. Two of one path are a mistake, which elaboration words."""
        return all(self.build.book.is_free(path) for path in self.paths)

    def result(self) -> Any:
        build, known, call = self.build, self.known, self.call
        for one, path in zip(known.weights, self.paths, strict=True):
            site = call.place if one.site == known.call.place else one.site
            self.values[one.weight] = build.book.again(one, path, site)
        build.nodes.extend(self._node(node) for node in known.nodes)
        build.copied(call.place, known.steps)
        if build.turns is not None:
            for path, loop in known.loops:
                build.turns.enter((*call.path, *path[len(known.call.path) :]), loop)
            build.turns.ends.extend((self._value(start), self._value(end)) for start, end in known.ends)
        return self._result(known.result)

    def _node(self, node: Node) -> Node:
        outputs = tuple(Value(value.name, value.type, value.span) for value in node.outputs)
        inputs = tuple(map(self._value, node.inputs))
        self.values.update(zip(node.outputs, outputs, strict=True))
        return Node(node.op, node.attrs, inputs, outputs, node.span, self._scope(node.scope), node.precise)

    def _scope(self, scope: Scope) -> Scope:
        made = self.scopes.get(id(scope))
        if made is None:
            made = self.scopes[id(scope)] = (*self.call.frames, *scope[len(self.known.call.frames) :])
        return made

    def _value(self, value: Value) -> Value:
        return self.values.get(value, value)

    def _result(self, value: Any) -> object:
        match value:
            case tuple():
                return tuple(self._result(item) for item in value)
            case dict():
                return {name: self._result(item) for name, item in value.items()}
            case Family():
                return Family(value.name, value.span, {at: self._result(item) for at, item in value.members.items()})
        if not self.build.make_nodes and not isinstance(value, Constant | Weight) and value not in self.values:
            self.values[value] = replace(value)
        return self._value(value)
