"""The kernels of grouped linears and the call that launches them, as parts of a module of kernels."""

from __future__ import annotations

from collections.abc import Callable

from ..gpu.linear_tiles import GROUP_M, Tiles
from ..gpu.products import precision
from ..gpu.rowwise import most_registers
from ..kernel_text import KernelText
from .kernels import PRODUCTS, GroupedKernel
from .op import GroupedOp

Render = Callable[..., str]

_HEAD = "import triton\nimport triton.language as tl"


def parts(op: GroupedOp, render: Render) -> list[str]:
    """In the order of the module."""
    kernels = [_text(op.kernel(product), render) for product in op.ours]
    return [*kernels, render("grouped.py.j2", op=op)]


def kernel_texts(op: GroupedOp, target: str, render: Render) -> dict[str, KernelText]:
    """Of the products that are ours, as an ahead-of-time compiler needs them, for a target such as "cuda:90"."""
    return {product: kernel_text(op, product, tiles, target, render) for product, tiles in op.ours.items()}


def kernel_text(op: GroupedOp, product: str, tiles: Tiles, target: str, render: Render) -> KernelText:
    assert product in PRODUCTS
    kernel = op.kernel(product)
    return KernelText(
        name=kernel.name,
        text="\n\n\n".join([_HEAD, render("prelude.py.j2"), _text(kernel, render)]),
        arguments=tuple((argument.name, argument.type) for argument in kernel.arguments),
        constants=(
            ("BLOCK_M", tiles.block_m),
            ("BLOCK_N", tiles.block_n),
            ("BLOCK_K", tiles.block_k),
            ("GROUP_M", GROUP_M),
            ("PRECISION", precision(op.dtype, target.startswith("cuda"))),
        ),
        divisible=tuple(argument.name for argument in kernel.arguments if argument.divisible),
        warps=tiles.warps,
        stages=tiles.stages,
        registers=most_registers(tiles.warps),
    )


def _text(kernel: GroupedKernel, render: Render) -> str:
    return render(kernel.template, plan=kernel)
