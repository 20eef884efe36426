"""A fused call as torch sees it: two registered operators, forward and backward, that launch generated kernels.

On a CPU the nodes that were fused run instead, with torch's own gradients; so they do inside the operators where there
is neither a GPU nor Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from .rowwise import RowKernel
from .scatter import add_rows

INTERPRETED = bool(knobs.runtime.interpret)


@dataclass(frozen=True)
class Gathered:
    """The gradient of table `operand` arrives row by row as result `rows` of the backward; operand `index`, or result
    `index_result`, says which row of the table each is for."""

    operand: int
    rows: int
    index: int | None = None
    index_result: int | None = None


@dataclass(frozen=True)
class Backward:
    """`wanted`: the results of the forward whose gradients the kernel takes after the operands. `owners[i]`: whose
    gradient result i is, None for an index."""

    kernel: RowKernel
    wanted: tuple[int, ...]
    owners: tuple[int | None, ...]
    gathered: tuple[Gathered, ...] = ()


@dataclass(frozen=True)
class Fused:
    """`meaning(*operands)` is what the kernels compute. `library`: a namespace of torch operators, one per module of
    kernels; `operands`: how many there are."""

    library: str
    name: str
    operands: int
    meaning: Callable[..., Any]
    forward: RowKernel
    backward: Backward | None = None

    def __call__(self, *operands: Tensor) -> Any:
        """The results; one alone stands by itself."""
        if not _launches(operands[0]) and not torch.compiler.is_compiling():
            return self.meaning(*operands)
        return self.operator(*operands)

    @property
    def __name__(self) -> str:
        return self.name

    @cached_property
    def operator(self) -> Any:
        names = ", ".join(f"Tensor x{i}" for i in range(self.operands))
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}",
            self._forward,
            mutates_args=(),
            schema=f"({names}) -> {_results(len(self.forward.results))}",
        )
        forward.register_fake(self._fake)
        if self.backward is not None:
            grads = ", ".join(f"Tensor g{i}" for i in range(len(self.backward.wanted)))
            backward = torch.library.custom_op(
                f"{self.library}::{self.name}_backward",
                self._gradients,
                mutates_args=(),
                schema=f"({names}, {grads}) -> {_results(len(self._owned))}",
            )
            backward.register_fake(self._fake_gradients)
            forward.register_autograd(self._pass_back(backward), setup_context=self._save)
        else:
            # Rounding, comparing: the results count as constants.
            forward.register_autograd(lambda ctx, *grads: (None,) * self.operands, setup_context=self._save)
        return forward

    # -- the operators -----------------------------------------------------------------------------

    def _forward(self, *operands: Tensor) -> Any:
        if _launches(operands[0]):
            return _alone(self.forward(operands))
        results = self.meaning(*operands)
        return _alone([_own(result) for result in (results if isinstance(results, tuple) else (results,))])

    def _fake(self, *operands: Tensor) -> Any:
        rows = self._rows(operands)
        return _alone([operands[0].new_empty((rows, *made.dims), dtype=made.dtype) for made in self.forward.results])

    def _rows(self, operands: tuple[Tensor, ...]) -> Any:
        return next(operands[place].shape[0] for place, by_row in self.forward.sources if by_row)

    @property
    def _owned(self) -> list[int]:
        """Operands that have a gradient, each once."""
        assert self.backward is not None
        return list(dict.fromkeys(owner for owner in self.backward.owners if owner is not None))

    def _gradients(self, *given: Tensor) -> Any:
        assert self.backward is not None
        operands, grads = given[: self.operands], given[self.operands :]
        if not _launches(given[0]):
            return _alone(self._by_torch(operands, grads))
        results = self.backward.kernel(given)
        found: dict[int, Tensor] = {}
        scattered = {gathered.rows: gathered for gathered in self.backward.gathered}
        for number, owner in enumerate(self.backward.owners):
            if owner is None:
                continue
            part, like = results[number], operands[owner]
            gathered = scattered.get(number)
            if gathered is not None:
                index = operands[gathered.index] if gathered.index is not None else results[gathered.index_result or 0]
                part = add_rows(index, part, like.shape[0])
            part = part.reshape(like.shape)
            found[owner] = found[owner] + part if owner in found else part
        return _alone([found[owner] for owner in self._owned])

    def _by_torch(self, operands: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> list[Tensor]:
        assert self.backward is not None
        with torch.enable_grad():
            fresh = [x.detach().requires_grad_(i in self._owned) for i, x in enumerate(operands)]
            results = self.meaning(*fresh)
            results = results if isinstance(results, tuple) else (results,)
            outputs = [results[place] for place in self.backward.wanted]
            found = torch.autograd.grad(outputs, [fresh[i] for i in self._owned], grads, allow_unused=True)
        return [
            torch.zeros_like(operands[owner]) if gradient is None else _own(gradient)
            for owner, gradient in zip(self._owned, found, strict=True)
        ]

    def _fake_gradients(self, *given: Tensor) -> Any:
        return _alone([torch.empty_like(given[owner], memory_format=torch.contiguous_format) for owner in self._owned])

    def _save(self, ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        wanted = () if self.backward is None else self.backward.wanted
        ctx.mark_non_differentiable(*(result for place, result in enumerate(results) if place not in wanted))
        if self.backward is not None:
            ctx.save_for_backward(*inputs)

    def _pass_back(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        assert self.backward is not None
        wanted = self.backward.wanted

        def pass_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            operands = ctx.saved_tensors
            rows = self._rows(operands)
            given = []
            for place in wanted:
                made, grad = self.forward.results[place], grads[place]
                given.append(operands[0].new_zeros((rows, *made.dims), dtype=made.dtype) if grad is None else grad)
            found = backward(*operands, *given)
            found = found if isinstance(found, tuple | list) else (found,)
            by_owner = dict(zip(self._owned, found, strict=True))
            return tuple(by_owner.get(place) for place in range(self.operands))

        return pass_back


def _launches(x: Tensor) -> bool:
    return x.device.type != "cpu" or INTERPRETED


def _results(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _alone(results: Any) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _own(x: Tensor) -> Tensor:
    """Memory of its own, as an operator's result must have."""
    return x.detach().clone(memory_format=torch.contiguous_format)
