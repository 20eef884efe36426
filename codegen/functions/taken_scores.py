"""The gradient of scores of rows against keys of which a few were taken: a number for one row and one key each.

That of the rows is a bag of keys, that of the keys a bag's of its table. Which were taken has none.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

# `keys [all keys, D]` at `lists [lines, k]` times `numbers [lines, k]`: `[lines, D]`.
Bag = Callable[[Tensor, Tensor, Tensor], Tensor]
# Rows `lists [lines, k]` of `[count, D]` get `x [lines, D]` times `numbers [lines, k]`: (lists, numbers, x, count).
Add = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """For an operator of `x, keys, count, scale` that gives scores and what was taken."""
    x, keys, _, ctx.scale = inputs
    ctx.save_for_backward(x, keys, output[1])
    ctx.mark_non_differentiable(output[1])


def backward_of_top(bag: Bag, add: Add) -> Callable[..., tuple[Tensor | None, ...]]:
    def back(ctx: Any, of_scores: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, index = ctx.saved_tensors
        return *_gradients(ctx, x, keys, index, of_scores, bag, add), None, None

    return back


def backward_of_pairs(bag: Bag, add: Add) -> Callable[..., tuple[Tensor | None, ...]]:
    def back(ctx: Any, of_scores: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, slot = ctx.saved_tensors
        entries = keys.shape[2]
        index = torch.stack([torch.div(slot, entries, rounding_mode="floor"), slot % entries], 2)
        both = of_scores[:, :, None].expand(index.shape)
        return *_gradients(ctx, x, keys, index, both, bag, add), None, None

    return back


def _gradients(
    ctx: Any, x: Tensor, keys: Tensor, index: Tensor, of_scores: Tensor, bag: Bag, add: Add
) -> list[Tensor | None]:
    """`x [R, *groups, D]`, `keys [*groups, n, D]`, `index, of_scores [R, *groups, k]`."""
    groups, (entries, width) = keys.shape[:-2], keys.shape[-2:]
    first = entries * torch.arange(prod(groups), device=x.device).reshape(groups)
    lists = (index + first[..., None]).flatten(0, -2)
    numbers = (ctx.scale * of_scores).flatten(0, -2)
    of_x = of_keys = None
    if ctx.needs_input_grad[0]:
        of_x = bag(keys.reshape(-1, width), lists, numbers).reshape(x.shape)
    if ctx.needs_input_grad[1]:
        of_keys = add(lists, numbers, x.flatten(0, -2), prod(groups) * entries).reshape(keys.shape)
    return [of_x, of_keys]
