"""Several linear maps of one input as one matrix product on a GPU, over weights that stay separate parameters.

    q, k, v = x W_q^T, x W_k^T, x W_v^T      ->      q, k, v = columns of x W^T,   dx = dq W_q + dk W_k + dv W_v

The products are columns of one tensor, which the kernels that read them take as they are: rows that lie apart. Nothing
is copied: the weights lie behind one another (functions/adjoining.py), and backward each product is added to dx by the
matrix library, because the gradients come one by one. Weights that do not adjoin are multiplied one by one.

Letters in shapes: N rows, I inputs, O_i outputs of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..cpu.derivatives import once_differentiable
from ..functions.adjoining import adjoin, as_one


def joined_linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x [.., I], weights [O_i, I] -> [.., O_i] each. Parts of one tensor, not to be written to."""
    # A compiler sees through single products, and joins them where it likes to.
    if torch.compiler.is_compiling() or not adjoin(weights):
        return tuple(functional.linear(x, weight) for weight in weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
        return _JoinedLinears.apply(x, *weights)
    return _product(x, weights)


def _product(x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return functional.linear(x, as_one(weights)).split([weight.shape[0] for weight in weights], -1)


class _JoinedLinears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        return _product(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        flat = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grads]
        given = [(grad, weight) for grad, weight in zip(flat, weights, strict=True) if grad is not None]
        dx = None
        if ctx.needs_input_grad[0]:
            for grad, weight in given:
                dx = torch.mm(grad, weight) if dx is None else dx.addmm_(grad, weight)
            dx = None if dx is None else dx.view(x.shape)
        wanted = zip(flat, ctx.needs_input_grad[1:], strict=True)
        return dx, *(grad.t().mm(rows) if is_wanted and grad is not None else None for grad, is_wanted in wanted)
