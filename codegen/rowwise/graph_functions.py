"""Which functions of a graph are pointwise, and which function of row programs each is."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.nn import functional

from ..functions import pointwise
from . import functions as f

# Operands in order; a number may stand for any of them.
POINTWISE: dict[Any, f.Function] = {
    operator.add: f.ADD, operator.sub: f.SUB, operator.mul: f.MUL, operator.truediv: f.DIV, operator.neg: f.NEG,
    operator.floordiv: f.FLOORDIV, operator.mod: f.MOD, torch.remainder: f.MOD, torch.exp: f.EXP, torch.log: f.LOG,
    torch.sqrt: f.SQRT, torch.rsqrt: f.RSQRT, torch.floor: f.FLOOR, torch.ceil: f.CEIL, torch.round: f.ROUND,
    torch.sin: f.SIN, torch.cos: f.COS, torch.sigmoid: f.SIGMOID, torch.tanh: f.TANH, torch.erf: f.ERF,
    functional.softplus: f.SOFTPLUS, torch.abs: f.ABS, torch.sign: f.SIGN, torch.relu: f.RELU,
    pointwise.maximum: f.MAXIMUM, pointwise.minimum: f.MINIMUM, operator.eq: f.EQUAL, operator.ne: f.NOT_EQUAL,
    operator.lt: f.LESS, operator.le: f.AT_MOST, operator.gt: f.GREATER, operator.ge: f.AT_LEAST,
    operator.and_: f.AND, torch.logical_and: f.AND, operator.or_: f.OR, torch.logical_or: f.OR,
    operator.invert: f.NOT, torch.logical_not: f.NOT, pointwise.whole: f.TO_INT, torch.detach: f.STOP,
}  # fmt: skip
