"""Reading a few rows of a large table, and what becomes of their gradients.

A step reads some thousand rows of a table that may have millions. A gradient of the table's own size would be zeros
for the most part, and one row for each read would be as large as everything that was read. So an optimiser may ask
for neither: it attaches `StepRows` to the table, is told which rows are about to be read, and gets the gradient as
its factors, the rows' weights and the gradient of the sum (memory_layers.md 3.4). A table without one has a dense
gradient, summed by sorted index in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

# As `StepRows.add_gradient` gets them.
Factors = tuple[Tensor, Tensor | None, Tensor]
ATTRIBUTE = "step_rows"  # of a table that an optimiser reads and updates by rows


class StepRows(Protocol):
    """What an optimiser attaches to a table."""

    def before_reading(self, index: Tensor) -> None:
        """Rows `index` (any shape, repeats allowed) of the table are read next: they must be up to date."""

    def add_gradient(self, index: Tensor, weight: Tensor | None, gradient: Tensor) -> None:
        """The table's gradient grows by `gradient [lines, width]` times `weight [lines, n]` (None: 1) in the rows
        `index [lines, n]`."""


def step_rows(table: Tensor) -> StepRows | None:
    return getattr(table, ATTRIBUTE, None)


class _Bag(torch.autograd.Function):
    """`table [entries, width]`, `index [lines, n]`, `weight [lines, n]` or None: `[lines, width]`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
        rows = step_rows(table)
        if rows is not None and ctx.needs_input_grad[0]:
            rows.before_reading(index)
        ctx.rows = rows
        # The table itself is not saved: rows of it may be brought up to date while this step goes on, none of which
        # was read here.
        ctx.table = table.detach() if weight is not None and ctx.needs_input_grad[2] else None
        ctx.entries = table.shape[0]
        ctx.save_for_backward(index, *(() if weight is None else (weight,)))
        return sum_of_rows(table, index, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        index, *weights = ctx.saved_tensors
        weight = weights[0] if weights else None
        gradient = gradients[0].contiguous()
        of_table = of_weight = None
        if ctx.table is not None:
            of_weight = products(ctx.table, index, gradient)
        if ctx.needs_input_grad[0]:
            if ctx.rows is None:
                of_table = add_factors([(index, weight, gradient)], ctx.entries)
            else:
                ctx.rows.add_gradient(index, weight, gradient)
        return of_table, None, of_weight


class _Products(torch.autograd.Function):
    """`table [entries, width]`, `index [lines, n]`, `lines [lines, width]`: `[lines, n]`. The gradients are those of
    `_Bag` with its weight and its result in each other's place."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, lines: Tensor) -> Tensor:
        rows = step_rows(table)
        if rows is not None and ctx.needs_input_grad[0]:
            rows.before_reading(index)
        ctx.rows, ctx.table = rows, table.detach()
        ctx.save_for_backward(index, lines)
        return products(table, index, lines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        index, lines = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_table = of_lines = None
        if ctx.needs_input_grad[2]:
            of_lines = sum_of_rows(ctx.table, index, gradient)
        if ctx.needs_input_grad[0]:
            if ctx.rows is None:
                of_table = add_factors([(index, gradient, lines)], ctx.table.shape[0])
            else:
                ctx.rows.add_gradient(index, gradient, lines)
        return of_table, None, of_lines


def sum_of_rows(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """`table [entries, width]` at `index [lines, n]` times `weight [lines, n]` (None: 1), summed over n: `[lines,
    width]`."""
    if weight is None and index.shape[1] == 1:
        return functional.embedding(index.squeeze(1), table)
    factors = None if weight is None else weight.to(table.dtype)
    return functional.embedding_bag(index, table, mode="sum", per_sample_weights=factors)


def products(table: Tensor, index: Tensor, lines: Tensor) -> Tensor:
    """`table [entries, width]` at `index [lines, n]` times `lines [lines, width]`, summed over the width: `[lines,
    n]`. What was read is never stored."""
    count, n = index.shape
    if table.device.type == "cpu" and table.dtype in (torch.float32, torch.float64):
        starts = torch.arange(0, count * n, n, device=index.device)
        line = torch.arange(count, device=index.device).repeat_interleave(n)
        flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            lines, table, index.reshape(-1), starts, line, 0
        )
        return flat.reshape(count, n)
    parts = [
        torch.linalg.vecdot(functional.embedding(part, table), line[:, None, :])
        for part, line in zip(index.split(_LINES), lines.split(_LINES), strict=True)
    ]
    return torch.cat(parts) if parts else lines.new_zeros(count, n)


_LINES = 64  # whose rows are read at a time


def bag(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """The sum of `table [entries, *rest]` over the last dimension of `index [..., n]`, each entry times `weight [...,
    n]`: `[..., *rest]`."""
    lines = index.reshape(index.shape[:-1].numel(), index.shape[-1])
    factors = None if weight is None else weight.reshape(lines.shape).to(table.dtype)
    result: Any = _Bag.apply(flat_table(table), lines, factors)
    return result.reshape(index.shape[:-1] + table.shape[1:])


def products_of_rows(table: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """`table [entries, width]` at `index [*lines, ...]` times `x [*lines, width]`, summed over the width: the shape of
    the index."""
    count = x.shape[:-1].numel()
    lines = index.reshape(count, index.numel() // count if count else index.shape[-1])
    result: Any = _Products.apply(table, lines, x.reshape(count, x.shape[-1]).to(table.dtype))
    return result.reshape(index.shape)


def embedding(index: Tensor, table: Tensor) -> Tensor:
    """`table [entries, *rest]` at `index [...]` as `torch.nn.functional.embedding` has it, each entry a row of a
    matrix: `[..., width]`."""
    return rows_of_table(flat_table(table), index)


def rows_of_table(table: Tensor, index: Tensor) -> Tensor:
    """`table [entries, *rest]` at `index [...]`: `[..., *rest]`."""
    result: Any = _Bag.apply(flat_table(table), index.reshape(-1, 1), None)
    return result.reshape(index.shape + table.shape[1:])


def flat_table(table: Tensor) -> Tensor:
    """As a matrix that is read by rows as the table is."""
    if table.dim() == 2:
        return table
    flat = table.reshape(table.shape[0], table.shape[1:].numel())
    if step_rows(table) is not None:  # a view is another object
        setattr(flat, ATTRIBUTE, step_rows(table))
    return flat


class SortedFactors(NamedTuple):
    """Terms of a table's gradient by row: to row `ids [terms]`, ascending, `weight [terms]` (None: 1) times the row
    `line [terms]` of `lines [all lines, width]`. Terms of a row are in the order in which they were given."""

    ids: Tensor
    line: Tensor
    weight: Tensor | None
    lines: Tensor


def sort_factors(factors: Sequence[Factors]) -> SortedFactors:
    counts = [gradient.shape[0] for _, _, gradient in factors]
    first = [0, *accumulate(counts)]
    lines = torch.cat([gradient for _, _, gradient in factors]) if len(factors) > 1 else factors[0][2]
    index = torch.cat([index.reshape(-1) for index, _, _ in factors])
    line = torch.cat([
        torch.arange(start, start + count, device=index.device).repeat_interleave(index.shape[1])
        for start, count, (index, _, _) in zip(first, counts, factors, strict=False)
    ])  # fmt: skip
    order = index.sort(stable=True)
    weights = None
    if any(weight is not None for _, weight, _ in factors):
        weights = torch.cat([
            lines.new_ones(index.numel()) if weight is None else weight.reshape(-1) for index, weight, _ in factors
        ])[order.indices]  # fmt: skip
    return SortedFactors(order.values, line[order.indices], weights, lines)


class RowSums:
    """A table's gradient from its factors: `rows`, those that are not 0, ascending; their sums a stretch at a time.

    Terms of a row are added in the order in which they were given, whatever else a step reads.
    """

    def __init__(self, factors: Sequence[Factors]) -> None:
        ids, self._line, weight, self.lines = sort_factors(factors)
        self.rows, hits = torch.unique_consecutive(ids, return_counts=True)
        self._weight = weight
        self._start = torch.cat([hits.new_zeros(1), hits.cumsum(0)])

    def stretch(self, begin: int, end: int) -> Tensor:
        """The sums of `rows[begin:end]`: `[end - begin, width]`."""
        starts = self._start[begin : end + 1]
        low, high = int(starts[0]), int(starts[-1])
        weight = None if self._weight is None else self._weight[low:high].to(self.lines.dtype)
        line, starts = self._line[low:high], starts - low
        hits = starts.diff()
        if len(hits) == 0 or int(hits.max()) <= _HITS:
            return functional.embedding_bag(line, self.lines, starts[:-1], mode="sum", per_sample_weights=weight)
        # Many small terms added to one large sum would lose their last digits: parts first, then their sums.
        parts = (hits + _HITS - 1) // _HITS
        first = parts.cumsum(0) - parts
        number = torch.arange(int(parts.sum()), device=hits.device) - first.repeat_interleave(parts)
        starts = starts[:-1].repeat_interleave(parts) + _HITS * number
        sums = functional.embedding_bag(line, self.lines, starts, mode="sum", per_sample_weights=weight)
        return functional.embedding_bag(torch.arange(len(sums), device=hits.device), sums, first, mode="sum")

    def stretches(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """`rows` and their sums, so many at a time."""
        for begin in range(0, len(self.rows), rows):
            end = min(begin + rows, len(self.rows))
            yield self.rows[begin:end], self.stretch(begin, end)


def add_factors(factors: Sequence[Factors], entries: int) -> Tensor:
    """The table's whole gradient: `[entries, width]`."""
    lines = factors[0][2]
    total = lines.new_zeros(entries, lines.shape[1])
    if any(index.numel() for index, _, _ in factors):
        for rows, sums in RowSums(factors).stretches(_STRETCH):
            total.index_copy_(0, rows, sums)
    return total


_HITS = 256  # terms that are added one after another
_STRETCH = 4096  # rows whose sums are in memory at a time
