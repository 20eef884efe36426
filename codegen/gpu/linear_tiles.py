"""A linear whose products run in kernels of ours where those were measured faster than the matrix library.

    linear(x, weight, forward=(128, 128, 64, 8, 3))     the product forward in these tiles, both gradients by torch

Letters in shapes: N rows, K inputs, M outputs.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .products import precision

# A namespace of torch operators of this module's own: a compiled model carries a copy of it.
LIBRARY = re.sub(r"\W", "_", __name__)
# Tiles of rows that share a tile of columns in the cache.
GROUP_M = 8


class Tiles(NamedTuple):
    """A tile of the result, how much of the depth at a time, and launch options."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    forward: tuple[int, ...] | None = None,
    x_gradient: tuple[int, ...] | None = None,
    weight_gradient: tuple[int, ...] | None = None,
) -> Tensor:
    """`x [.., K]`, `weight [M, K]`, `bias [M]` to `[.., M]`; the last three are the Tiles of each product, None leaves
    it to torch. Without a GPU or Triton's interpreter everything is."""
    if not torch.compiler.is_compiling() and not launches(x):
        return functional.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    chosen = [list(tiles or ()) for tiles in (forward, x_gradient, weight_gradient)]
    y = _linear(flat, weight, *chosen).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


@torch.library.custom_op(f"{LIBRARY}::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, forward: list[int], x_gradient: list[int], weight_gradient: list[int]) -> Tensor:
    return product(x, weight.t(), forward)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, forward: list[int], x_gradient: list[int], weight_gradient: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


@torch.library.custom_op(f"{LIBRARY}::linear_product", mutates_args=())
def _product(a: Tensor, b: Tensor, tiles: list[int]) -> Tensor:
    return product(a, b, tiles)


@_product.register_fake
def _(a: Tensor, b: Tensor, tiles: list[int]) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.tiles = inputs
    ctx.save_for_backward(x, weight)


def _pass_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    x_tiles, weight_tiles = ctx.tiles
    dx = _product(grad, weight, x_tiles) if ctx.needs_input_grad[0] else None
    dw = _product(grad.t(), x, weight_tiles) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None


_linear.register_autograd(_pass_back, setup_context=_save)


def product(a: Tensor, b: Tensor, tiles: list[int] | tuple[int, ...]) -> Tensor:
    """`a [rows, depth] b [depth, columns]`; without tiles by the matrix library."""
    if not tiles or not launches(a):
        return a @ b
    # Here, because a model on a CPU has linears too, without Triton.
    from . import linear_kernels

    kernels: Any = linear_kernels
    chosen = Tiles(*tiles)
    (rows, depth), columns = a.shape, b.shape[1]
    out = a.new_empty((rows, columns))
    if out.numel():
        programs = -(-rows // chosen.block_m) * -(-columns // chosen.block_n)
        kernels.product[(programs,)](
            a, b, out, rows, columns, depth, *a.stride(), *b.stride(), BLOCK_M=chosen.block_m, BLOCK_N=chosen.block_n,
            BLOCK_K=chosen.block_k, GROUP_M=GROUP_M, PRECISION=_precision(a), num_warps=chosen.warps,
            num_stages=chosen.stages,
        )  # fmt: skip
    return out


def launches(x: Tensor) -> bool:
    """Whether kernels run on this tensor: on a GPU, or in Triton's interpreter."""
    if x.device.type != "cpu":
        return True
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def _precision(x: Tensor) -> str:
    return precision(x.dtype, x.device.type == "cuda" and torch.version.hip is None)
