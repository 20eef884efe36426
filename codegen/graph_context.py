"""The LowerContext of the reference graph: packed rows, weights read from a tree, one origin on every fx node."""

from __future__ import annotations

import hashlib
import keyword
import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Axis, Cut, Group, Scaled
from ..dsl.grids import is_grid
from ..dsl.program import Constant, Node, Value, Weight
from ..dsl.source import Span
from ..dsl.value_type import Flag, Int, Real, ValueType
from .cut_plans import CutFlags, CutPlans
from .functions import packing, selections
from .origin import UNKNOWN, Origin, defines, mark, origin
from .scaled_plans import ScaledPlans
from .selection_plans import SelectionPlans, group_of
from .signature import DRAW_ARGUMENTS, sizes
from .weight_tree import attribute_path

WIDE = torch.float32
PER_EXAMPLE = ValueType(Int(), per_example=True)  # offsets and other numbers of a call


class CompilerBug(Exception):
    """Something that only a mistake of ours explains. The text names the place in the spec, for the report."""


class NotLowered(Exception):
    """A construct that checks but has no lowering yet. `span` is where it is written."""

    def __init__(self, what: str, node: Node | None) -> None:
        super().__init__(what + (f" ({node.span})" if node is not None else ""))
        self.what = what
        self.node = node


class GraphContext(CutPlans, SelectionPlans, ScaledPlans):
    """One graph under construction; see `lowering.LowerContext` for what each method promises.

    `working` is the type in which reals are computed, `stored` the type of the weights. Where they differ a weight is
    rounded when it is read, except by precise nodes. Values of precise nodes are kept wide and rounded when another
    node reads them.
    """

    def __init__(
        self, inputs: tuple[Value, ...], axes: tuple[Axis, ...], working: torch.dtype, stored: torch.dtype
    ) -> None:
        self.graph = fx.Graph()
        self.working, self.stored = working, stored
        self._values: dict[Value, Any] = {}
        self._present: dict[Value, fx.Node] = {}
        self._cached: dict[tuple[object, ...], Any] = {}
        self._sites: dict[str, int] = {}
        self._origin = Origin(None, None)
        self._node: Node | None = None
        self._rows_of: dict[Axis, fx.Node] = {}
        self._per_example: fx.Node | None = None
        self._offsets: dict[Axis, fx.Node] = {}
        self._cuts: dict[Axis, CutFlags] = {}
        self._chosen = {}
        for value in inputs:
            node = self.argument(value.name, Origin(value.span, value.type, value=value))
            self._values[value] = node
            if value.type.rows is not None:
                self._rows_of.setdefault(value.type.rows, node)
            elif value.type.per_example and self._per_example is None:
                self._per_example = node
        for axis in axes:
            self._offsets[axis] = self.argument(f"{axis.name}_offsets", Origin(axis.span, PER_EXAMPLE))
        self._draws = {name: self.argument(name) for name in DRAW_ARGUMENTS}

    # -- the graph ---------------------------------------------------------------------------------

    def argument(self, name: str, where: Origin = UNKNOWN) -> fx.Node:
        """A further argument of the graph, in the order of calls. One that serves a random op is given its place by
        `finish`."""
        known = [node for node in self.graph.nodes if node.op == "placeholder"]
        taken = {node.target for node in known}
        target = argument_name(name)
        while target in taken:
            target += "_"
        with self.graph.inserting_after(known[-1]) if known else nullcontext():
            node = self.graph.placeholder(target)
        return mark(node, where)

    def lower(self, node: Node, rule: Callable[[Any, Node], Any]) -> None:
        """Runs a lowering rule on a program node and checks that it defined every output."""
        self._node = node
        self._origin = Origin(node.span, node.outputs[0].type, node.scope, node.precise, node=node)
        result = rule(self, node)
        missing = [value for value in node.outputs if value not in self._values]
        if missing and result is not None:
            results = result if isinstance(result, tuple) else (result,)
            for value, fx_node in zip(node.outputs, results, strict=True):
                self.define(value, fx_node)
        elif missing:
            raise CompilerBug(f"{node.op.name} at {node.span} left {missing[0].name} without a value")
        self._node = None

    def finish(self, results: list[Any]) -> None:
        output = self.graph.output(tuple(results))
        made = next((result for result in results if isinstance(result, fx.Node)), None)
        mark(output, replace(origin(made), value=None) if made is not None else self._origin)
        span_of_draws = next((origin(user).span for node in self._draws.values() for user in node.users), None)
        for node in reversed(list(self.graph.nodes)):
            if node.op != "placeholder" or node.target not in DRAW_ARGUMENTS:
                continue
            if not self.draws:
                self.graph.erase_node(node)
            else:
                mark(node, Origin(span_of_draws, ValueType(Int())))

    @property
    def draws(self) -> bool:
        return any(node.users for node in self._draws.values())

    def under(self, origin: Origin) -> None:
        """Nodes made from here on, outside a program node, carry this origin."""
        self._origin = origin
        self._node = None

    # -- LowerContext ------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        if not callable(function):
            raise CompilerBug(f"{function!r} is not a function")
        node = mark(self.graph.call_function(function, args, kwargs), replace(self._origin, value=None))
        like = self._any_tensor() if function is torch.arange else None
        # Made from nothing, so nothing says on which device.
        return node if like is None else self.call(packing.beside, node, like)

    def read(self, value: Value) -> Any:
        if isinstance(value, Constant):
            return value.number
        node = self._weight(value) if isinstance(value, Weight) else self._value(value)
        if not isinstance(value.type.kind, Real):
            return node
        held = self._held_type(value)
        wanted = self._wanted_type()
        if held == wanted:
            return node
        key = value.path if isinstance(value, Weight) else value
        return self._once(("type", key, wanted), lambda: self.call(torch.Tensor.to, node, wanted))

    def aligned(self, value: Value, axes: tuple[Axis, ...], rows: Axis | None, per_example: bool = False) -> Any:
        node = self.read(value)
        if isinstance(value, Constant):
            return node
        if isinstance(value, Weight) and value.outputs:
            node = self.call(torch.reshape, node, value.shape)
        leading = value.type.rows is not None or value.type.per_example
        static = value.type.static_axes
        if not set(static) <= set(axes):
            raise CompilerBug(f"{value!r} does not fit [{', '.join(a.name for a in axes)}] at {self._origin.span}")
        order = sorted(range(len(static)), key=lambda i: axes.index(static[i]))
        if order != list(range(len(static))):
            permutation = (0, *(i + 1 for i in order)) if leading else tuple(order)
            node = self.call(torch.permute, node, permutation)
        present = [axis in static for axis in axes]
        # Leading sizes of one may stay away when no row dimension stands before them.
        if not leading:
            while present and not present[0]:
                present.pop(0)
        if not all(present):
            index: list[Any] = [slice(None)] if leading else []
            index += [slice(None) if there else None for there in present]
            node = self.call(operator.getitem, node, tuple(index))
        return self._descend(value, node, rows, per_example) if leading else node

    def full(
        self,
        value: Value,
        axes: tuple[Axis, ...],
        rows: Axis | None,
        per_example: bool = False,
        group: Group | None = None,
    ) -> fx.Node:
        node = self.aligned(value, axes, rows, per_example)
        like = self.row_example(rows) if rows is not None else self.batch(group) if per_example else None
        if isinstance(value, Constant):
            dtype = self._constant_type(value)
            device = like or self._any_tensor()
            return self.call(packing.filled, node, like, sizes(axes), dtype, device)
        return self.call(packing.expand, node, like, sizes(axes))

    def present(self, value: Value) -> fx.Node | None:
        return self._present.get(value)

    def define(self, value: Value, node: Any, present: fx.Node | None = None) -> None:
        if value in self._values:
            raise CompilerBug(f"{value.name} at {value.span} has two values")
        self._values[value] = node
        if present is not None:
            self._present[value] = present
        # An argument or a plan that an op passes on keeps its own name.
        is_new = isinstance(node, fx.Node) and node.op == "call_function" and defines(node, value)
        if is_new and value.name != node.name:
            node._rename(value.name)  # readable graphs: `q`, not `linear_4`
        rows = value.type.rows
        if rows is not None and isinstance(node, fx.Node):
            self._rows_of.setdefault(rows, node)

    def offsets(self, axis: Axis) -> fx.Node:
        if axis in self._cuts:
            return self.cut_offsets(axis)
        if axis.parent is not None:
            begins = (self.edges(axis), 0, self.offsets(axis.parent))
            type = ValueType(Int(), per_example=True)
            return self.planned(("offsets", axis), axis, type, lambda: self.call(torch.index_select, *begins))
        if axis in self._offsets:
            return self._offsets[axis]
        if self.selects(axis):
            return self.selected_offsets(axis)
        if isinstance(axis.kind, Scaled) and not is_grid(axis):
            return self.scaled_offsets(axis)
        return self._given_offsets(axis)

    def row_example(self, axis: Axis) -> fx.Node:
        return self._once(("row_example", axis), lambda: self._plan(self._make_row_example, axis))

    def edges(self, axis: Axis, owner: Axis | None = None) -> fx.Node:
        if axis.parent is None:
            return self.offsets(axis)
        own = self._given_offsets(axis)
        if owner is None or owner is axis.parent:
            return own
        return self.call(torch.index_select, own, 0, self.edges(axis.parent, owner))

    def owner(self, axis: Axis, ancestor: Axis | None = None) -> fx.Node:
        parent = axis.parent
        if parent is None:
            return self.row_example(axis)
        direct = self._once(("owner", axis), lambda: self._plan(self._make_owner, axis))
        if ancestor is None or ancestor is parent:
            return direct
        return self.call(torch.index_select, self.owner(parent, ancestor), 0, direct)

    def nest(self, axis: Axis, each: int) -> None:
        assert axis.parent is not None
        if axis not in self._offsets:
            owners = self._any_row(axis.parent)
            make = lambda: self.call(packing.even_edges, owners, each)  # noqa: E731
            self._offsets[axis] = self.planned(("edges", axis), axis, ValueType(Int(), (axis.parent,)), make)

    def index_at(self, rows: Axis, axis: Axis, which: str) -> fx.Node:
        if axis in rows.ancestors:
            return self.call(torch.index_select, self.position(axis), 0, self.owner(rows, axis))
        return self.segment_index(axis, which)

    def position(self, axis: Axis) -> fx.Node:
        return self._once(("position", axis), lambda: self._plan(self._make_position, axis))

    def segment_index_on_whole(self, cut: Axis, outside: int) -> fx.Node:
        assert isinstance(cut.kind, Cut)
        selection = cut.kind.parent
        whole = selection.whole

        def make() -> fx.Node:
            number, inside = self.segment_index(cut, "own"), self.segment_inside(cut)
            rows, like = self.chosen_rows(selection), self.row_example(whole)
            return self.call(selections.placed_numbers, number, inside, rows, like, outside)

        return self.planned(("index on whole", cut, outside), cut, ValueType(Int(), (whole,)), make)

    def draw_key(self, node: Node, axis: Axis | None) -> fx.Node:
        site = self._site(node)
        examples = row_example = position = None
        if axis is not None:
            examples, row_example, position = self._draws["draw_examples"], self.row_example(axis), self.position(axis)
        elif any(value.type.per_example for value in node.outputs):
            examples = self._draws["draw_examples"]
        group = group_of(node.outputs[0].type)
        if examples is not None and group is not None:
            examples = self.call(selections.take, examples, self._examples_of_call(group))
        seed, step = self._draws["draw_seed"], self._draws["draw_step"]
        return self.call(packing.draw_key, seed, step, site, examples, row_example, position)

    def step(self) -> fx.Node:
        return self._draws["draw_step"]

    def working_type(self) -> torch.dtype:
        return self.working

    def batch(self, group: Group | None = None) -> fx.Node:
        """A tensor with one entry per example of a group, by default of that of the node."""
        if group is None and self._node is not None:
            group = group_of(self._node.outputs[0].type)
        if group is not None:
            return self._examples(group)
        if self._per_example is not None:
            return self._per_example
        if not self._offsets:
            raise NotLowered("a value per example in a model without inputs per example", self._node)
        offsets = next(iter(self._offsets.values()))
        return self._once(("batch",), lambda: self._plan(lambda _: self.call(packing.batch_of, offsets), None))

    # -- parts -------------------------------------------------------------------------------------

    def _value(self, value: Value) -> Any:
        try:
            return self._values[value]
        except KeyError:
            raise CompilerBug(f"{value.name} at {value.span} is read before it is made") from None

    def _weight(self, weight: Weight) -> fx.Node:
        def make() -> fx.Node:
            node = self.graph.get_attr("weights." + attribute_path(weight.path))
            node._rename(weight.path.replace(".", "_"))
            return mark(node, Origin(weight.span, weight.type, value=weight))

        # By path: a weight that two calls share is one parameter, seen through the axes of each call.
        return self._once(("weight", weight.path), make)

    def _held_type(self, value: Value) -> torch.dtype:
        if isinstance(value, Weight):
            return self.stored
        precise = value in self._values and self._is_precise(value)
        return torch.promote_types(self.working, WIDE) if precise else self.working

    def _is_precise(self, value: Value) -> bool:
        made = self._values[value]
        origin = made.meta.get("weft_origin") if isinstance(made, fx.Node) else None
        # A value that another node passed on unchanged is as wide as where it was made.
        return origin is not None and origin.precise

    def _wanted_type(self) -> torch.dtype:
        return torch.promote_types(self.working, WIDE) if self._origin.precise else self.working

    def _constant_type(self, value: Constant) -> torch.dtype:
        match value.type.kind:
            case Real():
                return self._wanted_type()
            case Flag():
                return torch.bool
            case _:
                return torch.int64

    def _descend(self, value: Value, node: Any, rows: Axis | None, per_example: bool) -> Any:
        """From the value's level down to where it is met: a gather by the owner of each row."""
        own = value.type.rows
        if own is rows and (rows is not None or value.type.per_example == per_example):
            return node
        if own is None and rows is not None:
            return self.call(torch.index_select, node, 0, self.row_example(rows))
        if own is not None and rows is not None and own in rows.ancestors:
            return self.call(torch.index_select, node, 0, self.owner(rows, own))
        raise NotLowered(f"{value.name} read by rows of {rows.name if rows is not None else 'examples'}", self._node)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._cached:
            self._cached[key] = make()
        return self._cached[key]

    def planned(self, key: tuple[object, ...], axis: Axis, type: ValueType, make: Callable[[], Any]) -> Any:
        return self.under_plan(key, axis.span, type, make)

    def under_plan(self, key: tuple[object, ...], span: Span | None, type: ValueType, make: Callable[[], Any]) -> Any:
        def under_span() -> Any:
            before, self._origin = self._origin, Origin(span or self._origin.span, type)
            try:
                return make()
            finally:
                self._origin = before

        return self._once(key, under_span)

    def _examples_of_call(self, group: Group) -> fx.Node:
        """int64: the examples of a group, counted among all of the call."""
        own, parent = self._examples(group), group.parent
        if parent is None:
            return own
        make = lambda: self.call(selections.take, self._examples_of_call(parent), own)  # noqa: E731
        return self._once(("examples of call", group), make)

    def _plan(self, make: Callable[[Any], fx.Node], axis: Axis | None) -> fx.Node:
        """Plans belong to no expression of the spec; they may be made in the middle of one."""
        span = self._origin.span if axis is None else axis.span
        plan = PER_EXAMPLE if axis is None else ValueType(Int(), (axis,))
        before, self._origin = self._origin, Origin(span, plan)
        try:
            return make(axis)
        finally:
            self._origin = before

    def _given_offsets(self, axis: Axis) -> fx.Node:
        if axis not in self._offsets:
            raise NotLowered(f"rows of the axis {axis.name}", self._node)
        return self._offsets[axis]

    def _make_row_example(self, axis: Axis) -> fx.Node:
        if axis.parent is not None:
            return self.call(torch.index_select, self.row_example(axis.parent), 0, self.owner(axis))
        if axis not in self._offsets and self.selects(axis):
            return self.selected_row_example(axis)
        rows = self._any_row(axis)
        if rows is None:
            return self.call(packing.row_example_of, self.offsets(axis))
        return self.call(packing.row_example, self.offsets(axis), rows)

    def _make_owner(self, axis: Axis) -> fx.Node:
        rows, edges = self._any_row(axis), self.edges(axis)
        return self.call(packing.row_example_of, edges) if rows is None else self.call(packing.row_example, edges, rows)

    def _any_row(self, axis: Axis) -> fx.Node | None:
        """Some tensor with one entry for each row of an axis; None where only offsets say how many there are."""
        if axis in self._cuts:
            return self.per_segment(axis)
        if axis in self._rows_of:
            return self._rows_of[axis]
        below = next((other for other in self._offsets if other.parent is axis), None)
        if below is None:
            return None
        make = lambda: self.call(packing.per_owner, self._offsets[below])  # noqa: E731
        return self.planned(("per owner", axis), axis, ValueType(Int(), (axis,)), make)

    def _make_position(self, axis: Axis) -> fx.Node:
        on_the_whole = self.selected_position(axis)
        if on_the_whole is not None:
            return on_the_whole
        return self.call(packing.position, self.offsets(axis), self.row_example(axis))

    def _any_tensor(self) -> fx.Node | None:
        known = (node for node in self.graph.nodes if node.op in ("placeholder", "get_attr"))
        return next((node for node in known if node.target not in DRAW_ARGUMENTS), None)

    def _site(self, node: Node) -> int:
        """A number for the place of a random op: its scope, its name, and a count among equals there."""
        frames = ".".join(f.name if f.index is None else f"{f.name}.{f.index}" for f in node.scope)
        path = f"{frames}.{node.outputs[0].name}.{node.op.name}"
        count = self._sites[path] = self._sites.get(path, 0) + 1
        digest = hashlib.blake2b(f"{path}#{count}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def argument_name(name: str) -> str:
    """A name of the spec as a Python argument; anything but a plain identifier is our bug."""
    if not (name.isascii() and name.isidentifier()):
        raise CompilerBug(f"{name!r} is not an identifier")
    return name + "_" if keyword.iskeyword(name) or name in ("self", "torch", "device", "operator") else name
