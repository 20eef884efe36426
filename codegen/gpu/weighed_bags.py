"""A bag whose weights are computed while its rows are read (bags.py): a softmax of a list's scores, a gate times it,
whatever a spec makes of a row's own lists. Nothing is launched for them, and none are stored.

    forward     each program computes the weights of its list, then reads its part of the rows
    backward    products with the rows, and in the same program what becomes of them; where the table has a gradient,
                the weights beside them, which its sum by sorted rows takes

On a CPU without Triton's interpreter the nodes run that the kernels stand for. Letters as in bags.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..functions.row_tables import flat_table, products, sum_of_rows
from .bags import BLOCK_N, WARPS, add_op, are_few, block_entries, join_parts, launches, multiply, parts_of
from .rowwise import Made, rows_whole
from .shared_tables import Shared, Sink, as_lists, bag, passed_on, sink_of


@dataclass(frozen=True)
class WeighedBag:
    """`meaning(*operands)` are the weights, in the shape of the index; `library`: a namespace of torch operators, one
    per module of kernels. `sources`: which operands kernels read, and whether each has rows. `results`: the gradients
    that the backward makes, and `owners`, pairs of an operand and the result that is its gradient. `real`: of the
    weights."""

    library: str
    name: str
    meaning: Callable[..., Tensor]
    sum_kernel: Any
    gradient_kernel: Any
    operands: int
    sources: tuple[tuple[int, bool], ...]
    results: tuple[Made, ...]
    owners: tuple[tuple[int, int], ...]
    real: torch.dtype

    def __post_init__(self) -> None:
        # torch.compile cannot make operators while it traces the first call.
        _ = self.operator, self.backward_operator

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self, table: Tensor, index: Tensor, *operands: Tensor, shared: Shared | None = None, reader: int = 0
    ) -> Tensor:
        """`table [count, *rest]`, `index [rows, *lists, N]`: `[rows, *lists, *rest]`. `shared`, `reader`: as of
        `shared_tables.bag`."""
        if not torch.compiler.is_compiling() and not launches(table):
            return bag(table, index, self.meaning(*operands), shared, reader)
        flat, lines = flat_table(table), as_lists(index, index.dim() - 1)
        link, sink = sink_of(flat, lines, shared, reader)
        if sink is None:
            made: Any = self.operator(flat, index, *operands)
        else:
            made = _Weighed.apply(self, link, sink, flat, index, *operands)
        return made.reshape(index.shape[:-1] + table.shape[1:])

    # -- the operators -----------------------------------------------------------------------------

    @cached_property
    def operator(self) -> Any:
        given = "".join(f", Tensor x{i}" for i in range(self.operands))
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}", self._sum, mutates_args=(), schema=f"(Tensor t, Tensor i{given}) -> Tensor"
        )
        forward.register_fake(lambda table, index, *_: table.new_empty((prod(index.shape[:-1]), table.shape[1])))
        forward.register_autograd(self._pass_back, setup_context=self._save)
        return forward

    @cached_property
    def backward_operator(self) -> Any:
        given = "".join(f", Tensor x{i}" for i in range(self.operands))
        made = ", ".join(["Tensor"] * (1 + len(self.results)))
        backward = torch.library.custom_op(
            f"{self.library}::{self.name}_backward",
            self._gradients,
            mutates_args=(),
            schema=f"(Tensor t, Tensor i, Tensor g, bool stores{given}) -> ({made})",
        )
        backward.register_fake(
            lambda table, index, grad, stores, *_: (
                self._empty_weights(index, grad, stores),
                *(grad.new_empty((index.shape[0], *made.dims), dtype=made.dtype) for made in self.results),
            )
        )
        return backward

    def gradients(
        self, table: Tensor, index: Tensor, operands: Sequence[Tensor], grad: Tensor, stores: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The weights `[L, N]`, where `stores` asks for them, and the gradient of each operand that has one."""
        if not launches(table):
            return self._by_torch(table, index, operands, grad)
        weight, *found = self.backward_operator(table, index, grad, stores, *operands)
        by_owner = {owner: found[result] for owner, result in self.owners}
        return weight, [by_owner.get(place) for place in range(self.operands)]

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def _pass_back(self, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, index, *operands = ctx.saved_tensors
        of_table, stores = None, ctx.needs_input_grad[0]
        weight, of_operands = self.gradients(table, index, operands, grad, stores)
        if stores:
            of_table = add_op(as_lists(index, index.dim() - 1), weight, grad.contiguous(), table.shape[0])
        return of_table, None, *of_operands

    def _sum(self, table: Tensor, index: Tensor, *operands: Tensor) -> Tensor:
        lines = as_lists(index, index.dim() - 1)
        if not launches(table):
            weight = self.meaning(*operands).reshape(lines.shape).to(table.dtype)
            return sum_of_rows(table, lines, weight)
        (count, n), width = lines.shape, table.shape[1]
        if not count * n * width:
            return table.new_zeros((count, width))
        block = block_entries(width)
        parts, splits, per_split = parts_of(table, count, n)
        self.sum_kernel[(count * splits * -(-width // block),)](
            table.contiguous(), lines.contiguous(), *self._read(operands), parts, splits, per_split, N=n,
            LISTS=count // index.shape[0], WIDTH=width, BLOCK_N=BLOCK_N, BLOCK_E=block, num_warps=WARPS,
        )  # fmt: skip
        return join_parts(parts, table.dtype)

    def _gradients(
        self, table: Tensor, index: Tensor, grad: Tensor, stores: bool, *operands: Tensor
    ) -> tuple[Tensor, ...]:
        lines = as_lists(index, index.dim() - 1)
        rows, width = index.shape[0], table.shape[1]
        weight = self._empty_weights(index, grad, stores)
        found = [grad.new_empty((rows, *made.dims), dtype=made.dtype) for made in self.results]
        if not index.numel():
            return weight, *(one.zero_() for one in found)
        table, lines, grad = table.contiguous(), lines.contiguous(), grad.contiguous()
        # A program has all of a row. Where there are few rows, several make the products of each first.
        arriving = multiply(table, lines, grad, self.real) if are_few(rows) else None
        self.gradient_kernel[(rows,)](
            table, lines, grad, grad if arriving is None else arriving, *self._read(operands), *found, weight,
            N=lines.shape[1], LISTS=lines.shape[0] // rows, WIDTH=width, BLOCK_N=BLOCK_N,
            BLOCK_E=block_entries(width), MULTIPLIES=arriving is None, STORES=stores, num_warps=WARPS,
        )  # fmt: skip
        return weight, *found

    def _read(self, operands: Sequence[Tensor]) -> list[Any]:
        """Pointers, each with the stride of its rows where it has some."""
        found: list[Any] = []
        for place, by_row in self.sources:
            operand = rows_whole(operands[place]) if by_row else operands[place].contiguous()
            found += [operand, operand.stride(0)] if by_row else [operand]
        return found

    def _empty_weights(self, index: Tensor, grad: Tensor, stores: bool) -> Tensor:
        lists = prod(index.shape[:-1]) if stores else 0
        return grad.new_empty((lists, index.shape[-1]), dtype=self.real)

    def _by_torch(
        self, table: Tensor, index: Tensor, operands: Sequence[Tensor], grad: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        owners, lines = {owner for owner, _ in self.owners}, as_lists(index, index.dim() - 1)
        with torch.enable_grad():
            fresh = [x.detach().requires_grad_(place in owners) for place, x in enumerate(operands)]
            weight = self.meaning(*fresh)
        arriving = products(table, lines, grad.to(table.dtype)).reshape(weight.shape).to(weight.dtype)
        found = iter(torch.autograd.grad(weight, [fresh[place] for place in sorted(owners)], arriving))
        of_operands = [next(found) if place in owners else None for place in range(self.operands)]
        return weight.detach().reshape(lines.shape), of_operands


class _Weighed(torch.autograd.Function):
    """The same where the table's gradient goes to a sink (shared_tables.py)."""

    @staticmethod
    def forward(
        ctx: Any, call: WeighedBag, link: Tensor, sink: Sink, table: Tensor, index: Tensor, *operands: Tensor
    ) -> Tensor:
        ctx.call, ctx.sink, ctx.table, ctx.is_linked = call, sink, table.detach(), link is not table
        ctx.save_for_backward(index, *operands)
        return call.operator(table.detach(), index, *operands)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (index, *operands) = gradients, ctx.saved_tensors
        stores = ctx.needs_input_grad[1]
        weight, of_operands = ctx.call.gradients(ctx.table, index, operands, gradient, stores)
        if stores:
            ctx.sink.add_gradient(as_lists(index, index.dim() - 1), weight, gradient)
        return None, passed_on(gradient, ctx.is_linked and stores), None, None, None, *of_operands
