"""Runs a spec on random examples of unequal lengths: its models, and its objectives with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from weft.dsl.axes import Axis, Selected
from weft.dsl.check import Checked
from weft.dsl.program import Program, Value
from weft.dsl.value_type import Flag, Id, Int, Real, Tag
from weft.runtime.model import Model

LENGTHS = (3, 1, 6)


def run(checked: Checked) -> int:
    """How many results and losses there were, all of them finite."""
    model = Model(checked, torch.float64)
    count = 0
    for program in checked.models.values():
        results = model.run(program, **inputs(program))
        for result in results.values() if isinstance(results, dict) else (results,):
            for part in _parts(result):
                assert not part.is_floating_point() or torch.isfinite(part).all(), program.name
            count += 1
    for name, program in checked.objectives.items():
        losses = model.loss(name, **inputs(program))
        total = sum((loss / number for loss, number in losses.values()), torch.zeros((), dtype=torch.float64))
        assert torch.isfinite(total), name
        if total.requires_grad:
            total.backward()
        count += len(losses)
    return count


def _parts(result: Any) -> Iterator[Tensor]:
    """The tensors of a result: of its examples, and of what is nested in them."""
    for part in result if isinstance(result, list) else ():
        yield from _parts(part)
    if not isinstance(result, list):
        yield result


def inputs(program: Program) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    lengths: dict[Axis, tuple[int, ...]] = {}
    for axis in program.ordered_axes:
        count = len(LENGTHS) if axis.parent is None else sum(lengths[axis.parent])
        shift = len(lengths) % len(LENGTHS)
        lengths[axis] = tuple(islice(cycle(LENGTHS[shift:] + LENGTHS[:shift]), count))
    tags: dict[str, Any] = {
        tag.name: _input(tag, lengths, draw) for tag in program.selected.values() if tag in program.inputs
    }
    for axis, tag in program.selected.items():
        if tag.name in tags:
            assert isinstance(axis.kind, Selected)
            assert isinstance(tag.type.kind, Tag)
            numbers = [tag.type.kind.enum.members.index(member) for member in axis.kind.members]
            lengths[axis] = tuple(sum(int((part == number).sum()) for number in numbers) for part in tags[tag.name])
    return {value.name: tags.get(value.name, _input(value, lengths, draw)) for value in program.inputs}


def _input(value: Value, lengths: dict[Axis, tuple[int, ...]], draw: torch.Generator) -> object:
    type = value.type
    shape = tuple(axis.size for axis in type.static_axes)
    if type.rows is not None:
        parts: list[Any] = [_entries(value, (rows, *shape), draw) for rows in lengths[type.rows]]
        for owner in type.rows.ancestors:
            taken = iter(parts)
            parts = [list(islice(taken, count)) for count in lengths[owner]]
        return parts
    return _entries(value, (len(LENGTHS), *shape) if type.per_example else shape, draw)


def _entries(value: Value, shape: tuple[int | None, ...], draw: torch.Generator) -> Tensor:
    sizes = [size for size in shape if size is not None]
    match value.type.kind:
        case Real():
            return torch.randn(sizes, dtype=torch.float64, generator=draw)
        case Flag():
            return torch.rand(sizes, generator=draw) > 0.5
        case Int():
            return torch.randint(-5, 6, sizes, generator=draw)
        case Id() as kind:
            return torch.randint(0, kind.count, sizes, generator=draw)
        case Tag(enum):
            return torch.randint(0, len(enum.members), sizes, generator=draw)
        case kind:
            raise NotImplementedError(kind)
