"""How many patches an example has, before a model trains on it: what packing by patches asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..dsl.program import Program
from ..dsl.value_type import Real
from .cut_lengths import cuts_of, reads_weights, segment_lengths, with_cuts
from .errors import RuntimeFault
from .loader import SegmentsOf
from .model import Model


def counter_of_segments(model: Model, objective: Program, columns: tuple[str, ...]) -> SegmentsOf:
    """Counts the segments of the objective's one cut, with what is read from columns. Only rules that need no weights
    can be counted ahead of a step: those of stored entropies, and those of the bytes themselves."""
    program = model.given(objective, columns)
    found = cuts_of(program)
    if len(found) != 1:
        has = f"has the cuts {', '.join(found)}" if found else "has no cut"
        raise RuntimeFault(f"patches_per_step counts the segments of one cut: {objective.name} {has}")
    (node,) = found.values()
    if len(node.outputs) != 1:
        raise RuntimeFault("patches_per_step counts segments without rows between them; this cut has gaps")
    flags = replace(with_cuts(program, found), losses=())
    if reads_weights(flags):
        stored = [name for name, value in objective.optional.items() if isinstance(value.type.kind, Real)]
        hint = f": give a column for {' or '.join(stored)} (weft entropies)" if stored else ""
        why = f"weights decide where those of {objective.name} end"
        raise RuntimeFault(f"patches_per_step counts patches before a step, but {why}{hint}")

    @torch.no_grad()
    def segments_of(tokens: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        offsets = torch.tensor([0, len(tokens)], dtype=torch.int32)
        packed: dict[str, Any] = {name: (column, offsets) for name, column in values.items()}
        ends = model.run(flags, (tokens, offsets), **packed)
        return segment_lengths(ends.values.cpu(), None, offsets)

    return segments_of
