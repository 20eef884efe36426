"""Segments of packed rows on a GPU: their max, mean and sum, and values of segments at rows, as registered operators.

Gradients are sums over the rows of each segment, in the order of the rows. On a CPU without Triton's interpreter the
functions of codegen/functions run instead, which say what these mean.

Letters in shapes: N rows, P segments, E entries of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functions.cuts import spread as spread_by_torch
from ..functions.segments import max_rows as max_by_torch
from ..functions.segments import mean_rows as mean_by_torch
from ..functions.segments import sum_rows as sum_by_torch
from .scatter import interprets

# Rows of a segment and entries of a row that a program holds at a time: a few patches have more rows.
BLOCK_T = 8
BLOCK_E = 256
# Rows of a program that looks where runs begin.
BLOCK_N = 1024
WARPS = 4
# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)

_MEANING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "max": max_by_torch,
    "mean": mean_by_torch,
    "sum": sum_by_torch,
}


def max_rows(x: Tensor, number: Tensor, bounds: Tensor) -> Tensor:
    """`x [N, ...]` to `[P, ...]`: the largest entry of each segment; equal ones share the gradient. `number [N]` is the
    segment of each row, in order, `bounds [P + 1]` where segments begin."""
    return _pooled(x, number, bounds, "max")


def mean_rows(x: Tensor, number: Tensor, bounds: Tensor) -> Tensor:
    """As `max_rows`, the mean."""
    return _pooled(x, number, bounds, "mean")


def sum_rows(x: Tensor, number: Tensor, bounds: Tensor) -> Tensor:
    """As `max_rows`, the sum."""
    return _pooled(x, number, bounds, "sum")


def spread(p: Tensor, number: Tensor) -> Tensor:
    """`p [P, ...]` at the segment of each row, `number [N]`: `[N, ...]`, 0 where it is -1. Rows of a segment lie side
    by side."""
    entries = p.shape[1:]
    return _spread(p.reshape(p.shape[0], entries.numel()), number).reshape(number.shape[0], *entries)


def find_runs(number: Tensor, count: int) -> Tensor:
    """int32 `[count, 2]`: where the rows of each number begin and end in `number [N]`, whose equal numbers lie side by
    side. -1 is left out; a number that is not there has no rows."""
    if launches(number):
        bounds = number.new_zeros((count, 2), dtype=torch.int32)
        if bounds.numel() and number.numel():
            grid = (-(-number.shape[0] // BLOCK_N),)
            _kernels().find_runs[grid](number.contiguous(), bounds, number.shape[0], BLOCK_N=BLOCK_N, num_warps=WARPS)
        return bounds
    number = number.to(torch.int64)
    in_order = torch.cummax(number, 0).values  # a row of none has the number of the row before
    rows = torch.zeros(count, dtype=torch.int64, device=number.device).index_add_(
        0, number[number >= 0], torch.ones_like(number[number >= 0])
    )
    first = torch.searchsorted(in_order, torch.arange(count, device=number.device))
    first = torch.where(rows > 0, first, 0)
    return torch.stack([first, first + rows], 1).to(torch.int32)


def sum_runs(rows: Tensor, bounds: Tensor) -> Tensor:
    """`[count, E]`: sums of the rows `[N, E]` that `bounds [count, 2]` give each number, in at least float32, rounded
    once."""
    if launches(rows):
        return _pool(rows.contiguous(), bounds, "sum", 2)
    first, end = bounds.to(torch.int64).unbind(1)
    counts = end - first
    number = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
    place = torch.arange(len(number), device=rows.device) - (counts.cumsum(0) - counts)[number] + first[number]
    wide = torch.zeros((len(counts), rows.shape[1]), dtype=_wide(rows), device=rows.device)
    return wide.index_add_(0, number, rows[place].to(wide.dtype)).to(rows.dtype)


def launches(x: Tensor) -> bool:
    return x.device.type != "cpu" or interprets()


# -- the operators -----------------------------------------------------------------------------------------------------


def _pooled(x: Tensor, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    entries = x.shape[1:]
    y = _pool_op(x.reshape(x.shape[0], entries.numel()), number, bounds, by)
    return y.reshape(bounds.shape[0] - 1, *entries)


@torch.library.custom_op(f"{LIBRARY}::pool", mutates_args=())
def _pool_op(x: Tensor, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    if launches(x):
        return _pool(x.contiguous(), bounds, by, 1)
    return _MEANING[by](x, number.to(torch.int64), bounds)


@_pool_op.register_fake
def _(x: Tensor, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    return x.new_empty((bounds.shape[0] - 1, x.shape[1]))


@torch.library.custom_op(f"{LIBRARY}::pool_backward", mutates_args=())
def _pool_backward(dy: Tensor, x: Tensor | None, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    """`dx [N, E]`. `x` is read where it says who shares the gradient, for the max alone."""
    if launches(dy):
        dx = dy.new_empty((number.shape[0], dy.shape[1]))
        if dx.numel():
            _pool_gradient(dy.contiguous(), x, bounds, dx, by)
        return dx
    return _gradient_by_torch(dy, x, number.to(torch.int64), bounds, by)


@_pool_backward.register_fake
def _(dy: Tensor, x: Tensor | None, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    return dy.new_empty((number.shape[0], dy.shape[1]))


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, number, bounds, by = inputs
    ctx.save_for_backward(x if by == "max" else None, number, bounds)
    ctx.by = by


def _pool_back(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, number, bounds = ctx.saved_tensors
    return _pool_backward(dy, x, number, bounds, ctx.by), None, None, None


_pool_op.register_autograd(_pool_back, setup_context=_save_pool)


@torch.library.custom_op(f"{LIBRARY}::spread", mutates_args=())
def _spread(p: Tensor, number: Tensor) -> Tensor:
    if not launches(p):
        return spread_by_torch(p, number)
    x = p.new_empty((number.shape[0], p.shape[1]))
    if x.numel():
        block = block_entries(p.shape[1])
        grid = (-(-number.shape[0] // BLOCK_T), -(-p.shape[1] // block))
        _kernels().read_runs[grid](
            p.contiguous(), number.contiguous(), x, number.shape[0], WIDTH=p.shape[1], BLOCK_T=BLOCK_T, BLOCK_E=block,
            num_warps=WARPS,
        )  # fmt: skip
    return x


@_spread.register_fake
def _(p: Tensor, number: Tensor) -> Tensor:
    return p.new_empty((number.shape[0], p.shape[1]))


@torch.library.custom_op(f"{LIBRARY}::spread_backward", mutates_args=())
def _spread_backward(dx: Tensor, number: Tensor, count: int) -> Tensor:
    return sum_runs(dx, find_runs(number, count))


@_spread_backward.register_fake
def _(dx: Tensor, number: Tensor, count: int) -> Tensor:
    return dx.new_empty((count, dx.shape[1]))


def _save_spread(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    p, number = inputs
    ctx.save_for_backward(number)
    ctx.count = p.shape[0]


def _spread_back(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
    (number,) = ctx.saved_tensors
    return _spread_backward(dx, number, ctx.count), None


_spread.register_autograd(_spread_back, setup_context=_save_spread)


def _gradient_by_torch(dy: Tensor, x: Tensor | None, number: Tensor, bounds: Tensor, by: str) -> Tensor:
    wide = dy.to(_wide(dy))
    if x is not None:
        is_top = x == max_by_torch(x, number, bounds)[number]
        count = torch.zeros_like(wide).index_add_(0, number, is_top.to(wide.dtype))
        return torch.where(is_top, (wide / count.clamp(min=1))[number], 0).to(dy.dtype)
    if by == "mean":
        wide = wide / (bounds[1:] - bounds[:-1]).clamp(min=1)[:, None]
    return wide[number].to(dy.dtype)


# -- launches ----------------------------------------------------------------------------------------------------------


def _pool(x: Tensor, bounds: Tensor, by: str, step: int) -> Tensor:
    """Of `bounds [P + 1]` with `step` 1, of `[P, 2]` with 2."""
    runs, width = bounds.shape[0] - (step == 1), x.shape[1]
    y = x.new_empty((runs, width))
    if y.numel():
        block = block_entries(width)
        _kernels().pool_runs[runs, -(-width // block)](
            x, bounds, y, WIDTH=width, STEP=step, BY=by, IS_DOUBLE=_is_double(x), BLOCK_T=BLOCK_T, BLOCK_E=block,
            num_warps=WARPS,
        )  # fmt: skip
    return y


def _pool_gradient(dy: Tensor, x: Tensor | None, bounds: Tensor, dx: Tensor, by: str) -> None:
    width = dy.shape[1]
    block = block_entries(width)
    grid = (dy.shape[0], -(-width // block))
    sizes = {"WIDTH": width, "IS_DOUBLE": _is_double(dy), "BLOCK_T": BLOCK_T, "BLOCK_E": block, "num_warps": WARPS}
    if by == "max":
        assert x is not None
        _kernels().share_max[grid](x.contiguous(), dy, bounds, dx, **sizes)
    else:
        _kernels().spread_runs[grid](dy, bounds, dx, BY=by, **sizes)


def block_entries(width: int) -> int:
    """Entries of a program's block."""
    return min(BLOCK_E, max(16, 1 << (width - 1).bit_length()))


def _kernels() -> Any:
    # Here, because a model on a CPU pools too, without Triton.
    from . import segment_kernels

    return segment_kernels


def _is_double(x: Tensor) -> bool:
    return x.dtype == torch.float64


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
