"""A grouped linear as the compiler's graphs hold it: called, it is torch's linears, group by group.

The runtime puts a Grouped with kernels in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..gpu.grouped import by_torch
from ..gpu.grouped_form import GroupedForm
from ..gpu.linear_tiles import Tiles
from .kernels import PRODUCTS, GroupedKernel, default_tiles, grouped_kernel


@dataclass(frozen=True)
class GroupedOp:
    """`forward`, `x_gradient`, `weight_gradient`: the tiles of each product; None: by the matrix library."""

    name: str
    form: GroupedForm
    dtype: torch.dtype
    forward: Tiles | None = None
    x_gradient: Tiles | None = None
    weight_gradient: Tiles | None = None

    def __call__(self, *operands: Tensor) -> Any:
        return by_torch(self.form, *operands)

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def ours(self) -> dict[str, Tiles]:
        """The products that kernels make, with their tiles."""
        tiles = {product: getattr(self, product) for product in PRODUCTS}
        return {product: chosen for product, chosen in tiles.items() if chosen is not None}

    @property
    def key(self) -> object:
        """Equal for calls that the same kernels can serve."""
        return self.form, self.dtype, tuple(self.ours.items())

    def kernel(self, product: str) -> GroupedKernel:
        return grouped_kernel(self.name, product, self.form, self.dtype)

    def renamed(self, name: str) -> GroupedOp:
        return replace(self, name=name)


def grouped_op(name: str, form: GroupedForm, dtype: torch.dtype, is_ours: bool) -> GroupedOp:
    """In its default configuration: every product by kernels of ours, or every one by the matrix library."""
    tiles = {product: default_tiles(dtype) for product in PRODUCTS} if is_ours else {}
    return GroupedOp(name, form, dtype, **tiles)


def trained_weights(module: fx.GraphModule, node: fx.Node) -> int:
    """How many weights of a call want a gradient."""
    form = node.target.form  # type: ignore[union-attr]
    first = len(node.args) - form.weights * (1 + form.has_bias)
    weights = node.args[first : first + form.weights]
    return sum(_is_trained(module, weight) for weight in weights if isinstance(weight, fx.Node))


def _is_trained(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return module.get_parameter(str(node.target)).requires_grad
    return any(_is_trained(module, operand) for operand in node.all_input_nodes)
