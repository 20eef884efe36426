"""Reading rows of a table as a registered operator, whose gradient sums rows in a fixed order (scatter.py)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from .scatter import add_rows

# A namespace of its own for every copy of this file.
LIBRARY = re.sub(r"\W", "_", __name__)


@torch.library.custom_op(f"{LIBRARY}::read_rows", mutates_args=())
def _read(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.reshape(-1)).reshape(index.shape + table.shape[1:])


@_read.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape + table.shape[1:])


@torch.library.custom_op(f"{LIBRARY}::add_rows", mutates_args=())
def _add(rows: Tensor, index: Tensor, count: int) -> Tensor:
    return add_rows(index, rows, count)


@_add.register_fake
def _(rows: Tensor, index: Tensor, count: int) -> Tensor:
    return rows.new_empty((count, rows.shape[-1]))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    table, index = inputs
    ctx.save_for_backward(index)
    ctx.count = table.shape[0]


def _pass_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return _add(grad, index, ctx.count), None


_read.register_autograd(_pass_back, setup_context=_save)


def read_rows(table: Tensor, index: Tensor) -> Tensor:
    """`table [count, *entries]` at `index [...]`, ids in 0 .. count - 1: `[..., *entries]`."""
    entries = table.shape[1:]
    flat = _read(table.reshape(table.shape[0], entries.numel()), index)
    return flat.reshape(index.shape + entries)


def embedding(index: Tensor, table: Tensor) -> Tensor:
    """`read_rows` with the operands of `torch.nn.functional.embedding`."""
    return read_rows(table, index)
