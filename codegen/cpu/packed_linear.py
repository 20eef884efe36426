"""Matrix products with few rows against weights that do not change: the linear layers of a decoding step on a CPU.

A step with one or a few rows reads every weight once, so the order of the weight in memory decides. oneDNN's blocked
order for about eight rows is the fastest for one row as well, in float32 and bfloat16: torch's matrix-vector product
of an [O, I] weight reaches a third of the memory's speed. The copy belongs to the layer; training never sees it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
# The row count a weight is blocked for. Asking for one row selects an order that is slower, also for one row.
_ROWS = 8
# From this many weights on, one row is faster as four equal rows: the one-row kernel does not keep up with memory.
_REPEAT_FROM = 1 << 18


class PackedLinear:
    """y = x @ weight^T + bias for x [N, I], weight [O, I], bias [O] or None; no derivatives, any N."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        packable = weight.dtype in (torch.float32, torch.bfloat16) and weight.device.type == "cpu" and weight.numel()
        self.blocked = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS) if _HAS_ONEDNN and packable else None
        self.repeats = weight.numel() >= _REPEAT_FROM

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        if self.blocked is None or not rows:
            return F.linear(x, self.weight, self.bias)
        if rows == 1 and self.repeats:
            return self.product(x.expand(4, -1).contiguous())[:1]
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.blocked, self.bias, "none", [], "")
