"""What is known of one tensor of a graph before it runs, and the operands of a call as a rule reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..dsl.value_type import ValueType

EXAMPLES = "examples"  # the level of values with one entry per example


@dataclass(frozen=True)
class Fact:
    """`[level; *dims]`. `level` is the name of a ragged axis, `EXAMPLES`, or None for values without rows."""

    level: str | None
    dims: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_real(self) -> bool:
        return self.dtype.is_floating_point


def level_of(type_: ValueType) -> str | None:
    if type_.rows is not None:
        return type_.rows.name
    if type_.group is not None:
        return f"{EXAMPLES}.{type_.group.name}"
    return EXAMPLES if type_.per_example else None


@dataclass(frozen=True)
class Reader:
    """The operands of one call, as a rule reads them."""

    node: fx.Node
    known: dict[fx.Node, Fact]

    def arg(self, place: int, default: Any = None) -> Any:
        return self.node.args[place] if place < len(self.node.args) else default

    def fact(self, place: int = 0) -> Fact | None:
        argument = self.arg(place)
        return self.known.get(argument) if isinstance(argument, fx.Node) else None
