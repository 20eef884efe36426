"""Linears of one shape over the rows of several groups by the matrix library, group by group: what the kernels of
gpu/grouped.py compute, and the operands of both.

Letters in shapes: N rows, N_g of a group, K inputs, M_j outputs of a piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..functions.selections import join, take
from .grouped_form import GroupedForm
from .joined import joined_linears


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


@dataclass(frozen=True)
class Wanted:
    """Which gradients are wanted: of each tensor of `x`, of `weights` with their biases, and of what an epilogue reads
    besides, for each tensor of a piece."""

    form: GroupedForm
    x: list[bool]
    weights: list[bool]
    others: list[list[bool]]

    @classmethod
    def of(cls, form: GroupedForm, needed: Sequence[bool]) -> Wanted:
        """`needed`: of each operand, those of an epilogue last."""
        names = operand_names(form)
        first, left = names.index("weight_0_0"), list(needed[len(names) :])
        biases = needed[first + form.weights : len(names)] or [False] * form.weights
        weights = [one or other for one, other in zip(needed[first : first + form.weights], biases, strict=True)]
        each = len(left) // form.tensors_of_y
        others = [left[y * each : (y + 1) * each] for y in range(form.tensors_of_y)]
        return cls(form, list(needed[: form.tensors_of_x]), weights, others)

    def of_rows(self, group: int) -> bool:
        """Of a group's rows of x."""
        return self.x[0 if self.form.gathers else group] and group not in self.form.detached

    def of_weights(self, group: int) -> bool:
        return any(of_group(self.form, self.weights, group))

    @property
    def groups(self) -> list[bool]:
        """Whether anything of a group wants one."""
        form = self.form
        of_others = [any(others) for others in self.others] * (form.groups // form.tensors_of_y)
        return [self.of_rows(g) or self.of_weights(g) or of_others[g] for g in range(form.groups)]

    @property
    def results(self) -> list[bool]:
        """Whether results have one: for each tensor of a piece."""
        return [any(self.groups)] if self.form.scatters else self.groups

    @property
    def read(self) -> list[bool]:
        """Which operands gradients are made of: x for those of weights, what an epilogue reads for its own."""
        form = self.form
        of_x = [self.of_weights(g) for g in range(form.groups)]
        linear = len(operand_names(form)) - form.tensors_of_x
        of_others = [live for live, others in zip(self.results, self.others, strict=True) for _ in others]
        return [*([any(of_x)] if form.gathers else of_x), *([True] * linear), *of_others]


def operand_names(form: GroupedForm) -> list[str]:
    groups, pairs = range(form.groups), [(g, j) for g in range(form.groups) for j in range(form.pieces)]
    return [
        *(["x"] if form.gathers else [f"x_{g}" for g in groups]),
        *(f"rows_{g}" for g in groups if form.moves),
        *(["order"] if form.scatters else []),
        *(f"weight_{g}_{j}" for g, j in pairs),
        *(f"bias_{g}_{j}" for g, j in pairs if form.has_bias),
    ]


def by_torch(form: GroupedForm, *operands: Tensor, is_joined: bool = True) -> Any:
    """What the kernels compute. `is_joined`: the pieces of a group may be parts of one tensor."""
    given = Operands.of(form, operands)
    found = []
    for g in range(form.groups):
        x = given.x[0].detach() if g in form.detached else given.x[0 if form.gathers else g]
        x = take(x, given.rows[g]) if form.gathers else x
        weights = of_group(form, given.weights, g)
        if is_joined and form.pieces > 1 and not form.has_bias:
            found.append(joined_linears(x, *weights))
        else:
            biases = of_group(form, given.biases, g) or [None] * form.pieces
            found.append([functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True)])
    if form.scatters:
        assert given.order is not None
        return alone([join(tuple(parts), given.order) for parts in zip(*found, strict=True)])
    return alone([piece for pieces in found for piece in pieces])


def x_gradient_by_torch(
    form: GroupedForm, grads: Sequence[Tensor], given: Operands, wanted: Sequence[bool]
) -> list[Tensor]:
    whole = torch.zeros_like(given.x[0], memory_format=torch.contiguous_format) if form.gathers else None
    found = [] if whole is None else [whole]
    for g in range(form.groups):
        if g in form.detached or (whole is None and not wanted[g]):
            continue
        dx: Tensor | None = None
        for dy, weight in zip(_of_rows(form, grads, given, g), of_group(form, given.weights, g), strict=True):
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
            for dy, is_wanted in zip(_of_rows(form, grads, given, g), of_group(form, wanted, g), strict=True):
                if is_wanted:
                    of_weights.append(dy.t() @ x)
                    of_biases.append(dy.sum(0))
    return [*of_weights, *(of_biases if form.has_bias else [])]


def _of_rows(form: GroupedForm, grads: Sequence[Tensor], given: Operands, group: int) -> list[Tensor]:
    """The gradients of a group's pieces."""
    if form.scatters:
        return [grad.index_select(0, given.rows[group]) for grad in grads]
    return of_group(form, grads, group)


def of_group(form: GroupedForm, values: Sequence[Any], group: int) -> list[Any]:
    return list(values[group * form.pieces : (group + 1) * form.pieces])


def listed(results: Any) -> list[Tensor]:
    return list(results) if isinstance(results, tuple | list) else [results]


def alone(results: Sequence[Tensor]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)
