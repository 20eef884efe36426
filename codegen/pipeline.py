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
from .passes.activations import recognise_activations
from .passes.bands import recognise_bands
from .passes.common_subexpressions import join_common_subexpressions
from .passes.cpu_linears import choose_linears, join_linears, recognise_gates
from .passes.dead_code import drop_dead_code
from .passes.reshapes import cancel_reshapes
from .passes.rotary import recognise_rotary
from .passes.row_norms import join_residuals, recognise_rms_norms
from .passes.streamed_logits import stream_logits


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

CPU_PASSES: tuple[Pass, ...] = (
    *BASIC_PASSES,
    Pass("activations", recognise_activations, "silu and gelu as one function; gates look for them"),
    Pass("rotary", recognise_rotary, "a turn of halves over tables that all layers share"),
    Pass("rms-norms", recognise_rms_norms, "one function, one number kept per row"),
    Pass("residuals", join_residuals, "the addition after a norm in its last pass; needs the norms"),
    Pass("bands", recognise_bands, "attention under causal, window and full masks to torch's fused kernel"),
    Pass("streamed-logits", stream_logits, "logits that only losses read are never whole"),
    Pass("dead-code", drop_dead_code, "replaced formulas still count as readers; gates ask who reads"),
    Pass("joined-linears", join_linears, "linears of one input as one product; their input is one node by now"),
    Pass("gates", recognise_gates, "both halves of a gated unit in one tensor; needs activations and joined linears"),
    Pass("reshapes", cancel_reshapes, "what norms over several axes left behind"),
    Pass("dead-code", drop_dead_code, "the formulas that were replaced"),
    Pass("common-subexpressions", join_common_subexpressions, "plans and tables once per graph"),
    Pass("linears", choose_linears, "the faster matrix library; last, so that no pass has to know two kinds of linear"),
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
