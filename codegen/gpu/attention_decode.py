"""Attention of new rows to caches by generated kernels: the layout and the meaning of functions/caches.attend_step.

Letters: B sequences, R new rows of each, S slots, H heads, G key heads, D and Dv entries of a head. Row p of a sequence
lies in slot p % S, where the new rows lie already.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functions.precision import narrow, widen
from .attention_form import AttentionForm, Captured, read_form
from .attention_kernels import WIDEST, DecodeKey, find, target_of
from .formula import Entry, Formula, Row, applied, evaluate, folded, from_tuple
from .triton_types import TRITON_TYPES

_POSITIONS = (Captured("query", "i32", False, False), Captured("key", "i32", False, False))
# Stretches of a cache that are merged.
_MOST_SPLITS = 64
# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)


def attend_cached(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    columns: int,
    scale: float,
    low: int | None = None,
    high: int = 0,
    score: tuple[Any, ...] | None = None,
    predicate: tuple[Any, ...] | None = None,
) -> Tensor:
    """`q [B, R, H, D]`, `keys [B, G, S, D]`, `values [B, G, S, Dv]` to `[B, R, H, Dv]`, in the type of the caches.

    position int64 [B]: the number of the first new row of each sequence. columns: slots in use, an upper bound that the
    host knows. A query sees the rows low <= key's number - query's number <= high for which the predicate holds.
    score, predicate: as for `attention.attend`, over ("score",), positions, ("query", tensor `[B, R]` or `[B, R, H]`)
    and ("key", cache `[B, S]` or `[B, S, H]`), and tables.
    """
    columns = min(columns, keys.shape[2])
    form, captured = decode_form(scale, score, predicate)
    return attention_decode(q.to(keys.dtype), keys, values, position, columns, low, high, form.text, captured)


def decode_form(
    scale: float, score: tuple[Any, ...] | None = None, predicate: tuple[Any, ...] | None = None
) -> tuple[AttentionForm, list[Tensor]]:
    """What the op is told about a call beside its tensors, and what is captured."""
    reading = _Reading([], [])
    formula = None if score is None else folded(reading.formula(score))
    flags = None if predicate is None else folded(reading.formula(predicate))
    form = AttentionForm(float(scale), formula, flags, (*_POSITIONS, *reading.captured))
    return form, reading.tensors


@dataclass
class _Reading:
    """Nested tuples as a formula. Positions are number 0 of either side; captured tensors are counted after them."""

    tensors: list[Tensor]
    captured: list[Captured]

    def formula(self, nested: tuple[Any, ...]) -> Formula:
        match nested:
            case ("query" | "key" as side, "position"):
                return Row(side, 0)
            case ("query" | "key" as side, Tensor() as tensor):
                return Row(
                    side, self._index(Captured(side, TRITON_TYPES[tensor.dtype], tensor.dim() == 3, False), tensor)
                )
            case ("entry", Tensor() as table, at):
                entry = Captured("table", TRITON_TYPES[table.dtype], table.dim() == 2, False, table.shape[-1])
                return Entry(self._index(entry, table), self.formula(at))
            case ("number" | "score", *_):
                return from_tuple(nested)
            case (str() as name, *arguments) if name not in ("query", "key"):
                return applied(name, tuple(self.formula(argument) for argument in arguments))
            case _:
                raise ValueError(f"not a formula of a score over caches: {nested!r}")

    def _index(self, entry: Captured, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        for number, (known, given) in enumerate(zip(self.captured, self.tensors, strict=True)):
            if given is tensor and known == entry:
                return len(_POSITIONS) + number
        self.tensors.append(tensor)
        self.captured.append(entry)
        return len(_POSITIONS) + len(self.tensors) - 1


@torch.library.custom_op(f"{LIBRARY}::attention_decode", mutates_args=())
def attention_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    columns: int,
    low: int | None,
    high: int,
    form: str,
    captured: list[Tensor],
) -> Tensor:
    """See `attend_cached`. Has no derivative."""
    batch, rows, heads, width = q.shape
    target = target_of(q) if max(width, values.shape[3]) <= WIDEST else None
    if target is None:
        return _torch_decode(q, keys, values, position, columns, low, high, read_form(form), captured)
    out = torch.empty((batch, rows, heads, values.shape[3]), dtype=values.dtype, device=q.device)
    if columns == 0 or out.numel() == 0:
        return out.zero_()
    q, keys, values = (t if t.stride(3) == 1 or t.shape[3] == 1 else t.contiguous() for t in (q, keys, values))
    key = DecodeKey(form, TRITON_TYPES[q.dtype], heads, keys.shape[1], width, values.shape[3], rows, low, high)
    kernel = find(key, "attention_decode", target)
    splits = splits_of(batch * keys.shape[1], math.ceil(columns / kernel.constants["BLOCK_N"]), _units(q))
    real = torch.float64 if q.dtype == torch.float64 else torch.float32
    part = torch.empty((splits, *out.shape), dtype=real, device=q.device)
    part_max, part_sum = (torch.empty(part.shape[:-1], dtype=real, device=q.device) for _ in range(2))
    given = {"q_ptr": q, "k_ptr": keys, "v_ptr": values, "position_ptr": position.to(torch.int64).contiguous()}
    given |= {"part_ptr": part, "part_max_ptr": part_max, "part_sum_ptr": part_sum, "out_ptr": out}
    given |= {f"captured_{len(_POSITIONS) + number}_ptr": tensor for number, tensor in enumerate(captured)}
    given |= {"slots": keys.shape[2], "columns": columns, "splits": splits}
    given |= {"stride_qb": q.stride(0), "stride_qm": q.stride(1), "stride_qh": q.stride(2)}
    given |= {"stride_kb": keys.stride(0), "stride_kh": keys.stride(1), "stride_kn": keys.stride(2)}
    given |= {"stride_vb": values.stride(0), "stride_vh": values.stride(1), "stride_vn": values.stride(2)}
    kernel.launch((batch * keys.shape[1], splits), given)
    find(key, "attention_merge", target).launch((batch * rows * heads,), given)
    return out


@attention_decode.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    columns: int,
    low: int | None,
    high: int,
    form: str,
    captured: list[Tensor],
) -> Tensor:
    return torch.empty((*q.shape[:3], values.shape[3]), dtype=values.dtype, device=q.device)


def splits_of(problems: int, tiles: int, units: int) -> int:
    """Enough programs to fill a device of so many processors about twice, each with a tile at least."""
    wanted = max(1, min(_MOST_SPLITS, tiles, math.ceil(2 * units / max(1, problems))))
    return 1 << (wanted.bit_length() - 1)


_device_units: dict[int, int] = {}


def _units(tensor: Tensor) -> int:
    if tensor.device.type == "cpu":
        return 4  # of the interpreter: few programs, but more than one stretch
    index = tensor.device.index or 0
    if index not in _device_units:
        _device_units[index] = torch.cuda.get_device_properties(index).multi_processor_count
    return _device_units[index]


def _torch_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    columns: int,
    low: int | None,
    high: int,
    form: AttentionForm,
    captured: list[Tensor],
) -> Tensor:
    batch, rows, heads, _ = q.shape
    if columns == 0:
        return values.new_zeros(batch, rows, heads, values.shape[3])
    group = heads // keys.shape[1]
    k, v = (widen(t[:, :, :columns]).repeat_interleave(group, 1) for t in (keys, values))
    logits = form.scale * (widen(q).transpose(1, 2) @ k.transpose(2, 3))
    query = position[:, None] + torch.arange(rows, device=q.device)
    newest = position[:, None] + (rows - 1)
    key = newest - (newest - torch.arange(columns, device=q.device)) % keys.shape[2]
    places = {"query": query[:, None, :, None], "key": key[:, None, None]}

    def read(row: Row) -> Tensor:
        """[B, H or 1, R or 1, columns or 1], or a table"""
        if row.index < len(_POSITIONS):
            return places[row.side]
        value = captured[row.index - len(_POSITIONS)]
        value = value.to(logits.dtype) if value.is_floating_point() else value
        if row.side == "table":
            return value
        if row.side == "query":
            return (value.transpose(1, 2) if value.dim() == 3 else value[:, None])[..., None]
        value = value[:, :columns]
        return (value.transpose(1, 2) if value.dim() == 3 else value[:, None])[:, :, None]

    if form.score is not None:
        logits = evaluate(form.score, logits, read, logits.dtype)
    seen = (places["key"] >= 0) & (places["key"] <= places["query"] + high)
    if low is not None:
        seen = seen & (places["key"] >= places["query"] + low)
    if form.predicate is not None:
        seen = seen & torch.as_tensor(evaluate(form.predicate, None, read, logits.dtype))
    weights = torch.softmax(logits.masked_fill(~seen, float("-inf")), -1).masked_fill(~seen, 0)
    return narrow((weights @ v).transpose(1, 2), values)
