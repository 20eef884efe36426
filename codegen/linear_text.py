"""The product of a linear as an ahead-of-time compiler needs it: operands as its launcher passes them."""

from __future__ import annotations

from pathlib import Path

import torch

from .gpu.linear_tiles import GROUP_M, Tiles
from .gpu.products import precision
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText

_FILE = Path(__file__).parent / "gpu" / "linear_kernels.py"
_NUMBERS = ("rows", "columns", "depth", "stride_am", "stride_ak", "stride_bk", "stride_bn")
# The strides that are one, of x and weight as they lie: Triton compiles a kernel of its own for them.
_ONES = {
    "forward": ("stride_ak", "stride_bk"),
    "x_gradient": ("stride_ak", "stride_bn"),
    "weight_gradient": ("stride_am", "stride_bn"),
}


def linear_kernel(product: str, tiles: Tiles, dtype: torch.dtype, target: str) -> KernelText:
    """`product`: forward, x_gradient or weight_gradient, of sizes that are multiples of 16."""
    pointers = [(f"{name}_ptr", f"*{TRITON_TYPES[dtype]}") for name in "abc"]
    numbers = [(name, "i32") for name in _NUMBERS if name not in _ONES[product]]
    return KernelText(
        name="product",
        text=_FILE.read_text(encoding="utf-8"),
        arguments=(*pointers, *numbers),
        constants=(
            *((name, 1) for name in _ONES[product]),
            ("BLOCK_M", tiles.block_m),
            ("BLOCK_N", tiles.block_n),
            ("BLOCK_K", tiles.block_k),
            ("GROUP_M", GROUP_M),
            ("PRECISION", precision(dtype, target.startswith("cuda"))),
        ),
        divisible=tuple(name for name, _ in (*pointers, *numbers)),
        warps=tiles.warps,
        stages=tiles.stages,
    )
