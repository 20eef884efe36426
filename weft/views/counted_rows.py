"""Linears, such as those of logits, that a training step makes for the rows that a loss counts and for no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .table import table

if TYPE_CHECKING:
    from torch import fx

    from weft.dsl.program import Program


@dataclass(frozen=True)
class CountedRow:
    """A linear by its spec line and size; `losses`: the lines of those that count its rows."""

    spec: str
    what: str
    losses: tuple[str, ...]


def of_programs(programs: Sequence[Program]) -> list[CountedRow]:
    """Of the objectives among them; the same on every device."""
    import torch

    from weft.codegen.lower import empty_weights, lower
    from weft.codegen.pipeline import BASIC_PASSES, COUNTED_ROWS, optimise

    found: dict[CountedRow, None] = {}
    for program in programs:
        weights = empty_weights(program.weights, torch.bfloat16, "meta")
        graph = lower(program, weights, torch.bfloat16)
        found |= dict.fromkeys(_of_graph(optimise(graph, (*BASIC_PASSES, COUNTED_ROWS))))
    return list(found)


def _of_graph(module: fx.GraphModule) -> list[CountedRow]:
    from weft.codegen.facts import facts
    from weft.codegen.passes.counted_rows import counted_linears

    known = facts(module)
    found = []
    for linear, losses in counted_linears(module).items():
        outputs, inputs = known[linear.args[1]].dims  # type: ignore[index]
        places = tuple(dict.fromkeys(map(_place, losses)))
        found.append(CountedRow(_place(linear), f"linear {inputs} -> {outputs}", places))
    return found


def _place(node: fx.Node) -> str:
    from weft.codegen.origin import user_span

    span = user_span(node)
    return "" if span is None else f"{span.source.name}:{span.line}"


def data(rows: Sequence[CountedRow]) -> list[dict[str, Any]]:
    return [{"spec": row.spec, "op": row.what, "losses": list(row.losses)} for row in rows]


def text(rows: Sequence[CountedRow]) -> str:
    if not rows:
        return "every linear is made for all rows"
    cells = [(row.spec, row.what, ", ".join(row.losses)) for row in rows]
    title = "made in a training step for the rows that a loss counts, and for no others"
    return f"{title}\n\n{table(('spec', 'operator', 'losses'), cells)}"
