"""Making values of row programs: the kinds and axes of a result follow from its operands."""

from __future__ import annotations

import torch

from ..facts import Fact
from ..origin import UNKNOWN, Origin
from . import functions as f
from .functions import Function
from .row_program import Axis, Constant, How, Kind, Map, Reduce, Val


def kind_of(fact: Fact) -> Kind:
    if fact.dtype.is_floating_point:
        return Kind.REAL
    return Kind.FLAG if fact.dtype == torch.bool else Kind.INT


def constant(number: float | bool) -> Constant:
    kind = Kind.FLAG if isinstance(number, bool) else Kind.INT if isinstance(number, int) else Kind.REAL
    return Constant(frozenset(), False, kind, UNKNOWN, number)


def make(function: Function, *operands: Val | float, origin: Origin | None = None) -> Val:
    """A map, of values or numbers. Whole numbers that meet reals become reals."""
    values = [operand if isinstance(operand, Val) else constant(operand) for operand in operands]
    compared = values[1:] if function is f.WHERE else values
    if any(value.kind is Kind.REAL for value in compared) and function is not f.TO_REAL:
        values = [
            constant(float(value.number))
            if isinstance(value, Constant) and value.kind is Kind.INT and value in compared
            else value
            for value in values
        ]
        compared = values[1:] if function is f.WHERE else values
    if function in _FOLDED and all(isinstance(value, Constant) for value in values):
        # Triton would hold what is computed of numbers alone in a float32.
        number = function.torch(*(value.number for value in values if isinstance(value, Constant)))
        # Whole numbers wrap, as they do when they are computed.
        return constant((number + 2**63) % 2**64 - 2**63 if type(number) is int else number)
    if function.result is not None:
        kind = Kind(function.result)
    else:
        kinds = {value.kind for value in compared}
        kind = next(kind for kind in (Kind.REAL, Kind.INT, Kind.FLAG) if kind in kinds)
    axes = frozenset().union(*(value.axes for value in values))
    by_row = any(value.by_row for value in values)
    return Map(axes, by_row, kind, origin or UNKNOWN, function, tuple(values))


_FOLDED = (f.ADD, f.SUB, f.MUL, f.NEG)


def reduce(how: How, value: Val, over: frozenset[Axis], origin: Origin | None = None) -> Val:
    """Axes that the value lacks count as often as they are long in a sum, and once else."""
    missing = over - value.axes
    if how is How.SUM:
        times = 1
        for axis in missing:
            times *= axis.size
        value = value if times == 1 else make(f.MUL, value, times, origin=origin)
    over &= value.axes
    if not over:
        return value
    return Reduce(value.axes - over, value.by_row, value.kind, origin or UNKNOWN, how, value, over)
