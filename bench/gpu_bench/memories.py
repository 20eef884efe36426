"""The kernels of Memory Layers at the sizes of 1.3B: sums of rows of a table of values, and the selection of them.

A table of 1,024^2 values of the model's width, and one of 4,096^2 of which a rank of eight has its columns: 2,048 / 8.
Ids are uniform, or Zipf's with exponent 1.1, as those of text are skewed; the lists of a bag are its ids in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weft.codegen.bag_text import BagCall, backward_kernels, bag_calls, bag_work, forward_kernels
from weft.codegen.bags.op import BagOp
from weft.codegen.functions import gathers
from weft.codegen.gpu import selection, shared_tables
from weft.codegen.lower import empty_weights, lower
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.scatter_text import TableGradient, scatter_kernels, scatter_work
from weft.codegen.selection_text import SCORES, SelectionCall, gradient_bag, selection_kernels, selection_work
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.kernels import launchable

from . import peers
from .contest import MOST_COMPARED, Contest, Work, contests
from .context import Context
from .patches import compared
from .results import Row

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """`rows` tokens; `half` keys of a side, `lookups` heads of keys of `key` entries a side, `top` taken of each; the
    table has half^2 rows of `width`."""

    name: str
    rows: int
    half: int
    width: int
    lookups: int = 4
    key: int = 512
    top: int = 32


SHAPES = (Shape("memory 1m", 32768, 1024, 2048), Shape("memory 16m, 1/8", 32768, 4096, 256))
TINY = (Shape("memory tiny", 12, 8, 24, lookups=2, key=16, top=4),)


def rows(context: Context, ceilings: dict[str, float]) -> Iterator[Row]:
    """A row per kernel."""
    for shape in TINY if context.tiny else SHAPES:
        yield from contests(context, ceilings, "memory_layers.weft", shape, _CONTESTS)


def uniform(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.half**2, (shape.rows, shape.lookups * shape.top), generator=generator)


def zipf(shape: Shape) -> Tensor:
    """Row r is read as often as 1 / (r + 1)^1.1 says; rows that are read often do not lie together."""
    generator = torch.Generator().manual_seed(0)
    count = shape.half**2
    heights = torch.arange(1, count + 1, dtype=torch.float64).pow(-1.1).cumsum(0)
    drawn = torch.rand(shape.rows, shape.lookups * shape.top, generator=generator, dtype=torch.float64) * heights[-1]
    ranks = torch.searchsorted(heights, drawn).clamp(max=count - 1)
    return torch.randperm(count, generator=generator)[ranks]


def _bag(ids: Callable[[Shape], Tensor], context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Bytes are planned for ids that differ: skewed ones may be served by a cache, and attain more."""
    index = ids(shape).to(context.device)
    count, width, n = shape.half**2, shape.width, index.shape[1]
    table = torch.randn(count, width, device=context.device, dtype=DTYPE)
    weight = torch.rand(index.shape, device=context.device, dtype=DTYPE)
    call = BagCall(False, n, count, width, DTYPE, DTYPE)
    forward = sum(bag_work(call, kernel.name, shape.rows).bytes for kernel in forward_kernels(call, shape.rows))
    both = forward + sum(bag_work(call, one.name, shape.rows).bytes for one in backward_kernels(call, shape.rows))
    both += _of_gradient(TableGradient(count, width, n, DTYPE, DTYPE, 1), shape.rows)

    def ours(table: Tensor, weight: Tensor) -> Tensor:
        return shared_tables.bag(table, index, weight)

    def plain(table: Tensor, weight: Tensor) -> Tensor:
        return gathers.bag(table, index, weight)

    truth = plain if table.numel() <= MOST_COMPARED else None
    return Contest(
        name, labels, (table, weight), frozenset((0, 1)), ours, compared(context, plain) | peers.of_bag(context, index),
        Work(forward, 0.0), Work(both, 0.0), truth,
    )  # fmt: skip


SCORED = """
axis seq
axis slot = slots
axis top = taken
shared values: real[slot, width] = normal(1)

model m(index: id[seq, lookups, top] in slot, score: real[seq, lookups, top]) -> real[seq, width]:
    return bag(values, index, weight=precise(softmax(score, over=top)), over=(lookups, top))
"""


def _scored_bag(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """A bag whose weights are a softmax of scores, which its kernels compute."""
    count, width, top = shape.half**2, shape.width, shape.top
    given = {"slots": count, "width": width, "lookups": shape.lookups, "taken": top}
    sizes = "".join(f"size {size} = {number}\n" for size, number in given.items())
    program = check(Source("memory.weft", sizes + SCORED), OPS).value().models["m"]
    graph = optimise(lower(program, empty_weights(program.weights, DTYPE, "meta"), DTYPE), GPU_PASSES)
    ((call, node),) = bag_calls(graph)
    assert isinstance(node.target, BagOp)
    launched, index = launchable(node.target), uniform(shape).to(context.device)
    table = torch.randn(count, width, device=context.device, dtype=DTYPE)
    score = torch.randn(shape.rows, shape.lookups, top, device=context.device, dtype=DTYPE)
    forward = sum(bag_work(call, kernel.name, shape.rows).bytes for kernel in forward_kernels(call, shape.rows))
    both = forward + sum(bag_work(call, one.name, shape.rows).bytes for one in backward_kernels(call, shape.rows))
    both += _of_gradient(TableGradient(count, width, index.shape[1], DTYPE, call.weight, 1), shape.rows)

    def ours(table: Tensor, score: Tensor) -> Tensor:
        return launched(table, index, score)

    def plain(table: Tensor, score: Tensor) -> Tensor:
        weight = torch.softmax(score, -1, dtype=torch.promote_types(score.dtype, torch.float32)).to(table.dtype)
        return gathers.bag(table, index, weight.flatten(1))

    truth = plain if table.numel() <= MOST_COMPARED else None
    return Contest(
        name, labels, (table, score), frozenset((0, 1)), ours, compared(context, plain), Work(forward, 0.0),
        Work(both, 0.0), truth,
    )  # fmt: skip


def _selection(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Scores alone are compared with float64: which entries are taken may differ where scores are almost equal."""
    x = torch.randn(shape.rows, shape.lookups, 2, shape.key, device=context.device, dtype=DTYPE)
    keys = torch.randn(shape.lookups, 2, shape.half, shape.key, device=context.device, dtype=DTYPE)
    call = SelectionCall(True, 2 * shape.lookups, shape.half, shape.key, shape.top, 1.0, DTYPE)
    target = "cuda:90"  # bytes and operations are the same for all
    forward = [selection_work(call, kernel.name, shape.rows) for kernel in selection_kernels(call, target, shape.rows)]
    bag, groups = gradient_bag(call), 2 * shape.lookups
    of_keys = TableGradient(groups * shape.half, shape.key, groups * shape.top, DTYPE, SCORES, groups)
    backward = sum(bag_work(bag, kernel.name, shape.rows).bytes for kernel in forward_kernels(bag, shape.rows))
    backward += _of_gradient(of_keys, shape.rows)
    moved, product = sum(work.bytes for work in forward), sum(work.matmul for work in forward)

    def ours(x: Tensor, keys: Tensor) -> Tensor:
        return selection.top_pairs(x, keys, shape.top, 1.0)[0]

    def plain(x: Tensor, keys: Tensor) -> Tensor:
        scores = torch.einsum("rgsd,gsnd->rgsn", x, keys)
        return gathers.top_pairs(scores[:, :, 0], scores[:, :, 1], shape.top)[0]

    is_small = 2 * shape.rows * shape.lookups * shape.half <= MOST_COMPARED
    return Contest(
        name, labels, (x, keys), frozenset((0, 1)), ours, compared(context, plain), Work(moved, product),
        Work(moved + backward, product), plain if is_small else None,
    )  # fmt: skip


def _of_gradient(gradient: TableGradient, rows_: int) -> float:
    texts = scatter_kernels(gradient.width, gradient.dtype, gradient.weight)
    return sum(scatter_work(gradient, text.name, rows_).bytes for text in texts)


_CONTESTS: dict[str, Callable[[Context, Shape, str, Row], Contest]] = {
    "bag, uniform ids": partial(_bag, uniform),
    "bag, Zipf ids": partial(_bag, zipf),
    "bag of a softmax": _scored_bag,
    "selection of pairs": _selection,
}
