"""What is routed by tag in a layer of LMFusion 8B: its linears, and attention under its mask (lmfusion.md 7).

4,096 rows: 14 captions of 34 words with a picture of 256 rows and 2 more words each, and a caption of 8 words. Rows lie
as they are written; a tower has its own, in order, but on the side of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weft.codegen.functions.attention import attend_packed
from weft.codegen.functions.selections import order_of
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.grouped_form import GroupedForm
from weft.codegen.gpu.grouped_torch import by_torch
from weft.codegen.gpu.mask_intervals import seen_by_mask
from weft.codegen.grouped.cost import grouped_work
from weft.codegen.grouped.kernels import PRODUCTS
from weft.codegen.grouped.op import grouped_op
from weft.codegen.score.load import connect
from weft.runtime.kernels import launchable

from . import peers
from .contest import MOST_COMPARED, Contest, Work, contests
from .context import Context
from .patches import compared
from .results import Row

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """Captions of `before` words, a picture of `places` rows and `after` words, `pairs` times, and `tail` words."""

    name: str
    dim: int
    heads: int
    kv_heads: int
    ffn: int
    pairs: int
    before: int
    places: int
    after: int
    tail: int

    @property
    def rows(self) -> int:
        return self.pairs * self.pair + self.tail

    @property
    def pair(self) -> int:
        return self.before + self.places + self.after

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


SHAPES = (Shape("lmfusion 8b", 4096, 32, 8, 14336, 14, 34, 256, 2, 8),)
TINY = (Shape("lmfusion tiny", 32, 2, 1, 48, 2, 3, 4, 2, 1),)


def rows(context: Context, ceilings: dict[str, float]) -> Iterator[Row]:
    """A row per linear, and attention."""
    for shape in TINY if context.tiny else SHAPES:
        yield from contests(context, ceilings, "lmfusion.weft", shape, _CONTESTS)


def picture_of(shape: Shape) -> Tensor:
    """int64 [rows]: the number of the picture that a row is of; -1 for words."""
    pair = torch.full((shape.pairs, shape.pair), -1)
    pair[:, shape.before : shape.before + shape.places] = torch.arange(shape.pairs)[:, None]
    return torch.cat([pair.reshape(-1), torch.full((shape.tail,), -1)])


def _linear(form: Callable[[Shape], GroupedForm], context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Of both towers, all weights trained. The weights as one stack come last, for those that take them so."""
    made = form(shape)
    picture = picture_of(shape).to(context.device)
    towers = [(picture < 0).nonzero()[:, 0], (picture >= 0).nonzero()[:, 0]]
    moved = [*(towers if made.moves else []), *([order_of(tuple(towers))] if made.scatters else [])]

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, device=context.device, dtype=DTYPE)

    x = [draw(shape.rows, made.inputs)] if made.gathers else [draw(len(one), made.inputs) for one in towers]
    # Parts of one tensor: so the weights of a tower adjoin, and the matrix library makes its pieces at once.
    stack = draw(made.groups, sum(made.outputs), made.inputs) * made.inputs**-0.5
    weights = [weight for tower in stack for weight in tower.split(list(made.outputs))]
    op = grouped_op("routed", made, DTYPE, True)
    call = launchable(op)

    def ours(*given: Tensor) -> Any:
        return call(*given[: len(x)], *moved, *given[len(x) : -1])

    def slabs(*given: Tensor) -> Any:
        return by_torch(made, *given[: len(x)], *moved, *given[len(x) : -1])

    work = {product: grouped_work(op, product, shape.rows, made.weights) for product in PRODUCTS}
    forward, both = work["forward"], [work[product] for product in PRODUCTS]
    theirs = compared(context, slabs) | peers.of_grouped(context, made, towers, len(x))
    operands = (*x, *weights, stack)
    return Contest(
        name, labels, operands, frozenset(range(len(operands))), ours, theirs, Work(forward.bytes, forward.matmul),
        Work(sum(one.bytes for one in both), sum(one.matmul for one in both)),
        slabs if sum(one.numel() for one in operands) <= MOST_COMPARED else None,
    )  # fmt: skip


def _attention(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Captions are examples; a row sees what came before, and all of its own picture."""
    connect(None)
    number = picture_of(shape).to(context.device)
    # A word is in no picture, whichever side asks.
    of_keys = torch.where(number < 0, -2, number)
    starts = [*range(0, shape.rows - shape.tail + 1, shape.pair), shape.rows]
    offsets = torch.tensor(starts, device=context.device, dtype=torch.int32)
    is_before = ("<=", ("key", "position"), ("query", "position"))
    mask = ("or", is_before, ("==", ("query", number), ("key", of_keys)))
    scale = shape.head_dim**-0.5
    q, k, v = (
        torch.randn(shape.rows, heads, shape.head_dim, device=context.device, dtype=DTYPE)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    seen = seen_by_mask(offsets, offsets, q, k, mask)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, offsets, offsets, scale, predicate=mask, intervals=seen)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_packed(q, k, v, offsets, offsets, scale, predicate=mask)

    pairs = shape.pairs * (shape.pair * (shape.pair + 1) + shape.places * (shape.places - 1)) // 2
    pairs += shape.tail * (shape.tail + 1) // 2
    flops = 4.0 * pairs * shape.heads * shape.head_dim
    moved = 2.0 * (q.numel() + k.numel() + v.numel() + q.numel())
    return Contest(
        name, labels, (q, k, v), frozenset((0, 1, 2)), ours,
        compared(context, plain) | peers.of_hybrid(context, offsets, number, scale), Work(moved, flops),
        Work(3 * moved, 3.5 * flops), plain,
    )  # fmt: skip


def _qkv(shape: Shape) -> GroupedForm:
    sizes = (shape.dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim)
    return GroupedForm(2, shape.dim, sizes, scatters=True)


_CONTESTS: dict[str, Callable[[Context, Any, str, Row], Contest]] = {
    "routed q, k and v": partial(_linear, _qkv),
    "routed out": partial(_linear, lambda shape: GroupedForm(2, shape.dim, (shape.dim,), gathers=True)),
    "routed gate and up": partial(_linear, lambda shape: GroupedForm(2, shape.dim, (shape.ffn, shape.ffn))),
    "routed down": partial(_linear, lambda shape: GroupedForm(2, shape.ffn, (shape.dim,))),
    "attention of words and pictures": _attention,
}
