"""Masks as nested tuples, evaluated on tensors: what a lowered graph can carry as an argument.

    ("<=", ("key", "position"), ("query", "position"))                causal
    ("==", ("query", ids_of_queries), ("key", ids_of_keys))           same id

A side's second part is "position" or a tensor `[rows]`. Operators: and, or, not, == != < <= > >=, + - * neg abs,
("number", n).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Predicate = tuple[Any, ...]

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "and": operator.and_, "or": operator.or_, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le,
    ">": operator.gt, ">=": operator.ge, "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Some rows of one side: `numbers` counted in the example, and which of the packed rows they are."""

    numbers: Tensor
    start: int
    stop: int


def allowed(predicate: Predicate, query: Rows, key: Rows) -> Tensor:
    """Flags `[queries, keys]`."""
    flags = _evaluate(predicate, query, key)
    device = query.numbers.device
    if not isinstance(flags, Tensor):
        flags = torch.tensor(bool(flags), device=device)
    return flags.expand(query.stop - query.start, key.stop - key.start)


def _evaluate(e: Predicate, query: Rows, key: Rows) -> Any:
    match e:
        case ("number", number):
            return number
        case ("query", read):
            rows = query.numbers if isinstance(read, str) else read[query.start : query.stop]
            return rows[:, None]
        case ("key", read):
            rows = key.numbers if isinstance(read, str) else read[key.start : key.stop]
            return rows[None, :]
        case ("not", inner):
            flags = _evaluate(inner, query, key)
            return ~flags if isinstance(flags, Tensor) else not flags
        case ("neg", inner):
            return -_evaluate(inner, query, key)
        case ("abs", inner):
            return abs(_evaluate(inner, query, key))
        case (name, left, right):
            return _BINARY[name](_evaluate(left, query, key), _evaluate(right, query, key))
        case _:
            raise AssertionError(e)
