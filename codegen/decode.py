"""Derived decoding: from a typed program, the graphs that go on from rows already seen.

    begin    what does not depend on the new rows (an encoder, a class embedding), computed once per sequence
    extend   any number of new rows per sequence, with caches of what later rows read
    step     the same for one new row per sequence: nothing depends on how many rows came before but the size of a slice

A value along the decoded axis is computed for the new rows only. Two functions of the reference graph read other
rows: attention and
`previous`. Their stateful forms stand in `stateful.STATEFUL`, keyed by the function itself, so an op that lowers to one
of them decodes without being named there; an op that reads other rows in another way is refused by name.

What a graph takes: the inputs along the decoded axis and its offsets, what `begin` carries over and the offsets of
its axes, then
`lengths` (rows so far), `columns` (slots in use afterwards), `is_even` (all lengths equal), then the caches, which it
writes in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..dsl.axes import Axis
from ..dsl.causality import why_not_generated
from ..dsl.diagnostics import Mistake
from ..dsl.program import Constant, Node, Program, Value, Weight
from .facts import FACT, Fact
from .functions import caches
from .graph_context import PER_EXAMPLE, GraphContext, NotLowered
from .lower import SIGNATURE, graph_module, live_nodes, whole_result
from .origin import Origin
from .passes.common_subexpressions import join_common_subexpressions
from .signature import Signature, signature_of, slot
from .stateful import STATEFUL
from .weight_tree import WeightTree

DECODE_ARGUMENTS = ("lengths", "columns", "is_even")


@dataclass(frozen=True)
class CacheSpec:
    """One cache: `[batch, *before, slots, *after]`. `slots` None: as many as the run's capacity."""

    name: str
    before: tuple[int, ...]
    slots: int | None
    after: tuple[int, ...]
    dtype: torch.dtype
    span: str

    def shape(self, batch: int, capacity: int) -> tuple[int, ...]:
        # A window longer than the run needs no more slots than the run has rows.
        slots = capacity if self.slots is None else min(self.slots, capacity)
        return (batch, *self.before, slots, *self.after)


@dataclass(frozen=True)
class DecodeTypes:
    """What reals are computed in, what weights are stored in, and what keys and values are cached and attended in."""

    working: torch.dtype
    stored: torch.dtype
    attended: torch.dtype


@dataclass(frozen=True)
class DecodePlan:
    """Which values of a program are computed when. `axis` is the decoded one."""

    program: Program
    axis: Axis
    once: tuple[Node, ...]
    rows: tuple[Node, ...]
    carried: tuple[Value, ...]  # made once, read by rows
    same: dict[Value, Value]  # each value made once, and the carried one that equals it
    tail: frozenset[Node]  # rows nobody but the result reads: needed for the last new row only

    @property
    def row_inputs(self) -> tuple[Value, ...]:
        return tuple(value for value in self.program.inputs if value.type.rows is self.axis)

    @property
    def once_inputs(self) -> tuple[Value, ...]:
        return tuple(value for value in self.program.inputs if value.type.rows is not self.axis)

    @property
    def other_axes(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.program.ordered_axes if axis is not self.axis)


@dataclass(frozen=True)
class DecodeGraphs:
    """`begin` is None when nothing is computed once. `begin_signature` describes the inputs it and the carried values
    come from."""

    plan: DecodePlan
    begin: fx.GraphModule
    extend: fx.GraphModule
    last: fx.GraphModule
    step: fx.GraphModule
    caches: tuple[CacheSpec, ...]
    row_signature: Signature
    once_signature: Signature


def plan_decoding(program: Program) -> DecodePlan:
    """Sorts the program's values into those made once and those made per row. Causality has been checked before."""
    axis = decoded_axis(program)
    live = live_nodes(program, (value for _, value in program.outputs))
    along: set[Value] = {value for value in program.inputs if value.type.rows is axis}
    once, rows = [], []
    for node in live:
        if any(value in along for value in node.inputs) or any(value.type.rows is axis for value in node.outputs):
            rows.append(node)
            along.update(node.outputs)
        else:
            once.append(node)
    read = [value for node in rows for value in node.inputs] + [value for _, value in program.outputs]
    carried = dict.fromkeys(v for v in read if v not in along and not isinstance(v, Constant | Weight))
    return DecodePlan(
        program, axis, tuple(once), tuple(rows), tuple(carried), dict(zip(carried, carried, strict=True)), _tail(rows)
    )


def decoded_axis(program: Program) -> Axis:
    """The axis that grows: the one the outputs lie along."""
    axes = dict.fromkeys(value.type.rows for _, value in program.outputs)
    axis = next(iter(axes), None)
    if len(axes) != 1 or axis is None:
        raise NotLowered(f"decoding {program.name}, whose outputs do not all lie along one ragged axis", None)
    if not any(value.type.rows is axis for value in program.inputs):
        raise NotLowered(f"decoding {program.name}, which has no input along {axis.name}", None)
    return axis


def _tail(rows: list[Node]) -> frozenset[Node]:
    """Nodes whose every reader works on the same row and is such a node itself."""
    tail: set[Node] = set()
    needed_whole: set[Value] = set()
    for node in reversed(rows):
        if node.op.is_row_wise(node) and not any(value in needed_whole for value in node.outputs):
            tail.add(node)
        else:
            needed_whole.update(node.inputs)
    return frozenset(tail)


def derive(
    program: Program,
    weights: WeightTree,
    working: torch.dtype,
    stored: torch.dtype | None = None,
    attended: torch.dtype | None = None,
) -> DecodeGraphs:
    """The decoding graphs of a model. They read the same weights as its reference graph. `attended` is the type of
    cached keys and values, and of attention over them, when it is not that of the computation.

    A model that looks ahead raises Mistake, which says which value does; what has no stateful form yet, NotLowered.
    """
    error = why_not_generated(program)
    if error is not None:
        raise Mistake(error)
    plan = plan_decoding(program)
    stored = stored or working
    whole = signature_of(program)
    row_names = {value.name for value in plan.row_inputs}
    row_signature = replace(whole, inputs=tuple(s for s in whole.inputs if s.name in row_names), axes=(plan.axis.name,))
    once_signature = replace(
        whole,
        inputs=tuple(s for s in whole.inputs if s.name not in row_names),
        axes=tuple(axis.name for axis in plan.other_axes),
        outputs=tuple(slot(value.name, value.type) for value in plan.carried),
    )
    begin, plan = _begin(plan, weights, working, stored, once_signature)
    types = DecodeTypes(working, stored, attended or working)
    extend, specs = _rows(plan, weights, types, row_signature, "extend")
    last, _ = _rows(plan, weights, types, row_signature, "last")
    step, _ = _rows(plan, weights, types, row_signature, "step")
    return DecodeGraphs(plan, begin, extend, last, step, specs, row_signature, begin.meta[SIGNATURE])


def _begin(
    plan: DecodePlan, weights: WeightTree, working: torch.dtype, stored: torch.dtype, shape: Signature
) -> tuple[fx.GraphModule, DecodePlan]:
    """The graph of what is made once. Values that turn out to be one (the angles of every layer) are carried once."""
    context = GraphContext(plan.once_inputs, plan.other_axes, working, stored)
    for node in plan.once:
        context.lower(node, node.op.lower)
    context.under(Origin(plan.axis.span, PER_EXAMPLE))
    context.finish([whole_result(context, value) for value in plan.carried])
    if context.draws:
        raise NotLowered(f"decoding {plan.program.name}, which draws random numbers", None)
    module = graph_module(context.graph, weights, shape, f"{plan.program.name}_begin", working)
    join_common_subexpressions(module)
    output = module.graph.output_node()
    first: dict[fx.Node, Value] = {}
    results: Any = output.args[0]
    same = {value: first.setdefault(node, value) for value, node in zip(plan.carried, results, strict=True)}
    output.args = (tuple(first),)
    module.recompile()
    kept = tuple(first.values())
    module.meta[SIGNATURE] = replace(shape, outputs=tuple(slot(value.name, value.type) for value in kept))
    return module, replace(plan, carried=kept, same=same)


def _rows(
    plan: DecodePlan, weights: WeightTree, types: DecodeTypes, shape: Signature, form: str
) -> tuple[fx.GraphModule, tuple[CacheSpec, ...]]:
    context = DecodeContext(plan, types, form)
    for node in plan.rows:
        context.lower(node, node.op.lower)
    results = [context.result(value) for _, value in plan.program.outputs]
    context.finish(results)
    if context.draws:
        raise NotLowered(f"decoding {plan.program.name}, which draws random numbers", None)
    name = f"{plan.program.name}_{form}"
    return graph_module(context.graph, weights, shape, name, types.working), tuple(context.specs)


class DecodeContext(GraphContext):
    """Lowers the per-row part of a program for new rows only. `form` is "extend", "last" (results of each last row)
    or "step"."""

    def __init__(self, plan: DecodePlan, types: DecodeTypes, form: str) -> None:
        super().__init__(plan.row_inputs, (plan.axis,), types.working, types.stored)
        self.plan, self.types, self.form = plan, types, form
        self.specs: list[CacheSpec] = []
        self._in_tail = False
        self._met_stateful = False
        self._tail_values = {value for node in plan.tail for value in node.outputs}
        self._row_values = {value for node in plan.rows for value in node.outputs} | set(plan.row_inputs)
        for value in plan.carried:
            self._values[value] = self.argument(f"once_{value.name}", Origin(value.span, value.type, value=value))
            if value.type.rows is not None:
                self._rows_of.setdefault(value.type.rows, self._values[value])
        for value, equal in plan.same.items():
            self._values[value] = self._values[equal]
        for axis in plan.other_axes:
            self._offsets[axis] = self.argument(f"{axis.name}_offsets", Origin(axis.span, PER_EXAMPLE))
        counted = Origin(plan.axis.span, PER_EXAMPLE)
        self.lengths, self.columns, self.is_even = (self.argument(name, counted) for name in DECODE_ARGUMENTS)
        self._per_example = self.lengths
        if form == "step":
            # Rows and examples are the same here, and a step's lengths are the positions of its rows.
            self.lengths.meta[FACT] = Fact(plan.axis.name, (), torch.int64)

    @property
    def is_single(self) -> bool:
        """Every sequence has exactly one row here, so rows and examples are the same thing."""
        return self.form == "step" or self._in_tail

    # -- lowering ----------------------------------------------------------------------------------

    def lower(self, node: Node, rule: Callable[[Any, Node], Any]) -> None:
        self._in_tail = self.form == "last" and node in self.plan.tail
        self._met_stateful = False
        super().lower(node, rule)
        self._in_tail = False
        reads_rows = any(value in self._row_values for value in node.inputs)
        if reads_rows and not node.op.is_row_wise(node) and not self._met_stateful:
            raise NotLowered(f"decoding through `{node.op.name}`, which reads other rows", node)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        stateful = STATEFUL.get(function)
        if stateful is not None:
            made = stateful(self, *args, **kwargs)
            if made is not None:
                self._met_stateful = True
                return made
        return super().call(function, *args, **kwargs)

    def plain(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call that is already in its stateful form."""
        return super().call(function, *args)

    def result(self, value: Value) -> Any:
        self.under(Origin(value.span, value.type))
        self._in_tail = self.form == "last"
        try:
            return whole_result(self, value)
        finally:
            self._in_tail = False

    # -- rows --------------------------------------------------------------------------------------

    def row_example(self, axis: Axis) -> fx.Node:
        if axis is not self.plan.axis or not self.is_single:
            return super().row_example(axis)
        return self._once(
            ("every_example",), lambda: self._plan(lambda _: self.plain(caches.every_example, self.lengths), axis)
        )

    def position(self, axis: Axis) -> fx.Node:
        if axis is not self.plan.axis:
            return super().position(axis)
        if self.form == "step":
            return self.lengths
        everywhere = self._once(("position", axis), lambda: self._plan(self._make_position, axis))
        return self._last_of(everywhere) if self._in_tail else everywhere

    def _make_position(self, axis: Axis) -> fx.Node:
        if axis is not self.plan.axis:
            return super()._make_position(axis)
        rows = GraphContext.row_example(self, axis)
        return self.plain(caches.positions, self.offsets(axis), rows, self.lengths)

    def _value(self, value: Value) -> Any:
        node = super()._value(value)
        if self._in_tail and value in self._row_values and value not in self._tail_values:
            return self._last_of(node)
        return node

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        # What is made in the tail has other rows than what is made outside it.
        return super()._once((*key, "tail") if self._in_tail and key[0] != "weight" else key, make)

    def _last_of(self, node: Any) -> fx.Node:
        def rows() -> fx.Node:
            return self._plan(lambda _: self.plain(caches.last_rows, self._offsets[self.plan.axis]), self.plan.axis)

        which = self._once(("last_rows",), rows)
        return self._once(("last", node), lambda: self.plain(torch.index_select, node, 0, which))

    def _descend(self, value: Value, node: Any, rows: Axis | None, per_example: bool) -> Any:
        if self.is_single and value.type.rows is None and rows is self.plan.axis:
            return node
        return super()._descend(value, node, rows, per_example)

    # -- caches ------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        assert self._node is not None
        return self._node

    def cache(
        self, what: str, before: tuple[int, ...], slots: int | None, after: tuple[int, ...], dtype: torch.dtype
    ) -> fx.Node:
        """A further cache of the run, as an argument of the graph."""
        name = f"cache_{len(self.specs)}_{what}"
        self.specs.append(CacheSpec(name, before, slots, after, dtype, str(self.node.span)))
        return self.argument(name, replace(self._origin, value=None))

    def real_type(self) -> torch.dtype:
        """The type in which the node's reals are computed."""
        return self._wanted_type()
