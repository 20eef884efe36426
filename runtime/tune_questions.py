"""What can be measured of one call of a graph: candidates, and how each is run on the operands of that call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codegen import candidates, subjects
from ..codegen.configuration import Configuration
from ..codegen.gpu import linear_tiles, scatter
from ..codegen.gpu.fused import Fused
from ..codegen.gpu.grouped_torch import Operands, operand_names
from ..codegen.gpu.rowwise import RowKernel
from ..codegen.grouped.op import GroupedOp
from ..codegen.logits.op import LogitsOp
from ..codegen.rowwise.fused import FusedOp
from ..codegen.rowwise.plan import RowPlan
from ..codegen.subjects import LinearKey
from .kernels import launchable
from .tuning import bucket

Run = Callable[[], object]


@dataclass(frozen=True)
class Question:
    """One choice. `what` names it for people, `subject` is the hash under which it is kept, `sizes` the bucket;
    `prepare(configuration)` gives what is timed."""

    what: str
    subject: str
    sizes: tuple[tuple[str, int], ...]
    candidates: tuple[Configuration, ...]
    prepare: Callable[[Configuration], Run]


def of_fused(op: FusedOp, call: Fused, operands: Sequence[Tensor]) -> Iterator[Question]:
    """Forward, backward, and the gradients of tables."""
    rows = call._rows(tuple(operands))
    yield _of_rows(f"{op.name}_kernel", op.forward, call.forward, operands, rows)
    if op.backward is None or call.backward is None or op.derivative is None:
        return
    results = call.forward(operands)
    given = [*operands, *(torch.randn_like(results[place]) for place in call.backward.wanted)]
    yield _of_rows(f"{op.name}_backward_kernel", op.backward, call.backward.kernel, given, rows)
    if not call.backward.gathered:
        return
    made = call.backward.kernel(given)
    for gathered in (g for g in call.backward.gathered if not g.in_runs):
        index = operands[gathered.index] if gathered.index is not None else made[gathered.index_result or 0]
        yield of_table(index, made[gathered.rows], operands[gathered.operand].shape[0])


def _of_rows(what: str, plan: RowPlan, kernel: RowKernel, operands: Sequence[Tensor], rows: int) -> Question:
    def prepare(chosen: Configuration) -> Run:
        made = subjects.row_plan(plan, chosen)
        return partial(
            replace(
                kernel, block_rows=made.block_rows, programs=made.programs, warps=made.warps, stages=made.stages
            ),
            operands,
        )  # fmt: skip

    return Question(what, subjects.row_subject(plan), bucket(rows=rows), candidates.of_rows(plan), prepare)


def of_table(index: Tensor, rows: Tensor, count: int) -> Question:
    """The gradient of a table with `count` rows: `rows [*index.shape, entries]` added up at `index`."""
    width, dtype = rows.shape[-1], rows.dtype

    def prepare(chosen: Configuration) -> Run:
        def run() -> Tensor:
            scatter.use(width, dtype, subjects.table_tiling(chosen))
            return scatter.add_rows(index, rows, count)

        return run

    sizes = bucket(rows=index.numel())
    return Question(
        f"gradient of a table {count} x {width}", subjects.table_subject(width, dtype), sizes,
        candidates.of_table(width, dtype), prepare,
    )  # fmt: skip


def of_logits(op: LogitsOp, operands: Sequence[Tensor]) -> Question:
    """Forward and both gradients together: the size of a block is one for all."""

    def prepare(chosen: Configuration) -> Run:
        made = launchable(subjects.logits_op(op, chosen))
        reals = [x.detach().requires_grad_(x.is_floating_point() and bool(op.form.gradients)) for x in operands]
        leaves = [x for x in reals if x.requires_grad]

        def run() -> object:
            results = made(*reals)
            results = results if isinstance(results, tuple | list) else (results,)
            free = [result for result in results if result.requires_grad]
            if not free:
                return results
            grads = [torch.ones_like(result) for result in free]
            return torch.autograd.grad(free, leaves, grads, allow_unused=True)

        return run

    x = operands[0]
    what = f"logits {op.width} -> {op.vocabulary}"
    return Question(
        what, subjects.logits_subject(op), bucket(rows=x.shape[0]), candidates.of_logits(op), prepare
    )  # fmt: skip


def of_linear(key: LinearKey, x: Tensor, weight: Tensor, wanted: Sequence[str]) -> Iterator[Question]:
    """The products of `wanted` (of subjects.PRODUCTS), each by itself."""
    flat = x.detach().reshape(-1, x.shape[-1])
    grad = torch.randn(flat.shape[0], key.outputs, dtype=x.dtype, device=x.device)
    weight = weight.detach()
    operands = {
        "forward": (flat, weight.t()),
        "x_gradient": (grad, weight),
        "weight_gradient": (grad.t(), flat),
    }
    for product in wanted:
        a, b = operands[product]

        def prepare(chosen: Configuration, a: Tensor = a, b: Tensor = b) -> Run:
            tiles: Any = subjects.linear_tiles(chosen)
            return partial(linear_tiles.product, a, b, () if tiles is None else tiles)

        what = f"linear {key.inputs} -> {key.outputs}, {product.replace('_', ' ')}"
        yield Question(
            what, subjects.linear_subject(key, product), bucket(rows=flat.shape[0]), candidates.of_linear(key.dtype),
            prepare,
        )  # fmt: skip


def of_grouped(op: GroupedOp, operands: Sequence[Tensor]) -> Iterator[Question]:
    """Each of the three products by itself, the first with what is made of it; of the gradients, those of everything.
    Then the kernels of what is made, for where the first is the matrix library's."""
    form, given = op.form, [x.detach() for x in operands]
    linear = given[: len(operand_names(form))]
    counts = Operands.of(form, linear).counts
    rows = sum(counts)
    sizes = [(n, size) for n in ([rows] if form.scatters else counts) for size in form.outputs]
    grads = [torch.randn(size, dtype=op.dtype, device=given[0].device) for size in sizes]
    wanted = {"x_gradient": [True] * (1 if form.gathers else form.groups), "weight_gradient": [True] * form.weights}
    for product in subjects.PRODUCTS:

        def prepare(chosen: Configuration, product: str = product) -> Run:
            plain = replace(op, forward=None, x_gradient=None, weight_gradient=None)
            call = launchable(replace(plain, **{product: subjects.linear_tiles(chosen)}))
            if product == "forward":
                return partial(call, *given)
            return partial(getattr(call, f"_{product}"), *grads, *linear, wanted[product])

        what = f"grouped linear {form.inputs} -> {' + '.join(map(str, form.outputs))}, {product.replace('_', ' ')}"
        yield Question(
            what, subjects.grouped_subject(op, product), bucket(rows=rows), candidates.of_grouped(op, product), prepare
        )
    if op.epilogue is not None:
        left = iter(given[len(linear) :])
        own = [next(left) if piece is None else grads[piece] for piece in op.epilogue.pieces]
        yield from of_fused(op.epilogue.call, launchable(op).epilogue.call, own)
