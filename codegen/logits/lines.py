"""What the kernels of logits are made of: arguments, and the lines that scan, merge and differentiate.

Lines name the variables of the templates: `z [BLOCK_M, BLOCK_V]` a tile of logits, `column [BLOCK_V]` their numbers in
the vocabulary, `row [BLOCK_M]`, `mask_m` and `mask_v` what of them exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..gpu.formula import Formula, Score, derivative, triton_text
from ..gpu.logits_form import WHOLE_NUMBERS, LogitsForm
from ..gpu.triton_types import TRITON_TYPES
from ..kernel_text import Argument

# Vary from block to block: a kernel for each of their values would be compiled again and again.
NUMBERS = ("first_row", "first_column", "first_part", "n_rows", "n_columns", "part_columns", "all_rows", "n_parts")
TRITON_NAMES = {torch.float16: "tl.float16", torch.float32: "tl.float32", torch.float64: "tl.float64"}
_START = {"top": "-3e38", "place": "0", "ties": "0"}


@dataclass(frozen=True)
class State:
    name: str
    start: str
    type: str


@dataclass(frozen=True)
class LogitsKernel:
    """All a template may know. `rounded`: the gradient of a tile as it is multiplied or stored; `block_d`: of the
    products that a tile makes itself; `real`: what is computed in."""

    name: str
    template: str
    summary: str
    arguments: tuple[Argument, ...]
    block_m: int
    block_v: int
    warps: int
    stages: int
    states: tuple[State, ...] = ()
    row_loads: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    rounded: str = ""
    block_d: int | None = None
    width: int = 0
    real: str = ""

    @property
    def constants(self) -> tuple[str, ...]:
        return ("BLOCK_M", "BLOCK_V") if self.block_d is None else ("BLOCK_M", "BLOCK_V", "BLOCK_D", "PRECISION")

    @property
    def unspecialized(self) -> list[str]:
        return [argument.name for argument in self.arguments if argument.name in NUMBERS]


def scan(form: LogitsForm) -> tuple[str, ...]:
    """A tile `z [BLOCK_M, BLOCK_V]` of the columns `column` goes into the states. Absent columns are -inf."""
    lines = ["tile_top = tl.max(z, 1)"]
    if form.place:
        lines += [
            "first = tl.min(tl.where(z == tile_top[:, None], column[None, :], 2147483647), 1)",
            "place = tl.where(tile_top > top, first, place)",
        ]
    lines.append("new_top = tl.maximum(top, tile_top)")
    if form.partition:
        lines.append("exps = tl.exp(z - new_top[:, None])")
        lines.append("shrink = tl.exp(top - new_top)")
    if form.mean:
        # Weighted distances from the top, all of one sign; they grow when the top does.
        lines.append("weighted = shrink * (weighted + total * (top - new_top))")
        lines.append("weighted += tl.sum(tl.where(exps > 0.0, exps * (z - new_top[:, None]), 0.0), 1)")
    if form.partition:
        lines.append("total = total * shrink + tl.sum(exps, 1)")
    if form.top:
        lines.append("equals = tl.sum((z == new_top[:, None]).to(tl.int32), 1)")
        lines.append("ties = tl.where(top == new_top, ties, 0) + equals")
    for number, name in enumerate(form.pick_names):
        # A column beyond this part may be another part's, and an id.
        is_picked = f"(column[None, :] == id_{number}[:, None]) & mask_v[None, :]"
        lines.append(f"{name} += tl.sum(tl.where({is_picked}, z, 0.0), 1)")
    return (*lines, "top = new_top")


def merge_steps(form: LogitsForm) -> tuple[str, ...]:
    lines = ["new_top = tl.maximum(top, part_top)"]
    if form.partition:
        lines += ["shrink = tl.exp(top - new_top)", "part_shrink = tl.exp(part_top - new_top)"]
    if form.mean:
        lines.append("weighted = shrink * (weighted + total * (top - new_top))")
        lines.append("weighted += part_shrink * (part_weighted + part_total * (part_top - new_top))")
    if form.partition:
        lines.append("total = total * shrink + part_total * part_shrink")
    if form.top:
        lines.append("ties = tl.where(top == new_top, ties, 0) + tl.where(part_top == new_top, part_ties, 0)")
    if form.place:
        lines.append("place = tl.where(part_top > top, part_place, place)")
    lines += [f"{name} += part_{name}" for name in form.pick_names]
    return (*lines, "top = new_top")


def result_stores(form: LogitsForm) -> tuple[str, ...]:
    values = {"partition": "tl.log(total) + top", "mean": "top + weighted / total", "place": "place.to(tl.int64)"}
    return tuple(
        f"tl.store(row_{result}_ptr + row, {values.get(result, result)}, mask=mask_m)" for result in form.results
    )


def slope_steps(form: LogitsForm, real: torch.dtype) -> tuple[str, ...]:
    """The gradient `slope` of a tile `z` of the columns `column`; of `score`, where a formula made z of it."""
    lines = []
    if form.partition:
        lines.append("slope = tl.exp(z - partition[:, None])")
        factor = "d_partition[:, None]"
        if form.mean:
            lines.append("apart = tl.where(slope > 0.0, 1.0 + z - mean[:, None], 0.0)")
            factor = "(d_partition[:, None] + d_mean[:, None] * apart)"
        lines.append(f"slope *= {factor}")
    else:
        lines.append("slope = tl.zeros_like(z)")
    if form.top:
        lines.append("slope += tl.where(z == top[:, None], d_top[:, None], 0.0)")
    for number, name in enumerate(form.pick_names):
        lines.append(f"slope += tl.where(column[None, :] == id_{number}[:, None], d_{name}[:, None], 0.0)")
    if form.formula is not None:
        lines.append(f"slope *= {_text(derivative(form.formula, Score()), real)}")
    return tuple(lines)


def change_steps(form: LogitsForm, real: torch.dtype) -> tuple[str, ...]:
    """From outputs of the linear to logits, of absent columns as well."""
    return () if form.formula is None else ("score = z", f"z = {_text(form.formula, real)}")


def _text(formula: Formula, real: torch.dtype) -> str:
    return triton_text(formula, lambda _: True, TRITON_NAMES[real])


def rounded(value: str, dtype: torch.dtype) -> str:
    """As it is stored."""
    if dtype == torch.bfloat16:
        return f"to_bfloat16({value})"
    return f"{value}.to({TRITON_NAMES[dtype]})"


def id_loads(form: LogitsForm) -> tuple[str, ...]:
    # -1 is no column.
    return tuple(f"id_{i} = tl.load(id_{i}_ptr + row, mask=mask_m, other=-1)" for i in range(form.picks))


def id_pointers(form: LogitsForm) -> tuple[Argument, ...]:
    return tuple(pointer(f"id_{i}", torch.int64) for i in range(form.picks))


def gradient_names(form: LogitsForm) -> tuple[str, ...]:
    """What a row's gradient is made of: results, and the gradients of results."""
    return (*form.kept, *(f"d_{name}" for name in form.differentiable))


def row_loads(form: LogitsForm) -> tuple[str, ...]:
    """The ids of a row and what its gradient is made of."""
    loads = [f"{value} = tl.load({value}_ptr + row, mask=mask_m, other=0)" for value in gradient_names(form)]
    if form.top:
        # Rows beyond the last have no ties to divide by.
        loads.append("d_top = d_top / tl.maximum(ties, 1)")
    return (*id_loads(form), *loads)


def bias_pointer(form: LogitsForm, dtype: torch.dtype) -> tuple[Argument, ...]:
    return (pointer("bias", dtype),) if form.has_bias else ()


def bias_steps(form: LogitsForm, real: torch.dtype) -> tuple[str, ...]:
    if not form.has_bias:
        return ()
    return (f"z += tl.load(bias_ptr + column, mask=mask_v, other=0.0).to({TRITON_NAMES[real]})[None, :]",)


def states_of(form: LogitsForm, real: torch.dtype) -> tuple[State, ...]:
    return tuple(
        State(name, _START.get(name, "0.0"), "tl.int32" if name in WHOLE_NUMBERS else TRITON_NAMES[real])
        for name in form.states
    )


def real_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def type_of(name: str, real: torch.dtype) -> torch.dtype:
    return torch.int32 if name in WHOLE_NUMBERS else real


def result_type_of(name: str, real: torch.dtype) -> torch.dtype:
    return torch.int64 if name == "place" else type_of(name, real)


def pointer(name: str, dtype: torch.dtype) -> Argument:
    return Argument(f"{name}_ptr", f"*{TRITON_TYPES[dtype]}", True)


def numbers(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, "i32") for name in names)


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
