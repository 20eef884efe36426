"""Runs a row program in torch, value by value: what the generated kernels are compared with, and what they mean.

Every value is a tensor of one shape, `[rows or 1, *axes of the program or 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functions.cuts import packed
from .row_program import (
    Axis,
    Constant,
    How,
    Iota,
    Kind,
    Layout,
    Load,
    Map,
    Part,
    Reduce,
    RowProgram,
    Store,
    Val,
    Window,
    axes_of,
)


def evaluate(
    program: RowProgram, tensors: Sequence[Tensor], rows: int, real: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """The results for operands in the order of the program's places. `real`: what reals are computed in."""
    axes = program.axes
    held: dict[Val, Tensor] = {}
    for value in program.values:
        held[value] = _value(value, held, tensors, axes, real)
    results = [
        torch.zeros(
            (*((rows,) if r.by_row else ()), *r.dims),
            dtype=torch.bool if r.is_packed else r.dtype,
            device=tensors[0].device,
        )
        for r in program.results
    ]
    for store in program.stores:
        _store(store, held[store.value], results[store.place], rows, axes)
    return tuple(packed(x) if r.is_packed else x for x, r in zip(results, program.results, strict=True))


def _value(
    value: Val, held: dict[Val, Tensor], tensors: Sequence[Tensor], axes: tuple[Axis, ...], real: torch.dtype
) -> Tensor:
    rank = 1 + len(axes)
    match value:
        case Constant():
            dtype = {Kind.REAL: real, Kind.INT: torch.int64, Kind.FLAG: torch.bool}[value.kind]
            return torch.full((1,) * rank, value.number, dtype=dtype, device=tensors[0].device)
        case Iota():
            assert value.axis is not None
            shape = [1] * rank
            shape[1 + axes.index(value.axis)] = value.axis.size
            return torch.arange(value.axis.size, device=tensors[0].device).reshape(shape)
        case Load():
            assert value.source is not None
            tensor = tensors[value.source.place]
            flat = tensor.reshape(-1, value.source.entries)
            if value.index is not None:
                index = held[value.index]
                # At every axis either the index or the entry has size one.
                read = (
                    flat[index.reshape(-1).clamp(min=0)]
                    if flat.shape[0]
                    else flat.new_zeros(index.numel(), *flat.shape[1:])
                )
                read = torch.where(index.reshape(-1, 1) >= 0, read, 0) if value.in_runs else read
                found = _placed(read, value.layout, axes)
                shape = [max(sizes) for sizes in zip(index.shape[1:], found.shape[1:], strict=True)]
                found = found.reshape(index.shape[0], *index.shape[1:], *found.shape[1:])
                order = [0, *(place + step * (rank - 1) for place in range(1, rank) for step in (0, 1))]
                found = found.permute(order).reshape(index.shape[0], *shape)
            else:
                found = _placed(_moved(flat, value), value.layout, axes)
            return found.to(real) if value.kind is Kind.REAL else found
        case Map():
            assert value.function is not None
            operands = [held[arg] for arg in value.args]
            if value.kind is Kind.REAL:
                operands = [t if t.dtype in (real, torch.bool) else t.to(real) for t in operands]
            return value.function.torch(*operands)
        case Reduce():
            assert value.arg is not None
            dims = [1 + axes.index(axis) for axis in value.over]
            x = held[value.arg]
            match value.how:
                case How.SUM:
                    return x.sum(dims, keepdim=True)
                case How.MAX:
                    return x.amax(dims, keepdim=True)
                case How.MIN:
                    return x.amin(dims, keepdim=True)
    raise AssertionError(value)


def _at(entry: Axis | Part | Window) -> int | slice:
    match entry:
        case Part():
            return entry.index
        case Window():
            return slice(entry.start, entry.start + entry.axis.size)
        case Axis():
            return slice(None)


def _moved(rows: Tensor, load: Load) -> Tensor:
    """Row r + shift at row r; where there is none, the nearest or 0."""
    if not load.shift:
        return rows
    number = torch.arange(rows.shape[0], device=rows.device) + load.shift
    nearest = rows[number.clamp(0, max(rows.shape[0] - 1, 0))]
    if load.reads_nearest:
        return nearest
    inside = (number >= 0) & (number < rows.shape[0])
    return torch.where(inside[:, None], nearest, 0)


def _placed(flat: Tensor, layout: Layout, axes: tuple[Axis, ...]) -> Tensor:
    """`[rows, entries]` as `[rows, *axes]`."""
    tensor = flat.reshape(flat.shape[0], *(entry.size for entry in layout))
    index = tuple(map(_at, layout))
    tensor = tensor[(slice(None), *index)]
    left = axes_of(layout)
    order = sorted(range(len(left)), key=lambda place: axes.index(left[place]))
    tensor = tensor.permute(0, *(1 + place for place in order))
    shape = [flat.shape[0]] + [axis.size if axis in left else 1 for axis in axes]
    return tensor.reshape(shape)


def _store(store: Store, value: Tensor, result: Tensor, rows: int, axes: tuple[Axis, ...]) -> None:
    named = axes_of(store.layout)
    shape = [rows] + [axis.size if axis in named else 1 for axis in axes]
    value = value.expand(shape)
    if store.sum_rows:
        value = value.sum(0, keepdim=True)
    value = value.permute(
        0, *(1 + axes.index(axis) for axis in named), *(1 + axes.index(a) for a in axes if a not in named)
    )
    value = value.reshape(value.shape[0], *(axis.size for axis in named))
    view = result.reshape(value.shape[0], *(entry.size for entry in store.layout))
    index = tuple(map(_at, store.layout))
    view[(slice(None), *index)] = value.to(result.dtype)
