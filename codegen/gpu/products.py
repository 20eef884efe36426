"""How matrices are multiplied: by the library with a wider result than operands (16 bits to a float32 that is not
rounded), and by kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_into(out: Tensor, one: Tensor, two: Tensor, is_added: bool = False) -> None:
    """`out [M, N] = one [M, K] two [K, N]`, or added to it. Operands of one type, a result of that type or wider."""
    if out.dtype == one.dtype:
        if is_added:
            out.addmm_(one, two)
        else:
            torch.mm(one, two, out=out)
    elif out.device.type == "cpu":
        # No such product exists on CPUs; products of 16-bit numbers are exact in float32.
        product_into(out, one.to(out.dtype), two.to(out.dtype), is_added)
    elif is_added:
        # An addmm into a wider result has been wrong in releases of torch: two steps.
        out.add_(torch.mm(one, two, out_dtype=out.dtype))
    else:
        torch.mm(one, two, out_dtype=out.dtype, out=out)


def precision(dtype: torch.dtype, has_tensor_cores: bool) -> str:
    """How tl.dot multiplies: three products of tensor cores keep float32's digits, where they exist."""
    return "tf32x3" if dtype == torch.float32 and has_tensor_cores else "ieee"
