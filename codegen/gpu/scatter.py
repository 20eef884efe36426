"""Adding rows into a table, the transpose of reading rows from it: in a fixed order, without atomics."""

from __future__ import annotations

import torch
from torch import Tensor


def add_rows(index: Tensor, rows: Tensor, count: int) -> Tensor:
    """`rows [*index.shape, entries]` added into `[count, entries]` at `index`."""
    flat = rows.reshape(-1, rows.shape[-1])
    wide = torch.zeros(
        (count, flat.shape[-1]), dtype=torch.promote_types(rows.dtype, torch.float32), device=rows.device
    )
    # On CUDA an accumulating index_put sorts the index, so the order of the additions is fixed.
    return wide.index_put_((index.reshape(-1),), flat.to(wide.dtype), accumulate=True).to(rows.dtype)
