"""A few of many scores of rows against keys on a CPU, whose gradients are those of the few.

    top            scores, index [rows, *groups, k] of  scale * x [rows, *groups, D] . keys [*groups, n, D]
    pairs          scores, slot of the sums of two sides of keys [*groups, 2, n, D]: slot = i * n + j

All scores are computed, by the matrix library, and not kept. A product of matrices would make the gradient of each of
them; but only those that were taken have one: of x it is a bag of keys, of the keys that of a bag's table.

Letters in shapes: R rows, G groups, n keys of a group, D entries, k of them taken.
"""

from __future__ import annotations

import re
from math import prod

import torch
from torch import Tensor

from ..functions.row_tables import add_factors, sum_of_rows
from ..functions.taken_scores import backward_of_pairs, backward_of_top, save
from .selection import largest, largest_pairs

LIBRARY = re.sub(r"\W", "_", __name__)


def top(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, *groups, D]`, `keys [*groups, n, D]`: the `count` largest scores, in at least float32, and their int64
    indices, `[R, *groups, count]`; largest first, ties to the lowest."""
    groups = keys.shape[:-2]
    scores, index = _top(*_alike(x, keys, (prod(groups),)), count, scale)
    shape = (x.shape[0], *groups, count)
    return scores.reshape(shape), index.reshape(shape)


def top_pairs(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, *groups, 2, D]`, `keys [*groups, 2, n, D]`: the `count` largest sums of a score of each side, and `i * n +
    j`, `[R, *groups, count]`."""
    groups = keys.shape[:-3]
    scores, slot = _pairs(*_alike(x, keys, (prod(groups), 2)), count, scale)
    shape = (x.shape[0], *groups, count)
    return scores.reshape(shape), slot.reshape(shape)


def _alike(x: Tensor, keys: Tensor, groups: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, keys.dtype)
    x = x.reshape(x.shape[0], *groups, x.shape[-1])
    return x.to(wide), keys.reshape(*groups, *keys.shape[-2:]).to(wide)


@torch.library.custom_op(f"{LIBRARY}::top", mutates_args=())
def _top(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, G, D]`, `keys [G, n, D]` of one type: `[R, G, count]` twice."""
    scores, index = largest(_all_scores(x, keys, scale), count)
    return scores.transpose(0, 1).contiguous(), index.transpose(0, 1).contiguous()


@_top.register_fake
def _shapes(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], count)
    return x.new_empty(shape, dtype=_wide(x)), x.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op(f"{LIBRARY}::pairs", mutates_args=())
def _pairs(x: Tensor, keys: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """`x [R, G, 2, D]`, `keys [G, 2, n, D]` of one type: `[R, G, count]` twice."""
    both = _all_scores(x.flatten(1, 2), keys.flatten(0, 1), scale).unflatten(0, (-1, 2))
    scores, slot = largest_pairs(both[:, 0], both[:, 1], count)
    return scores.transpose(0, 1).contiguous(), slot.transpose(0, 1).contiguous()


_pairs.register_fake(_shapes)


@torch.library.custom_op(f"{LIBRARY}::gradient_of_x", mutates_args=())
def _gradient_of_x(keys: Tensor, lists: Tensor, numbers: Tensor) -> Tensor:
    """`keys [all keys, D]` at `lists [lines, k]` times `numbers [lines, k]`: `[lines, D]`."""
    return sum_of_rows(keys, lists, numbers)


@_gradient_of_x.register_fake
def _(keys: Tensor, lists: Tensor, numbers: Tensor) -> Tensor:
    return keys.new_empty((lists.shape[0], keys.shape[1]))


@torch.library.custom_op(f"{LIBRARY}::gradient_of_keys", mutates_args=())
def _gradient_of_keys(lists: Tensor, numbers: Tensor, x: Tensor, count: int) -> Tensor:
    """`x [lines, D]` times `numbers [lines, k]` added to rows `lists [lines, k]` of `[count, D]`."""
    return add_factors([(lists, numbers, x)], count)


@_gradient_of_keys.register_fake
def _(lists: Tensor, numbers: Tensor, x: Tensor, count: int) -> Tensor:
    return x.new_empty((count, x.shape[1]))


_top.register_autograd(backward_of_top(_gradient_of_x, _gradient_of_keys), setup_context=save)
_pairs.register_autograd(backward_of_pairs(_gradient_of_x, _gradient_of_keys), setup_context=save)


def _all_scores(x: Tensor, keys: Tensor, scale: float) -> Tensor:
    """`x [R, G, D]`, `keys [G, n, D]`: `[G, R, n]`, as the matrix library lays them out."""
    wide = _wide(x)
    scores = torch.bmm(x.to(wide).transpose(0, 1), keys.to(wide).transpose(1, 2))
    return scores if scale == 1.0 else scores.mul_(scale)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
