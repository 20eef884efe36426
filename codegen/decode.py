"""Derived decoding: from a typed program, the graphs that go on from rows already seen.

    begin    what does not depend on the new rows (an encoder, a class embedding), computed once per sequence
    extend   any number of new rows per sequence, with caches of what later rows read
    step     the same for one new row per sequence: nothing depends on how many rows came before but the size of a slice

A value along the decoded axis is computed for the new rows only, one along a cut of it for the segments that close
among them; `decode_stages` leaves those parts of a graph out where none does. Functions of the reference graph that
read other rows have stateful forms in `decode_stateful`, keyed by the function itself, so an op that lowers to one of
them decodes without being named here; an op that reads other rows in another way is refused by name.

What a graph takes: the inputs along the decoded axis and its offsets, what `begin` carries over and the offsets of
its axes, then
`lengths` (rows so far), `columns` (slots in use afterwards), `is_even` (all lengths equal), then the caches, which it
writes in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ..dsl.causality import why_not_generated
from ..dsl.diagnostics import Mistake
from ..dsl.program import Program, Value
from .decisions import with_wide_values
from .decode_context import DecodeContext
from .decode_plan import CacheSpec, DecodePlan, DecodeTypes, plan_decoding
from .decode_stages import DecodeGraph, in_stages
from .decode_stateful import STATEFUL
from .graph_context import PER_EXAMPLE, GraphContext, NotLowered
from .lower import SIGNATURE, graph_module, whole_result
from .origin import Origin
from .passes.common_subexpressions import join_common_subexpressions
from .phases import Phase, in_phase, selecting_tags
from .signature import Signature, signature_of, slot
from .weight_tree import WeightTree


@dataclass(frozen=True)
class DecodeGraphs:
    """`begin` is None when nothing is computed once. `begin_signature` describes the inputs it and the carried values
    come from."""

    plan: DecodePlan
    begin: fx.GraphModule
    extend: DecodeGraph
    last: DecodeGraph
    step: DecodeGraph
    caches: tuple[CacheSpec, ...]
    row_signature: Signature
    once_signature: Signature
    whole: Mapping[str, fx.GraphModule]  # extend, last and step before they were cut into stages

    @property
    def tags(self) -> tuple[str, ...]:
        """Inputs along the new rows that these are selected by: a call may know their one value."""
        return selecting_tags(self.whole["extend"])

    def in_phase(self, form: str, phase: Phase) -> DecodeGraph:
        """One of extend, last and step for calls of which more is known."""
        return in_stages(in_phase(self.whole[form], self.plan.program, phase), self.plan.cuts)


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
    plan = plan_decoding(with_wide_values(program, working))
    stored = stored or working
    whole = signature_of(program)
    row_names = {value.name for value in plan.row_inputs}
    row_signature = replace(whole, inputs=tuple(s for s in whole.inputs if s.name in row_names), axes=plan.row_axes)
    once_signature = replace(
        whole,
        inputs=tuple(s for s in whole.inputs if s.name not in row_names),
        axes=tuple(axis.name for axis in plan.other_axes),
        selected=tuple(s for s in whole.selected if s.tag not in row_names),
        shown=tuple(s for s in whole.shown if s.tag not in row_names),
        outputs=tuple(slot(value.name, value.type) for value in plan.carried),
    )
    begin, plan = _begin(plan, weights, working, stored, once_signature)
    types = DecodeTypes(working, stored, attended or working)
    whole, specs = {}, ()
    for form in ("extend", "last", "step"):
        whole[form], specs = _rows(plan, weights, types, row_signature, form)
    staged = {form: in_stages(module, plan.cuts) for form, module in whole.items()}
    return DecodeGraphs(
        plan,
        begin,
        **staged,
        caches=specs,
        row_signature=row_signature,
        once_signature=begin.meta[SIGNATURE],
        whole=whole,
    )


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
    """The graph of one form, and the caches that it takes: those of any other form, too."""
    context = DecodeContext(plan, types, form, STATEFUL)
    for node in plan.rows:
        context.lower(node, node.op.lower)
    outputs = plan.program.outputs if form == "extend" else plan.row_outputs
    results = [context.result(value) for _, value in outputs]
    context.finish(results)
    if context.draws:
        raise NotLowered(f"decoding {plan.program.name}, which draws random numbers", None)
    name = f"{plan.program.name}_{form}"
    return graph_module(context.graph, weights, shape, name, types.working), tuple(context.specs)


__all__ = ["CacheSpec", "DecodeGraphs", "derive"]
