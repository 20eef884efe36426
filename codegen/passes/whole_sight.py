"""Masks of a decoding graph that hide nothing, where a sequence's new rows are one row, or one picture: no mask.

    attend_general(.., causal or same(picture), captured)      ->      keep_rows(..);  attend_general(..)

A part of a mask is asked about two kinds of keys: those of earlier calls, which stand in front of all new rows, and
those that are new. Parts that are the same for all of them go away; what keys had of these parts is still written to
its cache, as other calls may ask for it. What is left of a text by itself is often a band, which kernels know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..functions import caches, packing, selections
from ..origin import inherit
from .matching import is_call, node_at, tuple_at

_CAUSAL = ("<=", ("key", "position"), ("query", "position"))


@dataclass(frozen=True)
class _Truth:
    """What is known of a part of a mask, for every query: `old` of keys of earlier calls, `new` of new ones."""

    old: bool | None = None
    new: bool | None = None

    @property
    def always(self) -> bool | None:
        return self.old if self.old == self.new else None


_ALL, _NONE, _UNKNOWN = _Truth(True, True), _Truth(False, False), _Truth()


def see_all(module: fx.GraphModule, is_one_row: bool) -> None:
    """`is_one_row`: no sequence has more than one new row."""
    kept: set[Any] = set()
    for node in list(module.graph.nodes):
        if is_call(node, caches.attend_general):
            _simplify(module.graph, node, is_one_row, kept)


def _simplify(graph: fx.Graph, node: fx.Node, is_one_row: bool, kept: set[Any]) -> None:
    *first, position, offsets, lengths, scale, low, high, predicate, bias, captured, score, columns = node.args
    of_bias, of_others = _split(tuple_at(node, 13), bias is not None)
    mask = _with_caches(predicate, of_others)
    band = _Truth(*_within(low, high, is_one_row))
    rest, truth = (None, _ALL) if mask is None else _part(mask, is_one_row)
    if _and(truth, band) == _ALL:
        low = high = rest = None
    elif rest == _CAUSAL:
        high = 0 if high is None else min(high, 0)  # type: ignore[type-var]
        rest = None
    asked = dict(_key_reads(rest))
    for cache, rows in _key_reads(mask):
        if cache not in asked and cache not in kept:
            kept.add(cache)
            _keep(graph, node, rows, cache)
    captured = (*of_bias, *(cache for cache, _ in _key_reads(rest)), *of_others)
    predicate = _without_caches(rest)
    node.args = (*first, position, offsets, lengths, scale, low, high, predicate, bias, captured, score, columns)


def _keep(graph: fx.Graph, node: fx.Node, rows: fx.Node, cache: fx.Node) -> None:
    """Writes what keys have to its cache, where no attention does."""
    position, lengths = node_at(node, 5), node_at(node, 7)
    with graph.inserting_before(node):
        if is_call(position, caches.positions):
            row_example = node_at(position, 1)
        else:
            row_example = inherit(graph.call_function(caches.every_example, (lengths,)), node)
        inherit(graph.call_function(caches.keep_rows, (rows, cache, row_example, position)), node)


def _split(captured: tuple[Any, ...], has_bias: bool) -> tuple[tuple[Any, ...], list[Any]]:
    """The cache of a bias, and those of the mask and the score."""
    return captured[: int(has_bias)], list(captured[int(has_bias) :])


def _with_caches(e: Any, left: list[Any]) -> Any:
    """A mask with the cache of what keys have beside it. Takes them from `left`."""
    match e:
        case ("key", fx.Node() as rows):
            return ("key", rows, left.pop(0))
        case (str() as name, *parts) if name not in ("number", "query", "key"):
            return (name, *(_with_caches(part, left) for part in parts))
        case _:
            return e


def _without_caches(e: Any) -> Any:
    match e:
        case ("key", rows, _):
            return ("key", rows)
        case (str() as name, *parts):
            return (name, *map(_without_caches, parts))
        case _:
            return e


def _key_reads(e: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The cache of each read of keys, and what is written to it."""
    match e:
        case ("key", rows, cache):
            yield cache, rows
        case (str() as name, *parts) if name not in ("number", "query", "key"):
            for part in parts:
                yield from _key_reads(part)


def _within(low: Any, high: Any, is_one_row: bool) -> tuple[bool | None, bool | None]:
    """Of a band on how far in front of its query a key stands."""
    holds_itself = (low is None or low <= 0) and (high is None or high >= 0)
    if low is not None or (high is not None and high < 0):
        return None, True if is_one_row and holds_itself else None
    return True, True if high is None or is_one_row else None


def _part(e: Any, is_one_row: bool) -> tuple[Any, _Truth]:
    """What has to be asked of a part, and what is known of it."""
    match e:
        case ("and" | "or" as name, a, b):
            (left, one), (right, other) = _part(a, is_one_row), _part(b, is_one_row)
            # The one that decides, or the one that says nothing beside the other.
            decides = name == "or"
            truth = _or(one, other) if decides else _and(one, other)
            if one.always is not None:
                return (left, truth) if one.always == decides else (right, truth)
            if other.always is not None:
                return (right, truth) if other.always == decides else (left, truth)
            return (name, left, right), truth
        case ("not", inner):
            inside, truth = _part(inner, is_one_row)
            return ("not", inside), _Truth(*(None if t is None else not t for t in (truth.old, truth.new)))
        case (name, a, b) if name in ("==", "<=", ">="):
            return e, _compared(name, a, b, is_one_row)
        case _:
            return e, _UNKNOWN


def _compared(name: str, a: Any, b: Any, is_one_row: bool) -> _Truth:
    sides = {side[0]: side[1] for side in (a, b) if side[0] in ("query", "key")}
    if len(sides) != 2:
        return _UNKNOWN
    if name == "==" and any(is_call(read, selections.nowhere) for read in sides.values()):
        # Of a query in no segment, or of new keys. What cached keys have is not known here.
        return _NONE if is_call(sides["query"], selections.nowhere) else _Truth(new=False)
    if sides["query"] is not sides["key"]:
        return _UNKNOWN
    equal = True if is_one_row or _is_of_sequence(sides["key"]) else None
    if sides["key"] != "position":
        return _Truth(new=equal)
    if name == "==":
        return _Truth(False, equal)
    return _Truth(old=(name == "<=") == (a[0] == "key"), new=equal)


def _is_of_sequence(read: Any) -> bool:
    """Whether all new rows of a sequence have the same: a value of their sequence."""
    return is_call(read, torch.index_select) and is_call(node_at(read, 2), packing.row_example, caches.every_example)


def _and(a: _Truth, b: _Truth) -> _Truth:
    return _Truth(*(False if False in (x, y) else True if x and y else None for x, y in _pairs(a, b)))


def _or(a: _Truth, b: _Truth) -> _Truth:
    return _Truth(*(True if x or y else False if x is False and y is False else None for x, y in _pairs(a, b)))


def _pairs(a: _Truth, b: _Truth) -> tuple[tuple[bool | None, bool | None], ...]:
    return (a.old, b.old), (a.new, b.new)
