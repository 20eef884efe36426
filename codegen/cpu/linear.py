"""Matrix products of a training step or prefill: x [..., I] times weight [O, I], through oneDNN where it is faster.

Torch sends float32 products to MKL, whose blocked kernels lose to oneDNN's on processors MKL does not single out
(about 10 % on square shapes, up to 60 % for wide outputs or few rows; twofold where a processor has wider vectors than
MKL uses on it). The oneDNN operator has no derivative of its own, so the product is an autograd function.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import once_differentiable


def _types_of_onednn() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return frozenset()
    # A processor whose widest vectors are AVX2's has no bfloat16 product in oneDNN; torch multiplies those itself.
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset((torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,))


ONEDNN_TYPES = _types_of_onednn()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, I] @ weight [O, I]^T + bias, no derivative. Either factor may be strided (a transposed view)."""
    if x.dtype in ONEDNN_TYPES and x.dtype == weight.dtype and x.numel() and weight.numel():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


# From this many rows on a product and an addition of its result are faster than MKL's product that adds.
_ADDED_ROWS = 128


def weight_gradient(dy: Tensor, x: Tensor, total: Tensor | None = None) -> Tensor:
    """dy [N, O]^T @ x [N, I], which is [O, I]; added to `total` in place where there is one, in its type."""
    if total is None or total.dtype != x.dtype:
        # Torch takes oneDNN by itself for other types than float32.
        found = product(dy.t(), x.t()) if x.dtype == torch.float32 else torch.mm(dy.t(), x)
        return found if total is None else total.add_(found)
    if x.dtype == torch.float32 and x.shape[0] >= _ADDED_ROWS:
        return total.add_(product(dy.t(), x.t()))
    return total.addmm_(dy.t(), x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dx = product(dy, weight.t()) if needs_x else None
        dweight = weight_gradient(dy, x) if needs_weight else None
        return dx, dweight, dy.sum(0) if needs_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I], weight [O, I], bias [O] or None -> [..., O], with first derivatives."""
    if torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y = _Linear.apply(flat, weight, bias)
    else:
        y = product(flat, weight, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1])
