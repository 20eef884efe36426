"""RMS norms of a decoding step on a CPU, with gains that do not change.

For one or a few rows the number of calls is the cost, and each is dearer than alone: the weights that stream past
between two norms push torch's code out of the cache. What depends on the gain alone is computed once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_length = torch.linalg.vector_norm


class FixedNorm:
    """gain * x / sqrt(mean(x^2) + eps) of x [..., D], gain [D] or [G, D], plus a residual of the shape of x if there is
    one. No derivatives; statistics of bfloat16 and float16 rows are in float32."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        width = gain.shape[-1]
        self.wide = torch.promote_types(gain.dtype, torch.float32)
        with torch.inference_mode(False), torch.no_grad():
            # x / rms = sqrt(D) x / hypot(|x|, sqrt(D eps))
            self.gain = gain.detach().to(self.wide) * math.sqrt(width)
            self.floor = torch.tensor(math.sqrt(width * eps), dtype=self.wide)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dtype == self.wide:
            y = torch.div(x, _length(x, 2, -1, True).hypot_(self.floor))
            return y.mul_(self.gain) if residual is None else torch.addcmul(residual, y, self.gain)
        y = torch.div(x, _length(x, 2, -1, True, dtype=self.wide).hypot_(self.floor))
        y = y.mul_(self.gain) if residual is None else torch.addcmul(residual, y, self.gain)
        return y.to(x.dtype)
