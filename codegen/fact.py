"""What is known of one tensor of a graph before it runs, and the operands of a call as a rule reads them."""

from __future__ import annotations

from collections.abc import Callable
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


Rule = Callable[[Reader], Fact | None]


def dimension(dim: int, fact: Fact) -> int:
    """A torch dimension as a place among the static ones; -1 for the dimension of rows."""
    lead = fact.level is not None
    return (dim if dim >= 0 else dim + len(fact.dims) + lead) - lead


def broadcast(facts_: list[Fact]) -> Fact | None:
    """Level and sizes of a pointwise result; the type is that of the first."""
    levels = {fact.level for fact in facts_} - {None}
    if len(levels) > 1:
        return None
    level = next(iter(levels), None)
    rank = max(len(fact.dims) for fact in facts_)
    padded = [(1,) * (rank - len(fact.dims)) + fact.dims for fact in facts_]
    # A value with rows keeps them in front, so all of those have the same number of dimensions.
    if any(len(fact.dims) != rank for fact in facts_ if fact.level is not None):
        return None
    dims = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            return None
        dims.append(next(iter(wide), 1))
    return Fact(level, tuple(dims), facts_[0].dtype)
