"""Linears of one shape over the rows of several groups (towers of a routing), each group by weights of its own.

    y[rows_g] = x[rows_g] W_g^T + b_g       one launch for all groups and pieces; rows are read and written in place

Which rows a group has is known to the host, as they are tensors of their own: a group without rows has no tile, and
there may be any number of rows. Backward, dx is one launch too and sums its pieces in registers; the gradients of the
weights that want one are a third, where one program adds up all rows of its tile, in order: a frozen tower costs
nothing. Each of the three products is made by the matrix library instead where no tiles are chosen for it, group by
group; without a GPU or Triton's interpreter everything is.

Letters in shapes: N rows, N_g of a group, K inputs, M_j outputs of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..functions.selections import join, take
from .grouped_form import GroupedForm
from .joined import joined_linears
from .linear_tiles import GROUP_M, Tiles, launches
from .products import precision
from .rowwise import most_registers


@dataclass(frozen=True)
class Product:
    """A jitted function and the tiles it works in."""

    function: Any
    tiles: Tiles

    def launch(self, programs: int, like: Tensor, *arguments: Any) -> None:
        if programs:
            tiles = self.tiles
            options = {"maxnreg": most_registers(tiles.warps)} if torch.version.hip is None else {}
            self.function[(programs,)](
                *arguments, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, GROUP_M=GROUP_M,
                PRECISION=_precision(like), num_warps=tiles.warps, num_stages=tiles.stages, **options,
            )  # fmt: skip


@dataclass(frozen=True)
class Grouped:
    """An operator `(x.., rows.., order if rows are scattered, weights.., biases..) -> results`, as GroupedForm says;
    weights are those of the first group, then of the second. `rows [N_g]` int64, of each group; `order [N]` says where
    each row stands when the groups lie behind one another. None for a product: by the matrix library."""

    library: str
    name: str
    form: GroupedForm
    forward: Product | None = None
    x_gradient: Product | None = None
    weight_gradient: Product | None = None

    def __call__(self, *operands: Tensor) -> Any:
        is_by_torch = self.forward is None and self.x_gradient is None and self.weight_gradient is None
        if not torch.compiler.is_compiling() and (is_by_torch or not launches(operands[0])):
            return by_torch(self.form, *operands)
        return self.operator(*operands)

    @property
    def __name__(self) -> str:
        return self.name

    @cached_property
    def operator(self) -> Any:
        form = self.form
        given = ", ".join(f"Tensor {name}" for name in operand_names(form))
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}", self._forward, mutates_args=(),
            schema=f"({given}) -> {_tensors(form.results)}",
        )  # fmt: skip
        forward.register_fake(self._fake)
        grads = [f"Tensor g{i}" for i in range(form.results)]
        x_gradient = torch.library.custom_op(
            f"{self.library}::{self.name}_x_gradient", self._x_gradient, mutates_args=(),
            schema=f"({', '.join(grads)}, {given}, bool[] wanted) -> Tensor[]",
        )  # fmt: skip
        x_gradient.register_fake(self._fake_x)
        weight_gradient = torch.library.custom_op(
            f"{self.library}::{self.name}_weight_gradient", self._weight_gradient, mutates_args=(),
            schema=f"({', '.join(grads)}, {given}, bool[] wanted) -> Tensor[]",
        )  # fmt: skip
        weight_gradient.register_fake(self._fake_weights)
        forward.register_autograd(self._pass_back(x_gradient, weight_gradient), setup_context=self._save)
        return forward

    # -- forward -----------------------------------------------------------------------------------

    def _forward(self, *operands: Tensor) -> Any:
        form, given = self.form, Operands.of(self.form, operands)
        if self.forward is None or not launches(operands[0]):
            return _alone([_own(result) for result in _listed(by_torch(form, *operands, is_joined=False))])
        x, stride = _rows_whole(given.x)
        results = self._fake(*operands)
        results = list(results) if isinstance(results, tuple) else [results]
        tiles = self.forward.tiles
        columns = sum(-(-size // tiles.block_n) for size in form.outputs)
        self.forward.launch(
            _tiles_of_rows(given.counts, tiles) * columns, x[0], *x, *given.rows, *_whole(given.weights),
            *_whole(given.biases), *_by_pointer(form, results), *given.counts, stride,
        )  # fmt: skip
        return _alone(results)

    def _fake(self, *operands: Tensor) -> Any:
        form, given = self.form, Operands.of(self.form, operands)
        counts = [sum(given.counts)] if form.scatters else given.counts
        return _alone([operands[0].new_empty((count, size)) for count in counts for size in form.outputs])

    # -- backward ----------------------------------------------------------------------------------

    def _x_gradient(self, *given: Any) -> list[Tensor]:
        """Of every x that wants one."""
        form, wanted = self.form, given[-1]
        grads, operands = self._operands(given[:-1])
        if self.x_gradient is None or not launches(given[0]):
            return x_gradient_by_torch(form, grads, operands, wanted)
        grads, strides = self._gradients(grads)
        # Rows that are in no group get no gradient.
        is_part = form.gathers and sum(operands.counts) < operands.x[0].shape[0]
        make = torch.zeros_like if is_part else torch.empty_like
        found = _made(operands.x, wanted, make)
        counts = operands.counts
        if not form.gathers:
            counts = [count if is_wanted else 0 for count, is_wanted in zip(counts, wanted, strict=True)]
        tiles = self.x_gradient.tiles
        programs = _tiles_of_rows(counts, tiles) * -(-form.inputs // tiles.block_n)
        self.x_gradient.launch(
            programs, grads[0], *grads, *operands.rows, *_whole(operands.weights), *found, *counts, *strides
        )
        return _wanted(found, wanted)

    def _fake_x(self, *given: Any) -> list[Tensor]:
        return _wanted([_empty_like(x) for x in self._operands(given[:-1])[1].x], given[-1])

    def _weight_gradient(self, *given: Any) -> list[Tensor]:
        """Of every weight that wants one, then of their biases."""
        form, wanted = self.form, given[-1]
        grads, operands = self._operands(given[:-1])
        if self.weight_gradient is None or not launches(given[0]):
            return weight_gradient_by_torch(form, grads, operands, wanted)
        grads, strides = self._gradients(grads)
        x, stride = _rows_whole(operands.x)
        of_weights = _made(operands.weights, wanted, torch.empty_like)
        of_biases = _made(operands.biases, wanted, torch.empty_like) if form.has_bias else []
        tiles = self.weight_gradient.tiles
        rows_of_tiles = sum(-(-weight.shape[0] // tiles.block_m) for weight in _wanted(of_weights, wanted))
        self.weight_gradient.launch(
            rows_of_tiles * -(-form.inputs // tiles.block_n), grads[0], *grads, *x, *operands.rows, *of_weights,
            *of_biases, *operands.counts, *map(int, wanted), *strides, stride,
        )  # fmt: skip
        return [*_wanted(of_weights, wanted), *_wanted(of_biases, wanted)]

    def _fake_weights(self, *given: Any) -> list[Tensor]:
        _, operands = self._operands(given[:-1])
        found = [*_wanted(operands.weights, given[-1]), *_wanted(operands.biases, given[-1])]
        return [_empty_like(one) for one in found]

    def _gradients(self, grads: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """As the kernels take them, and the strides of the rows of each piece."""
        pieces = self.form.pieces
        found, strides = list(grads), []
        for piece in range(pieces):
            found[piece::pieces], stride = _rows_whole(grads[piece::pieces])
            strides.append(stride)
        return found, strides

    def _operands(self, given: Sequence[Tensor]) -> tuple[list[Tensor], Operands]:
        """Gradients of the results, and the call's own operands."""
        count = self.form.results
        return list(given[:count]), Operands.of(self.form, given[count:])

    def _save(self, ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.shapes = [tuple(result.shape) for result in (output if isinstance(output, tuple) else (output,))]

    def _pass_back(self, x_gradient: Callable[..., Any], weight_gradient: Callable[..., Any]) -> Callable[..., Any]:
        form = self.form
        first = len(operand_names(form)) - form.weights * (1 + form.has_bias)
        n_x = 1 if form.gathers else form.groups

        def pass_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            operands, needed = ctx.saved_tensors, ctx.needs_input_grad
            given = [
                operands[0].new_zeros(shape) if grad is None else grad
                for grad, shape in zip(grads, ctx.shapes, strict=True)
            ]
            found: list[Tensor | None] = [None] * len(operands)
            wanted_x = list(needed[:n_x])
            if any(wanted_x):
                left = iter(x_gradient(*given, *operands, wanted_x))
                for place in (place for place in range(n_x) if wanted_x[place]):
                    found[place] = next(left).view(operands[place].shape)
            owners = range(first, first + form.weights)
            wanted = [needed[i] or (form.has_bias and needed[i + form.weights]) for i in owners]
            if any(wanted):
                left = iter(weight_gradient(*given, *operands, wanted))
                for start in range(first, len(operands), form.weights):
                    for place, is_wanted in enumerate(wanted):
                        if is_wanted:
                            found[start + place] = next(left)
            return tuple(one if is_needed else None for one, is_needed in zip(found, needed, strict=True))

        return pass_back


@dataclass(frozen=True)
class Operands:
    """The operands of a call by what they are."""

    x: list[Tensor]
    rows: list[Tensor]
    order: Tensor | None
    weights: list[Tensor]
    biases: list[Tensor]

    @classmethod
    def of(cls, form: GroupedForm, given: Sequence[Tensor]) -> Operands:
        left = iter(given)
        taken = lambda count: [next(left) for _ in range(count)]  # noqa: E731
        x = [one.flatten(1) for one in taken(1 if form.gathers else form.groups)]
        rows = taken(form.groups if form.moves else 0)
        order = next(left) if form.scatters else None
        return cls(x, rows, order, taken(form.weights), taken(form.weights if form.has_bias else 0))

    @property
    def counts(self) -> list[int]:
        """Rows of each group."""
        return [one.shape[0] for one in (self.rows or self.x)]


def operand_names(form: GroupedForm) -> list[str]:
    groups, pairs = range(form.groups), [(g, j) for g in range(form.groups) for j in range(form.pieces)]
    return [
        *(["x"] if form.gathers else [f"x_{g}" for g in groups]),
        *(f"rows_{g}" for g in groups if form.moves),
        *(["order"] if form.scatters else []),
        *(f"weight_{g}_{j}" for g, j in pairs),
        *(f"bias_{g}_{j}" for g, j in pairs if form.has_bias),
    ]


# -- by the matrix library, group by group -----------------------------------------------------------------------------


def by_torch(form: GroupedForm, *operands: Tensor, is_joined: bool = True) -> Any:
    """What the kernels compute. `is_joined`: the pieces of a group may be parts of one tensor."""
    given = Operands.of(form, operands)
    found = []
    for g in range(form.groups):
        x = take(given.x[0], given.rows[g]) if form.gathers else given.x[g]
        weights = _of_group(form, given.weights, g)
        if is_joined and form.pieces > 1 and not form.has_bias:
            found.append(joined_linears(x, *weights))
        else:
            biases = _of_group(form, given.biases, g) or [None] * form.pieces
            found.append([functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)])
    if form.scatters:
        assert given.order is not None
        return _alone([join(tuple(parts), given.order) for parts in zip(*found, strict=True)])
    return _alone([piece for pieces in found for piece in pieces])


def x_gradient_by_torch(
    form: GroupedForm, grads: Sequence[Tensor], given: Operands, wanted: Sequence[bool]
) -> list[Tensor]:
    whole = torch.zeros_like(given.x[0], memory_format=torch.contiguous_format) if form.gathers else None
    found = [] if whole is None else [whole]
    for g in range(form.groups):
        if whole is None and not wanted[g]:
            continue
        dx: Tensor | None = None
        for dy, weight in zip(_of_rows(form, grads, given, g), _of_group(form, given.weights, g), strict=True):
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        assert dx is not None
        if whole is None:
            found.append(dx)
        else:
            whole.index_copy_(0, given.rows[g], dx)
    return found


def weight_gradient_by_torch(
    form: GroupedForm, grads: Sequence[Tensor], given: Operands, wanted: Sequence[bool]
) -> list[Tensor]:
    of_weights, of_biases = [], []
    for g in range(form.groups):
        if any(wanted[g * form.pieces : (g + 1) * form.pieces]):
            x = given.x[0].index_select(0, given.rows[g]) if form.gathers else given.x[g]
            for dy, is_wanted in zip(_of_rows(form, grads, given, g), _of_group(form, wanted, g), strict=True):
                if is_wanted:
                    of_weights.append(dy.t() @ x)
                    of_biases.append(dy.sum(0))
    return [*of_weights, *(of_biases if form.has_bias else [])]


def _of_rows(form: GroupedForm, grads: Sequence[Tensor], given: Operands, group: int) -> list[Tensor]:
    """The gradients of a group's pieces."""
    if form.scatters:
        return [grad.index_select(0, given.rows[group]) for grad in grads]
    return _of_group(form, grads, group)


def _of_group(form: GroupedForm, values: Sequence[Any], group: int) -> list[Any]:
    return list(values[group * form.pieces : (group + 1) * form.pieces])


# -- launches ----------------------------------------------------------------------------------------------------------


def _by_pointer(form: GroupedForm, results: Sequence[Tensor]) -> list[Tensor]:
    """In the order of the kernel's arguments: piece by piece."""
    return [result for piece in range(form.pieces) for result in results[piece :: form.pieces]]


def _tiles_of_rows(counts: Sequence[int], tiles: Tiles) -> int:
    return sum(-(-count // tiles.block_m) for count in counts)


def _rows_whole(tensors: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """The entries of a row side by side, and one distance between rows for all."""
    strides = {one.stride(0) for one in tensors}
    if len(strides) > 1 or any(one.stride(1) != 1 for one in tensors):
        tensors = [one.contiguous() for one in tensors]
    return list(tensors), tensors[0].stride(0)


def _whole(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [one.contiguous() for one in tensors]


def _made(like: Sequence[Tensor], wanted: Sequence[bool], make: Callable[..., Tensor]) -> list[Tensor]:
    """Memory for what is wanted. What is not has no tile, and any pointer of its type stands for it."""
    return [
        make(one, memory_format=torch.contiguous_format) if is_wanted else one
        for one, is_wanted in zip(like, wanted, strict=True)
    ]


def _wanted(values: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """`values` may be none at all."""
    return [one for one, is_wanted in zip(values, wanted, strict=False) if is_wanted]


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _own(x: Tensor) -> Tensor:
    """Memory of its own, as an operator's result must have."""
    return x.detach().clone() if x._is_view() else x


def _precision(x: Tensor) -> str:
    return precision(x.dtype, x.device.type == "cuda" and torch.version.hip is None)


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _listed(results: Any) -> list[Tensor]:
    return list(results) if isinstance(results, tuple | list) else [results]


def _alone(results: Sequence[Tensor]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)
