"""Several linear maps of one input as one matrix product, over weights that stay separate parameters.

Weights that lie behind one another in memory are one matrix already (functions/adjoining.py), and the product sees them
through a view, in training too. Weights that were moved since are joined by a copy; the result never differs.

Letters in shapes: N rows, I inputs, O outputs of all maps together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functions.adjoining import adjoin, as_one
from .derivatives import once_differentiable
from .linear import product, weight_gradient


def joined(weights: Sequence[Tensor]) -> Tensor:
    """[O, I], without a copy where the weights adjoin. Not differentiable."""
    return as_one(weights) if adjoin(weights) else torch.cat([weight.detach() for weight in weights])


class _JoinedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        return product(x, joined(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *weights = ctx.saved_tensors
        dx = product(dy, joined(weights).t()) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return dx, *(None for _ in weights)
        dweight = weight_gradient(dy, x).split([w.shape[0] for w in weights])
        return dx, *(d if needed else None for d, needed in zip(dweight, ctx.needs_input_grad[1:], strict=True))


def joined_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x [..., I], weights [O_i, I] -> [..., O]: the outputs of each map, one after another."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        y = _JoinedLinear.apply(flat, *weights)
    else:
        y = product(flat, joined(weights))
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
