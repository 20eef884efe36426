"""A fused call as torch sees it: two registered operators, forward and backward, that launch generated kernels.

On a CPU the nodes that were fused run instead, with torch's own gradients; so they do inside the operators where there
is neither a GPU nor Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from .rowwise import RowKernel
from .scatter import add_rows
from .segments import find_runs, sum_runs

INTERPRETED = bool(knobs.runtime.interpret)


@dataclass(frozen=True)
class Gathered:
    """The gradient of table `operand` arrives row by row as result `rows` of the backward; operand `index`, or result
    `index_result`, says which row of the table each is for. `in_runs`: equal ones lie side by side, and -1 is none.
    `is_summed`: the result is the gradient itself."""

    operand: int
    rows: int
    index: int | None = None
    index_result: int | None = None
    in_runs: bool = False
    is_summed: bool = False


@dataclass(frozen=True)
class Backward:
    """The kernel takes the operands, the gradients of the results `wanted`, and the results `saved`, in this order.
    `owners`: pairs of an operand and the result that is its gradient; an operand that is there more than once, or in
    `gathered` too, has the sum. `passed`: pairs of an operand and a number of `wanted`, whose gradient is its own."""

    kernel: RowKernel
    wanted: tuple[int, ...]
    owners: tuple[tuple[int, int], ...]
    gathered: tuple[Gathered, ...] = ()
    passed: tuple[tuple[int, int], ...] = ()
    saved: tuple[int, ...] = ()


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

    def __post_init__(self) -> None:
        # torch.compile cannot make operators while it traces the first call.
        _ = self.operator

    def __call__(self, *operands: Tensor) -> Any:
        """The results; one alone stands by itself."""
        if not _launches(operands[0]) and not torch.compiler.is_compiling():
            return self.meaning(*operands)
        found = self.operator(*self.arguments(operands))
        return found if not self._extra else _alone(found[: -self._extra])

    @property
    def __name__(self) -> str:
        return self.name

    def arguments(self, operands: Sequence[Tensor]) -> tuple[Any, ...]:
        """What the operator takes. An operator that saves more than its results is told whether to."""
        if not self._extra:
            return tuple(operands)
        return (*operands, torch.is_grad_enabled() and any(x.requires_grad for x in operands))

    @cached_property
    def operator(self) -> Any:
        names = ", ".join(f"Tensor x{i}" for i in range(self.operands)) + (", bool saves" if self._extra else "")
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}",
            self._forward,
            mutates_args=(),
            schema=f"({names}) -> {_results(len(self.forward.results))}",
        )
        forward.register_fake(self._fake)
        if self.backward is not None:
            forward.register_autograd(self._pass_back, setup_context=self._save)
        else:
            # Rounding, comparing: the results count as constants.
            forward.register_autograd(lambda ctx, *grads: (None,) * self.operands, setup_context=self._save)
        return forward

    @cached_property
    def backward_operator(self) -> Any:
        assert self.backward is not None
        # An operand that the kernel does not read need not be kept.
        given = [f"Tensor? x{i}" for i in range(self.operands)]
        given += [f"Tensor g{i}" for i in range(len(self.backward.wanted))]
        given += [f"Tensor s{i}" for i in range(len(self.backward.saved))]
        backward = torch.library.custom_op(
            f"{self.library}::{self.name}_backward",
            self._gradients,
            mutates_args=(),
            schema=f"({', '.join(given)}) -> {_results(len(self._owned))}",
        )
        backward.register_fake(self._fake_gradients)
        return backward

    def gradients(
        self, operands: Sequence[Tensor | None], saved: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Of each operand, from those of the results, of which one is there. Operands that the backward does not read
        may be missing."""
        assert self.backward is not None
        wanted, passed = self.backward.wanted, self.backward.passed
        there = next(grads[place] for place in wanted if grads[place] is not None)
        assert there is not None
        given = []
        for place in wanted:
            made, grad = self.forward.results[place], grads[place]
            given.append(there.new_zeros((there.shape[0], *made.dims), dtype=made.dtype) if grad is None else grad)
        # Inside of an operator torch notes no gradients.
        is_ours = _launches(there)
        found = self.backward_operator(*operands, *given, *saved) if is_ours else self._by_torch(operands, given)
        found = found if isinstance(found, tuple | list) else (found,)
        by_owner = dict(zip(self._owned, found, strict=True)) | {place: given[number] for place, number in passed}
        return [by_owner.get(self._alike.get(place, place)) for place in range(self.operands)]

    # -- the operators -----------------------------------------------------------------------------

    @cached_property
    def _extra(self) -> int:
        """Results that are for the backward alone."""
        return sum(made.is_saved for made in self.forward.results)

    def _forward(self, *given: Any) -> Any:
        operands, saves = given[: self.operands], all(given[self.operands :])
        if _launches(operands[0]):
            return _alone(self.forward(operands, saves))
        results = self.meaning(*operands)
        results = [_own(result) for result in (results if isinstance(results, tuple) else (results,))]
        # Without kernels nothing reads them.
        rows = self._rows(operands) if saves else 0
        extra = [made for made in self.forward.results if made.is_saved]
        return _alone([*results, *(operands[0].new_zeros((rows, *made.dims), dtype=made.dtype) for made in extra)])

    def _fake(self, *given: Any) -> Any:
        operands, saves = given[: self.operands], all(given[self.operands :])
        rows = self._rows(operands)
        counts = [0 if made.is_saved and not saves else made.lines(rows) for made in self.forward.results]
        return _alone([
            operands[0].new_empty((count, *made.dims), dtype=made.dtype)
            for made, count in zip(self.forward.results, counts, strict=True)
        ])  # fmt: skip

    def _rows(self, operands: tuple[Tensor, ...]) -> Any:
        return next(operands[place].shape[0] for place, by_row in self.forward.sources if by_row)

    @cached_property
    def _alike(self) -> dict[int, int]:
        """For each operand that has a gradient the first one with the same: the operator gives every gradient once."""
        assert self.backward is not None
        scattered = {gathered.operand for gathered in self.backward.gathered}
        parts: dict[int, list[int]] = {gathered.operand: [] for gathered in self.backward.gathered}
        for owner, result in self.backward.owners:
            parts.setdefault(owner, []).append(result)
        first: dict[object, int] = {}
        return {
            owner: owner if owner in scattered else first.setdefault(tuple(results), owner)
            for owner, results in sorted(parts.items())
        }

    @property
    def _owned(self) -> list[int]:
        return list(dict.fromkeys(self._alike.values()))

    def _gradients(self, *given: Any) -> Any:
        assert self.backward is not None
        operands = given[: self.operands]
        results = self.backward.kernel(given)
        found: dict[int, Tensor] = {}
        for owner, number in self.backward.owners:
            if self._alike[owner] == owner:
                found[owner] = found[owner] + results[number] if owner in found else results[number]
        runs: dict[tuple[int | None, int | None, int], Tensor] = {}
        given_out: set[int] = set()
        for gathered in self.backward.gathered:
            owner, like = gathered.operand, operands[gathered.operand]
            index = operands[gathered.index] if gathered.index is not None else results[gathered.index_result or 0]
            rows = results[gathered.rows]
            if gathered.is_summed:
                # Tables that are read alike have one sum, and an operator gives each tensor once.
                part = rows.clone() if gathered.rows in given_out else rows
                given_out.add(gathered.rows)
            elif gathered.in_runs:
                key = gathered.index, gathered.index_result, like.shape[0]
                if key not in runs:
                    runs[key] = find_runs(index, like.shape[0])
                part = sum_runs(rows.reshape(rows.shape[0], rows.shape[1:].numel()), runs[key])
            else:
                part = add_rows(index, rows, like.shape[0])
            part = part.reshape(like.shape)
            found[owner] = found[owner] + part if owner in found else part
        return _alone([found[owner] for owner in self._owned])

    def _by_torch(self, operands: Sequence[Tensor | None], grads: Sequence[Tensor]) -> list[Tensor]:
        assert self.backward is not None
        given = [x for x in operands if x is not None]
        assert len(given) == self.operands
        with torch.enable_grad():
            fresh = [x.detach().requires_grad_(i in self._owned) for i, x in enumerate(given)]
            results = self.meaning(*fresh)
            results = results if isinstance(results, tuple) else (results,)
            outputs = [results[place] for place in self.backward.wanted]
            found = torch.autograd.grad(outputs, [fresh[i] for i in self._owned], grads, allow_unused=True)
        return [
            torch.zeros_like(given[owner]) if gradient is None else gradient
            for owner, gradient in zip(self._owned, found, strict=True)
        ]

    def _fake_gradients(self, *given: Any) -> Any:
        assert self.backward is not None
        made = self.backward.kernel.results
        results = dict(self.backward.owners)
        like = given[self.operands]
        found = []
        for owner in self._owned:
            operand, result = given[owner], results.get(owner)
            if operand is not None:
                found.append(torch.empty_like(operand, memory_format=torch.contiguous_format))
            else:
                assert result is not None
                found.append(like.new_empty((like.shape[0], *made[result].dims), dtype=made[result].dtype))
        return _alone(found)

    @cached_property
    def _kept(self) -> frozenset[int]:
        """Operands that the backward needs: what its kernel reads, ids, and what has no rows and is there anyway."""
        assert self.backward is not None
        read = {place for place, _ in self.backward.kernel.sources if place < self.operands}
        read |= {place for place, by_row in self.forward.sources if not by_row}
        return frozenset(read | {g.index for g in self.backward.gathered if g.index is not None})

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        wanted = () if self.backward is None else self.backward.wanted
        # Nobody is to fill gradients of what is saved with zeros.
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(result for place, result in enumerate(results) if place not in wanted))
        if self.backward is not None:
            operands = inputs[: self.operands]
            all_needed = not _launches(operands[0])
            kept = [x if all_needed or place in self._kept else None for place, x in enumerate(operands)]
            ctx.save_for_backward(*kept, *(results[place] for place in self.backward.saved))

    def _pass_back(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * (self.operands + bool(self._extra))
        kept = ctx.saved_tensors
        found = self.gradients(kept[: self.operands], kept[self.operands :], grads)
        return (*found, None) if self._extra else tuple(found)


def _launches(x: Tensor) -> bool:
    return x.device.type != "cpu" or INTERPRETED


def _results(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _alone(results: Any) -> Any:
    return results[0] if len(results) == 1 else tuple(results)


def _own(x: Tensor) -> Tensor:
    """Memory of its own, as an operator's result must have."""
    return x.detach().clone(memory_format=torch.contiguous_format)
