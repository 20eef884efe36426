"""The call as the compiler's graphs hold it; the runtime puts the one that launches kernels in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...dsl.source import Span
from ..gpu import logits_torch
from ..gpu.logits_form import LogitsForm
from .kernels import LogitsKernels, Tile, block_kernels, tile_kernels


@dataclass(frozen=True, eq=False)
class LogitsOp:
    """`width` of x, `vocabulary` of the outputs, `dtype` of both. Called, it stores the outputs: that is its meaning.

    As codegen/gpu/logits.py: `(x, weight, bias if there is one, ids ..) -> results`, in the order of `form.results`.
    `in_tiles`: by kernels that multiply themselves, instead of in blocks by the matrix library. `span`: the line of the
    spec that the linear serves. `entries` of a block, None: by the size of x; `tile` of the kernels that multiply
    themselves, None: the default.
    """

    name: str
    form: LogitsForm
    width: int
    vocabulary: int
    dtype: torch.dtype
    in_tiles: bool = False
    span: Span | None = None
    entries: int | None = None
    tile: Tile | None = None

    def __call__(self, x: Tensor, weight: Tensor, *rest: Tensor) -> Any:
        has_bias = self.form.has_bias
        bias = rest[0] if has_bias else None
        wide = torch.promote_types(x.dtype, torch.float32)
        # Wide before the product: its results are not rounded to 16 bits in kernels either.
        logits = functional.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
        results = tuple(logits_torch.whole(self.form, logits, [i.long() for i in rest[has_bias:]]).values())
        return results[0] if len(results) == 1 else results

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def kernels(self) -> LogitsKernels:
        if self.in_tiles:
            return tile_kernels(self.name, self.form, self.width, self.dtype, self.tile)
        return block_kernels(self.name, self.form, self.vocabulary, self.dtype)

    @property
    def key(self) -> object:
        """Equal for calls that the same kernels can serve."""
        return self.form, self.width, self.vocabulary, self.dtype, self.in_tiles, self.entries, self.tile

    def renamed(self, name: str) -> LogitsOp:
        return replace(self, name=name)
