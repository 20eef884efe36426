"""Reductions over an ordered axis: the packed rows of each example, `x [rows, ...]` to `[batch, ...]`.

`row_example [rows]` says which example a row belongs to, `offsets [batch + 1]` where examples begin. `present [rows]`
leaves rows out. No rows give 0, and true for `all_rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import narrow, widen


def sum_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    rows = _kept(x if not x.is_floating_point() else widen(x), present, 0)
    return narrow(_add(rows, row_example, offsets), x)


def mean_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    total = _add(_kept(widen(x), present, 0), row_example, offsets)
    return narrow(total / _per_example(_counts(row_example, offsets, present), total).clamp(min=1), x)


def max_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    return _extreme(x, row_example, offsets, present, "amax")


def min_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    return _extreme(x, row_example, offsets, present, "amin")


def first_rows(x: Tensor, row_example: Tensor, offsets: Tensor) -> Tensor:
    """The first row of each example; 0 without rows."""
    return _picked(x, offsets[:-1], offsets)


def last_rows(x: Tensor, row_example: Tensor, offsets: Tensor) -> Tensor:
    """The last row of each example; 0 without rows."""
    return _picked(x, offsets[1:] - 1, offsets)


def _picked(x: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    # A row of zeros behind the others, for examples without rows.
    rows = torch.cat((x, x.new_zeros((1, *x.shape[1:]))))
    return rows.index_select(0, torch.where(offsets[1:] > offsets[:-1], index, len(x)))


def any_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    return _add(_kept(x, present, False).to(torch.int64), row_example, offsets) > 0


def all_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    return _add(_kept(~x, present, False).to(torch.int64), row_example, offsets) == 0


def logsumexp_rows(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None = None) -> Tensor:
    rows = widen(x)
    top = _extreme(rows.detach(), row_example, offsets, present, "amax")
    total = _add(_kept(torch.exp(rows - top[row_example]), present, 0), row_example, offsets)
    empty = total == 0
    return narrow(torch.where(empty, 0, torch.log(total.masked_fill(empty, 1)) + top), x)


def softmax_rows(x: Tensor, row_example: Tensor, offsets: Tensor) -> Tensor:
    """Softmax over the rows of each example: `[rows, ...]`."""
    rows = widen(x)
    top = _extreme(rows.detach(), row_example, offsets, None, "amax")
    grown = torch.exp(rows - top[row_example])
    return narrow(grown / _add(grown, row_example, offsets)[row_example], x)


def argmax_rows(x: Tensor, row_example: Tensor, offsets: Tensor) -> Tensor:
    """The number, counted in its example, of the first row that holds the maximum; 0 without rows."""
    top = _extreme(x, row_example, offsets, None, "amax")
    rows = torch.arange(len(x), device=x.device) - offsets.to(torch.int64)[row_example]
    rows = rows.reshape(rows.shape + (1,) * (x.dim() - 1)).expand(x.shape)
    number = torch.where(x == top[row_example], rows, len(x))
    return _extreme(number, row_example, offsets, None, "amin")


def _add(rows: Tensor, row_example: Tensor, offsets: Tensor) -> Tensor:
    result = rows.new_zeros((len(offsets) - 1, *rows.shape[1:]))
    return result.index_add(0, row_example, rows)


def _counts(row_example: Tensor, offsets: Tensor, present: Tensor | None) -> Tensor:
    if present is None:
        return offsets[1:] - offsets[:-1]
    return _add(present.to(torch.int64), row_example, offsets)


def _per_example(counts: Tensor, like: Tensor) -> Tensor:
    return counts.reshape(counts.shape + (1,) * (like.dim() - 1))


def _kept(x: Tensor, present: Tensor | None, otherwise: float) -> Tensor:
    if present is None:
        return x
    return x.masked_fill(~present.reshape(present.shape + (1,) * (x.dim() - 1)), otherwise)


def _extreme(x: Tensor, row_example: Tensor, offsets: Tensor, present: Tensor | None, how: str) -> Tensor:
    if present is not None:
        x, row_example = x[present], row_example[present]
    index = row_example.reshape(row_example.shape + (1,) * (x.dim() - 1)).expand(x.shape)
    # From a value below all others: one that ties with the result would take a share of its gradient.
    limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    lowest = limits.min if how == "amax" else limits.max
    if x.is_floating_point():
        lowest = float("-inf") if how == "amax" else float("inf")
    start = x.new_full((len(offsets) - 1, *x.shape[1:]), lowest)
    result = start.scatter_reduce(0, index, x, how)
    has_rows = torch.zeros(len(start), dtype=torch.bool, device=x.device).index_fill(0, row_example, True)
    return torch.where(has_rows.reshape(-1, *(1,) * (x.dim() - 1)), result, torch.zeros_like(result))
