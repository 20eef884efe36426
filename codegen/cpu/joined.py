"""Several linear maps of one input as one matrix product, over weights that stay separate parameters.

Weights that lie behind one another in memory are one matrix already: `lay_out` puts them there once, and the product
sees them through a
view, in training too. Weights that were moved since (another type, another device) are joined by a copy; the result
never differs.

Letters in shapes: N rows, I inputs, O outputs of all maps together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .derivatives import once_differentiable
from .linear import product


def lay_out(weights: Sequence[torch.nn.Parameter]) -> None:
    """Moves the data of weights [O_i, I] of one type behind one another. The parameters stay the same objects."""
    if weights[0].device.type != "cpu" or _adjoining(weights):
        return
    # A graph may be made inside a caller's inference mode, whose tensors could never be trained afterwards.
    with torch.inference_mode(False), torch.no_grad():
        together = torch.cat([weight.data for weight in weights])
        for weight, part in zip(weights, together.split([w.shape[0] for w in weights]), strict=True):
            weight.data = part


def _adjoining(weights: Sequence[Tensor]) -> bool:
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or not weight.is_contiguous() or weight.dtype != first.dtype:
            return False
        end += weight.numel() * weight.element_size()
    # Neighbours by chance may belong to different allocations.
    return len({weight.untyped_storage().data_ptr() for weight in weights}) == 1


def joined(weights: Sequence[Tensor]) -> Tensor:
    """[O, I], without a copy where the weights adjoin. Not differentiable."""
    if not _adjoining(weights):
        return torch.cat([weight.detach() for weight in weights])
    rows = sum(weight.shape[0] for weight in weights)
    return weights[0].detach().as_strided((rows, weights[0].shape[1]), (weights[0].shape[1], 1))


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
        dweight = torch.mm(dy.t(), x).split([w.shape[0] for w in weights])
        return dx, *(d if needed else None for d, needed in zip(dweight, ctx.needs_input_grad[1:], strict=True))


def joined_linear(x: Tensor, *weights: Tensor) -> Tensor:
    """x [..., I], weights [O_i, I] -> [..., O]: the outputs of each map, one after another."""
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        y = _JoinedLinear.apply(flat, *weights)
    else:
        y = product(flat, joined(weights))
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
