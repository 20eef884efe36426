"""Graphs whose grouped linears are all made by kernels of ours, in tiles that suit Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from weft.codegen.gpu.linear_tiles import Tiles
from weft.codegen.grouped.kernels import PRODUCTS
from weft.codegen.grouped.op import GroupedOp
from weft.codegen.pipeline import GPU_PASSES, Pass

# The interpreter's time goes by programs.
TILES = Tiles(64, 64, 32, 1, 1)


def use_kernels(module: fx.GraphModule) -> None:
    made: dict[GroupedOp, GroupedOp] = {}
    for node in module.graph.nodes:
        if isinstance(node.target, GroupedOp):
            op = node.target
            made.setdefault(op, replace(op, **dict.fromkeys(PRODUCTS, TILES)))
            node.target = made[op]


def grouped(module: fx.GraphModule) -> list[GroupedOp]:
    return [node.target for node in module.graph.nodes if isinstance(node.target, GroupedOp)]


KERNEL_PASSES = (*GPU_PASSES, Pass("ours", use_kernels, "every grouped product by a kernel, for tests"))
