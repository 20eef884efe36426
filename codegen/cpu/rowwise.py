"""Row-wise pieces of a model on a CPU: RMS norm, rotary embedding and gated units, each with a short backward.

Eager torch runs a formula one elementwise pass at a time and keeps every intermediate for the backward. The autograd
functions here keep the input and one number per row, recompute the rest, and write into buffers they own. Second
derivatives are not defined.

Letters in shapes: N rows (any number, also 0), D norm width, H heads, K head width, F hidden width. Statistics of
bfloat16 and float16 rows are taken in float32; float32 and float64 rows keep their type.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .derivatives import once_differentiable

_aten = torch.ops.aten


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last axis, which is kept with length 1."""
    width = x.shape[-1]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x.dtype))
    # hypot adds eps under the root in one pass: sqrt(|x|^2 + D eps) = sqrt(D) * sqrt(mean + eps).
    floor = norm.new_full((), math.sqrt(width * eps))
    return torch.hypot(norm, floor).reciprocal_().mul_(math.sqrt(width))


@lru_cache(maxsize=256)
def _floor(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype)


def _rms_norm(x: Tensor, gain: Tensor | None, residual: Tensor | None, eps: float) -> Tensor:
    """Without a backward: for a few rows the number of calls is the cost, so there are as few as possible."""
    width, wide = x.shape[-1], _wide(x.dtype)
    # Named, the type costs a copy even where it is the type of x.
    named = {} if wide == x.dtype else {"dtype": wide}
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, **named)
    scale = torch.hypot(norm, _floor(math.sqrt(width * eps), wide)).reciprocal_().mul_(math.sqrt(width))
    y = x * scale
    if residual is None:
        y = y if gain is None else y.mul_(gain)
    elif gain is None:
        y = y.add_(residual)
    else:
        y = torch.addcmul(residual.to(wide), y, gain.to(wide))
    return y if wide == x.dtype else y.to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, residual, eps):
        wide = x.to(_wide(x.dtype))
        rstd = inverse_rms(wide, eps)
        ctx.save_for_backward(x, gain, rstd)
        y = wide * rstd
        if residual is not None:
            if gain is None:
                return y.add_(residual).to(x.dtype)
            return torch.addcmul(residual.to(wide.dtype), y, gain.to(wide.dtype)).to(x.dtype)
        if gain is not None:
            y.mul_(gain)
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, gain, rstd = ctx.saved_tensors
        needs_x, needs_gain, needs_residual, _ = ctx.needs_input_grad
        dx = dgain = None
        wide_x, wide_dy = x.to(rstd.dtype), dy.to(rstd.dtype)
        if not (needs_x or needs_gain):
            return None, None, dy if needs_residual else None, None
        product = wide_dy * wide_x
        if needs_gain:
            rows, groups = rstd.numel() // max(gain[..., 0].numel(), 1), gain[..., 0].numel()
            if groups == 1:
                dgain = torch.mv(product.reshape(rows, x.shape[-1]).t(), rstd.reshape(rows))
            else:
                parts = product.reshape(rows, groups, x.shape[-1])
                dgain = torch.einsum("rgd,rg->gd", parts, rstd.reshape(rows, groups))
            dgain = dgain.view(gain.shape).to(gain.dtype)
        if needs_x:
            # dx = rstd * g * dy - x * rstd^3 / D * sum(g * dy * x)
            scale = product.sum(-1, keepdim=True) if gain is None else _row_dot(product, gain.to(rstd.dtype))
            scale = scale.mul_(rstd).mul_(rstd).mul_(rstd).div_(-x.shape[-1])
            if gain is None:
                dx = torch.mul(wide_dy, rstd, out=product)
            else:
                dx = torch.mul(wide_dy, gain.to(rstd.dtype), out=product).mul_(rstd)
            dx = dx.addcmul_(wide_x, scale).to(x.dtype)
        return dx, dgain, dy if needs_residual else None, None


def _row_dot(product: Tensor, gain: Tensor) -> Tensor:
    if gain.dim() == 1 and product.is_contiguous():
        return torch.mv(product.view(-1, gain.shape[0]), gain).view(*product.shape[:-1], 1)
    return torch.linalg.vecdot(product, gain).unsqueeze(-1)


def rms_norm(x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """gain * x / sqrt(mean(x^2) + eps), the mean over the last axis.

    x [..., D]; gain [D], or [G, D] for a different gain per group of x [..., G, D] (one call then norms the query and
    the key halves of a joined projection). The result has the type and shape of x.
    """
    if not x.numel():
        return x * 1 if gain is None else x * gain
    if not torch.is_grad_enabled():
        return _rms_norm(x, gain, None, eps)
    return _RmsNorm.apply(x, gain, None, eps)


def add_rms_norm(residual: Tensor, x: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """residual + rms_norm(x, gain, eps) with the addition in the last pass. residual has the shape and type of x."""
    if not x.numel():
        return residual + rms_norm(x, gain, eps)
    if not torch.is_grad_enabled():
        return _rms_norm(x, gain, residual, eps)
    return _RmsNorm.apply(x, gain, residual, eps)


def rope_tables(positions: Tensor, inverse_frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(cos, signed sin) for `rope`: positions [N], inverse_frequencies [K/2] -> each [N, 1, K].

    The halves of the sine carry the signs -, +, so that a rotation is x * cos + roll(x) * sin.
    Angles are taken in float64 when dtype is float64 and in float32 otherwise.
    """
    wide = _wide(dtype)
    angles = positions.to(wide)[:, None] * inverse_frequencies.to(wide)
    cos, sin = angles.cos(), angles.sin()
    return (torch.cat((cos, cos), -1).to(dtype).unsqueeze(1), torch.cat((-sin, sin), -1).to(dtype).unsqueeze(1))


def tables_of_angles(angles: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, signed sin) for `rope`, each [N, 1, K], of angles [N, K/2], in their type."""
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def turns_of_angles(angles: Tensor) -> Tensor:
    """cos + i sin for `rope_pairs`: [N, 1, K/2] complex, of angles [N, K/2]."""
    return torch.polar(torch.ones_like(angles), angles).unsqueeze(1)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, inverse):
        ctx.save_for_backward(cos, sin)
        ctx.inverse = inverse
        return _rotate(x, cos, sin, inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, sin, not ctx.inverse), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, inverse: bool) -> Tensor:
    width = cos.shape[-1]
    if x.dtype != cos.dtype:
        # Tables in float32 beside bfloat16 rows: the rotation is computed in float32 and rounded once.
        return _rotate(x.to(cos.dtype), cos, sin, inverse).to(x.dtype)
    if width == x.shape[-1]:
        swapped = torch.roll(x, width // 2, -1)
        return torch.mul(x, cos).addcmul_(swapped, sin, value=-1.0 if inverse else 1.0)
    y = x.clone(memory_format=torch.contiguous_format)
    y[..., :width] = _rotate(x[..., :width], cos, sin, inverse)
    return y


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + R/2) of the first R entries of each head.

    x [N, H, K]; cos and signed sin [N, 1, R] from `rope_tables` or `tables_of_angles`, R <= K. The tables get no
    gradient; the result has the type of x.
    """
    if not torch.is_grad_enabled():
        return _rotate(x, cos, sin, False)
    return _Rope.apply(x, cos, sin, False)


class _RopePairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, turns):
        ctx.save_for_backward(turns)
        return _turn(x, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (turns,) = ctx.saved_tensors
        return _turn(dy, turns.conj()), None


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    real = torch.float64 if turns.dtype == torch.complex128 else torch.float32
    pairs = torch.view_as_complex(x.to(real).contiguous().view(*x.shape[:-1], x.shape[-1] // 2, 2))
    return torch.view_as_real(pairs * turns).view(x.shape).to(x.dtype)


def rope_pairs(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the neighbours (2i, 2i + 1) of each head: x [N, H, K], turns [N, 1, K/2] complex, cos + i sin."""
    return _RopePairs.apply(x, turns)


# How an activation is evaluated, and its gradient written to a given place: backward(dy, x, grad_input=...).
_Activation = tuple[Callable[..., Tensor], Callable[..., Tensor]]
_ACTIVATIONS: dict[str, _Activation] = {
    "silu": (F.silu, _aten.silu_backward.grad_input),
    "gelu": (F.gelu, _aten.gelu_backward.grad_input),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        partial(_aten.gelu_backward.grad_input, approximate="tanh"),
    ),
    "sigmoid": (torch.sigmoid, lambda dy, x, grad_input: torch.mul(dy, _sigmoid_slope(x), out=grad_input)),
    "relu": (torch.relu, lambda dy, x, grad_input: torch.mul(dy, x > 0, out=grad_input)),
}


def _sigmoid_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s - s * s


class _GatedUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, joined, activation, gate_first):
        ctx.save_for_backward(joined)
        ctx.activation, ctx.gate_first = activation, gate_first
        gate, up = _halves(joined, gate_first)
        return _ACTIVATIONS[activation][0](gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (joined,) = ctx.saved_tensors
        value, slope = _ACTIVATIONS[ctx.activation]
        gate, up = _halves(joined, ctx.gate_first)
        grad = torch.empty_like(joined)
        dgate, dup = _halves(grad, ctx.gate_first)
        torch.mul(value(gate), dy, out=dup)
        slope(dy * up, gate, grad_input=dgate)
        return grad, None, None


def _halves(joined: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    width = joined.shape[-1] // 2
    first, second = joined[..., :width], joined[..., width:]
    return (first, second) if gate_first else (second, first)


def gated_unit(joined: Tensor, activation: str = "silu", gate_first: bool = True) -> Tensor:
    """activation(gate) * up, where joined [..., 2F] holds gate and up side by side. The result is [..., F].

    One projection makes both halves, and one tensor takes both gradients: with two separate slices autograd would pad
    each gradient with zeros and add them. Only `joined` is kept; the activation is computed again in the backward.
    """
    if not torch.is_grad_enabled():
        first, second = joined.chunk(2, -1)
        gate, up = (first, second) if gate_first else (second, first)
        return _ACTIVATIONS[activation][0](gate).mul_(up)
    return _GatedUnit.apply(joined, activation, gate_first)
