"""A bag that computes its weights, as the compiler's graphs hold it: called, it is the nodes of the weights and a bag.

    w = softmax(score, over=top);  y = bag(values, index, w)        ->      y = bag(values, index, of score)

The runtime puts a WeighedBag with kernels in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from ..facts import Fact
from ..gpu import shared_tables
from ..rowwise.axes import CannotFuse
from ..rowwise.build import Region, build
from ..rowwise.derivative import Derivative, derive
from ..rowwise.fused import meaning_of
from ..rowwise.row_program import RowProgram
from .plan import BagPlan, bag_plan


@dataclass(frozen=True, eq=False)
class BagOp:
    """`program` makes the weights of a row's lists, `derivative` the gradients of what they are made of. Operands are
    the table, the index, then those of `meaning`, which are the program's."""

    name: str
    program: RowProgram
    derivative: Derivative
    meaning: fx.GraphModule

    def __call__(self, table: Tensor, index: Tensor, *operands: Tensor, **sharing: Any) -> Tensor:
        return shared_tables.bag(table, index, self.meaning(*operands), **sharing)

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def operands(self) -> int:
        return len(self.meaning.graph.find_nodes(op="placeholder"))

    @cached_property
    def plan(self) -> BagPlan:
        return bag_plan(self.program, self.derivative, self.operands)

    @property
    def key(self) -> object:
        """Equal for calls that the same kernels can serve."""
        return self.operands, self.plan

    def renamed(self, name: str) -> BagOp:
        return replace(self, name=name)


def bag_op(region: Region, facts: Mapping[fx.Node, Fact], name: str, wanted: Collection[fx.Node]) -> BagOp:
    """`wanted`: the nodes that a gradient is asked for. Raises CannotFuse where the nodes are not computed of a row's
    lists alone, or are too many for a program to hold beside the rows that it reads."""
    program = build(region, facts, name)
    by_row = {source.place for source in program.sources if source.by_row}
    if any(node in wanted and place not in by_row for place, node in enumerate(region.inputs)):
        raise CannotFuse("a sum over all rows")
    made = derive(program, len(region.inputs), by_row, passes=False)
    op = BagOp(name, program, made, meaning_of(region))
    _ = op.plan
    return op
