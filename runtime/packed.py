"""Inputs of a call, packed: what users hand in becomes the tensors of a graph, and outputs go back in the same form.

An input along a ragged axis may be
    a list        of tensors (or lists of numbers), one per example
    nested        a `torch.nested` tensor with layout=torch.jagged
    packed        `(values, offsets)`: rows of all examples end to end, int32 offsets [batch + 1]
Along a nested axis an example is a list itself, with one entry for each row that owns rows; packed, it has the offsets
of every level: `(values, offsets of owners, offsets of rows [owners + 1])`.
Everything is checked here, before anything is computed. Letters: N rows of all examples, B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..codegen.signature import SelectedRows, Signature, Slot
from .errors import InputFault


class Packed(NamedTuple):
    """Rows of all examples end to end, and where each example begins."""

    values: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Batch:
    """A checked call: arguments in the signature's order, offsets and lengths per axis (of a nested one for each
    owner), and the form the outputs go back in."""

    values: tuple[Any, ...]
    offsets: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]]
    form: str  # "list", "nested", "packed" or "plain"
    size: int | None  # examples; None when no input has any
    signature: Signature

    def arguments(self, signature: Signature) -> list[Any]:
        return [*self.values, *(self.offsets[axis] for axis in signature.axes)]


def pack(
    signature: Signature,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Batch:
    """Checks and packs the arguments of a call."""
    given = _bind(signature, args, kwargs)
    device = torch.device(device or "cpu")
    values: list[Tensor] = []
    offsets: dict[str, Tensor] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    first_along: dict[str, str] = {}
    form: str | None = None
    for slot in signature.inputs:
        if slot.rows is None:
            values.append(_unpacked(slot, given[slot.name], dtype, device))
            continue
        chain = signature.chain(slot.rows)
        rows, counts, slot_form = _levels(slot, given[slot.name], dtype, chain)
        for axis, own in zip(chain, counts, strict=True):
            if axis in lengths:
                _same_lengths(slot, axis, own, lengths[axis], first_along[axis], dict(signature.owners).get(axis))
            else:
                lengths[axis], first_along[axis] = own, slot.name
                offsets[axis] = offsets_of(own).to(device)
        form = form or slot_form
        _in_range(slot, rows, counts[0] if len(counts) == 1 else None)
        values.append(_placed(slot, rows, device))
    size = _batch_size(signature, values, lengths)
    for selected in signature.selected:
        _want_selected(signature, selected, values, lengths)
    return Batch(tuple(values), offsets, lengths, form or "plain", size, signature)


def require_rows(batch: Batch) -> None:
    """Refuses an example without a single row: it is a mistake of whoever made the batch, and has no result. An
    example may lack the rows of one axis (a picture) while it has those of another."""
    owned = dict(batch.signature.owners)
    lengths = {axis: counts for axis, counts in batch.lengths.items() if axis not in owned}
    if not lengths:
        return
    for i, counts in enumerate(zip(*lengths.values(), strict=True)):
        if not any(counts):
            raise InputFault(f"example {i} is empty: it has no rows of {' or '.join(lengths)}")


def named_outputs(signature: Signature, results: Sequence[Tensor], batch: Batch) -> Any:
    """What a model gives, in the form of its inputs: a value, or a dict when there are several."""
    offsets = dict(zip(signature.born, results[len(signature.outputs) :], strict=True))
    lengths = {axis: tuple((bounds[1:] - bounds[:-1]).tolist()) for axis, bounds in offsets.items()}
    whole = replace(batch, offsets={**batch.offsets, **offsets}, lengths={**batch.lengths, **lengths})
    named = {slot.name: unpack(value, slot, whole) for slot, value in zip(signature.outputs, results, strict=False)}
    return next(iter(named.values())) if len(named) == 1 else named


def unpack(output: Tensor, slot: Slot, batch: Batch) -> Any:
    """An output in the form of the inputs. Outputs per example or for the whole call are plain tensors."""
    if slot.rows is None or slot.rows not in batch.offsets:
        return output
    chain = batch.signature.chain(slot.rows)
    match batch.form:
        case "list":
            parts: list[Any] = list(torch.split(output, list(batch.lengths[slot.rows])))
            for axis in reversed(chain[:-1]):
                counts = batch.lengths[axis]
                starts = [0, *accumulate(counts)]
                parts = [parts[start : start + count] for start, count in zip(starts, counts, strict=False)]
            return parts
        case "nested" if len(chain) == 1:
            return torch.nested.nested_tensor_from_jagged(output, batch.offsets[slot.rows].to(torch.int64))
        case _ if len(chain) == 1:
            return Packed(output, batch.offsets[slot.rows])
        case _:
            return (output, *(batch.offsets[axis] for axis in chain))


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """int32 [B + 1] from lengths."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor(lengths, dtype=torch.int64), 0, out=offsets[1:])
    if offsets[-1] > 2**31 - 1:
        raise InputFault(f"a batch of {int(offsets[-1])} rows is more than int32 offsets can hold")
    return offsets.to(torch.int32)


# -- binding ---------------------------------------------------------------------------------------


def _bind(signature: Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = [slot.name for slot in signature.inputs]
    wanted = f"{signature.name} takes " + (
        ", ".join(f"{s.name}: {s.describe()}" for s in signature.inputs) or "no inputs"
    )
    if len(args) > len(names):
        raise InputFault(f"{wanted}, but {len(args)} inputs were given")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names:
            raise InputFault(f"{wanted}; there is no input {name}")
        if name in given:
            raise InputFault(f"{wanted}; {name} was given twice")
        given[name] = value
    absent = [name for name in names if name not in given]
    if absent:
        raise InputFault(f"{wanted}; {absent[0]} is missing")
    return given


def _want_selected(
    signature: Signature, selected: SelectedRows, values: Sequence[Tensor], lengths: Mapping[str, tuple[int, ...]]
) -> None:
    """Every example has as many rows of a selection as its tags say."""
    place = next(i for i, slot in enumerate(signature.inputs) if slot.name == selected.tag)
    slot, tag = signature.inputs[place], values[place]
    chosen = sum((tag == member for member in selected.members), torch.zeros_like(tag, dtype=torch.bool))
    members = " or ".join(slot.members[member] for member in selected.members)
    given = lengths[selected.axis]
    if slot.rows is None:
        wanted = [n * has for n, has in zip(lengths[selected.parent], chosen.tolist(), strict=True)]
    else:
        wanted = [int(part.sum()) for part in chosen.split(list(lengths[slot.rows]))]
    for i, (has, wants) in enumerate(zip(given, wanted, strict=True)):
        if has != wants:
            what = f"{wants} rows of {selected.parent} have the tag {members} in {selected.tag}"
            raise InputFault(f"example {i} has {has} rows of {selected.axis}, but {what}")


def _batch_size(signature: Signature, values: Sequence[Tensor], lengths: Mapping[str, tuple[int, ...]]) -> int | None:
    sizes: dict[str, int] = {}
    for slot, value in zip(signature.inputs, values, strict=True):
        if slot.rows is not None:
            sizes[slot.name] = len(lengths[signature.chain(slot.rows)[0]])
        elif slot.per_example:
            sizes[slot.name] = len(value)
    if not sizes:
        return None
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise InputFault(f"{first} has {size} examples, {name} has {other}")
    if size == 0:
        raise InputFault(f"{first} has no examples: a batch needs at least one")
    return size


# -- forms -----------------------------------------------------------------------------------------


def _levels(
    slot: Slot, given: Any, dtype: torch.dtype, chain: tuple[str, ...]
) -> tuple[Tensor, list[tuple[int, ...]], str]:
    """Packed rows; for each axis of the chain, owners first, the lengths; and the form they came in."""
    if len(chain) == 1:
        rows, counts, form = _rows(slot, given, dtype)
        return rows, [counts], form
    if isinstance(given, tuple):
        if len(given) != len(chain) + 1 or not all(isinstance(part, Tensor) for part in given):
            wanted = ", ".join(("values", *(f"offsets of {axis}" for axis in chain)))
            raise InputFault(f"{slot.name} is a tuple, which means ({wanted}), all tensors; give examples as a list")
        rows, counts = _packed(slot, given[0], given[-1], dtype)
        found = [counts]
        for axis, offsets in zip(reversed(chain[:-1]), reversed(given[1:-1]), strict=True):
            found.insert(0, _lengths(f"the offsets of {axis} in {slot.name}", offsets, len(found[0])))
        return rows, found, "packed"
    found, parts = [], given
    for axis in chain[:-1]:
        if not isinstance(parts, Sequence) or not all(isinstance(part, Sequence) for part in parts):
            raise InputFault(f"{slot.name} is a list of examples, each a list with one entry for each row of {axis}")
        found.append(tuple(len(part) for part in parts))
        parts = [entry for part in parts for entry in part]
    if not given:
        raise InputFault(f"{slot.name} has no examples: a batch needs at least one")
    if not parts:
        empty = torch.empty((0, *slot.shape), dtype=_stored(slot, dtype))
        return empty, [*found, ()], "list"
    rows, counts, form = _rows(slot, parts, dtype)
    return rows, [*found, counts], form


def _rows(slot: Slot, given: Any, dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...], str]:
    """Packed rows, the length of each example, and the form they came in."""
    if isinstance(given, Tensor):
        if given.is_nested:
            return *_nested(slot, given, dtype), "nested"
        raise InputFault(
            f"{slot.name} is one tensor of shape {_shape(given)}: give a list with one tensor per example, "
            "a jagged nested tensor, or (values, offsets)"
        )
    if isinstance(given, tuple):
        if len(given) != 2 or not all(isinstance(part, Tensor) for part in given):
            raise InputFault(
                f"{slot.name} is a tuple, which means (values, offsets), two tensors; give examples as a list"
            )
        return *_packed(slot, given[0], given[1], dtype), "packed"
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise InputFault(f"{slot.name} is {type(given).__name__}: give a list with one tensor per example")
    if not given:
        raise InputFault(f"{slot.name} has no examples: a batch needs at least one")
    rows = [
        _entries(slot, example, dtype, f"example {i} of {slot.name}", (None, *slot.shape))
        for i, example in enumerate(given)
    ]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), tuple(len(part) for part in rows), "list"


def _nested(slot: Slot, given: Any, dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...]]:
    if given.layout != torch.jagged:
        raise InputFault(f"{slot.name} is a nested tensor of layout {given.layout}: make it with layout=torch.jagged")
    if getattr(given, "_ragged_idx", 1) != 1:
        raise InputFault(
            f"{slot.name} is ragged in dimension {getattr(given, '_ragged_idx', 1)}: the ragged dimension comes first"
        )
    if given.lengths() is not None:
        # A nested tensor with holes between its examples: copied without them.
        given = torch.nested.nested_tensor(list(given.unbind()), layout=torch.jagged)
    return _packed(slot, given.values(), given.offsets(), dtype)


def _packed(slot: Slot, values: Tensor, offsets: Tensor, dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...]]:
    rows = _entries(slot, values, dtype, f"the packed values of {slot.name}", (None, *slot.shape))
    return rows, _lengths(f"the offsets of {slot.name}", offsets, len(rows))


def _lengths(what: str, offsets: Tensor, count: int) -> tuple[int, ...]:
    if offsets.dtype not in (torch.int32, torch.int64):
        raise InputFault(f"{what} are {_dtype(offsets)}, not int32")
    if offsets.dim() != 1 or len(offsets) < 1:
        raise InputFault(f"{what} have shape {_shape(offsets)}, not [batch + 1]")
    listed = offsets.tolist()
    if listed[0] != 0:
        raise InputFault(f"{what} start at {listed[0]}, not at 0")
    for i, (begin, end) in enumerate(pairwise(listed)):
        if end < begin:
            raise InputFault(f"{what} fall from {begin} to {end} at example {i}")
    if listed[-1] != count:
        raise InputFault(f"{what} end at {listed[-1]}, but there are {count} rows")
    return tuple(end - begin for begin, end in pairwise(listed))


def _unpacked(slot: Slot, given: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A value per example, `[batch, *shape]`, or for the whole call, `[*shape]`."""
    lead = (None,) if slot.per_example else ()
    if slot.members and isinstance(given, Sequence) and all(isinstance(member, str) for member in given):
        given = [_member(slot, member) for member in ([given] if isinstance(given, str) else given)]
        given = given if slot.per_example else given[0]
    if isinstance(given, Sequence) and any(isinstance(part, Tensor) for part in given):
        given = torch.stack([torch.as_tensor(part) for part in given])
    tensor = _entries(slot, given, dtype, slot.name, (*lead, *slot.shape))
    _in_range(slot, tensor, None)
    return _placed(slot, tensor, device)


def _member(slot: Slot, name: str) -> int:
    if name not in slot.members:
        raise InputFault(f"{slot.name} has {name}, which is no member of {slot.of}: {', '.join(slot.members)}")
    return slot.members.index(name)


def empty_rows(slot: Slot, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A ragged input without a single row."""
    return torch.empty((0, *slot.shape), dtype=_stored(slot, dtype), device=device)


def _placed(slot: Slot, tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.is_meta and device.type != "meta":
        raise InputFault(f"{slot.name} is on the meta device, which holds no data")
    return tensor.to(device)


# -- checks ----------------------------------------------------------------------------------------


def _entries(slot: Slot, given: Any, dtype: torch.dtype, what: str, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor of the slot's kind and shape (None: any length)."""
    if not isinstance(given, Tensor):
        try:
            empty = isinstance(given, Sequence) and not given
            given = empty_rows(slot, dtype, torch.device("cpu")) if empty else torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise InputFault(f"{what} is not a tensor nor a list of numbers") from None
        if slot.kind == "real" and not given.is_floating_point() and given.dtype != torch.bool:
            given = given.to(dtype)  # written as whole numbers
    if given.is_nested:
        raise InputFault(f"{what} is nested, but {slot.describe()} is not ragged")
    _right_kind(slot, given, what)
    fits = given.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, given.shape, strict=True)
    )
    if not fits:
        lead = "rows" if slot.rows else "batch"
        wanted = ", ".join(lead if want is None else str(want) for want in shape)
        raise InputFault(f"{what} has shape {_shape(given)}, not [{wanted}] ({slot.describe()})")
    return given.to(_stored(slot, dtype))


def _right_kind(slot: Slot, given: Tensor, what: str) -> None:
    match slot.kind:
        case "real":
            right, wanted = given.is_floating_point(), "a floating-point type"
        case "flag":
            right, wanted = given.dtype == torch.bool, "bool"
        case _:
            right, wanted = _is_integer(given), "an integer type"
    if not right:
        raise InputFault(f"{what} is {_dtype(given)}, not {wanted} ({slot.describe()})")


def _is_integer(given: Tensor) -> bool:
    return not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)


def _in_range(slot: Slot, rows: Tensor, counts: Sequence[int] | None) -> None:
    """Ids and tags below their limit; the first that is not is named by example and row."""
    if not slot.limit or not rows.numel() or rows.is_meta:
        return
    low, high = torch.aminmax(rows)
    if int(low) >= 0 and int(high) < slot.limit:
        return
    place = ((rows < 0) | (rows >= slot.limit)).nonzero()[0].tolist()
    value = int(rows[tuple(place)])
    where = ""
    if counts is not None:
        example, row = 0, place[0]
        while row >= counts[example]:
            row -= counts[example]
            example += 1
        where = f" at example {example}, row {row}"
    elif slot.per_example:
        where = f" at example {place[0]}"
    raise InputFault(f"{slot.name} has {value}{where}: {slot.describe()} allows 0 to {slot.limit - 1}")


def _same_lengths(
    slot: Slot, axis: str, counts: tuple[int, ...], known: tuple[int, ...], other: str, owner: str | None
) -> None:
    if len(counts) != len(known):
        raise InputFault(f"{other} has {len(known)} examples, {slot.name} has {len(counts)}")
    unit = "example" if owner is None else f"row {owner}"
    for i, (have, want) in enumerate(zip(counts, known, strict=True)):
        if have != want:
            raise InputFault(f"{unit} {i} has {want} rows of {axis} in {other}, but {have} in {slot.name}")


def _stored(slot: Slot, dtype: torch.dtype) -> torch.dtype:
    return {"real": dtype, "flag": torch.bool}.get(slot.kind, torch.int64)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"
