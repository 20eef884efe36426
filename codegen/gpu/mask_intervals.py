"""Masks as intervals, from the predicate that a graph carries: which rows a row can see at most (SEMANTICS 5).

    causal or same(picture)     a word sees [0, t + 1), a pixel [0, end of its picture)

The intervals hold every row that is seen, whatever the values are. They hold no other where `is_exact` and all of
`conditions` are true: equal ids stand side by side, and the two sides of an `or` meet. Nothing here waits for the
device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functions.masks import Predicate
from .intervals import Bounds, Intervals, band_intervals, both, either, row_examples


@dataclass(frozen=True)
class Hull:
    """`conditions`: flags, scalars on the device."""

    intervals: Intervals
    is_exact: bool
    conditions: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Sides:
    """The packed rows that a mask is asked about."""

    q_offsets: Tensor
    k_offsets: Tensor
    q_rows: int
    k_rows: int


def hull(predicate: Predicate, rows: Sides, low: int | None = None, high: int | None = None) -> Hull:
    """The intervals of a predicate, within a band."""
    found = _hull(predicate, rows)
    return found if low is None and high is None else _both(found, _band(rows, low, high))


def seen_by_mask(
    q_offsets: Tensor,
    k_offsets: Tensor,
    q: Tensor,
    k: Tensor,
    predicate: Predicate,
    low: int | None = None,
    high: int | None = None,
) -> Intervals:
    """What rows of two packed tensors may see of each other: tiles outside are skipped, inside the predicate holds."""
    found = hull(predicate, Sides(q_offsets, k_offsets, q.shape[0], k.shape[0]), low, high).intervals
    return replace(found, is_exact=False, is_band=False)


def says_intervals(predicate: Predicate) -> bool:
    """Whether the intervals may say something that is not known from examples and distances alone."""
    match predicate:
        case ("and" | "or", left, right):
            return says_intervals(left) or says_intervals(right)
        case _:
            return _ids(predicate) is not None


def _hull(predicate: Predicate, rows: Sides) -> Hull:
    match predicate:
        case ("or", left, right):
            return _either(_hull(left, rows), _hull(right, rows))
        case ("and", *_):
            return _conjunction(_conjuncts(predicate), rows)
        case _:
            return _conjunction([predicate], rows)


def _conjuncts(predicate: Predicate) -> list[Predicate]:
    match predicate:
        case ("and", left, right):
            return _conjuncts(left) + _conjuncts(right)
        case _:
            return [predicate]


def _conjunction(parts: list[Predicate], rows: Sides) -> Hull:
    """`same(e)` of an id that may be none is written `query(e) == key(e) and query(e) != n and key(e) != n`."""
    found: Hull | None = None
    used: set[int] = set()
    for place, part in enumerate(parts):
        ids = _ids(part)
        if ids is None:
            continue
        used.add(place)
        seen = []
        for side, tensor in ids.items():
            there = None
            for other, excluded in enumerate(parts):
                match excluded:
                    case ("!=", (name, read), ("number", number)) if name == side and read is tensor:
                        flags = tensor != number
                    case ("==", (name, Tensor() as read), ("number", True)) if name == side:
                        flags = read
                    case _:
                        continue
                used.add(other)
                there = flags if there is None else there & flags
            seen.append((tensor, there))
        (query, query_there), (key, key_there) = seen
        found = _met(found, _runs(query, query_there, key, key_there, rows))
    for place, part in enumerate(parts):
        if place not in used:
            found = _met(found, _atom(part, rows))
    assert found is not None
    return found


def _met(left: Hull | None, right: Hull) -> Hull:
    return right if left is None else _both(left, right)


def _atom(predicate: Predicate, rows: Sides) -> Hull:
    if predicate[0] == "or":
        return _hull(predicate, rows)
    band = _distance(predicate)
    if band is None:
        whole = _band(rows, None, None)
        return Hull(whole.intervals, False)
    return _band(rows, *band)


def _band(rows: Sides, low: int | None, high: int | None) -> Hull:
    return Hull(band_intervals(rows.q_offsets, rows.k_offsets, rows.q_rows, rows.k_rows, low, high), True)


def _both(a: Hull, b: Hull) -> Hull:
    return Hull(both(a.intervals, b.intervals), a.is_exact and b.is_exact, (*a.conditions, *b.conditions))


def _either(a: Hull, b: Hull) -> Hull:
    meets = [
        ((x.high <= x.low) | (y.high <= y.low) | ((x.low <= y.high) & (y.low <= x.high))).all()
        for x, y in ((a.intervals.queries, b.intervals.queries), (a.intervals.keys, b.intervals.keys))
    ]
    made = either(a.intervals, b.intervals)
    return Hull(made, a.is_exact and b.is_exact, (*a.conditions, *b.conditions, *meets))


# -- atoms -----------------------------------------------------------------------------------------


def _ids(predicate: Predicate) -> dict[str, Tensor] | None:
    """The ids of queries and of keys, where a comparison asks for equal ones."""
    match predicate:
        case ("==", ("query", one), ("key", other)) | ("==", ("key", other), ("query", one)):
            if not isinstance(one, str) and not isinstance(other, str):
                return {"query": one, "key": other}
    return None


def _runs(q_ids: Tensor, q_there: Tensor | None, k_ids: Tensor, k_there: Tensor | None, rows: Sides) -> Hull:
    q_key, k_key = _keys(q_ids, k_ids, rows)
    queries, dense_k = _occurrences(q_key, q_there, k_key, k_there)
    keys, dense_q = _occurrences(k_key, k_there, q_key, q_there)
    return Hull(Intervals(queries, keys), True, (dense_k, dense_q))


def _keys(q_ids: Tensor, k_ids: Tensor, rows: Sides) -> tuple[Tensor, Tensor]:
    """int64: example and id in one number."""
    q, k = q_ids.to(torch.int64), k_ids.to(torch.int64)
    if not q.numel() or not k.numel():
        return q, k
    least = torch.minimum(q.min(), k.min())
    width = torch.maximum(q.max(), k.max()) - least + 1
    q_key = row_examples(rows.q_offsets, q.shape[0]) * width + q - least
    return q_key, row_examples(rows.k_offsets, k.shape[0]) * width + k - least


def _occurrences(wanted: Tensor, asks: Tensor | None, keys: Tensor, there: Tensor | None) -> tuple[Bounds, Tensor]:
    """From the first to the last row with an equal key, and whether those rows are all that lie between."""
    number = torch.arange(keys.shape[0], device=keys.device)
    if not keys.numel() or not wanted.numel():
        none = torch.zeros(wanted.shape[0], dtype=torch.int32, device=wanted.device)
        return Bounds(none, none), torch.ones((), dtype=torch.bool, device=wanted.device)
    # Rows that are in no run get keys of their own below all others.
    placed = keys if there is None else torch.where(there, keys, -1 - number)
    order = torch.argsort(placed, stable=True)
    ranked = placed[order]
    first, after = torch.searchsorted(ranked, wanted), torch.searchsorted(ranked, wanted, right=True)
    last_place = keys.shape[0] - 1
    low, high = order[first.clamp(max=last_place)], order[(after - 1).clamp(min=0)] + 1
    some = after > first
    if asks is not None:
        some = some & asks
    low, high = torch.where(some, low, 0), torch.where(some, high, 0)
    dense = (~some | (high - low == after - first)).all()
    return Bounds(low.to(torch.int32), high.to(torch.int32)), dense


def _distance(predicate: Predicate) -> tuple[int | None, int | None] | None:
    """The band of key number - query number that a comparison is; None where it is none."""
    match predicate:
        case ("<", ("abs", inner), ("number", number)) if (at := _difference(inner)) is not None:
            sign, offset = at
            reach = int(number) - 1
            low, high = -reach - offset, reach - offset
            return (low, high) if sign > 0 else (-high, -low)
        case ("<" | "<=" | ">" | ">=" as name, left, right):
            if name in (">", ">="):
                name, left, right = {">": "<", ">=": "<="}[name], right, left
            at = _difference(("-", left, right))
            if at is None:
                return None
            sign, offset = at
            bound = (-1 if name == "<" else 0) - offset
            return (None, bound) if sign > 0 else (-bound, None)
    return None


def _difference(term: Any) -> tuple[int, int] | None:
    """`(sign, c)` for sign * (key number - query number) + c."""
    found = _linear(term)
    if found is None or found[0] != -found[1] or found[0] not in (1, -1):
        return None
    return int(found[0]), int(found[2])


def _linear(term: Any) -> tuple[float, float, float] | None:
    match term:
        case ("number", number) if int(number) == number:
            return 0, 0, number
        case ("key", "position"):
            return 1, 0, 0
        case ("query", "position"):
            return 0, 1, 0
        case ("neg", inner):
            return _scaled(_linear(inner), -1)
        case ("+" | "-" as name, left, right):
            a, b = _linear(left), _scaled(_linear(right), 1 if name == "+" else -1)
            return None if a is None or b is None else (a[0] + b[0], a[1] + b[1], a[2] + b[2])
    return None


def _scaled(found: tuple[float, float, float] | None, by: int) -> tuple[float, float, float] | None:
    return None if found is None else (by * found[0], by * found[1], by * found[2])
