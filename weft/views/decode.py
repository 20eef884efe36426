"""`weft inspect FILE decode`: the derived decoder: what is computed once, what per row, what is cached.

This view needs torch: it shows the graphs that generation runs, not a prediction of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from weft.spec_files import print_errors

from .table import amount, table

if TYPE_CHECKING:
    from torch import fx

    from weft.codegen.decode import CacheSpec, DecodeGraphs
    from weft.dsl.program import Program
    from weft.dsl.source import Span


def data(program: Program) -> dict[str, Any]:
    graphs = _derive(program)
    plan = graphs.plan
    return {
        "model": plan.program.name,
        "axis": plan.axis.name,
        "inputs_per_row": [value.name for value in plan.row_inputs],
        "inputs_once": [value.name for value in plan.once_inputs],
        "operations_per_row": len(plan.rows),
        "operations_once": len(plan.once),
        "operations_last_row_only": len(plan.tail),
        "carried": [{"name": value.name, "type": str(value.type)} for value in plan.carried],
        "caches": [
            {
                "name": cache.name,
                "shape": ["batch", *cache.before, "capacity" if cache.slots is None else cache.slots, *cache.after],
                "dtype": str(cache.dtype).removeprefix("torch."),
                "at": cache.span,
            }
            for cache in graphs.caches
        ],
        "bytes_per_row": _bytes_per_row(graphs),
        "stages": [
            {
                "closing": list(stage.closing),
                "operations": stage.operations,
                "weights": stage.weights,
                "at": stage.lines,
            }
            for stage in _stages(graphs)
        ],
        "phases": [
            {"tag": one.tag, "rows": one.member, "weights": one.weights, "masked": one.masked, "attentions": one.attend}
            for one in _phases(graphs)
        ],
    }


@dataclass(frozen=True)
class _Stage:
    """A part of a step. `closing`: the cuts of which a segment has to close for it to run; none: it always runs.
    `weights`: entries of the weights it reads. `lines` of the spec that it computes."""

    closing: tuple[str, ...]
    operations: int
    weights: int
    lines: str


def _stages(graphs: DecodeGraphs) -> list[_Stage]:
    """The parts of a step in order; a spec without segments has one."""
    from weft.codegen.decode_stages import StagedGraph

    if not isinstance(graphs.step, StagedGraph):
        return [_stage(graphs.step, (), graphs.plan.program.span)]
    cuts: dict[Span | None, str] = {cut.span: cut.name for cut in graphs.plan.cuts}
    made = {node.name: node for stage in graphs.step.stages for node in _calls(stage.module)}
    found = []
    for stage in graphs.step.stages:
        closing = tuple(dict.fromkeys(cuts[_span(made[name])] for name in stage.closing or ()))
        found.append(_stage(stage.module, closing, graphs.plan.program.span))
    return found


def _stage(module: fx.GraphModule, closing: tuple[str, ...], model: Span) -> _Stage:
    from weft.codegen.origin import user_span

    weights = {str(node.target) for node in module.graph.find_nodes(op="get_attr") if node.users}
    spans = [span for node in _calls(module) if (span := user_span(node)) is not None and span.source is model.source]
    lines = sorted({span.line for span in spans if model.line <= span.line})
    said = "" if not lines else f"{lines[0]}" if len(lines) == 1 else f"{lines[0]} .. {lines[-1]}"
    count = sum(module.get_parameter(name).numel() for name in weights)
    return _Stage(closing, len(_calls(module)), count, said)


@dataclass(frozen=True)
class _OnePhase:
    """A call whose new rows all have one value of a tag, and are alone (codegen/phases.py). `weights`: entries of those
    it reads. `attend`: attentions over the caches, of which `masked` have a mask."""

    tag: str
    member: str
    weights: int
    masked: int
    attend: int


def _phases(graphs: DecodeGraphs) -> list[_OnePhase]:
    from weft.codegen.decode_stages import modules
    from weft.codegen.phases import Phase

    found = []
    for tag in graphs.tags:
        (members,) = (slot.members for slot in graphs.row_signature.inputs if slot.name == tag)
        for number, member in enumerate(members):
            parts = modules(graphs.in_phase("extend", Phase(((tag, number),), alone=True)))
            found.append(_one_phase(tag, member, parts))
    return found


def _one_phase(tag: str, member: str, parts: tuple[fx.GraphModule, ...]) -> _OnePhase:
    from weft.codegen.functions.caches import attend_extend, attend_general

    names = {str(node.target): module for module in parts for node in module.graph.find_nodes(op="get_attr")}
    weights = sum(module.get_parameter(name).numel() for name, module in names.items())
    attended = [node for module in parts for node in _calls(module) if node.target in (attend_general, attend_extend)]
    # The reference is told of a mask by a band and a predicate.
    masked = [node for node in attended if node.target is attend_extend or node.args[9:12] != (None, None, None)]
    return _OnePhase(tag, member, weights, len(masked), len(attended))


def _phase_table(graphs: DecodeGraphs) -> list[str]:
    rows = [
        (f"{one.tag} = {one.member}", f"{one.weights:,}", f"{one.masked} of {one.attend}") for one in _phases(graphs)
    ]
    head = ("new rows that all have", "weights", "masked attentions")
    return [table(head, rows, right=(1, 2)), ""] if rows else []


def _calls(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def _span(node: fx.Node) -> Span | None:
    from weft.codegen.origin import origin

    return origin(node).span


def _stage_table(graphs: DecodeGraphs) -> list[str]:
    stages = _stages(graphs)
    if len(stages) == 1:
        return []
    rows = [
        (
            "at every row" if not stage.closing else f"when a {' or '.join(stage.closing)} closes",
            f"{stage.operations:,}",
            f"{stage.weights:,}",
            stage.lines,
        )
        for stage in stages
    ]
    return [table(("a step runs", "operations", "weights", "lines"), rows, right=(1, 2)), ""]


def text(program: Program) -> str:
    graphs = _derive(program)
    plan = graphs.plan
    inputs = ", ".join(f"{value.name}: {value.type}" for value in plan.row_inputs)
    lines = [f"model {plan.program.name} goes on row by row along {plan.axis.name}, fed with {inputs}", ""]
    if plan.once:
        given = ", ".join(value.name for value in plan.once_inputs)
        carried = Counter(f"{value.name}: {value.type}" for value in plan.carried)
        made = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in carried.items())
        lines += [f"once per sequence: {len(plan.once)} operations{f' on {given}' if given else ''}, giving {made}"]
    else:
        lines += ["once per sequence: nothing"]
    lines += [
        f"per row: {len(plan.rows)} operations, {len(plan.tail)} of them for the last row of a prompt only",
        "",
        *_stage_table(graphs),
        *_phase_table(graphs),
        _cache_table(graphs),
        "",
    ]
    growing = _bytes_per_row(graphs)
    if growing:
        lines.append(
            f"{amount(growing)} per row and sequence in float32, {amount(growing / 2)} in bfloat16: "
            f"{amount(growing * 4096)} for 4,096 rows in float32"
        )
    return "\n".join(lines)


def _derive(program: Program) -> DecodeGraphs:
    import torch

    from weft.codegen.decode import derive
    from weft.codegen.lower import empty_weights
    from weft.dsl.causality import why_not_generated

    error = why_not_generated(program)
    if error is not None:
        print_errors([error], file=sys.stderr)
        raise SystemExit(1)
    # Shapes are enough: a 32B model's decoder is shown without its weights.
    weights = empty_weights(program.weights, torch.float32, "meta")
    return derive(program, weights, torch.float32)


def _cache_table(graphs: DecodeGraphs) -> str:
    """Equal caches of several layers are one line."""
    counted: dict[tuple[str, str, str, str], int] = {}
    for cache in graphs.caches:
        what = cache.name.split("_", 2)[-1]
        slots = "one per row" if cache.slots is None else f"the last {cache.slots}"
        shape = " x ".join(map(str, (*cache.before, *cache.after))) or "1"
        key = (what, slots, shape, cache.span)
        counted[key] = counted.get(key, 0) + 1
    if not counted:
        return "cached: nothing, every row stands alone"
    rows = [(what, f"{count} x", slots, shape, span) for (what, slots, shape, span), count in counted.items()]
    return table(("cached", "count", "slots", "entry", "read by"), rows, right=(1,))


def _bytes_per_row(graphs: DecodeGraphs) -> int:
    return sum(_entry_bytes(cache) for cache in graphs.caches if cache.slots is None)


def _entry_bytes(cache: CacheSpec) -> int:
    return prod((*cache.before, *cache.after)) * cache.dtype.itemsize
