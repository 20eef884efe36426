"""Linears of one shape over the rows of several groups (towers of a routing), each group by weights of its own.

    y[rows_g] = x[rows_g] W_g^T + b_g       one launch for all groups and pieces; rows are read and written in place

Which rows a group has is known to the host, as they are tensors of their own: a group without rows has no tile, and
there may be any number of rows. Backward, dx is one launch too and sums its pieces in registers; the gradients of the
weights that want one are a third, where one program adds up all rows of its tile, in order: a frozen tower costs
nothing. Where nothing of a group wants a gradient, its results have none: nothing of them is saved, and there are no
tiles backward. Each of the three products is made by the matrix library instead where no tiles are chosen for it, group
by group; without a GPU or Triton's interpreter everything is.

Letters in shapes: N rows, N_g of a group, K inputs, M_j outputs of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from .grouped_epilogue import Epilogue
from .grouped_form import GroupedForm
from .grouped_torch import (
    Operands,
    Wanted,
    alone,
    by_torch,
    listed,
    of_group,
    operand_names,
    weight_gradient_by_torch,
    x_gradient_by_torch,
)
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
    each row stands when the groups lie behind one another. None for a product: by the matrix library.

    `epilogue`: what is made of each group's results instead of storing them. What it reads besides follows the other
    operands, group by group, and its results take the place of the linear's.
    """

    library: str
    name: str
    form: GroupedForm
    forward: Product | None = None
    x_gradient: Product | None = None
    weight_gradient: Product | None = None
    epilogue: Epilogue | None = None

    def __call__(self, *operands: Tensor) -> Any:
        is_by_torch = self.forward is None and self.x_gradient is None and self.weight_gradient is None
        if not torch.compiler.is_compiling() and (is_by_torch or not launches(operands[0])):
            return alone(self._by_torch(operands))
        if self.epilogue is None:
            return self.operator(*operands)
        live = Wanted.of(self.form, [x.requires_grad for x in operands]).results
        saves = [torch.is_grad_enabled() and is_live for is_live in live]
        found = listed(self.operator(*operands, saves))
        return alone(found[: self.form.tensors_of_y * self.epilogue.results])

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def rounds_between(self) -> bool:
        """Whether the matrix library rounds the results that the epilogue reads."""
        return self.epilogue is not None and self.forward is None

    @cached_property
    def operator(self) -> Any:
        form, names = self.form, [f"Tensor {name}" for name in operand_names(self.form)]
        more = [f"Tensor other_{i}" for i in range(self._others)] + (["bool[] saves"] if self.epilogue else [])
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}", self._forward, mutates_args=(),
            schema=f"({', '.join([*names, *more])}) -> {_tensors(len(self._shapes))}",
        )  # fmt: skip
        forward.register_fake(lambda *given: alone(self._results(given)))
        given = ", ".join([*(f"Tensor g{i}" for i in range(form.results)), *names, "bool[] wanted"])
        x_gradient = torch.library.custom_op(
            f"{self.library}::{self.name}_x_gradient",
            self._x_gradient,
            mutates_args=(),
            schema=f"({given}) -> Tensor[]",
        )
        x_gradient.register_fake(self._fake_x)
        weight_gradient = torch.library.custom_op(
            f"{self.library}::{self.name}_weight_gradient", self._weight_gradient, mutates_args=(),
            schema=f"({given}) -> Tensor[]",
        )  # fmt: skip
        weight_gradient.register_fake(self._fake_weights)
        forward.register_autograd(self._pass_back(x_gradient, weight_gradient), setup_context=self._save)
        return forward

    # -- forward -----------------------------------------------------------------------------------

    @property
    def _others(self) -> int:
        """Operands of the epilogue alone."""
        return 0 if self.epilogue is None else self.form.tensors_of_y * self.epilogue.others

    @property
    def _shapes(self) -> list[tuple[int, ...]]:
        """Of a row of each result; with an epilogue those of each group, then the pieces that are saved."""
        form, epilogue = self.form, self.epilogue
        if epilogue is None:
            return [(size,) for size in form.outputs] * form.tensors_of_y
        saved = [(form.outputs[piece],) for piece in epilogue.saved]
        return epilogue.shapes(form.outputs) * form.tensors_of_y + saved * form.tensors_of_y

    def _forward(self, *given: Any) -> Any:
        form, epilogue, results = self.form, self.epilogue, self._results(given)
        if self.forward is None or not launches(given[0]):
            return alone(self._filled(results, given))
        operands = Operands.of(form, given)
        x, stride = _rows_whole(operands.x)
        tiles = self.forward.tiles
        sizes, made, strides, others, saves = form.outputs, results, [stride], [], []
        if epilogue is None:
            made = _by_pointer(form, results)
        else:
            sizes = [size // epilogue.parts for size in sizes] if epilogue.places else sizes[:1]
            if epilogue.places:
                starts = range(0, len(results), epilogue.results)
                made = _by_pointer(form, [results[start + place] for start in starts for place in epilogue.places])
            saves = list(map(int, given[-1])) if epilogue.saved else []
            flat = [epilogue.flat(own) for own in self._others_of(given)]
            columns_of_others = [_rows_whole(one) for one in zip(*flat, strict=True)]
            strides += [distance for _, distance in columns_of_others]
            others = [one for own in zip(*(found for found, _ in columns_of_others), strict=True) for one in own]
        columns = sum(-(-size // tiles.block_n) for size in sizes)
        self.forward.launch(
            _tiles_of_rows(operands.counts, tiles) * columns, x[0], *x, *operands.rows, *_whole(operands.weights),
            *_whole(operands.biases), *others, *made, *operands.counts, *saves, *strides,
        )  # fmt: skip
        return alone(results)

    def _results(self, given: Sequence[Any]) -> list[Tensor]:
        """Memory for them; without rows for what is not saved."""
        form, operands = self.form, Operands.of(self.form, given)
        rows = [sum(operands.counts)] if form.scatters else operands.counts
        counts = [count for count in rows for _ in range(self._results_of_rows)]
        if self.epilogue is not None:
            kept = [count if saves else 0 for count, saves in zip(rows, given[-1], strict=True)]
            counts += [count for count in kept for _ in self.epilogue.saved]
        return [given[0].new_empty((count, *shape)) for count, shape in zip(counts, self._shapes, strict=True)]

    @property
    def _results_of_rows(self) -> int:
        """Of each group, or of all rows together."""
        return self.form.pieces if self.epilogue is None else self.epilogue.results

    def _filled(self, results: list[Tensor], given: Sequence[Any]) -> list[Tensor]:
        """By the matrix library."""
        form, epilogue = self.form, self.epilogue
        found = listed(by_torch(form, *given[: len(operand_names(form))], is_joined=False))
        if epilogue is not None:
            saved = [found[y * form.pieces + piece] for y in range(form.tensors_of_y) for piece in epilogue.saved]
            found = self._made(found, given) + saved
        for result, one in zip(results, found, strict=True):
            if result.shape[0]:
                result.copy_(one.reshape(result.shape))
        return results

    def _by_torch(self, operands: Sequence[Tensor]) -> list[Tensor]:
        found = listed(by_torch(self.form, *operands[: len(operand_names(self.form))]))
        return found if self.epilogue is None else self._made(found, operands)

    def _made(self, found: Sequence[Tensor], operands: Sequence[Any]) -> list[Tensor]:
        """Of the linear's results by the epilogue's own call."""
        form, epilogue = self.form, self.epilogue
        assert epilogue is not None
        made, others = [], self._others_of(operands)
        for y in range(form.tensors_of_y):
            own = of_group(form, found, y)
            made += listed(epilogue.call(*epilogue.operands(own, others[y])))
            made += [own[piece] for piece in epilogue.left]
        return made

    def _others_of(self, operands: Sequence[Any]) -> list[list[Any]]:
        """What the epilogue of each group reads besides."""
        first, each = len(operand_names(self.form)), self._others // self.form.tensors_of_y
        return [list(operands[first + y * each : first + (y + 1) * each]) for y in range(self.form.tensors_of_y)]

    # -- backward ----------------------------------------------------------------------------------

    def _x_gradient(self, *given: Any) -> list[Tensor]:
        """Of every x that wants one."""
        form, wanted = self.form, given[-1]
        grads, operands = self._operands(given[:-1])
        if self.x_gradient is None or not launches(given[0]):
            return x_gradient_by_torch(form, grads, operands, wanted)
        tiled = [g not in form.detached for g in range(form.groups)] if form.gathers else wanted
        grads, strides = self._gradients(grads, tiled)
        counts = [count if is_tiled else 0 for count, is_tiled in zip(operands.counts, tiled, strict=True)]
        # Rows that are in no group get no gradient.
        is_part = form.gathers and sum(counts) < operands.x[0].shape[0]
        found = _made(operands.x, wanted, torch.zeros_like if is_part else torch.empty_like)
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
        tiled = [any(of_group(form, wanted, g)) for g in range(form.groups)]
        grads, strides = self._gradients(grads, tiled)
        x, stride = _rows_whole(operands.x, None if form.gathers else tiled)
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

    def _gradients(self, grads: Sequence[Tensor], tiled: Sequence[bool]) -> tuple[list[Tensor], list[int]]:
        """As the kernels take them, and the strides of the rows of each piece. `tiled`: which groups have tiles."""
        pieces = self.form.pieces
        found, strides = list(grads), []
        for piece in range(pieces):
            found[piece::pieces], stride = _rows_whole(grads[piece::pieces], None if self.form.scatters else tiled)
            strides.append(stride)
        return found, strides

    def _operands(self, given: Sequence[Tensor]) -> tuple[list[Tensor], Operands]:
        """Gradients of the results, and the call's own operands."""
        count = self.form.results
        return list(given[:count]), Operands.of(self.form, given[count:])

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        form, results = self.form, listed(output)
        operands = [one for one in inputs if isinstance(one, Tensor)]
        wanted = Wanted.of(form, ctx.needs_input_grad[: len(operands)])
        each = self._results_of_rows
        made = form.tensors_of_y * each
        # Nobody is to fill gradients of what has none with zeros.
        ctx.set_materialize_grads(False)
        constant = [result for place, result in enumerate(results[:made]) if not wanted.results[place // each]]
        ctx.mark_non_differentiable(*results[made:], *constant)
        kept = [x if is_read else None for x, is_read in zip(operands, wanted.read, strict=True)]
        ctx.save_for_backward(*kept, *results[made:])
        ctx.shapes = [result.shape for result in results[:made]]
        ctx.x_shapes = [x.shape for x in operands[: form.tensors_of_x]]

    def _pass_back(self, x_gradient: Callable[..., Any], weight_gradient: Callable[..., Any]) -> Callable[..., Any]:
        form, names = self.form, operand_names(self.form)
        first, n_x = names.index("weight_0_0"), form.tensors_of_x

        def pass_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            count, needed = len(names) + self._others, ctx.needs_input_grad
            operands, saved = list(ctx.saved_tensors[:count]), ctx.saved_tensors[count:]
            found: list[Tensor | None] = [None] * len(needed)
            like = next((grad for grad in grads if grad is not None), None)
            if like is None:
                return tuple(found)
            wanted = Wanted.of(form, needed[:count])
            for place, shape in enumerate(ctx.x_shapes):
                if operands[place] is None:
                    operands[place] = _shape_alone(like, shape)
            given = self._given(like, grads, ctx.shapes, wanted)
            linear = operands[: len(names)]
            if self.epilogue is not None:
                given, found[len(names) : count] = self._before(self.epilogue, given, saved, operands, wanted)
            if any(wanted.x):
                left = iter(x_gradient(*given, *linear, wanted.x))
                for place in (place for place in range(n_x) if wanted.x[place]):
                    found[place] = next(left).view(ctx.x_shapes[place])
            if any(wanted.weights):
                left = iter(weight_gradient(*given, *linear, wanted.weights))
                for start in range(first, len(names), form.weights):
                    for place in (place for place in range(form.weights) if wanted.weights[place]):
                        found[start + place] = next(left)
            return tuple(one if is_needed else None for one, is_needed in zip(found, needed, strict=True))

        return pass_back

    def _given(
        self, like: Tensor, grads: Sequence[Tensor | None], shapes: Sequence[Any], wanted: Wanted
    ) -> list[Tensor]:
        """The gradients of the results; zeros where a result was not used."""
        found = []
        for place, (grad, shape) in enumerate(zip(grads[: len(shapes)], shapes, strict=True)):
            is_live = wanted.results[place // self._results_of_rows]
            missing = like.new_zeros if is_live else partial(_shape_alone, like)
            found.append(missing(shape) if grad is None else grad)
        return found

    def _before(
        self,
        epilogue: Epilogue,
        grads: Sequence[Tensor],
        saved: Sequence[Tensor],
        operands: Sequence[Tensor],
        wanted: Wanted,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """From gradients of the epilogue's results to those of the pieces, and of what else it reads."""
        form, kept = self.form, len(epilogue.saved)
        of_pieces, of_others = [], []
        for y, (others, is_live) in enumerate(zip(self._others_of(operands), wanted.results, strict=True)):
            own = grads[y * epilogue.results : (y + 1) * epilogue.results]
            shapes = [(own[0].shape[0], size) for size in form.outputs]
            if is_live:
                pieces, rest = epilogue.gradients(saved[y * kept : (y + 1) * kept], others, own, form.pieces)
                made = zip(pieces, shapes, strict=True)
                of_pieces += [own[0].new_zeros(shape) if one is None else one.flatten(1) for one, shape in made]
                of_others += rest
            else:
                of_pieces += [_shape_alone(own[0], shape) for shape in shapes]
                of_others += [None] * len(others)
        return of_pieces, of_others


# -- launches ----------------------------------------------------------------------------------------------------------


def _by_pointer(form: GroupedForm, results: Sequence[Tensor]) -> list[Tensor]:
    """In the order of the kernel's arguments: piece by piece."""
    return [result for piece in range(form.pieces) for result in results[piece :: form.pieces]]


def _tiles_of_rows(counts: Sequence[int], tiles: Tiles) -> int:
    return sum(-(-count // tiles.block_m) for count in counts)


def _rows_whole(tensors: Sequence[Tensor], tiled: Sequence[bool] | None = None) -> tuple[list[Tensor], int]:
    """The entries of a row side by side, and one distance between rows for all. What has no tile is not read, and any
    pointer of its type stands for it."""
    read = [one for place, one in enumerate(tensors) if tiled is None or tiled[place]] or list(tensors[:1])
    stride = read[0].stride(0)
    if any(one.stride() != (stride, 1) for one in read):
        # One without rows, or with one, counts as contiguous whatever its strides are.
        read, stride = [one.contiguous() for one in read], read[0].shape[1]
    left = iter(read)
    whole = [next(left) if tiled is None or tiled[place] else read[0] for place in range(len(tensors))]
    return whole, stride


def _shape_alone(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor that nobody reads, without its memory."""
    return like.new_empty(1).expand(shape)


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


def _precision(x: Tensor) -> str:
    return precision(x.dtype, x.device.type == "cuda" and torch.version.hip is None)


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
