"""The statistics of a linear's outputs by kernels that multiply themselves, so that no memory holds any outputs.

A tile of outputs is made in registers forward, and again for each of the two gradients: five products in place of four.
For small vocabularies, and where the matrix library has no product with a float32 result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .logits import Kernel, Logits, alone, launches, state_type, up, wide_of
from .products import precision

# Programs at least, where there are so many parts of rows to share.
PROGRAMS = 256


@dataclass(frozen=True)
class TiledLogits(Logits):
    """As Logits. `entries` counts for CPUs only."""

    x_gradient: Kernel | None = None
    weight_gradient: Kernel | None = None

    def _forward(self, *operands: Tensor) -> Any:
        if not launches(operands[0]):
            return super()._forward(*operands)
        x, weight, bias, ids = self._operands(operands)
        rows, columns = x.shape[0], weight.shape[0]
        tile = self.statistics
        row_tiles, column_tiles = -(-rows // tile.block_m), -(-columns // tile.block_v)
        parts = max(1, min(column_tiles, PROGRAMS // max(row_tiles, 1)))
        states = {name: x.new_empty((parts, rows), dtype=state_type(name, wide_of(x))) for name in self.form.states}
        if rows:
            x, weight = _entries_together(x), _entries_together(weight)
            self.statistics.launch(
                (row_tiles, parts), x, weight, *bias, *ids, *states.values(), 0, 0, 0, rows, columns,
                up(-(-columns // parts), tile.block_v), rows, x.stride(0), weight.stride(0), PRECISION=_precision(x),
            )  # fmt: skip
        return alone(list(self._merged(x, states).values()))

    def _gradients(self, *given: Tensor) -> Any:
        if not launches(given[0]):
            return super()._gradients(*given)
        form = self.form
        count = 2 + form.has_bias + form.picks
        x, weight, bias, ids = self._operands(given[:count])
        rest = [t.contiguous() for t in given[count:]]
        wide = wide_of(x)
        found = {name: like.new_zeros(like.shape, dtype=wide) for name, like in self._owners(x, weight, bias)}
        if x.shape[0]:
            x, weight = _entries_together(x), _entries_together(weight)
            taken = (x, weight, *bias, *ids, *rest)
            numbers = (x.shape[0], weight.shape[0], x.stride(0), weight.stride(0))
            if self.x_gradient is not None:
                grid = (-(-x.shape[0] // self.x_gradient.block_m),)
                self.x_gradient.launch(grid, *taken, found["x"], *numbers, PRECISION=_precision(x))
            if self.weight_gradient is not None:
                grid = (-(-weight.shape[0] // self.weight_gradient.block_v),)
                sums = (found["weight"], *((found["bias"],) if form.has_bias else ()))
                self.weight_gradient.launch(grid, *taken, *sums, *numbers, PRECISION=_precision(x))
        return alone([found[name].to(x.dtype) for name in form.gradients])

    @staticmethod
    def _owners(x: Tensor, weight: Tensor, bias: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        return [("x", x), ("weight", weight), *(("bias", one) for one in bias)]


def _precision(x: Tensor) -> str:
    return precision(x.dtype, x.device.type == "cuda" and torch.version.hip is None)


def _entries_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
