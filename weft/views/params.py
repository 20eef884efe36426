"""`weft inspect FILE params`: every weight with shape, start and count. Equal weights of loop turns are one line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from .table import amount, count, table

if TYPE_CHECKING:
    from weft.dsl.check import Checked
    from weft.dsl.program import Distribution, Weight


@dataclass
class _Row:
    """Weights that differ only in the numbers of loop turns."""

    weight: Weight
    numbers: list[tuple[int, ...]]


def data(checked: Checked) -> dict[str, Any]:
    weights = list(checked.weights.values())
    return {
        "weights": [
            {
                "path": weight.path,
                "axes": [axis.name for axis in weight.type.axes],
                "shape": list(weight.shape),
                "stored_shape": list(weight.stored_shape),
                "init": init_text(weight.init),
                "frozen": weight.frozen,
                "count": prod(weight.shape),
            }
            for weight in weights
        ],
        "total": _total(weights),
        "trained": _total([weight for weight in weights if not weight.frozen]),
    }


def text(checked: Checked) -> str:
    weights = list(checked.weights.values())
    rows = [_cells(row) for row in _together(weights)]
    total = _total(weights)
    frozen = _total([weight for weight in weights if weight.frozen])
    lines = [
        table(("weight", "axes", "shape", "starts as", "count"), rows, right=(4,)),
        "",
        f"{len(weights):,} weights, {count(total)} parameters",
        f"{amount(4 * total)} in float32, {amount(2 * total)} in bfloat16",
    ]
    if frozen:
        lines.append(f"{count(frozen)} of them frozen, {count(total - frozen)} trained")
    return "\n".join(lines)


def init_text(init: Distribution) -> str:
    """`normal(std=0.02)`, `copy of layer.3.attention.q.linear.weight`."""
    if init.source is not None:
        return f"copy of {init.source}"
    numbers = ", ".join(f"{name}={number:.4g}" for name, number in init.numbers)
    return f"{init.kind}({numbers})" if numbers else init.kind


def _total(weights: list[Weight]) -> int:
    return sum(prod(weight.shape) for weight in weights)


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def _together(weights: list[Weight]) -> list[_Row]:
    rows: dict[tuple, _Row] = {}
    for weight in weights:
        axes = tuple(axis.name for axis in weight.type.axes)
        key = (_NUMBER.sub("*", weight.path), axes, weight.shape, init_text(weight.init), weight.frozen)
        rows.setdefault(key, _Row(weight, [])).numbers.append(tuple(map(int, _NUMBER.findall(weight.path))))
    return list(rows.values())


def _cells(row: _Row) -> tuple[str, ...]:
    weight = row.weight
    path = weight.path
    if len(row.numbers) > 1:
        spans = iter([_range(sorted(set(numbers))) for numbers in zip(*row.numbers, strict=True)])
        path = _NUMBER.sub(lambda _: next(spans), path)
    each = prod(weight.shape)
    times = f"{len(row.numbers)} x " if len(row.numbers) > 1 else ""
    return (
        path + (" (frozen)" if weight.frozen else ""),
        ", ".join(axis.name for axis in weight.type.axes),
        " x ".join(map(str, weight.shape)),
        init_text(weight.init),
        f"{times}{each:,}",
    )


def _range(numbers: list[int]) -> str:
    """`{0..31}` where they are in a row, else the numbers."""
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
