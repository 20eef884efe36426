"""Floating-point operations of a spec's matrix products, counted while its reference graph runs on real examples.

Which products there are is the graph's; how many rows they have is the data's: patches are as many as the text gives.
Counted are linears and the two products of attention, over those pairs of rows alone that the mask allows: what a
kernel must multiply, whatever a machine computes beside it. Everything else of these models (embeddings and hash
tables among it) is no product and counts 0, as in the BLT paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from weft.codegen.functions.attention import attend_packed, attend_static
from weft.codegen.gpu.intervals import seen_rows
from weft.runtime.model import Model
from weft.runtime.packed import offsets_of

# Gradients of both operands of a product are a product each.
TRAINING = 3
# Functions that multiply matrices in some other way; a graph that has them would be counted short.
UNCOUNTED = (torch.matmul, torch.bmm, torch.mm, torch.einsum)


@dataclass(frozen=True)
class Flops:
    """Of the forward pass, on average over the tokens of the examples."""

    linear: float
    attention: float

    @property
    def forward(self) -> float:
        return self.linear + self.attention

    @property
    def training(self) -> float:
        return TRAINING * self.forward


def flops_per_token(
    model: Model, examples: Sequence[np.ndarray], columns: Mapping[str, Sequence[np.ndarray]] | None = None
) -> Flops:
    """Of the model's one objective. `columns`: optional inputs by name, one array for each example."""
    given = columns or {}
    graph = model.reference(model.given(model.objective(), given))
    offsets = offsets_of([len(ids) for ids in examples])
    tokens = torch.from_numpy(np.concatenate(examples).astype(np.int64))
    inputs = [torch.from_numpy(np.concatenate(values).astype(np.float32)) for values in given.values()]
    counter = _Counter(graph)
    with torch.no_grad():
        counter.run(tokens, *inputs, offsets)
    return Flops(counter.linear / len(tokens), counter.attention / len(tokens))


class _Counter(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.linear = self.attention = 0

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in UNCOUNTED:
            raise NotImplementedError(f"a product that is not counted: {target}")
        if target is torch.nn.functional.linear:
            x, weight = args[:2]
            self.linear += 2 * (x.numel() // x.shape[-1]) * weight.numel()
        elif target is attend_packed:
            self.attention += _attended(*args, **kwargs)
        elif target is attend_static:
            q, k, v = args[:3]
            if len(args) > 4 or kwargs:
                raise NotImplementedError("attention along a static axis with a mask is not counted")
            self.attention += 2 * q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2] * (q.shape[3] + v.shape[3])
        return super().call_function(target, args, kwargs)


def _attended(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, scale: float, *band: int | None, **more: Any
) -> int:
    low, high = (*band, None, None)[:2]
    if more.pop("predicate", None) is not None or more.pop("q_position", None) is not None:
        raise NotImplementedError("attention with a mask that is no band is not counted")
    keys = seen_rows(q_offsets, k_offsets, q, k, more.get("low", low), more.get("high", high)).queries
    pairs = int((keys.high - keys.low).sum())
    return 2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2])
