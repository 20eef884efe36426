"""Matrix products with few rows against weights that do not change: the linear layers of a decoding step on a CPU.

A step reads every weight once for one or a few rows, so the order of the weight in memory and what a call costs
decide. Torch's matrix-vector product of an [O, I] weight reaches a third of the memory's speed. Two other orders reach
most of it, each a copy that is made when first needed; training never sees them:

- one row: the transposed weight in upright strips, summed row by row with the entries of x as factors. That is what
  torch calls an embedding bag; its kernel streams, and a call costs a quarter of a oneDNN product's 15 us;
- several rows: oneDNN's blocked order for about eight rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import ONEDNN_TYPES

_HAS_BLOCKS = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
# Elsewhere an embedding bag is a plain loop.
_HAS_BAGS = "fbgemm" in torch.backends.quantized.supported_engines
# The row count a weight is blocked for. Asking for one row selects an order that is slower, also for one row.
_ROWS = 8
# From this many weights on, one row is faster as four equal rows: oneDNN's one-row kernel does not keep up with memory.
_REPEAT_FROM = 1 << 18
# Columns of a strip: as many as a kernel keeps in registers or little more.
_STRIP = 576
# A bag adds its terms one after another, so a sum of very many would round worse than a blocked product.
_LONGEST_SUM = 4096


class PackedLinear:
    """y = x @ weight^T + bias for x [.., I], weight [O, I], bias [O] or None; no derivatives, any number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        outer, inner = weight.shape
        packable = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu" and weight.numel()
        self.has_blocks = bool(_HAS_BLOCKS and packable and weight.dtype in ONEDNN_TYPES)
        self.has_strips = bool(_HAS_BAGS and packable and bias is None and inner <= _LONGEST_SUM)
        self.repeats = outer * inner >= _REPEAT_FROM
        self.blocked: Tensor | None = None
        self.strips: Strips | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return self(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        rows = x.shape[0]
        if rows == 1 and self.has_strips:
            strips = self.strips
            if strips is None:
                strips = self.strips = Strips(self.weight)
            return strips(x)
        if not self.has_blocks or not rows:
            return F.linear(x, self.weight, self.bias)
        if rows == 1 and self.repeats:
            return self.product(x.expand(4, -1).contiguous())[:1]
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        if self.blocked is None:
            with torch.inference_mode(False):
                self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS)
        return torch.ops.mkldnn._linear_pointwise(x, self.blocked, self.bias, "none", [], "")


class Strips:
    """y = x @ weight^T for one row x [1, I] and a weight [O, I], which is copied as strips [strips * I, columns]."""

    def __init__(self, weight: Tensor) -> None:
        outer, inner = weight.shape
        self.outer = outer
        self.count, columns = strips_of(outer)
        with torch.inference_mode(False), torch.no_grad():
            padded = F.pad(weight.detach(), (0, 0, 0, self.count * columns - outer))
            self.rows = padded.view(self.count, columns, inner).transpose(1, 2).reshape(-1, columns)
            # Every strip takes all of its rows.
            self.index = torch.arange(self.count * inner, dtype=torch.int32)
            self.offsets = torch.arange(self.count, dtype=torch.int32) * inner
        self.is_padded = self.count * columns != outer

    def __call__(self, x: Tensor) -> Tensor:
        factors = torch.cat((x.view(-1),) * self.count)
        y = torch.embedding_bag(self.rows, self.index, self.offsets, False, 0, False, factors)[0].view(1, -1)
        return y[:, : self.outer] if self.is_padded else y


def strips_of(outer: int) -> tuple[int, int]:
    """(number, columns) of the strips of `outer` columns: an even number, for two threads, with the least padding."""
    fewest = 2 * -(-outer // (2 * _STRIP))
    counts = range(fewest, 2 * fewest + 1, 2)
    widths = {count: -(-outer // (16 * count)) * 16 for count in counts}
    count = min(counts, key=lambda n: n * widths[n])
    return count, widths[count]
