"""Per-row statistics of a linear's outputs, and their gradients, without storing the outputs.

The outputs are made a block at a time (logits_blocks.py) by the matrix library, in float32 whatever x is, and a kernel
reads each block once: forward to scan it, backward to turn it into its own gradient, which two more products spread to
x and the weight. Scans of the parts of a row are merged by a last kernel.

On a CPU without Triton's interpreter torch reads the blocks instead.

Letters in shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from . import logits_torch
from .logits_blocks import Blocks, blocks
from .logits_form import WHOLE_NUMBERS, LogitsForm
from .products import product_into

INTERPRETED = bool(knobs.runtime.interpret)
# Programs that share the columns of a block, where it has few rows. Fixed, so that sums come out the same anywhere.
PROGRAMS = 1024


@dataclass(frozen=True)
class Kernel:
    """A jitted function, its tile of `block_m` rows and `block_v` columns, and launch options. `block_d`: how much of
    the width a tile's own products take at a time."""

    function: Any
    block_m: int
    block_v: int
    warps: int
    stages: int
    block_d: int | None = None

    def launch(self, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        if self.block_d is not None:
            constants["BLOCK_D"] = self.block_d
        self.function[grid](
            *arguments, BLOCK_M=self.block_m, BLOCK_V=self.block_v, num_warps=self.warps, num_stages=self.stages,
            **constants,
        )  # fmt: skip


@dataclass(frozen=True)
class Logits:
    """An operator `(x [N, D], weight [V, D], bias [V] if there is one, ids [N] int64 ..) -> results [N] ..`, in the
    order of `form.results`, in at least float32; whole numbers are int32, places int64.

    `entries`: how many logits may be in memory at a time; None: by the size of x.
    """

    library: str
    name: str
    form: LogitsForm
    statistics: Kernel
    merge: Kernel
    slopes: Kernel | None = None
    entries: int | None = None

    def __post_init__(self) -> None:
        # torch.compile cannot make operators while it traces the first call.
        _ = self.operator

    def __call__(self, *operands: Tensor) -> Any:
        return self.operator(*operands)

    @property
    def __name__(self) -> str:
        return self.name

    @cached_property
    def operator(self) -> Any:
        form = self.form
        operands = ["x", "weight", *(["bias"] if form.has_bias else []), *(f"id_{i}" for i in range(form.picks))]
        taken = ", ".join(f"Tensor {name}" for name in operands)
        forward = torch.library.custom_op(
            f"{self.library}::{self.name}", self._forward, mutates_args=(),
            schema=f"({taken}) -> {_tensors(len(form.results))}",
        )  # fmt: skip
        forward.register_fake(self._fake)
        if not form.gradients:
            forward.register_autograd(lambda ctx, *grads: (None,) * len(operands), setup_context=self._save)
            return forward
        more = ", ".join(f"Tensor {name}" for name in (*form.kept, *(f"d_{name}" for name in form.differentiable)))
        backward = torch.library.custom_op(
            f"{self.library}::{self.name}_backward", self._gradients, mutates_args=(),
            schema=f"({taken}, {more}) -> {_tensors(len(form.gradients))}",
        )  # fmt: skip
        backward.register_fake(self._fake_gradients)
        forward.register_autograd(self._pass_back(backward), setup_context=self._save)
        return forward

    # -- forward -----------------------------------------------------------------------------------

    def _forward(self, *operands: Tensor) -> Any:
        x, weight, bias, ids = self._operands(operands)
        cut = self.blocks(x, weight)
        wide = wide_of(x)
        parts = _parts(cut, self.statistics.block_v) if launches(x) else 1
        states = {
            name: x.new_empty((len(cut.column_starts) * parts, cut.all_rows), dtype=state_type(name, wide))
            for name in self.form.states
        }
        memory = x.new_empty(cut.rows * cut.columns, dtype=wide)
        for rows, columns in cut if cut.all_rows else ():
            logits = _block(memory, rows, columns)
            product_into(logits, x[rows], weight[columns].t())
            first_part = columns.start // cut.columns * parts
            if launches(x):
                count, width = logits.shape
                grid = (-(-count // self.statistics.block_m), parts)
                part_columns = up(-(-cut.columns // parts), self.statistics.block_v)
                self.statistics.launch(
                    grid, logits, *bias, *ids, *states.values(), rows.start, columns.start, first_part, count, width,
                    part_columns, cut.all_rows, logits.stride(0),
                )  # fmt: skip
            else:
                found = logits_torch.block_states(
                    self.form, _with_bias(logits, bias, columns), [i[rows] for i in ids], columns.start
                )
                for name, state in found.items():
                    states[name][first_part, rows] = state
        return alone(list(self._merged(x, states).values()))

    def _merged(self, x: Tensor, states: dict[str, Tensor]) -> dict[str, Tensor]:
        parts, count = states["top"].shape
        if not launches(x):
            return logits_torch.merged(self.form, states)
        results = {name: x.new_empty(count, dtype=_result_type(name, wide_of(x))) for name in self.form.results}
        if count:
            self.merge.launch((-(-count // self.merge.block_m), 1), *states.values(), *results.values(), count, parts)
        return results

    def _fake(self, *operands: Tensor) -> Any:
        x = operands[0]
        return alone([x.new_empty(x.shape[0], dtype=_result_type(name, wide_of(x))) for name in self.form.results])

    # -- backward ----------------------------------------------------------------------------------

    def _gradients(self, *given: Tensor) -> Any:
        form = self.form
        count = 2 + form.has_bias + form.picks
        x, weight, bias, ids = self._operands(given[:count])
        kept = dict(zip(form.kept, given[count:], strict=False))
        grads = dict(zip(form.differentiable, given[count + len(kept) :], strict=True))
        cut, wide = self.blocks(x, weight), wide_of(x)
        memory = x.new_empty(cut.rows * cut.columns, dtype=wide)
        # In 16 bits for the matrix units; float32 and float64 are written over the logits.
        slope_memory = memory if x.dtype == wide else x.new_empty(cut.rows * cut.columns)
        sums = {
            "x": _Sum(x, "x" in form.gradients, len(cut.column_starts)),
            "weight": _Sum(weight, "weight" in form.gradients, len(cut.row_starts)),
            "bias": _Sum(bias[0] if bias else x, "bias" in form.gradients, len(cut.row_starts)),
        }
        for rows, columns in cut if cut.all_rows else ():
            logits, slope = _block(memory, rows, columns), _block(slope_memory, rows, columns)
            product_into(logits, x[rows], weight[columns].t())
            self._slopes(logits, slope, bias, ids, kept, grads, rows, columns)
            sums["x"].add_product(rows, slope, weight[columns])
            sums["weight"].add_product(columns, slope.t(), x[rows])
            sums["bias"].add_rows(columns, slope)
        return alone([sums[name].result() for name in form.gradients])

    def _slopes(
        self,
        logits: Tensor,
        slope: Tensor,
        bias: Sequence[Tensor],
        ids: Sequence[Tensor],
        kept: dict[str, Tensor],
        grads: dict[str, Tensor],
        rows: slice,
        columns: slice,
    ) -> None:
        if not launches(logits):
            here = {name: result[rows] for name, result in kept.items()}
            given = {name: grad[rows] for name, grad in grads.items()}
            logits = _with_bias(logits, bias, columns)
            slope.copy_(logits_torch.slopes(self.form, logits, [i[rows] for i in ids], columns.start, here, given))
            return
        assert self.slopes is not None
        count, width = logits.shape
        grid = (-(-count // self.slopes.block_m), -(-width // self.slopes.block_v))
        self.slopes.launch(
            grid, logits, slope, *bias, *ids, *kept.values(), *(grad.contiguous() for grad in grads.values()),
            rows.start, columns.start, count, width, logits.stride(0),
        )  # fmt: skip

    def _fake_gradients(self, *given: Tensor) -> Any:
        x, weight, bias, _ = self._operands(given[: 2 + self.form.has_bias + self.form.picks])
        like = {"x": x, "weight": weight, "bias": bias[0] if bias else x}
        return alone([like[name].new_empty(like[name].shape) for name in self.form.gradients])

    def _save(self, ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        form = self.form
        results = dict(zip(form.results, output if isinstance(output, tuple | list) else (output,), strict=True))
        free = form.differentiable if form.gradients else ()
        ctx.mark_non_differentiable(*(result for name, result in results.items() if name not in free))
        if form.gradients:
            ctx.save_for_backward(*inputs, *(results[name] for name in form.kept))

    def _pass_back(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        form = self.form

        def pass_back(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            x = saved[0]
            by_name = dict(zip(form.results, grads, strict=True))
            given = []
            for name in form.differentiable:
                grad = by_name[name]
                given.append(x.new_zeros(x.shape[0], dtype=wide_of(x)) if grad is None else grad)
            found = backward(*saved, *given)
            found = found if isinstance(found, tuple | list) else (found,)
            by_owner = dict(zip(form.gradients, found, strict=True))
            owners = ("x", "weight", *(["bias"] if form.has_bias else []))
            return (*(by_owner.get(owner) for owner in owners), *(None for _ in range(form.picks)))

        return pass_back

    # -- operands ----------------------------------------------------------------------------------

    def blocks(self, x: Tensor, weight: Tensor) -> Blocks:
        return blocks(x.shape[0], weight.shape[0], x.shape[1], self.entries)

    def _operands(self, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """x, weight, none or one bias, ids."""
        x, weight, *rest = operands
        has_bias = self.form.has_bias
        return x, weight, tuple(b.contiguous() for b in rest[:has_bias]), tuple(i.contiguous() for i in rest[has_bias:])


class _Sum:
    """A gradient that is one product for each block of its rows, or a running sum of several in float32."""

    def __init__(self, like: Tensor, is_wanted: bool, terms: int) -> None:
        self.is_running = terms != 1
        self.like, self.is_wanted = like, is_wanted
        wide = wide_of(like)
        if is_wanted:
            make = like.new_zeros if self.is_running else like.new_empty
            self.total = make(like.shape, dtype=wide if self.is_running else like.dtype)

    def add_product(self, place: slice, one: Tensor, two: Tensor) -> None:
        if self.is_wanted:
            product_into(self.total[place], one, two, is_added=self.is_running)

    def add_rows(self, place: slice, slope: Tensor) -> None:
        if self.is_wanted:
            part = slope.sum(0, dtype=wide_of(slope))
            self.total[place] = self.total[place] + part if self.is_running else part.to(self.total.dtype)

    def result(self) -> Tensor:
        return self.total.to(self.like.dtype)


def launches(x: Tensor) -> bool:
    return x.device.type != "cpu" or INTERPRETED


def wide_of(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def state_type(name: str, wide: torch.dtype) -> torch.dtype:
    return torch.int32 if name in WHOLE_NUMBERS else wide


def _result_type(name: str, wide: torch.dtype) -> torch.dtype:
    return torch.int64 if name == "place" else state_type(name, wide)


def _block(memory: Tensor, rows: slice, columns: slice) -> Tensor:
    count, width = rows.stop - rows.start, columns.stop - columns.start
    return memory[: count * width].view(count, width)


def _with_bias(logits: Tensor, bias: Sequence[Tensor], columns: slice) -> Tensor:
    return logits + bias[0][columns].to(logits.dtype) if bias else logits


def _parts(cut: Blocks, block_v: int) -> int:
    """Parts of a block's columns, each a program's."""
    return max(1, min(-(-cut.columns // block_v), PROGRAMS // max(cut.rows, 1)))


def up(number: int, step: int) -> int:
    return -(-number // step) * step


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def alone(results: list[Tensor]) -> Any:
    return results[0] if len(results) == 1 else tuple(results)
