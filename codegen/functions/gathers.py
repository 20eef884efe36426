"""Reading by index: tables, entries of an axis, rows of the same example."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rows_of_table(table: Tensor, index: Tensor) -> Tensor:
    """`table [entries, *rest]` at `index [...]`: `[..., *rest]`."""
    flat = functional.embedding(index, table.reshape(table.shape[0], table.shape[1:].numel()))
    return flat.reshape(index.shape + table.shape[1:])


def entries(x: Tensor, index: Tensor, shared: int) -> Tensor:
    """`x [*shared, entries, *rest]` at `index [*shared, *own]`, where the first `shared` dimensions are the same
    entries of both (each may be 1 in one of the two): `[*shared, *own, *rest]`."""
    own, rest = index.shape[shared:], x.shape[shared + 1 :]
    lead = torch.broadcast_shapes(x.shape[:shared], index.shape[:shared])
    x = x.reshape(x.shape[: shared + 1] + (rest.numel(),)).expand(lead + (x.shape[shared], rest.numel()))
    index = index.reshape(index.shape[:shared] + (own.numel(), 1)).expand(lead + (own.numel(), rest.numel()))
    return torch.gather(x, shared, index).reshape(lead + own + rest)


def starts(offsets: Tensor, row_example: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where the rows of each reading row's example begin, and how many there are: int64 `[reading rows]`; `[batch]`
    when examples read."""
    begins = offsets[:-1].to(torch.int64)
    lengths = (offsets[1:] - offsets[:-1]).to(torch.int64)
    return (begins, lengths) if row_example is None else (begins[row_example], lengths[row_example])


def rows_of_example(x: Tensor, index: Tensor, begins: Tensor, lengths: Tensor) -> Tensor:
    """`x [rows, *rest]` at `index [reading rows, *own]`, numbers of rows counted in the example of the reading row:
    `[reading rows, *own, *rest]`. 0 where the example has no such row."""
    own = (1,) * (index.dim() - 1)
    inside = index < lengths.reshape(lengths.shape + own)
    if x.shape[0] == 0:
        return x.new_zeros(index.shape + x.shape[1:]) + x.sum().to(x.dtype)
    found = rows_of_table(x, torch.where(inside, index + begins.reshape(begins.shape + own), 0))
    return torch.where(inside.reshape(inside.shape + (1,) * (x.dim() - 1)), found, 0)


def bag(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """The sum of `table [entries, *rest]` over the last dimension of `index [..., n]`, each entry times `weight [...,
    n]`: `[..., *rest]`."""
    flat = table.reshape(table.shape[0], table.shape[1:].numel())
    lines = index.reshape(index.shape[:-1].numel(), index.shape[-1])
    factors = None if weight is None else weight.reshape(lines.shape)
    result = functional.embedding_bag(lines, flat, mode="sum", per_sample_weights=factors)
    return result.reshape(index.shape[:-1] + table.shape[1:])


def nearest(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry of `table [entries, D]` at the least squared distance from `x [..., D]`: its index `[...]`, the
    distance."""
    width = torch.promote_types(x.dtype, torch.float32)
    points, places = x.to(width), table.to(width)
    scores = (places * places).sum(-1) - 2 * points @ places.T
    index = torch.min(scores, -1).indices
    difference = x - rows_of_table(table, index)
    return index, (difference.to(width) ** 2).sum(-1).to(x.dtype)


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of the last dimension, largest first, ties to the lowest index: scores and indices."""
    index = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.gather(scores, -1, index), index


def top_pairs(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of `first[..., i] + second[..., j]`, found without forming them all: scores, and `i *
    entries + j`.

    A pair among the best has both parts among the best of their side, so count x count candidates are enough. Ties to
    the lowest.
    """
    entries_second = second.shape[-1]
    first_index = top(first, min(count, first.shape[-1]))[1].sort(-1).values
    second_index = top(second, min(count, entries_second))[1].sort(-1).values
    # In index order, so that the stable sort in `top` settles ties for the lowest pair.
    pairs = (first_index[..., :, None] * entries_second + second_index[..., None, :]).flatten(-2)
    sums = torch.gather(first, -1, first_index)[..., :, None] + torch.gather(second, -1, second_index)[..., None, :]
    scores, place = top(sums.flatten(-2), count)
    return scores, torch.gather(pairs, -1, place)
