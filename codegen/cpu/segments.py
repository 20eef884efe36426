"""Values of segments at their rows, and sums over the rows of segments, on a CPU.

The rows of a segment follow each other, so a sum over them is a run in memory: what torch calls a bag of embeddings,
whose kernel streams. Torch's own gradient of a read by index adds row after row.

Letters in shapes: N rows, P segments; `number [N]` names the segment of each row, -1 for none, and never falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functions.precision import narrow, widen
from .derivatives import once_differentiable


class Runs:
    """Which rows segments have."""

    def __init__(self, number: Tensor, segments: int) -> None:
        self.rows = (number >= 0).nonzero()[:, 0]
        self.bounds = torch.searchsorted(number[self.rows], torch.arange(segments + 1))

    def sums(self, x: Tensor) -> Tensor:
        """`x [N, ...]` added up within segments, in at least float32: `[P, ...]`."""
        shape = (self.bounds.shape[0] - 1, *x.shape[1:])
        if not x.numel():
            return x.new_zeros(shape)
        lines = widen(x.reshape(x.shape[0], -1))
        found = torch.embedding_bag(lines, self.rows, self.bounds, False, 0, False, None, True)[0]
        return narrow(found, x).view(shape)


def without(number: Tensor) -> Tensor:
    """The rows of no segment."""
    return (number < 0).nonzero()[:, 0]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, number):
        ctx.save_for_backward(number)
        ctx.segments = p.shape[0]
        if not p.shape[0]:
            return p.new_zeros(number.shape[0], *p.shape[1:])
        return p.index_select(0, number.clamp(min=0)).index_fill_(0, without(number), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (number,) = ctx.saved_tensors
        return Runs(number, ctx.segments).sums(dy), None


def spread(p: Tensor, number: Tensor) -> Tensor:
    """`p [P, ...]` at the segment of each row: `[N, ...]`. A row without a segment reads 0."""
    return _Spread.apply(p, number)
