"""Phases of decoding: graphs for calls of which more is known than that they are legal.

    text step       every new row is a word: no weight of a picture is read
    denoise step    every new row is of a picture, one for each sequence: no weight of words is read, nothing is masked
    mixed           anything: the graph itself

Which phases there are follows from the tags of a program's rows; nothing here knows what they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import fx

from ..dsl.program import Program
from .functions import selections
from .lower import signature
from .origin import origin
from .passes.matching import is_call, node_at
from .passes.one_tag import fold_tags
from .passes.whole_sight import see_all
from .pipeline import Pass, optimise


@dataclass(frozen=True)
class Phase:
    """`tags`: inputs that have one value at all new rows, and its number. `alone`: the new rows of each sequence are
    one row, or the rows of one owner (one picture)."""

    tags: tuple[tuple[str, int], ...]
    alone: bool


def in_phase(module: fx.GraphModule, program: Program, phase: Phase) -> fx.GraphModule:
    """The reference graph of new rows for calls of a phase. It takes and gives what `module` does."""
    tags = dict(phase.tags)
    has_owner = any(tags.get(shown.tag) in (None, *shown.members) for shown in signature(module).shown)
    one_tag = partial(fold_tags, program=program, tags=tags, alone=phase.alone)
    whole_sight = partial(see_all, is_one_row=phase.alone and not has_owner)
    passes = (
        Pass("one-tag", one_tag, "arms that no row runs; first, as it tells what rows a mask reads"),
        Pass("whole-sight", whole_sight, "masks that hide nothing from rows that are alone"),
    )
    return optimise(module, passes)


def selecting_tags(module: fx.GraphModule) -> tuple[str, ...]:
    """The inputs along its rows that a graph of new rows selects by."""
    rows = signature(module).axes[0]
    tags = {slot.name for slot in signature(module).inputs if slot.kind == "tag" and slot.rows == rows}
    asked = (node_at(node, 0) for node in module.graph.nodes if is_call(node, selections.has_tag))
    values = (origin(node).value for node in asked)
    return tuple(dict.fromkeys(value.name for value in values if value is not None and value.name in tags))
