"""Reading tables whose gradient several readers have a part in, or an optimiser asks for by rows
(functions/row_tables.py).

    shared = share(table, readers=3)
    y = bag(table, index, weight, shared=shared, reader=0)

A gradient of the table's size for each reader would be written and added up once more for each. So readers leave
theirs in factors with the table, and pass an empty gradient on to a link, of which the table has one for each: autograd
runs its backward after those of all readers, and which links have a gradient says who took part. Then all lists are
sorted and added up at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..functions.row_tables import Factors, flat_table, step_rows
from .bags import add_factors, bag_op, products_op


class Sink(Protocol):
    """Where a reader leaves its part of a table's gradient, as `StepRows.add_gradient` describes it."""

    def add_gradient(self, index: Tensor, weight: Tensor | None, gradient: Tensor) -> None: ...


class Shared(NamedTuple):
    """A link for each reader of a table, none where an optimiser takes gradients; and what readers left."""

    links: tuple[Tensor, ...]
    parts: dict[int, Factors]


def share(table: Tensor, readers: int) -> Shared:
    """Of a table `[count, *rest]` that so many `bag` or `products_of_rows` read."""
    parts: dict[int, Factors] = {}
    # A trace has no place for what readers leave.
    if step_rows(table) is not None or torch.compiler.is_compiling():
        return Shared((), parts)
    links: Any = _Links.apply(flat_table(table), readers, parts)
    return Shared(links, parts)


def bag(table: Tensor, index: Tensor, weight: Tensor | None, shared: Shared | None = None, reader: int = 0) -> Tensor:
    """As `row_tables.bag`; `reader`: its number among those that share the table's gradient."""
    flat = flat_table(table)
    lines = as_lists(index, index.dim() - 1)
    factors = None if weight is None else as_lists(weight, index.dim() - 1)
    link, sink = sink_of(flat, lines, shared, reader)
    result: Any = bag_op(flat, lines, factors) if sink is None else _Bag.apply(link, sink, flat, lines, factors)
    return result.reshape(index.shape[:-1] + table.shape[1:])


def products_of_rows(table: Tensor, index: Tensor, x: Tensor, shared: Shared | None = None, reader: int = 0) -> Tensor:
    """As `row_tables.products_of_rows`; `reader` as in `bag`."""
    lines, rows = as_lists(index, x.dim() - 1), as_lists(x, x.dim() - 1).to(table.dtype)
    link, sink = sink_of(table, lines, shared, reader)
    if sink is None:
        return products_op(table, lines, rows, table.dtype).reshape(index.shape)
    result: Any = _Products.apply(link, sink, table, lines, rows)
    return result.reshape(index.shape)


def as_lists(x: Tensor, leading: int) -> Tensor:
    """`[*lines, *rest]`, of which so many dimensions are lines: `[L, N]`."""
    return x.flatten(leading).flatten(0, leading - 1) if leading else x.reshape(1, -1)


def sink_of(table: Tensor, index: Tensor, shared: Shared | None, reader: int) -> tuple[Tensor, Sink | None]:
    """What autograd follows to the table, and where this reader's part of its gradient goes."""
    rows = step_rows(table)
    if rows is not None and table.requires_grad and torch.is_grad_enabled():
        rows.before_reading(index)
        return table, rows
    if shared is not None and shared.links:
        return shared.links[reader], _Reader(shared.parts, reader)
    return table, None


class _Reader:
    """The sink of one reader."""

    def __init__(self, parts: dict[int, Factors], number: int) -> None:
        self.parts, self.number = parts, number

    def add_gradient(self, index: Tensor, weight: Tensor | None, gradient: Tensor) -> None:
        self.parts[self.number] = index, weight, gradient


class _Links(torch.autograd.Function):
    """`table [count, width]` to an empty tensor for each reader; its gradient from what they left."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, readers: int, parts: dict[int, Factors]) -> tuple[Tensor, ...]:
        ctx.parts, ctx.count = parts, table.shape[0]
        ctx.set_materialize_grads(False)
        return tuple(table.new_empty(0) for _ in range(readers))

    @staticmethod
    def backward(ctx: Any, *links: Tensor | None) -> tuple[Tensor | None, None, None]:
        # What a pass left that did not ask for the table's gradient is not of this one.
        left = [ctx.parts.pop(reader) for reader, link in enumerate(links) if link is not None]
        return (add_factors(left, ctx.count) if left else None), None, None


class _Bag(torch.autograd.Function):
    """`bag_op` whose table's gradient goes to a sink. The table itself is not saved: an optimiser may bring rows of it
    up to date while the step goes on, none of which was read here."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, sink: Sink, table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
        ctx.sink, ctx.table, ctx.is_linked = sink, table.detach(), link is not table
        ctx.save_for_backward(index, weight)
        return bag_op(table.detach(), index, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (index, weight) = gradients, ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[4]:
            of_weight = products_op(ctx.table, index, gradient, weight.dtype)
        if ctx.needs_input_grad[0]:
            ctx.sink.add_gradient(index, weight, gradient)
        return passed_on(gradient, ctx.is_linked and ctx.needs_input_grad[0]), None, None, None, of_weight


class _Products(torch.autograd.Function):
    """`products_op` in the same way."""

    @staticmethod
    def forward(ctx: Any, link: Tensor, sink: Sink, table: Tensor, index: Tensor, x: Tensor) -> Tensor:
        ctx.sink, ctx.table, ctx.is_linked = sink, table.detach(), link is not table
        ctx.save_for_backward(index, x)
        return products_op(table.detach(), index, x, table.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (index, x) = gradients, ctx.saved_tensors
        of_x = bag_op(ctx.table, index, gradient).to(x.dtype) if ctx.needs_input_grad[4] else None
        if ctx.needs_input_grad[0]:
            ctx.sink.add_gradient(index, gradient, x)
        return passed_on(gradient, ctx.is_linked and ctx.needs_input_grad[0]), None, None, None, of_x


def passed_on(gradient: Tensor, is_asked: bool) -> Tensor | None:
    """The gradient of a link, which is empty; an optimiser's table has none."""
    return gradient.new_empty(0) if is_asked else None
