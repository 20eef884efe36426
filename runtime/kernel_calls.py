"""What calls of kernels in a graph stand for, by torch alone, on operands in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.nn import functional

from ..codegen.bags.op import BagOp
from ..codegen.functions import row_tables
from ..codegen.functions.attention import attend_packed
from ..codegen.gpu import linear_tiles, selection, shared_tables
from ..codegen.gpu.attention import attend
from ..codegen.gpu.attention_library import attend_by_torch
from ..codegen.gpu.cut_scans import capped, capped_by_torch, scan, scan_by_torch
from ..codegen.gpu.run_attention import attend_runs
from ..codegen.gpu.run_attention import by_torch as attend_runs_by_torch
from ..codegen.grouped.op import GroupedOp
from ..codegen.origin import user_span
from ..codegen.rowwise.fused import FusedOp
from ..codegen.spec_comment import comment


@dataclass(frozen=True)
class KernelCall:
    """What a call of the fused graph stands for: `truth(args, kwargs)`, the nodes its results come from, each from its
    own or all from one, and all nodes."""

    truth: Callable[[Any, Any], Any]
    results: list[fx.Node]
    nodes: list[fx.Node]

    def place(self, number: int = -1) -> str:
        """The spec line of a result, and the numbers of all lines that the call serves."""
        span = user_span(self.results[number] if len(self.results) > 1 else self.results[0])
        if span is None:
            return ""
        spans = [span, *(found for node in self.nodes if (found := user_span(node)) is not None)]
        lines = sorted({other.line for other in spans if other.source is span.source})
        name, _, text = comment(span).partition(f":{span.line}")
        return f"{name}:{', '.join(map(str, lines))}{text}"


def kernel_calls(graph: fx.GraphModule) -> dict[str, KernelCall]:
    """The calls of generated kernels by node name, before the kernels are put in."""
    found = {}
    for node in graph.graph.nodes:
        if isinstance(node.target, FusedOp):
            meaning = node.target.meaning
            results: Any = meaning.graph.output_node().args[0]
            inside = [inner for inner in meaning.graph.nodes if inner.op == "call_function"]
            found[node.name] = KernelCall(partial(run_wide, meaning), listed(results), inside)
        elif isinstance(node.target, GroupedOp):
            found[node.name] = KernelCall(partial(_grouped, node.target), [node], [node])
        elif isinstance(node.target, BagOp):
            inside = [inner for inner in node.target.meaning.graph.nodes if inner.op == "call_function"]
            found[node.name] = KernelCall(partial(_bag, node.target), [node], [node, *inside])
        elif node.op == "call_function" and node.target in _MEANINGS:
            found[node.name] = KernelCall(_MEANINGS[node.target], [node], [node])
    return found


def run_wide(meaning: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a graph computes with every type it names taken for float64."""
    return _Wide(meaning).run(*args, **kwargs)


def _attend(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    # Intervals only say again, once for many calls, what the band says.
    return attend_packed(*args, **{name: value for name, value in kwargs.items() if name != "intervals"})


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    # What is left of the arguments says in which tiles.
    return functional.linear(*args, **{name: value for name, value in kwargs.items() if name == "bias"})


def _grouped(op: GroupedOp, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    assert not kwargs
    return op.meaning(lambda call, given: run_wide(call.meaning, given, {}), *args)


def _bag(op: BagOp, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    table, index, *operands = args
    return row_tables.bag(table, index, run_wide(op.meaning, operands, {}))


class _Wide(fx.Interpreter):
    """Runs nodes in float64, whatever type they name."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(target, _wide(args), _wide(kwargs))


def _wide(given: Any) -> Any:
    return map_aggregate(given, lambda x: torch.float64 if isinstance(x, torch.dtype) and x.is_floating_point else x)


def listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple | list) else [results]


# The arguments and keywords of a call to what it computes.
_MEANINGS: dict[Any, Callable[[Any, Any], Any]] = {
    attend: _attend,
    attend_by_torch: lambda args, kwargs: attend_packed(*args, **kwargs),
    attend_runs: lambda args, kwargs: attend_runs_by_torch(*args),
    # Keywords say whose part of a gradient it is.
    shared_tables.bag: lambda args, kwargs: row_tables.bag(*args),
    shared_tables.products_of_rows: lambda args, kwargs: row_tables.products_of_rows(*args),
    # In float64 they compute and sort all scores.
    selection.top: lambda args, kwargs: selection.top(*args),
    selection.top_pairs: lambda args, kwargs: selection.top_pairs(*args),
    scan: lambda args, kwargs: scan_by_torch(*args),
    capped: lambda args, kwargs: capped_by_torch(*args),
    linear_tiles.linear: _linear,
}
