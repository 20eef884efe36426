"""Arms of a `match`: the nodes between its head and its end, moved onto the rows that run them (SEMANTICS 8).

    routed by kind:                         rows = take(x, seq -> seq.text)
        y = linear(x, dim -> dim)    ->     a = linear(rows, ..)                 the same for image: b
                                            y = join((a, b), (seq.text, seq.image) -> seq)

An arm is elaborated as it is written, along the axes that its text speaks of. When it ends, the nodes it made are
rewritten: an axis becomes the selection of its rows that have the tag, and what they read from outside is taken first.
With a tag per example every ordered axis is replaced, and values per example are those of the examples that have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from .axes import Axis, Cut, Group, Nested, Scaled, Selected
from .diagnostics import Mistake, SpecError
from .errors.later import NotBuiltYet
from .errors.routing import NotRowWise
from .program import Constant, Node, Scope, Value, Weight
from .record import record
from .selections import JoinAttrs, TakeAttrs
from .source import Span
from .value_type import Tag, ValueType, ordered_first

if TYPE_CHECKING:
    from .body import Build


@record(eq=False)
class OpenArm:
    """An arm under elaboration. `axis`: that of the tag's rows; None: a tag per example."""

    tag: Value
    name: str  # of the tag, as it is written
    members: tuple[str, ...]
    axis: Axis | None
    at: Span

    @property
    def numbers(self) -> tuple[int, ...]:
        assert isinstance(self.tag.type.kind, Tag)
        return tuple(self.tag.type.kind.enum.members.index(member) for member in self.members)


def misplaced(arm: OpenArm, node: Node) -> SpecError | None:
    """What is wrong with a node in an arm for a tag per row: rows of other tags are not there."""
    if arm.axis is None:
        return None
    axis = arm.axis
    along = [value.type.rows for value in (*node.inputs, *node.outputs)]
    if axis in along and not node.op.is_row_wise(node):
        return NotRowWise(node.span, node.op.name, axis.name, arm.name, arm.at)
    for rows in (value.type.rows for value in node.outputs):
        if rows is not None and rows is not axis and rows not in axis.ancestors:
            return NotRowWise(node.span, node.op.name, axis.name, arm.name, arm.at, rows.name)
    return None


@dataclass(eq=False)
class Routes:
    """What the arms of one program share: axes and groups of equal arms are one, so that their rows are found once."""

    axes: dict[tuple[object, ...], Axis] = field(default_factory=dict)
    groups: dict[tuple[object, ...], Group] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def axis(self, parent: Axis, kind: Any, key: tuple[object, ...], part: str) -> Axis:
        if key not in self.axes:
            self.axes[key] = Axis(self._name(f"{parent.name}.{part}"), kind, parent.length, None, parent.span)
        return self.axes[key]

    def group(self, arm: OpenArm, parent: Group | None, by: Value) -> Group:
        key = (by, arm.numbers, parent)
        if key not in self.groups:
            self.groups[key] = Group(self._name("_or_".join(arm.members)), by, arm.numbers, parent, arm.at)
        return self.groups[key]

    def _name(self, wanted: str) -> str:
        # Rows of two axes are never taken for one another, so no two have one name.
        name, count = wanted, 2
        while name in self.names:
            name, count = f"{wanted}.{count}", count + 1
        self.names.add(name)
        return name


class Mover:
    """Moves the nodes of one arm. `begin`: where in the build's nodes they start; `cuts`: made before the arm; `scope`:
    of the statement."""

    def __init__(self, build: Build, arm: OpenArm, begin: int, cuts: Mapping[Axis, object], scope: Scope) -> None:
        self.build, self.arm, self.begin, self.scope = build, arm, begin, scope
        self.values: dict[Value, Value] = {}
        self.group = build.routes.group(arm, None, arm.tag) if arm.axis is None else None
        self.cuts = cuts
        self._axes: dict[Axis, Axis] = {}
        self._groups: dict[Group, Group] = {}
        self._precise: set[Value] = set()
        self.made: set[Value] = set()  # by the nodes of the arm, as they were written

    def run(self) -> None:
        """Rewrites the nodes."""
        own = self.build.nodes[self.begin :]
        del self.build.nodes[self.begin :]
        for node in own:
            self.made.update(node.outputs)
            if any(self._moves(value) for value in node.outputs):
                node = self._node(node)
            self._add(node)

    def read(self, value: Value) -> Value:
        """A value as the arm has it: made there, taken, or the same for all rows."""
        if value in self.values:
            return self.values[value]
        if isinstance(value, Constant | Weight) or not self._moves(value):
            return value
        key = (value, self.arm.tag, self.arm.numbers)
        if key not in self.build.taken:
            self.build.taken[key] = self._take(value)
        self.values[value] = self.build.taken[key]
        return self.values[value]

    def is_precise(self, value: Value) -> bool:
        return value in self._precise

    def _maker(self, value: Value) -> Node | None:
        """The node in front of the arm that made a value: mostly one of the last."""
        nodes = (self.build.nodes[place] for place in range(self.begin - 1, -1, -1))
        return next((node for node in nodes if value in node.outputs), None)

    def _moves(self, value: Value) -> bool:
        if self.arm.axis is None:
            return not value.type.is_weight_level
        rows = value.type.rows
        return rows is not None and self.axis(rows) is not rows

    def _take(self, value: Value) -> Value:
        source = value.type.rows
        if source is not None and isinstance(source.kind, Cut) and self.arm.axis is None:
            raise Mistake(NotBuiltYet(self.arm.at, f"rows of {source.name}, cut outside the arms of a `match`, in one"))
        target = None if source is None else self.axis(source)
        attrs = TakeAttrs(source, target, self.arm.numbers, self.group)
        output = Value(value.name, self._type(value.type), value.span)
        maker = self._maker(value)
        # Kept as wide as it was where it was made.
        precise = maker is not None and maker.precise
        inputs = (value, self.arm.tag)
        self._add(Node(self.build.ops["take"], attrs, inputs, (output,), self.arm.at, self.scope, precise))
        return output

    def _add(self, node: Node) -> None:
        self.build.nodes.append(node)
        if node.precise:
            self._precise.update(node.outputs)

    def _node(self, node: Node) -> Node:
        inputs = tuple(self.read(value) for value in node.inputs)
        outputs = tuple(Value(value.name, self._type(value.type), value.span) for value in node.outputs)
        self.values.update(zip(node.outputs, outputs, strict=True))
        return replace(node, attrs=self._attrs(node.attrs), inputs=inputs, outputs=outputs)

    def _type(self, type: ValueType) -> ValueType:
        axes = tuple(self.axis(axis) for axis in type.axes)
        if self.arm.axis is not None or not type.per_example:
            return replace(type, axes=axes)
        return replace(type, axes=axes, group=self._inner(type.group))

    # -- axes --------------------------------------------------------------------------------------

    def axis(self, axis: Axis) -> Axis:
        if axis.is_static:
            return axis
        if axis not in self._axes:
            self._axes[axis] = self._axis(axis)
        return self._axes[axis]

    def _axis(self, axis: Axis) -> Axis:
        arm, part = self.arm, "_or_".join(self.arm.members)
        key = (axis, arm.tag, arm.numbers)
        if axis is arm.axis:
            kind = Selected(axis, arm.name, arm.members, arm.tag)
            return self.build.routes.axis(axis, kind, key, part)
        match axis.kind:
            case Selected(parent, _, _, by, group) if by is not None:
                # The axis of an arm inside this one.
                above = self.axis(parent)
                inner = self.read(by)
                if above is parent and inner is by:
                    return axis
                kind = replace(axis.kind, parent=above, by=inner, group=None if group is None else self._inner(group))
                return self.build.routes.axis(axis, kind, (*key, above, inner), part)
            case Cut(parent) | Selected(parent) | Scaled(parent) | Nested(parent):
                above = self.axis(parent)
                if above is parent:
                    return axis
                # Each arm cuts anew, so that no two of them share the segments.
                return self.build.routes.axis(axis, replace(axis.kind, parent=above), (*key, above, self), part)
        if arm.axis is not None:
            return axis
        kind = Selected(axis, arm.name, arm.members, arm.tag, self.group)
        return self.build.routes.axis(axis, kind, key, part)

    def _inner(self, group: Group | None) -> Group | None:
        """A group of an arm inside this one, counted among this one's examples."""
        if self.arm.axis is not None:
            return group
        if group is None:
            return self.group
        if group not in self._groups:
            above = self._inner(group.parent)
            assert above is not None
            name = f"{above.name}.{group.name}"
            self._groups[group] = replace(group, name=name, by=self.read(group.by), parent=above)
        return self._groups[group]

    def _attrs(self, attrs: Any) -> Any:
        """What an operator says, of the arm's axes."""
        match attrs:
            case Axis():
                return self.axis(attrs)
            case Group():
                return self._inner(attrs)
            case tuple():
                moved = tuple(self._attrs(item) for item in attrs)
                return attrs if all(a is b for a, b in zip(attrs, moved, strict=True)) else moved
            case Value() | Span() | None:
                return attrs
        if not is_dataclass(attrs) or isinstance(attrs, (type, Node)):
            return attrs
        changed = {}
        for one in fields(attrs):
            old = getattr(attrs, one.name)
            new = self._attrs(old)
            if new is not old:
                changed[one.name] = new
        return replace(attrs, **changed) if changed else attrs


def joined_type(mover: Mover, values: tuple[Value, ...]) -> ValueType | None:
    """The type of a name that all arms bind, where the arms end; None where they give it several, or where its rows
    end with the arms."""
    axis = mover.arm.axis
    first, *others = (value.type for value in values)
    for other in others:
        if other.kind != first.kind or set(other.axes) != set(first.axes):
            return None
    rows = first.rows
    if rows is not None and isinstance(rows.kind, Cut) and axis is None and rows not in mover.cuts:
        return None
    ordered = (axis,) if axis is not None else () if rows is None else (rows,)
    missing = any(type.missing for type in (first, *others))
    return ValueType(first.kind, ordered_first((*ordered, *first.static_axes)), not ordered, missing)


def joined(movers: tuple[Mover, ...], values: tuple[Value, ...], name: str, type: ValueType) -> Value:
    """The rows of all arms in their places again. `values`: as the arms have them."""
    first = movers[0]
    whole = type.rows
    parts = tuple(None if whole is None else mover.axis(whole) for mover in movers)
    groups = tuple(mover.group for mover in movers if mover.group is not None)
    attrs = JoinAttrs(parts, whole, tuple(mover.arm.numbers for mover in movers), groups)
    output = Value(name, type, first.arm.at)
    precise = all(mover.is_precise(value) for mover, value in zip(movers, values, strict=True))
    node = Node(first.build.ops["join"], attrs, (*values, first.arm.tag), (output,), first.arm.at, first.scope, precise)
    first.build.nodes.append(node)
    return output
