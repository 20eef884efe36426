"""The visible list of passes over an fx graph.

A pass takes a graph module and changes it; origins are kept (`origin.inherit`). `optimise` works on a copy of the
graph that reads the same weights, so that the reference graph stays what `weft verify` compares with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from .graph_context import CompilerBug
from .lower import SIGNATURE, graph_module
from .passes.common_subexpressions import join_common_subexpressions
from .passes.dead_code import drop_dead_code
from .passes.joined_linears import join_linears


@dataclass(frozen=True)
class Pass:
    """`function(module)` changes the module's graph in place. `why` says what it is for and why it stands where it
    stands."""

    name: str
    function: Callable[[fx.GraphModule], None]
    why: str


REFERENCE_PASSES: tuple[Pass, ...] = ()

BASIC_PASSES: tuple[Pass, ...] = (
    Pass("dead-code", drop_dead_code, "nodes nobody reads; first, so that later passes see only what counts"),
    Pass(
        "common-subexpressions",
        join_common_subexpressions,
        "equal calls once; makes the shared input of joined linears one node",
    ),
)

INFERENCE_PASSES: tuple[Pass, ...] = (
    *BASIC_PASSES,
    Pass(
        "joined-linears",
        join_linears,
        "linears that read one input become one matrix product; weights must not change after",
    ),
)

Watch = Callable[[Pass, fx.GraphModule], None]


def optimise(module: fx.GraphModule, passes: tuple[Pass, ...], watch: Watch | None = None) -> fx.GraphModule:
    """A new module after the passes. `watch` sees the module after each."""
    graph = fx.Graph()
    result = graph.graph_copy(module.graph, copied := {})
    graph.output(result)
    for old, new in copied.items():
        new.meta = dict(old.meta)
    signature = module.meta[SIGNATURE]
    optimised = graph_module(graph, module.weights, signature, signature.name)
    for pass_ in passes:
        pass_.function(optimised)
        try:
            optimised.graph.lint()
        except RuntimeError as error:
            raise CompilerBug(f"the pass {pass_.name} broke the graph: {error}") from error
        if watch is not None:
            watch(pass_, optimised)
    optimised.recompile()
    return optimised
