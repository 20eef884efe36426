"""Walks a graph as a device would run it, on random operands, without the memory of a model.

Weights of one shape are one tensor: a model of 7B parameters takes the memory of a layer, and every operator still
sees operands of its real size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..codegen.emit import KernelOp
from ..codegen.functions.attention import attend_packed
from ..codegen.gpu.attention import attend
from ..codegen.gpu.cut_scans import capped, capped_by_torch, scan, scan_by_torch
from ..codegen.gpu.run_attention import attend_runs, by_torch
from ..codegen.lower import signature
from ..codegen.origin import user_span
from .sample_inputs import Lengths, sample_arguments


def meanings_of(module: fx.GraphModule) -> dict[fx.Node, Callable[..., Any]]:
    """By torch alone, what each call of a kernel stands for; before kernels are attached."""
    found: dict[fx.Node, Callable[..., Any]] = {}
    for node in module.graph.nodes:
        if isinstance(node.target, KernelOp):
            found[node] = node.target
        elif node.target is attend:
            found[node] = _attend
        elif node.target is attend_runs:
            found[node] = by_torch
        elif node.target in (scan, capped):
            found[node] = scan_by_torch if node.target is scan else capped_by_torch
    return found


def _attend(*args: Any, **kwargs: Any) -> Tensor:
    # Intervals only say again, once for many calls, what the band says.
    return attend_packed(*args, **{name: value for name, value in kwargs.items() if name != "intervals"})


@dataclass(frozen=True)
class Call:
    """A call that is about to run, and `place`, the spec line that it serves, as `olmo2.weft:14`."""

    node: fx.Node
    args: Any
    kwargs: Any
    place: str


class GraphWalk(fx.Interpreter):
    """`lengths`: rows of each example along each axis; `working`: the type in which the graph computes reals;
    `meanings`: what calls of kernels compute, which runs in their place where they do not: the walk goes on.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        lengths: Lengths,
        device: torch.device,
        working: torch.dtype,
        meanings: Mapping[fx.Node, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__(module)
        self.traced = module
        self.lengths, self.device, self.working = lengths, device, working
        self.meanings = meanings or {}
        self.weights: dict[tuple[Any, ...], Tensor] = {}

    def calls(self) -> Iterator[Call]:
        """Every call before it runs; values that nobody reads any more are let go."""
        arguments = sample_arguments(signature(self.traced), self.lengths, 0, self.device, self.working)
        self.args_iter = iter(arguments)
        self.env = {}
        for node in self.traced.graph.nodes:
            if node.op == "output":
                return
            if node.op == "call_function":
                span = user_span(node)
                place = "" if span is None else f"{span.source.name}:{span.line}"
                yield Call(node, *self.fetch_args_kwargs_from_env(node), place)
            with torch.no_grad():
                self.env[node] = self._made(node)
            for dead in self.user_to_last_uses.get(node, ()):
                del self.env[dead]

    def _made(self, node: fx.Node) -> Any:
        try:
            return self.run_node(node)
        except Exception:
            meaning = self.meanings.get(node)
            if meaning is None:
                raise
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            return meaning(*args, **kwargs)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        """A weight: random numbers of its shape, the same for all of that shape."""
        parameter = self.fetch_attr(target)
        assert isinstance(parameter, Tensor)
        key = (tuple(parameter.shape), parameter.dtype)
        if key not in self.weights:
            self.weights[key] = 0.02 * torch.randn(parameter.shape, dtype=parameter.dtype, device=self.device)
        return self.weights[key]
