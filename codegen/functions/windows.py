"""Places of ragged axes: runs of rows that are one row of a scaled axis, and windows of rows for convolutions.

Letters: N rows of all examples, B examples, C rows of the coarser axis, K places of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_offsets(offsets: Tensor, by: int) -> Tensor:
    """int32 [B + 1] of the axis that has one row for each `by` rows, the last of an example for what is left."""
    lengths = (offsets[1:] - offsets[:-1] + (by - 1)) // by
    return torch.cat((offsets[:1] * 0, torch.cumsum(lengths, 0))).to(torch.int32)


def scaled_row(row_example: Tensor, position: Tensor, offsets: Tensor, by: int, which: str) -> Tensor:
    """int64 [N]: the row of the coarser axis, whose `offsets` are given, that each row reads: its `own`, the one
    `before`, or the last that is `closed` at it; -1 for none."""
    number = {"own": position // by, "before": position // by - 1, "closed": (position + 1) // by - 1}[which]
    return torch.where(number >= 0, offsets.to(torch.int64)[row_example] + number, -1)


def scaled_bounds(offsets: Tensor, row_example: Tensor, position: Tensor, by: int) -> Tensor:
    """int32 [C + 1]: the row that each of the coarser axis begins with. `offsets` of the finer axis, `row_example` and
    `position` of the coarser one."""
    begins = offsets.to(torch.int64)[row_example] + position * by
    return torch.cat((begins, offsets[-1:].to(torch.int64))).to(torch.int32)


def windows(offsets: Tensor, row_example: Tensor, position: Tensor, size: int, stride: int, before: int) -> Tensor:
    """int64 [rows, K]: rows of the source, whose `offsets` are given, in the window of each row of the target; -1 where
    the example has none."""
    place = position[:, None] * stride + torch.arange(size, device=position.device) - before
    begins = offsets.to(torch.int64)
    first, length = begins[row_example], (begins[1:] - begins[:-1])[row_example]
    return torch.where((place >= 0) & (place < length[:, None]), first[:, None] + place, -1)


def conv_rows(x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x [N, ..., channels]` to `[rows, ..., outputs]` with `weight [outputs, channels, *kernel]`: each row from those
    in its window; -1 reads zeros."""
    rows = torch.cat((x, x.new_zeros((1, *x.shape[1:]))))[index]
    result = torch.einsum("nk...c,ock->n...o", rows, weight.flatten(2))
    # A generated kernel reads the entries of a row side by side.
    return (result if bias is None else result + bias).contiguous()
