"""Attention of segments to their own rows as registered operators: each segment has a few queries, and sees its rows.

    y[p, s, h] = sum over rows r of segment p of softmax_r(scale * q[p, s, h] . k[r, h]) * v[r, h]

On a CPU without Triton's interpreter torch computes it, over all rows at once.

Letters in shapes: N rows, P segments, S queries of a segment, H heads, D and V entries of a head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .segments import launches

# Products that a program holds at a time, and rows of a segment among them: most have fewer.
PRODUCTS = 4096
MOST_ROWS = 8
# The backward holds rows of gradients beside what it reads: with fewer warps some would be spilled.
WARPS = {"attend_runs": 4, "attend_runs_backward": 8}
# A segment's queries and a head of more entries than these are left to the kernels for attention of any length.
MOST_QUERIES = 16
WIDEST = 256
# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)


@dataclass(frozen=True)
class Blocks:
    """Of a program: rows, queries, heads, entries of q and k, entries of v. Powers of two."""

    rows: int
    queries: int
    heads: int
    entries: int
    v_entries: int


def blocks(queries: int, heads: int, width: int, v_width: int) -> Blocks:
    s, d, v = (1 << (n - 1).bit_length() for n in (queries, width, v_width))
    rows = max(1, min(MOST_ROWS, PRODUCTS // (s * max(d, v))))
    most = max(1, PRODUCTS // (rows * s * max(d, v)))
    return Blocks(rows, s, min(most, 1 << (heads - 1).bit_length()), d, v)


def attend_runs(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """`q [P, S, H, D]`, `k [N, H, D]`, `v [N, H, V]` to `[P, S, H, V]`; `bounds [P + 1]` says where segments begin,
    and that they tile the rows. A segment without rows gives 0."""
    return _attend(q, k, v, bounds, scale)


# -- the operators -----------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{LIBRARY}::attend_runs", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    if not launches(q):
        return by_torch(q, k, v, bounds, scale)
    out = q.new_empty((*q.shape[:3], v.shape[2]))
    if out.numel():
        _launch("attend_runs", q, k, v, scale, (bounds, out))
    return out


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    return q.new_empty((*q.shape[:3], v.shape[2]))


@torch.library.custom_op(f"{LIBRARY}::attend_runs_backward", mutates_args=())
def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if not launches(q):
        return _gradients_by_torch(do, q, k, v, bounds, scale)
    dq, dk, dv = _like(q), _like(k), _like(v)
    if q.shape[0]:
        _launch("attend_runs_backward", q, k, v, scale, (do.contiguous(), bounds, dq, dk, dv))
    return dq, dk, dv


@_backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return _like(q), _like(k), _like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.scale = inputs[4]


def _differentiate(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(do, *ctx.saved_tensors, ctx.scale), None, None


_attend.register_autograd(_differentiate, setup_context=_save)


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


# -- by torch ----------------------------------------------------------------------------------------------------------


def by_torch(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    return by_numbers(q, k, v, _numbers(bounds), scale)


def by_numbers(q: Tensor, k: Tensor, v: Tensor, number: Tensor, scale: float) -> Tensor:
    """The same, told the segment of each row, `number [N]`."""
    q_wide, k_wide, v_wide = map(_wide, (q, k, v))
    weight = _weights(q_wide, k_wide, number, scale)
    return _sum(weight[..., None] * v_wide[:, None], number, q.shape[0]).to(q.dtype)


def _gradients_by_torch(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Written out: inside an op torch records nothing that it could differentiate."""
    number, (do_wide, q_wide, k_wide, v_wide) = _numbers(bounds), map(_wide, (do, q, k, v))
    weight = _weights(q_wide, k_wide, number, scale)
    given = do_wide[number]
    dp = (given * v_wide[:, None]).sum(-1)
    slope = scale * weight * (dp - _sum(weight * dp, number, q.shape[0])[number])
    dq = _sum(slope[..., None] * k_wide[:, None], number, q.shape[0])
    dk = (slope[..., None] * q_wide[number]).sum(1)
    dv = (weight[..., None] * given).sum(1)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _weights(q: Tensor, k: Tensor, number: Tensor, scale: float) -> Tensor:
    """`[N, S, H]`: the softmax over the rows of each segment."""
    score = scale * (q[number] * k[:, None]).sum(-1)
    index = number[:, None, None].expand(score.shape)
    top = score.new_zeros(q.shape[:3]).scatter_reduce(0, index, score.detach(), "amax", include_self=False)
    weight = torch.exp(score - top[number])
    return weight / _sum(weight, number, q.shape[0])[number]


def _sum(x: Tensor, number: Tensor, count: int) -> Tensor:
    return x.new_zeros((count, *x.shape[1:])).index_add(0, number, x)


def _numbers(bounds: Tensor) -> Tensor:
    """int64 [N]: the segment of each row."""
    counts = bounds.diff().to(torch.int64)
    return torch.repeat_interleave(torch.arange(len(counts), device=bounds.device), counts)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# -- launches ----------------------------------------------------------------------------------------------------------


def _launch(name: str, q: Tensor, k: Tensor, v: Tensor, scale: float, others: tuple[Tensor, ...]) -> None:
    # Here, because a model on a CPU has it too, without Triton.
    from . import run_attention_kernels

    # Heads must lie entry by entry; all else may be parts of wider rows.
    q, k, v = (x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in (q, k, v))
    runs, queries, heads, width = q.shape
    size = blocks(queries, heads, width, v.shape[2])
    kernel: Any = getattr(run_attention_kernels, name)
    kernel[runs, -(-heads // size.heads)](
        q, k, v, *others, *q.stride()[:3], *k.stride()[:2], *v.stride()[:2], num_warps=WARPS[name],
        **constants(queries, heads, width, v.shape[2], scale, q.dtype == torch.float64),
    )  # fmt: skip


def constants(
    queries: int, heads: int, width: int, v_width: int, scale: float, is_double: bool
) -> dict[str, int | bool | float]:
    """What both kernels are made for."""
    size = blocks(queries, heads, width, v_width)
    return {
        "SCALE": scale, "QUERIES": queries, "HEADS": heads, "WIDTH": width, "V_WIDTH": v_width,
        "IS_DOUBLE": is_double, "BLOCK_T": size.rows, "BLOCK_S": size.queries, "BLOCK_H": size.heads,
        "BLOCK_D": size.entries, "BLOCK_V": size.v_entries,
    }  # fmt: skip
