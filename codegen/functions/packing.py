"""Rows of packed batches: which example a row belongs to, where it stands in it, sums of losses, counters for random
draws.

Letters: N rows of all examples, B examples. offsets [B + 1] say where the rows of each example begin.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_example(offsets: Tensor, rows: Tensor) -> Tensor:
    """int64 [N]: the example of each row. `rows` [N, ...] is any packed value; its length avoids a read of the
    offsets."""
    row = torch.arange(rows.shape[0], device=offsets.device, dtype=offsets.dtype)
    return torch.searchsorted(offsets[1:], row, right=True)


def row_example_of(offsets: Tensor) -> Tensor:
    """As `row_example`, where no packed value is at hand: the number of rows is read from the offsets."""
    lengths = offsets[1:] - offsets[:-1]
    return torch.repeat_interleave(torch.arange(lengths.shape[0], device=offsets.device), lengths.to(torch.int64))


def position(offsets: Tensor, row_example: Tensor) -> Tensor:
    """int64 [N]: a row's number in its example."""
    begins = offsets[:-1].to(torch.int64)
    return torch.arange(row_example.shape[0], device=offsets.device) - begins[row_example]


def per_owner(edges: Tensor) -> Tensor:
    """[P]: a tensor with one entry for each row that owns rows of a nested axis, whose `edges [P + 1]` are given."""
    return edges[1:]


def even_edges(owners: Tensor, each: int) -> Tensor:
    """int32 [P + 1]: where rows begin that each of P rows owns `each` of. `owners` [P, ...]."""
    return torch.arange(owners.shape[0] + 1, device=owners.device, dtype=torch.int32) * each


def want_each(x: Tensor, edges: Tensor, each: int) -> Tensor:
    """`x [rows, ...]` as it is, if every owner has `each` rows of it."""
    owners = edges.shape[0] - 1
    # Whether their number is right is known without waiting for a device; of which owner one is missing is not.
    if x.shape[0] != owners * each:
        raise ValueError(f"{x.shape[0]} rows of {owners} owners, where each has {each}")
    if edges.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = ((edges[1:] - edges[:-1]) != each).nonzero()
        if len(wrong):
            owner = int(wrong[0])
            raise ValueError(f"owner {owner} has {int(edges[owner + 1] - edges[owner])} rows, not {each}")
    return x


def expand(x: Tensor, like: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
    """`x`, which broadcasts against [N, *sizes], expanded to it; N is the length of `like`. Without it, to [*sizes]."""
    lead = () if like is None else (like.shape[0],)
    return x.expand((*lead, *sizes))


def filled(
    number: float, like: Tensor | None, sizes: tuple[int, ...], dtype: torch.dtype, device_of: Tensor | None
) -> Tensor:
    """A number everywhere: [N, *sizes]."""
    lead = () if like is None else (like.shape[0],)
    device = None if device_of is None else device_of.device
    return torch.full((*lead, *sizes), number, dtype=dtype, device=device)


def beside(x: Tensor, like: Tensor) -> Tensor:
    """A tensor made from nothing, on the device of the others."""
    return x.to(like.device)


def batch_of(offsets: Tensor) -> Tensor:
    """[B]: a tensor whose length is the number of examples."""
    return offsets[1:]


def loss_sum(value: Tensor, keep: Tensor | None) -> Tensor:
    """The sum of a loss over the rows that count, in at least float32. Rows that do not count may hold anything, NaN
    included."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    if keep is not None:
        wide = torch.where(keep.reshape(keep.shape + (1,) * (wide.dim() - keep.dim())), wide, 0)
    return wide.sum()


def loss_count(value: Tensor, keep: Tensor | None) -> Tensor:
    """How many rows `loss_sum` added: int64."""
    if keep is None:
        return torch.full((), value.numel(), dtype=torch.int64, device=value.device)
    per_row = value.numel() // max(keep.numel(), 1)
    return keep.sum() * per_row


# -- counters for random draws ---------------------------------------------------------------------
# Multipliers and shifts of the splitmix64 finaliser (Steele, Lea, Flood 2014), as int64: torch wraps on overflow.
_MULTIPLY_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLY_2 = 0x94D049BB133111EB - (1 << 64)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Without sign extension."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(key: Tensor, number: Tensor | int) -> Tensor:
    """A new counter from a counter and one more number; every bit of both matters."""
    x = key * _GOLDEN + number + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def draw_key(
    seed: Tensor, step: Tensor, site: int, examples: Tensor | None, row_example: Tensor | None, position: Tensor | None
) -> Tensor:
    """int64 [N], [B] or a scalar: the counter of every row, mixed from run seed, step, site, example id and row."""
    key = mix(mix(seed, step), site)
    if examples is None:
        return key
    key = mix(key, examples)
    if row_example is None or position is None:
        return key
    return mix(key[row_example], position)
