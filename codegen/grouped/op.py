"""A grouped linear as the compiler's graphs hold it: called, it is torch's linears, group by group.

The runtime puts a Grouped with kernels in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..gpu.grouped_form import GroupedForm
from ..gpu.grouped_torch import Wanted, by_torch, listed, of_group, operand_names
from ..gpu.linear_tiles import Tiles
from ..rowwise.fused import FusedOp
from .epilogue import Epilogue
from .kernels import PRODUCTS, GroupedKernel, default_tiles, grouped_kernel


@dataclass(frozen=True)
class GroupedOp:
    """`forward`, `x_gradient`, `weight_gradient`: the tiles of each product; None: by the matrix library. `epilogue`:
    what is made of the results of each group; tensors that it reads besides follow the linear's operands, those of the
    first group before those of the second."""

    name: str
    form: GroupedForm
    dtype: torch.dtype
    forward: Tiles | None = None
    x_gradient: Tiles | None = None
    weight_gradient: Tiles | None = None
    epilogue: Epilogue | None = None

    def __call__(self, *operands: Tensor) -> Any:
        return self.meaning(lambda call, given: call(*given), *operands)

    def meaning(self, run: Callable[[FusedOp, Sequence[Tensor]], Any], *operands: Tensor) -> Any:
        """By torch; `run` runs the call of the epilogue."""
        if self.epilogue is None:
            return by_torch(self.form, *operands)
        form, pieces, others = self.form, self.epilogue.pieces, len(self.epilogue.others)
        count = len(operands) - form.tensors_of_y * others
        found, left, results = listed(by_torch(form, *operands[:count])), iter(operands[count:]), []
        for y in range(form.tensors_of_y):
            own = of_group(form, found, y)
            given = [next(left) if piece is None else own[piece] for piece in pieces]
            results += listed(run(self.epilogue.call, given))
            results += [own[piece] for piece in self.epilogue.left(form.pieces)]
        return results[0] if len(results) == 1 else tuple(results)

    def has_gradient(self, result: int, wanted: Sequence[bool]) -> bool:
        """Whether a result has one, if these operands want one."""
        each = self.form.pieces if self.epilogue is None else self.epilogue.results(self.form.pieces)
        return Wanted.of(self.form, wanted).results[result // each]

    def groups_without(self, wanted: Sequence[bool]) -> int:
        """How many groups have no gradient then: no tile backward."""
        return Wanted.of(self.form, wanted).groups.count(False)

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
        made = None if self.epilogue is None else self.epilogue.key
        return self.form, self.dtype, tuple(self.ours.items()), made

    def kernel(self, product: str) -> GroupedKernel:
        return grouped_kernel(self.name, product, self.form, self.dtype, self.epilogue)

    def default_tiles(self, product: str) -> Tiles:
        return default_tiles(self.dtype, product == "forward" and self.epilogue is not None)

    def renamed(self, name: str) -> GroupedOp:
        return replace(self, name=name)


def grouped_op(name: str, form: GroupedForm, dtype: torch.dtype, is_ours: bool) -> GroupedOp:
    """In its default configuration: every product by kernels of ours, or every one by the matrix library."""
    tiles = default_tiles(dtype) if is_ours else None
    return GroupedOp(name, form, dtype, tiles, tiles, tiles)


def weights_of(node: fx.Node) -> list[fx.Node]:
    """Those of the first group, then of the second."""
    assert isinstance(node.target, GroupedOp)
    form = node.target.form
    first = operand_names(form).index("weight_0_0")
    return [weight for weight in node.args[first : first + form.weights] if isinstance(weight, fx.Node)]


def trained_weights(module: fx.GraphModule, node: fx.Node) -> int:
    """How many weights of a call want a gradient."""
    return sum(_is_trained(module, weight) for weight in weights_of(node))


def _is_trained(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return module.get_parameter(str(node.target)).requires_grad
    return any(_is_trained(module, operand) for operand in node.all_input_nodes)
