"""The kernels that a graph launches on a GPU, with the spec lines they serve, ready to be compiled and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from .kernels import Direction, Planned

if TYPE_CHECKING:
    import torch
    from torch import fx

    from weft.codegen.choices import Choices
    from weft.codegen.decode_stages import DecodeGraph
    from weft.codegen.gpu.attention_kernels import DecodeKey
    from weft.codegen.kernel_text import KernelText
    from weft.codegen.logits.op import LogitsOp
    from weft.codegen.rowwise.fused import FusedOp
    from weft.codegen.rowwise.plan import RowPlan
    from weft.codegen.segment_text import SegmentCall
    from weft.dsl.check import Checked
    from weft.dsl.program import Program
    from weft.dsl.source import Span

# Rows of an example, for the cost of attention; in a decoding step, rows that each sequence has already.
LENGTH = 4096
# Sequences of a decoding step.
SEQUENCES = 32
# What tensor cores multiply float32 in.
MATMUL_TYPES = {"fp32": "tf32"}


def of_spec(checked: Checked, targets: Sequence[str], rows: int, choices: Choices | None = None) -> list[Planned]:
    """Of the objectives of a spec, or of its model where it has none, for each target, and of a step of the model's
    decoder where it has one; kernels that objectives share are there once. `rows`: of one training step, for bytes and
    operations; `choices`: what was measured."""
    programs = list(checked.objectives.values()) or [checked.model]
    planned = of_graphs([fused(program, choices) for program in programs], targets, rows)
    return planned + _of_decoder(checked.model, targets)


def of_program(program: Program, targets: Sequence[str], rows: int, choices: Choices | None = None) -> list[Planned]:
    """The same of one model or objective."""
    return of_graphs([fused(program, choices)], targets, rows) + _of_decoder(program, targets)


def _of_decoder(program: Program, targets: Sequence[str]) -> list[Planned]:
    import torch

    step = None if program.losses else decoding_step(program, torch.bfloat16)
    return [] if step is None else [one for target in targets for one in of_step(step, target)]


def of_graphs(graphs: Sequence[fx.GraphModule], targets: Sequence[str], rows: int) -> list[Planned]:
    """Kernels that graphs share are there once."""
    found: dict[tuple[KernelText, str, str], Planned] = {}
    for graph in graphs:
        for target in targets:
            for one in of_graph(graph, target, rows):
                found.setdefault((one.kernel, one.target, one.spec), one)
    return list(found.values())


def fused(program: Program, choices: Choices | None = None) -> fx.GraphModule:
    """The graph of a program after the passes for a GPU, in bfloat16. Weights are shapes only."""
    import torch

    from weft.codegen.lower import empty_weights, lower
    from weft.codegen.pipeline import GPU_PASSES, optimise, with_choices

    weights = empty_weights(program.weights, torch.bfloat16, "meta")
    passes = GPU_PASSES if choices is None else with_choices(GPU_PASSES, choices)
    return optimise(lower(program, weights, torch.bfloat16), passes)


def decoding_step(program: Program, dtype: torch.dtype) -> DecodeGraph | None:
    """The graph of one new row per sequence after the passes for a GPU; None for a model that does not decode."""
    from weft.codegen.decode import derive
    from weft.codegen.decode_stages import map_modules
    from weft.codegen.graph_context import NotLowered
    from weft.codegen.lower import empty_weights
    from weft.codegen.pipeline import GPU_PASSES, optimise
    from weft.dsl.diagnostics import Mistake

    try:
        graphs = derive(program, empty_weights(program.weights, dtype, "meta"), dtype)
    except (Mistake, NotLowered):
        return None
    return map_modules(graphs.step, lambda module: optimise(module, GPU_PASSES))


def of_graph(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """Rowwise kernels and those of logits, forward and backward, in the order of the graph, then those of grouped
    linears, of cuts, of attention, of selections, of bags, of gradients of tables and of segments; calls that share a
    kernel are counted."""
    from weft.codegen.logits.op import LogitsOp
    from weft.codegen.origin import user_span
    from weft.codegen.rowwise.fused import FusedOp

    found: dict[object, list[Planned]] = {}
    for node in module.graph.nodes:
        op = node.target
        if isinstance(op, FusedOp | LogitsOp):
            made = of_op(op, user_span(node), target, _rows_of(node, rows))
            known = found.get(op.key)
            found[op.key] = made if known is None else [
                replace(one, count=one.count + more.count) for one, more in zip(known, made, strict=True)
            ]  # fmt: skip
    made = [one for both in found.values() for one in both]
    more = (of_grouped, of_cuts, of_attention, of_run_attention, of_selections, of_bags, of_tables, of_segments)
    return made + [one for kernels in more for one in kernels(module, target, rows)]


def _rows_of(node: fx.Node, rows: int) -> int:
    """How many rows a call works on where the axis that is cut has `rows`: of a segment there are fewer."""
    from weft.codegen.cost import SEGMENT
    from weft.codegen.origin import origin
    from weft.dsl.axes import Cut

    type_ = origin(node).type
    axis = None if type_ is None else type_.rows
    while axis is not None and isinstance(axis.kind, Cut):
        rows, axis = -(-rows // SEGMENT), axis.kind.parent
    return rows


def of_cuts(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """The kernels that number the segments of cuts."""
    from torch import fx

    from weft.codegen.cut_scan_text import cut_scan_kernel, cut_scan_work, cut_scans
    from weft.codegen.origin import user_span

    found: dict[object, Planned] = {}
    for made, node in cut_scans(module):
        span, ends = user_span(node), node.args[0]
        assert isinstance(ends, fx.Node)
        work = cut_scan_work(made, _rows_of(ends, rows))
        one = Planned(cut_scan_kernel(made), target, _place(span), "forward", work, 1, _line(span))
        known = found.get((made, one.spec))
        found[made, one.spec] = one if known is None else replace(known, count=known.count + 1)
    return list(found.values())


def of_grouped(module: fx.GraphModule, target: str, rows: int, is_step: bool = False) -> list[Planned]:
    """The kernels of linears over the parts of a routing; weights that are not trained have no gradient."""
    from weft.codegen.emit_kernels import render
    from weft.codegen.grouped.cost import grouped_work
    from weft.codegen.grouped.op import GroupedOp, trained_weights
    from weft.codegen.grouped.text import kernel_texts
    from weft.codegen.origin import user_span

    found: dict[tuple[GroupedOp, int, str], list[fx.Node]] = {}
    for node in module.graph.nodes:
        if isinstance(node.target, GroupedOp):
            key = node.target, trained_weights(module, node), _place(user_span(node))
            found.setdefault(key, []).append(node)
    planned = []
    for (op, trained, place), nodes in found.items():
        for product, text in kernel_texts(op, target, render).items():
            is_forward = product == "forward"
            if is_forward or (not is_step and (trained or product == "x_gradient")):
                direction = "decode" if is_step else "forward" if is_forward else "backward"
                work = grouped_work(op, product, rows if is_step else _rows_of(nodes[0], rows), trained)
                line = _line(user_span(nodes[0]))
                planned.append(Planned(text, target, place, direction, work, len(nodes), line))
        if op.epilogue is not None:
            of_rows = rows if is_step else _rows_of(nodes[0], rows)
            # Of each group by itself; forward only where the product is not ours.
            made = of_op(op.epilogue.call, user_span(nodes[0]), target, of_rows)
            wanted = [one for one in made if one.direction != "forward" or op.forward is None]
            planned += [
                replace(one, count=len(nodes) * op.form.groups, direction="decode" if is_step else one.direction)
                for one in (wanted if not is_step else [one for one in wanted if one.direction == "forward"])
            ]
    return planned


def of_attention(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """The attention kernels of training, for examples of LENGTH rows each."""
    from weft.codegen.cost import Work
    from weft.codegen.origin import user_span
    from weft.codegen.passes.measured_choices import choices_of
    from weft.codegen.score.cost import Rows, kernel_cost
    from weft.codegen.score.graph_keys import attention_keys
    from weft.codegen.score.kernels import kernel_text, left_to_torch, plan_of, training_kernels
    from weft.codegen.subjects import chosen_tiles

    found, choices = [], choices_of(module)
    for key, nodes in attention_keys(module).items():
        plan, span = plan_of(key), user_span(nodes[0])
        queries, keys, seen = _attended(nodes[0], rows)
        for kernel in training_kernels(plan, target):
            tiles = None if choices is None else chosen_tiles(kernel, choices)
            if tiles is not None:
                kernel = kernel_text(plan, kernel.name, target, tiles)
            cost = kernel_cost(plan, kernel.name, Rows(queries, keys, round(queries * seen)))
            direction = "forward" if kernel.name == "attention_forward" else "backward"
            matmul_type = MATMUL_TYPES.get(plan.dtype, plan.dtype)
            work = Work(cost.read, cost.written, matmul=cost.flops, matmul_type=matmul_type)
            one = Planned(kernel, target, _place(span), direction, work, len(nodes), _line(span))
            found.append(replace(one, note=left_to_torch(plan)))
    return found


def of_run_attention(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """The kernels of attention of segments to their own rows."""
    from torch import fx

    from weft.codegen.origin import user_span
    from weft.codegen.run_attention_text import FORWARD, run_attention_kernels, run_attention_work, run_attentions

    found = []
    for made, nodes in run_attentions(module).items():
        span, keys = user_span(nodes[0]), nodes[0].args[1]
        assert isinstance(keys, fx.Node)
        for kernel in run_attention_kernels(made):
            work = run_attention_work(made, kernel.name, _rows_of(keys, rows), _rows_of(nodes[0], rows))
            direction = "forward" if kernel.name == FORWARD else "backward"
            found.append(Planned(kernel, target, _place(span), direction, work, len(nodes), _line(span)))
    return found


def of_tables(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """The kernels that add gradients into the rows of tables that they are for."""
    from weft.codegen.origin import user_span
    from weft.codegen.scatter_text import scatter_kernels, scatter_work, table_gradients

    found: dict[object, list[Planned]] = {}
    for gradient, node in table_gradients(module):
        span = user_span(node)
        found.setdefault((gradient, _place(span)), []).extend(
            Planned(kernel, target, _place(span), "backward", scatter_work(gradient, kernel.name, rows), 1, _line(span))
            for kernel in scatter_kernels(gradient.width, gradient.dtype, gradient.weight)
        )
    return [replace(one, count=len(all_) // 2) for all_ in found.values() for one in all_[:2]]


def of_selections(module: fx.GraphModule, target: str, rows: int, is_step: bool = False) -> list[Planned]:
    """The kernels that select the largest scores, and the sums of keys that are the gradients of rows."""
    from weft.codegen.bag_text import bag_work, forward_kernels
    from weft.codegen.origin import user_span
    from weft.codegen.selection_text import (
        SelectionCall,
        gradient_bag,
        selection_calls,
        selection_kernels,
        selection_work,
    )

    found: dict[tuple[SelectionCall, str], list[fx.Node]] = {}
    for call, node in selection_calls(module):
        found.setdefault((call, _place(user_span(node))), []).append(node)
    planned = []
    for (call, place), nodes in found.items():
        count, line, of_rows = len(nodes), _line(user_span(nodes[0])), rows if is_step else _rows_of(nodes[0], rows)
        direction: Direction = "decode" if is_step else "forward"
        planned += [
            Planned(kernel, target, place, direction, selection_work(call, kernel.name, of_rows), count, line)
            for kernel in selection_kernels(call, target, of_rows)
        ]
        bag = gradient_bag(call)
        planned += [
            Planned(kernel, target, place, "backward", bag_work(bag, kernel.name, of_rows), count, line)
            for kernel in (() if is_step else forward_kernels(bag, of_rows))
        ]
    return planned


def of_bags(module: fx.GraphModule, target: str, rows: int, is_step: bool = False) -> list[Planned]:
    """The kernels that sum rows of tables, or multiply by them, without storing what they read."""
    from weft.codegen.bag_text import BagCall, backward_kernels, bag_calls, bag_work, forward_kernels
    from weft.codegen.origin import user_span

    found: dict[tuple[BagCall, str], list[fx.Node]] = {}
    for call, node in bag_calls(module):
        found.setdefault((call, _place(user_span(node))), []).append(node)
    planned = []
    for (call, place), nodes in found.items():
        line, of_rows = _line(user_span(nodes[0])), rows if is_step else _rows_of(nodes[0], rows)
        direction: Direction = "decode" if is_step else "forward"
        planned += [
            Planned(kernel, target, place, direction, bag_work(call, kernel.name, of_rows), len(nodes), line)
            for kernel in forward_kernels(call, of_rows)
        ]
        planned += [
            Planned(kernel, target, place, "backward", bag_work(call, kernel.name, of_rows), len(nodes), line)
            for kernel in (() if is_step else backward_kernels(call, of_rows))
        ]
    return planned


def of_segments(module: fx.GraphModule, target: str, rows: int) -> list[Planned]:
    """The kernels over segments, for as many rows in a segment as patches of bytes have."""
    from weft.codegen.origin import user_span
    from weft.codegen.segment_text import call_kernels, call_work, segment_calls

    found: dict[tuple[SegmentCall, str, str], Planned] = {}
    for call, node in segment_calls(module):
        span = user_span(node)
        for number, kernel in enumerate(call_kernels(call)):
            is_forward = number == 0 and call.by not in ("find", "runs")
            one = Planned(
                kernel, target, _place(span), "forward" if is_forward else "backward",
                call_work(call, kernel.name, rows), 1, _line(span),
            )  # fmt: skip
            known = found.get((call, kernel.name, one.spec))
            found[call, kernel.name, one.spec] = one if known is None else replace(known, count=known.count + 1)
    return list(found.values())


def of_step(step: DecodeGraph, target: str) -> list[Planned]:
    """What a decoding step launches, for SEQUENCES sequences that have LENGTH rows each. Where segments are decoded,
    as if one closed in each of them."""
    from weft.codegen.decode_stages import modules
    from weft.codegen.facts import WORKING
    from weft.codegen.origin import user_span
    from weft.codegen.rowwise.fused import FusedOp
    from weft.codegen.score.graph_keys import decode_keys

    found: dict[object, Planned] = {}
    attentions: dict[DecodeKey, list[fx.Node]] = {}
    for module in modules(step):
        for node in module.graph.nodes:
            if isinstance(node.target, FusedOp):
                made = replace(of_op(node.target, user_span(node), target, SEQUENCES)[0], direction="decode")
                known = found.get(made.kernel)
                found[made.kernel] = made if known is None else replace(known, count=known.count + 1)
        for kernels in (of_grouped, of_selections, of_bags):
            found |= {one.kernel: one for one in kernels(module, target, SEQUENCES, is_step=True)}
        for key, nodes in decode_keys(module, module.meta[WORKING]).items():
            attentions.setdefault(key, []).extend(nodes)
    planned = list(found.values())
    for key, nodes in attentions.items():
        planned += _of_decode_attention(key, user_span(nodes[0]), target, len(nodes))
    return planned


def _of_decode_attention(key: DecodeKey, span: Span | None, target: str, count: int) -> list[Planned]:
    from weft.codegen.cost import Work
    from weft.codegen.gpu.attention_decode import splits_of
    from weft.codegen.score.cost import decode_cost
    from weft.codegen.score.decode import DECODE_KERNELS, DecodePlan, decode_text
    from weft.codegen.score.load import plan_of
    from weft.codegen.targets import devices_of

    plan = DecodePlan(plan_of(key), key.rows, key.low, key.high)
    length = LENGTH if key.low is None else min(LENGTH, 1 - key.low)
    texts = {name: decode_text(plan, name, target) for name in DECODE_KERNELS}
    block = dict(texts["attention_decode"].constants)["BLOCK_N"]
    assert isinstance(block, int)
    splits = splits_of(SEQUENCES * key.key_heads, -(-length // block), devices_of(target)[0].processors)
    found = []
    for name, text in texts.items():
        cost = decode_cost(plan, name, SEQUENCES, SEQUENCES * length, splits)
        dtype = plan.attention.dtype
        work = Work(cost.read, cost.written, matmul=cost.flops, matmul_type=MATMUL_TYPES.get(dtype, dtype))
        found.append(Planned(text, target, _place(span), "decode", work, count, _line(span)))
    return found


def _attended(node: fx.Node, rows: int) -> tuple[int, int, float]:
    """Rows of queries and of keys, and how many keys a query sees. Segments that are examples have one query each."""
    from torch import fx

    from weft.codegen.cost import SEGMENT
    from weft.codegen.functions.cuts import each_alone

    queries = _rows_of(node, rows)
    keys = node.args[1]
    of_keys = _rows_of(keys, rows) if isinstance(keys, fx.Node) else rows
    grouped = node.args[3]
    if isinstance(grouped, fx.Node) and grouped.target is each_alone:
        return queries, of_keys, SEGMENT
    return queries, of_keys, _seen(node.kwargs.get("low"), node.kwargs.get("high"), min(of_keys, LENGTH))


def _seen(low: Any, high: Any, length: int) -> float:
    """Keys that a row sees on average in an example, by the band of its mask alone."""
    first = -length if low is None else int(low)
    last = length if high is None else int(high)
    counts = (max(0, min(length - 1, row + last) - max(0, row + first) + 1) for row in range(length))
    return sum(counts) / length


def of_op(op: FusedOp | LogitsOp, span: Span | None, target: str, rows: int) -> list[Planned]:
    """The kernels of one call, forward first. `span`: the spec line it serves."""
    from weft.codegen.logits.op import LogitsOp
    from weft.codegen.rowwise.kept import kept
    from weft.codegen.rowwise.kernel_texts import row_kernel_text, row_work

    if isinstance(op, LogitsOp):
        return _of_logits(op, span, target, rows)
    sides: list[tuple[Literal["forward", "backward"], RowPlan | None]] = [
        ("forward", op.forward),
        ("backward", op.backward),
    ]
    read = () if op.derivative is None else kept(op.program, op.derivative)
    return [
        Planned(
            row_kernel_text(plan), target, _place(span), direction, row_work(plan, rows), 1, _line(span),
            read if direction == "backward" else (),
        )
        for direction, plan in sides
        if plan is not None
    ]  # fmt: skip


def _of_logits(op: LogitsOp, span: Span | None, target: str, rows: int) -> list[Planned]:
    """A kernel that works in blocks is launched for each."""
    from weft.codegen.emit_kernels import render
    from weft.codegen.logits.cost import logits_work
    from weft.codegen.logits.text import kernel_texts

    found, work = [], logits_work(op, rows)
    for role, text in kernel_texts(op, target, render).items():
        direction = "forward" if role in ("statistics", "merge") else "backward"
        found.append(Planned(text, target, _place(span), direction, *work[role], _line(span)))
    return found


def _place(span: Span | None) -> str:
    return "" if span is None else f"{span.source.name}:{span.line}"


def _line(span: Span | None) -> str:
    return "" if span is None else span.source.text.splitlines()[span.line - 1].strip()
