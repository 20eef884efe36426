"""One fused call: its row program, the program of its gradients, and the nodes it stands for.

Called, it runs those nodes: that is its meaning, on any device. The runtime puts the kernels in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx

from ..facts import Fact
from .build import Region, build
from .derivative import Derivative, derive
from .plan import RowPlan, plan
from .row_program import RowProgram
from .runs import summed_in_runs
from .saved import save_values


@dataclass(frozen=True, eq=False)
class FusedOp:
    """`forward` and `backward` are the plans of the kernels; `backward` is None where no gradient passes."""

    name: str
    program: RowProgram
    derivative: Derivative | None
    meaning: fx.GraphModule
    forward: RowPlan
    backward: RowPlan | None

    def __call__(self, *operands: Any) -> Any:
        return self.meaning(*operands)

    @property
    def operands(self) -> int:
        return len(self.meaning.graph.find_nodes(op="placeholder"))

    @property
    def __name__(self) -> str:
        return self.name

    @cached_property
    def key(self) -> object:
        """Equal for calls that one kernel can serve."""
        wiring = None if self.derivative is None else self.derivative.wiring
        return self.operands, _text(self.forward), _text(self.backward), wiring

    def saving(self) -> FusedOp:
        """With the values saved that the backward had better read."""
        if self.derivative is None:
            return self
        program, derivative = save_values(self.program, self.derivative, self.operands)
        if not derivative.saved:
            return self
        derivative = summed_in_runs(derivative)
        forward, backward = plan(program), plan(derivative.program)
        return replace(self, program=program, derivative=derivative, forward=forward, backward=backward)

    def renamed(self, name: str) -> FusedOp:
        backward, derivative = self.backward, self.derivative
        program = replace(self.program, name=name)
        if derivative is not None:
            derivative = replace(derivative, program=replace(derivative.program, name=f"{name}_backward"))
        if backward is not None and derivative is not None:
            backward = replace(backward, program=derivative.program)
        forward = replace(self.forward, program=program)
        return replace(self, name=name, program=program, derivative=derivative, forward=forward, backward=backward)


def _text(made: RowPlan | None) -> object:
    """Everything of a plan but its name and the objects it was made of."""
    if made is None:
        return None
    sources = tuple((source.place, source.by_row, source.dtype) for source in made.program.sources)
    return sources, made.program.results, made.program.runs, made.arguments, made.numbering, made.sums, made.passes


def fused_op(region: Region, facts: Mapping[fx.Node, Fact], name: str, wanted: Collection[fx.Node]) -> FusedOp:
    """`wanted`: the nodes that a gradient is asked for."""
    program = build(region, facts, name)
    asked = {place for place, node in enumerate(region.inputs) if node in wanted}
    derivative = None
    if asked and any(node in wanted for node in region.outputs):
        derivative = derive(program, len(region.inputs), asked)
        derivative = summed_in_runs(derivative) if derivative.program.stores else None
    backward = plan(derivative.program) if derivative is not None else None
    return FusedOp(name, program, derivative, meaning_of(region), plan(program), backward)


def meaning_of(region: Region) -> fx.GraphModule:
    """The nodes of a region as a graph of their own, whose placeholders are its inputs in order."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(region.inputs):
        copied[node] = graph.placeholder(f"operand_{number}")
    for node in region.nodes:
        copied[node] = graph.node_copy(node, lambda operand: copied[operand])
        copied[node].meta = dict(node.meta)
    results = [copied[node] for node in region.outputs]
    graph.output(tuple(results) if len(results) > 1 else results[0])
    return fx.GraphModule({}, graph)
