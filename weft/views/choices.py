"""Which implementation and configuration each operator of a step gets: the default, or what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from torch import fx

    from weft.codegen.choices import Choice, Choices
    from weft.codegen.configuration import Configuration
    from weft.dsl.program import Program

_NAMES = {"triton": "ours"}
_SIDES = ("BLOCK_M", "BLOCK_N", "BLOCK_V", "BLOCK_K", "BLOCK_D")
_SHORT = {"BLOCK_R": "rows", "PROGRAMS": "programs", "ENTRIES": "entries", "TILE": "positions", "BLOCK_E": "entries"}


@dataclass(frozen=True)
class ChoiceRow:
    """`count`: calls in a step. `choice` as it is shown; `microseconds` None where nothing was measured."""

    spec: str
    what: str
    count: int
    choice: str
    microseconds: float | None


def said(chosen: Configuration) -> str:
    """A configuration in words: `ours 128 x 64 x 32, 8 warps, 3 stages`."""
    name = _NAMES.get(chosen.implementation, chosen.implementation)
    constants = dict(chosen.constants)
    tile = [constants.pop(side) for side in _SIDES if side in constants]
    parts = [" x ".join(str(side) for side in tile if side)] if any(tile) else []
    parts += [f"{value:,} {_SHORT.get(key, key.lower())}" for key, value in constants.items() if value]
    parts += [f"{chosen.warps} warps"] if chosen.warps else []
    parts += [f"{chosen.stages} stages"] if chosen.stages else []
    return f"{name} {', '.join(parts)}".rstrip()


def of_programs(programs: Sequence[Program], choices: Choices | None) -> list[ChoiceRow]:
    """Of the steps of several programs; what they share is there once."""
    from .planned_kernels import fused

    found: dict[tuple[str, str], ChoiceRow] = {}
    for program in programs:
        for row in of_graph(fused(program), choices):
            found.setdefault((row.spec, row.what), row)
    return list(found.values())


def of_graph(module: fx.GraphModule, choices: Choices | None) -> list[ChoiceRow]:
    """Of the graph after the passes for a GPU, before choices are put in; in its order."""
    from weft.codegen.choices import Choice
    from weft.codegen.facts import facts
    from weft.codegen.origin import user_span
    from weft.codegen.passes.fuse import needs_gradient
    from weft.codegen.passes.measured_choices import plain_attentions

    known, plain = facts(module), plain_attentions(module)
    wanted = needs_gradient(module, known)
    found: dict[tuple[str, str], tuple[str, int, Choice]] = {}
    for node in module.graph.nodes:
        for what, subject, default in _asked(node, known, plain, wanted):
            span = user_span(node)
            place = "" if span is None else f"{span.source.name}:{span.line}"
            choice = Choice(default) if choices is None else choices.of(subject, default)
            _, count, _ = found.get((what, subject), (place, 0, choice))
            found[what, subject] = found.get((what, subject), (place, 0, choice))[0], count + 1, choice
    return [
        ChoiceRow(place, what, count, _shown(choice), choice.microseconds)
        for (what, _), (place, count, choice) in found.items()
    ]


def _asked(node: fx.Node, known: Any, plain: Any, wanted: Any) -> list[tuple[str, str, Configuration]]:
    """What is chosen at a node: name, subject, default."""
    from weft.codegen import subjects
    from weft.codegen.choices import TORCH
    from weft.codegen.configuration import Configuration
    from weft.codegen.grouped.op import GroupedOp
    from weft.codegen.logits.op import LogitsOp
    from weft.codegen.passes.measured_choices import linear_key
    from weft.codegen.rowwise.fused import FusedOp

    op = node.target
    if isinstance(op, FusedOp):
        plans = [("", op.forward), (" backward", op.backward)]
        return [
            (f"{op.name}{side}", subjects.row_subject(plan), subjects.row_default(plan))
            for side, plan in plans
            if plan is not None
        ]
    if isinstance(op, LogitsOp):
        return [(f"logits {op.width} -> {op.vocabulary}", subjects.logits_subject(op), subjects.logits_default(op))]
    if isinstance(op, GroupedOp):
        outputs = " + ".join(map(str, op.form.outputs))
        groups, without = op.form.groups, op.groups_without([operand in wanted for operand in node.args])
        of_groups = f"{groups} groups" + (f" ({without} without gradient)" if without else "")
        return [
            (
                f"grouped linear {op.form.inputs} -> {outputs}, {of_groups}, {product.replace('_', ' ')}",
                subjects.grouped_subject(op, product),
                subjects.grouped_default(op, product),
            )
            for product in subjects.PRODUCTS
        ]
    key = linear_key(node, known)
    if key is not None:
        return [
            (
                f"linear {key.inputs} -> {key.outputs} {product.replace('_', ' ')}",
                subjects.linear_subject(key, product),
                Configuration(implementation=TORCH),
            )
            for product in subjects.PRODUCTS
        ]
    if node in plain:
        return [("attention", subjects.plain_attention_subject(*plain[node]), Configuration())]
    return []


def _shown(choice: Choice) -> str:
    name = _NAMES.get(choice.configuration.implementation, choice.configuration.implementation)
    return f"{name} (default)" if choice.microseconds is None else said(choice.configuration)


def data(rows: list[ChoiceRow]) -> list[dict[str, Any]]:
    return [
        {"spec": r.spec, "op": r.what, "calls": r.count, "choice": r.choice, "microseconds": r.microseconds}
        for r in rows
    ]


def text(rows: list[ChoiceRow], device: str | None) -> str:
    """A table; `device`: the one that measurements are of."""
    if not rows:
        return "nothing to choose"
    cells = [
        (r.spec, r.what, f"{r.count:,}", r.choice, "" if r.microseconds is None else f"{r.microseconds:,.1f}")
        for r in rows
    ]
    title = "choices, of which none was measured" if device is None else f"choices, as measured on {device}"
    return f"{title}\n\n{table(('spec', 'operator', 'calls', 'choice', 'us'), cells, right=(2, 4))}"
