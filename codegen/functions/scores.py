"""Formulas over attention scores, as nested tuples that a lowered graph can carry:

    ("mul", ("tanh", ("div", ("score",), ("number", 30))), ("number", 30))      a soft cap

("query", read) and ("key", read) are what the two rows have: "position", or a tensor `[rows]` or `[rows, heads]`.
("entry", table, at) is the entry of a tensor `[entries]` or `[heads, entries]` that the whole number `at` counts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .masks import Rows
from .pointwise import whole

Formula = tuple[Any, ...]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "neg": operator.neg, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "and_": torch.logical_and, "or_": torch.logical_or,
    "not_": torch.logical_not, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
    "abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "softplus": torch.nn.functional.softplus, "relu": torch.relu, "maximum": torch.maximum, "minimum": torch.minimum,
    "where": torch.where, "stop_gradient": torch.detach, "int": whole, "floordiv": operator.floordiv,
    "mod": operator.mod,
}  # fmt: skip
# Written with numbers as they are; the others take tensors only.
WITH_NUMBERS = ("add", "sub", "mul", "div", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "floordiv", "mod")
# Of whole numbers these are whole, however large.
OF_ANY_NUMBERS = ("where", "maximum", "minimum", "abs", "int")


def scored(formula: Formula, scores: Tensor, query: Rows, key: Rows) -> Tensor:
    """The formula of every score `[..., heads, queries, keys]`."""
    result = _evaluate(formula, scores, query, key)
    return result if isinstance(result, Tensor) else torch.full_like(scores, result)


def _evaluate(formula: Formula, scores: Tensor, query: Rows, key: Rows) -> Any:
    match formula:
        case ("score",):
            return scores
        case ("number", number):
            return number
        case ("query", read):
            rows = query.numbers if isinstance(read, str) else read[query.start : query.stop]
            return _wide(rows.T[:, :, None] if rows.dim() == 2 else rows[:, None], scores)
        case ("key", read):
            rows = key.numbers if isinstance(read, str) else read[key.start : key.stop]
            return _wide(rows.T[:, None, :] if rows.dim() == 2 else rows[None, :], scores)
        case ("entry", table, at):
            entries = _wide(table, scores)
            at = _as_tensor(_evaluate(at, scores, query, key), scores, True).to(torch.int64)
            return entries[at] if entries.dim() == 1 else entries[each_head(entries), at]
        case (str() as name, *parts):
            operands = [_evaluate(part, scores, query, key) for part in parts]
            if name == "real":
                return operands[0].to(scores.dtype) if isinstance(operands[0], Tensor) else float(operands[0])
            if name not in WITH_NUMBERS:
                operands = [_as_tensor(operand, scores, name in OF_ANY_NUMBERS) for operand in operands]
            return FUNCTIONS[name](*operands)
        case _:
            raise AssertionError(formula)


def _wide(rows: Tensor, scores: Tensor) -> Tensor:
    return rows.to(scores.dtype) if rows.is_floating_point() else rows


def each_head(entries: Tensor) -> Tensor:
    """The numbers of the heads of a table `[heads, entries]`, to meet places `[.., heads or 1, queries, keys]`."""
    return torch.arange(entries.shape[0], device=entries.device)[:, None, None]


def _as_tensor(operand: Any, like: Tensor, keeps_whole: bool) -> Tensor:
    if isinstance(operand, Tensor):
        return operand
    dtype = torch.bool if isinstance(operand, bool) else like.dtype
    if keeps_whole and type(operand) is int:
        dtype = torch.int64
    return torch.tensor(operand, dtype=dtype, device=like.device)
