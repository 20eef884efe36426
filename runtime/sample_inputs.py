"""Random inputs of a program, packed, for running its graphs without data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle, islice

import torch
from torch import Tensor

from ..codegen.signature import Signature, Slot
from .draws import Draws, draw_arguments
from .packed import offsets_of

# Rows of each example, or of each owner of a nested axis. Axes with rows in examples come first.
Lengths = Mapping[str, tuple[int, ...]]


def equal_examples(shape: Signature, rows: int, length: int) -> dict[str, tuple[int, ...]]:
    """`rows` rows along every axis, in examples of `length` each; the last may be shorter."""
    whole, rest = divmod(rows, length)
    lengths = (length,) * whole + ((rest,) if rest else ())
    found: dict[str, tuple[int, ...]] = {}
    owners = dict(shape.owners)
    for axis in shape.axes:
        # As many rows as there are owners: one each.
        found[axis] = (1,) * rows if axis in owners else lengths
    return found


def unequal_examples(shape: Signature, pattern: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Lengths as in `pattern`, turned by one place from axis to axis; of a nested axis for each owner, over and
    over. Axes that rows of owners stand among are longer, so that there are some."""
    found: dict[str, tuple[int, ...]] = {}
    owners = dict(shape.owners)
    for number, axis in enumerate(shape.axes):
        count = sum(found[owners[axis]]) if axis in owners else len(pattern)
        turn = number % len(pattern)
        found[axis] = tuple(islice(cycle(pattern[turn:] + pattern[:turn]), count))
    for slot in shape.inputs:
        each = _runs(shape, slot)
        if each and slot.rows is not None:
            whole, others = math.lcm(*each.values()), len(each) < slot.limit
            found[slot.rows] = tuple(n + n // 2 * whole if others else n * whole for n in found[slot.rows])
    return found


def sample_inputs(shape: Signature, lengths: Lengths, seed: int, device: torch.device) -> list[Tensor]:
    """One tensor per input; reals are normal numbers in float64, ids and tags any legal ones."""
    generator = torch.Generator().manual_seed(seed)
    tags = _tags(shape, lengths, seed)
    lengths = settled(shape, lengths, seed)
    return [
        (tags[slot.name] if slot.name in tags else _input(slot, lengths, generator)).to(device) for slot in shape.inputs
    ]


def settled(shape: Signature, lengths: Lengths, seed: int) -> dict[str, tuple[int, ...]]:
    """The lengths with those of selections, and of owners whose rows stand among others, as the tags say, which are
    drawn first."""
    found, tags = dict(lengths), _tags(shape, lengths, seed)
    for selected in shape.selected:
        slot = next(slot for slot in shape.inputs if slot.name == selected.tag)
        chosen = sum((tags[slot.name] == member for member in selected.members), torch.zeros((), dtype=torch.bool))
        if slot.rows is None:
            counts = zip(found[selected.parent], chosen.tolist(), strict=True)
            found[selected.axis] = tuple(length * has for length, has in counts)
        else:
            found[selected.axis] = tuple(int(part.sum()) for part in chosen.split(list(found[slot.rows])))
    for shown in shape.shown:
        chosen = sum((tags[shown.tag] == member for member in shown.members), torch.zeros((), dtype=torch.bool))
        rows = (int(part.sum()) for part in chosen.split(list(found[shown.parent])))
        found[shown.owner] = tuple(count // shown.each for count in rows)
    for axis, owner in shape.owners:
        if owner in {shown.owner for shown in shape.shown}:
            found[axis] = tuple(islice(cycle(found[axis] or (1,)), sum(found[owner])))
    return found


def _tags(shape: Signature, lengths: Lengths, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    names = {selected.tag for selected in (*shape.selected, *shape.shown)}
    found = {slot.name: _input(slot, lengths, generator) for slot in shape.inputs if slot.name in names}
    for slot in shape.inputs:
        each = _runs(shape, slot)
        if each and slot.rows is not None:
            parts = found[slot.name].split(list(lengths[slot.rows]))
            found[slot.name] = torch.cat([_in_runs(part, each, slot.limit) for part in parts])
    return found


def _runs(shape: Signature, slot: Slot) -> dict[int, int]:
    """How many rows stand side by side that have a tag, for the tags of rows of owners."""
    return {member: shown.each for shown in shape.shown if shown.tag == slot.name for member in shown.members}


def _in_runs(tags: Tensor, each: Mapping[int, int], limit: int) -> Tensor:
    """Tags of one example, each repeated as often as rows with it stand side by side, as long as they fit. The rest has
    a tag without runs; where there is none, all rows have the first tag."""
    rows: list[int] = []
    for tag in tags.tolist():
        count = each.get(tag, 1)
        if len(rows) + count <= len(tags):
            rows += [tag] * count
    rest, others = len(tags) - len(rows), [member for member in range(limit) if member not in each]
    if rest and not others:
        rows, rest = [0] * len(tags), 0
    return torch.tensor(rows + others[:1] * rest, dtype=tags.dtype)


def sample_arguments(
    shape: Signature, lengths: Lengths, seed: int, device: torch.device, working: torch.dtype
) -> list[Tensor]:
    """All arguments of a graph that computes reals in `working`."""
    inputs, lengths = sample_inputs(shape, lengths, seed, device), settled(shape, lengths, seed)
    given = [x.to(working) if x.is_floating_point() else x for x in inputs]
    given += [offsets_of(lengths[axis]).to(device) for axis in shape.axes]
    if shape.draws:
        given += draw_arguments(Draws(), _examples(lengths), device)
    return given


def _examples(lengths: Lengths) -> int:
    return len(next(iter(lengths.values()), ()))


def _input(slot: Slot, lengths: Lengths, generator: torch.Generator) -> Tensor:
    lead = () if not slot.per_example else (_examples(lengths),)
    lead = (sum(lengths[slot.rows]),) if slot.rows is not None else lead
    size = (*lead, *slot.shape)
    match slot.kind:
        case "real":
            return torch.randn(size, generator=generator, dtype=torch.float64)
        case "flag":
            return torch.rand(size, generator=generator) < 0.5
        case _:
            return torch.randint(slot.limit or 100, size, generator=generator)
