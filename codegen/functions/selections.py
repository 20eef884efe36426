"""Rows chosen by a tag, and back: which rows they are, their offsets, gathers in both directions.

Letters: N rows of the whole axis, W rows chosen, B examples. Every row is in one part at most, so that the gradients of
the gathers never add two numbers: they are the same on every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def has_tag(tag: Tensor, members: tuple[int, ...]) -> Tensor:
    """bool [N]: whether the tag of each row is one of `members`."""
    flags = tag == members[0]
    for member in members[1:]:
        flags = flags | (tag == member)
    return flags


def rows_of(flags: Tensor) -> Tensor:
    """int64 [W]: the rows with a flag, in order."""
    return flags.nonzero()[:, 0]


def in_front(flags: Tensor, offsets: Tensor, row_example: Tensor) -> Tensor:
    """bool [N]: rows that have a flag, as have all rows before them in their example. flags [N]."""
    lacking = functional.pad(torch.cumsum(~flags, 0), (1, 0))
    return lacking[1:] == lacking[offsets[:-1].to(torch.int64)][row_example]


def offsets_of(flags: Tensor, offsets: Tensor) -> Tensor:
    """int32 [B + 1]: where the chosen rows of each example begin, counted among the chosen."""
    before = functional.pad(torch.cumsum(flags, 0), (1, 0))
    return before[offsets.to(torch.int64)].to(torch.int32)


def offsets_of_examples(offsets: Tensor, examples: Tensor) -> Tensor:
    """int32 [chosen examples + 1]: as `offsets`, of these examples alone."""
    lengths = (offsets[1:] - offsets[:-1]).index_select(0, examples)
    return functional.pad(torch.cumsum(lengths, 0), (1, 0)).to(torch.int32)


def take(x: Tensor, rows: Tensor) -> Tensor:
    """`x [N, ...]` at the chosen rows: `[W, ...]`."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Take.apply(x, rows)
    return x.index_select(0, rows)


class _Take(torch.autograd.Function):
    """No row is chosen twice, so that the gradient is copied, which is faster than adding it row by row."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, rows = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.new_zeros(ctx.shape).index_copy(0, rows, gradient), None


def want_as_many(x: Tensor, rows: Tensor, name: str) -> Tensor:
    """`x [W, ...]` as it is, if as many rows are chosen. Raises ValueError."""
    if x.shape[0] != rows.shape[0]:
        raise ValueError(f"{x.shape[0]} rows of {name} are made, but {rows.shape[0]} rows have its tag")
    return x


def place_of_segment(position: Tensor, chosen: Tensor, begins: Tensor, number: Tensor) -> Tensor:
    """int64 [W]: where on the whole axis the segment of each chosen row begins. position [N] of all rows; begins [P],
    counted in chosen rows; number [W]: the segment of each."""
    return position[chosen[begins]][number]


def placed(x: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """`x [W, ...]` at its rows of the whole axis, which has those of `like [N]`; 0 elsewhere."""
    return x.new_zeros(like.shape[0], *x.shape[1:]).index_copy(0, rows, x)


def placed_numbers(number: Tensor, inside: Tensor | None, rows: Tensor, like: Tensor, outside: int) -> Tensor:
    """int64 [N]: numbers of the chosen rows in their places; `outside` elsewhere, and where a row is not `inside`."""
    kept = number if inside is None else torch.where(inside, number, outside)
    return torch.full_like(like, outside).index_copy(0, rows, kept)


def nowhere(like: Tensor, outside: int) -> Tensor:
    """int64 [N]: the number of rows that are in no segment."""
    return torch.full_like(like, outside)


def no_rows(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Rows `[0, *shape]` on the device of `like`."""
    return torch.empty((0, *shape), dtype=dtype, device=like.device)


def placed_flags(rows: Tensor, like: Tensor, present: Tensor | None) -> Tensor:
    """bool [N]: which rows of the whole axis are chosen, and not missing."""
    flags = torch.ones_like(rows, dtype=torch.bool) if present is None else present
    return placed(flags, rows, like)


def places_of(rows: Tensor, wanted: Tensor) -> Tensor:
    """int64: where some of the chosen rows stand among them."""
    return torch.searchsorted(rows, wanted)


def order_of(rows: tuple[Tensor, ...]) -> Tensor:
    """int64 [N]: where each row stands when the parts lie behind one another. `rows`: which rows each part has."""
    placed = torch.cat(rows)
    return torch.empty_like(placed).index_put_((placed,), torch.arange(len(placed), device=placed.device))


def join(parts: tuple[Tensor, ...], order: Tensor) -> Tensor:
    """The rows of all parts in their places: `[N, ...]`."""
    if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
        return _Join.apply(order, *parts)
    return torch.cat(parts).index_select(0, order)


class _Join(torch.autograd.Function):
    """Every row is in one part, so that the gradient is read in the other order, and nothing is added."""

    @staticmethod
    def forward(order: Tensor, *parts: Tensor) -> Tensor:
        return torch.cat(parts).index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        order, *parts = inputs
        ctx.lengths = [part.shape[0] for part in parts]
        ctx.save_for_backward(order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (order,), (gradient,) = ctx.saved_tensors, gradients
        back = torch.empty_like(order).index_put_((order,), torch.arange(len(order), device=order.device))
        return None, *gradient.index_select(0, back).split(ctx.lengths)


def all_there(rows: Tensor) -> Tensor:
    """bool [W]: of a part that lacks nothing."""
    return torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
