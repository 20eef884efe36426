"""What is asked of the rows of a linear's outputs, as kernels: their arguments and lines, in the order of the text.

In blocks, where the matrix library makes the logits:

    statistics   scans blocks of logits into states, one for each part of a row
    slopes       a block of logits into its own gradient, from the results and their gradients

In tiles, where each kernel makes the logits it needs and no memory ever holds them:

    tile         a tile of logits, called by the others
    statistics   as above, of tiles
    x_gradient, weight_gradient      sums of products with the gradients of tiles, in memory that starts as zero

In both, `merge` makes the results of whole rows from the states of their parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..gpu.logits_form import LogitsForm
from ..kernel_text import Argument
from ..rowwise.tiles import power_of_two
from .lines import (
    TRITON_NAMES,
    LogitsKernel,
    State,
    bias_pointer,
    bias_steps,
    change_steps,
    gradient_names,
    id_loads,
    id_pointers,
    listed,
    merge_steps,
    numbers,
    pointer,
    real_of,
    result_stores,
    result_type_of,
    rounded,
    row_loads,
    scan,
    slope_steps,
    states_of,
    type_of,
)

# Entries a program holds of a block.
TILE = 4096
LEAST_COLUMNS = 16
ABSENT = 'z = tl.where(mask_v[None, :], z, float("-inf"))'


@dataclass(frozen=True)
class Tile:
    """Of a product: rows, columns, and how much of the width at a time."""

    block_m: int
    block_v: int
    block_d: int
    warps: int
    stages: int


# What is made of a tile has to fit in registers beside it, on every target.
_TILE_OF_16_BITS = Tile(64, 128, 64, warps=8, stages=3)
_TILE_OF_MUCH = Tile(64, 64, 64, warps=8, stages=3)
_TILE_OF_A_FORMULA = Tile(64, 64, 32, warps=8, stages=3)
_TILE_OF_32_BITS = Tile(32, 32, 32, warps=2, stages=2)


def default_tile(form: LogitsForm, dtype: torch.dtype) -> Tile:
    if dtype.itemsize > 2:
        return _TILE_OF_32_BITS
    if form.change is not None:
        return _TILE_OF_A_FORMULA
    return _TILE_OF_MUCH if form.mean or form.has_bias or form.picks > 1 else _TILE_OF_16_BITS


@dataclass(frozen=True)
class LogitsKernels:
    """The kernels of one call by the launcher's names for them. `helpers` are functions that they call."""

    launched: dict[str, LogitsKernel]
    helpers: tuple[LogitsKernel, ...] = ()


def block_kernels(name: str, form: LogitsForm, vocabulary: int, dtype: torch.dtype) -> LogitsKernels:
    """Kernels in their default configurations; `dtype` of x and the weight."""
    launched = {"statistics": _block_statistics(name, form, vocabulary, dtype), "merge": _merge(name, form, dtype)}
    if form.gradients:
        launched["slopes"] = _slopes(name, form, vocabulary, dtype)
    return LogitsKernels(launched)


def tile_kernels(
    name: str, form: LogitsForm, width: int, dtype: torch.dtype, tile: Tile | None = None
) -> LogitsKernels:
    """As `block_kernels`. ValueError where the form needs logits that are equal in all kernels: their products may
    differ in the last bit."""
    if form.top and form.gradients:
        raise ValueError("a gradient of the largest logit is not made from tiles")
    tile = tile or default_tile(form, dtype)
    launched = {"statistics": _tile_statistics(name, form, width, dtype, tile), "merge": _merge(name, form, dtype)}
    if "x" in form.gradients:
        launched["x_gradient"] = _tile_gradient(name, form, width, dtype, tile, "x")
    if {"weight", "bias"} & set(form.gradients):
        launched["weight_gradient"] = _tile_gradient(name, form, width, dtype, tile, "weight")
    return LogitsKernels(launched, (_tile(name, width, dtype, tile),))


# -- blocks ------------------------------------------------------------------------------------------


def _block_statistics(name: str, form: LogitsForm, vocabulary: int, dtype: torch.dtype) -> LogitsKernel:
    block_v = max(LEAST_COLUMNS, min(TILE, power_of_two(vocabulary)))
    changed = change_steps(form, real_of(dtype))
    # A formula may make anything of what is absent.
    changed = (*changed, ABSENT) if changed else ()
    scores = (
        "at = offs_m[:, None].to(tl.int64) * stride_z + offs_v[None, :]",
        'z = tl.load(z_ptr + at, mask=mask_m[:, None] & mask_v[None, :], other=float("-inf"))',
        *bias_steps(form, real_of(dtype)),
        *changed,
    )
    return _statistics(
        name, form, dtype, (pointer("z", real_of(dtype)),), (Argument("stride_z", "i32", True),), scores,
        Tile(max(1, TILE // block_v), block_v, 0, warps=8, stages=2),
    )  # fmt: skip


def _slopes(name: str, form: LogitsForm, vocabulary: int, dtype: torch.dtype) -> LogitsKernel:
    real = real_of(dtype)
    block_v = max(LEAST_COLUMNS, min(TILE // 4, power_of_two(vocabulary)))
    return LogitsKernel(
        name=f"{name}_slopes",
        template="logits_slopes.py.j2",
        summary="The gradient of a block of logits.",
        arguments=(
            pointer("z", real),
            pointer("slope", dtype),
            *bias_pointer(form, dtype),
            *id_pointers(form),
            *(pointer(value, type_of(value, real)) for value in gradient_names(form)),
            *numbers("first_row", "first_column", "n_rows", "n_columns"),
            Argument("stride_z", "i32", True),
        ),
        row_loads=row_loads(form),
        steps=(*bias_steps(form, real), *change_steps(form, real), *slope_steps(form, real)),
        rounded=rounded("slope", dtype),
        block_m=max(1, TILE // block_v),
        block_v=block_v,
        warps=8,
        stages=2,
    )


# -- tiles -------------------------------------------------------------------------------------------


def _tile(name: str, width: int, dtype: torch.dtype, tile: Tile) -> LogitsKernel:
    return LogitsKernel(
        name=f"{name}_tile",
        template="logits_tile.py.j2",
        summary="",
        arguments=(),
        block_m=tile.block_m,
        block_v=tile.block_v,
        block_d=tile.block_d,
        warps=tile.warps,
        stages=tile.stages,
        width=width,
        real=TRITON_NAMES[real_of(dtype)],
    )


def _tile_scores(name: str, form: LogitsForm, dtype: torch.dtype) -> tuple[str, ...]:
    """Absent columns are not yet masked."""
    return (
        f"z = {name}_tile(",
        "    x_ptr, weight_ptr, row, mask_m, column, mask_v, stride_x, stride_w, BLOCK_M, BLOCK_V, BLOCK_D, PRECISION",
        ")",
        *bias_steps(form, real_of(dtype)),
        *change_steps(form, real_of(dtype)),
    )


def _tile_statistics(name: str, form: LogitsForm, width: int, dtype: torch.dtype, tile: Tile) -> LogitsKernel:
    scores = (*_tile_scores(name, form, dtype), ABSENT)
    return _statistics(
        name, form, dtype, (pointer("x", dtype), pointer("weight", dtype)), _strides(width), scores, tile
    )  # fmt: skip


def _tile_gradient(name: str, form: LogitsForm, width: int, dtype: torch.dtype, tile: Tile, owner: str) -> LogitsKernel:
    real = real_of(dtype)
    masked = "slope = tl.where(mask_m[:, None] & mask_v[None, :], slope, 0.0)"
    has_bias_sum = owner == "weight" and form.has_bias
    bias_sum = State("bias_sum", "0.0", TRITON_NAMES[real])
    return LogitsKernel(
        name=f"{name}_{owner}_gradient",
        template=f"logits_tiles_{owner}.py.j2",
        summary=f"The gradient of the {owner}, added into memory that starts as zero.",
        arguments=(
            pointer("x", dtype),
            pointer("weight", dtype),
            *bias_pointer(form, dtype),
            *id_pointers(form),
            *(pointer(value, type_of(value, real)) for value in gradient_names(form)),
            pointer("sums", real),
            *((pointer("bias_sums", real),) if has_bias_sum else ()),
            *numbers("n_rows", "n_columns"),
            *_strides(width),
        ),
        states=(bias_sum,) if has_bias_sum else (),
        row_loads=row_loads(form),
        steps=(
            *_tile_scores(name, form, dtype),
            *slope_steps(form, real),
            masked,
            *(("bias_sum += tl.sum(slope, 0)",) if has_bias_sum else ()),
        ),
        stores=("tl.store(bias_sums_ptr + column, bias_sum, mask=mask_v)",) if has_bias_sum else (),
        rounded=rounded("slope", dtype),
        block_m=tile.block_m,
        block_v=tile.block_v,
        block_d=tile.block_d,
        warps=tile.warps,
        stages=tile.stages,
        width=width,
        real=TRITON_NAMES[real],
    )


def _strides(width: int) -> tuple[Argument, ...]:
    return tuple(Argument(name, "i32", width % 16 == 0) for name in ("stride_x", "stride_w"))


# -- both --------------------------------------------------------------------------------------------


def _statistics(
    name: str,
    form: LogitsForm,
    dtype: torch.dtype,
    sources: tuple[Argument, ...],
    strides: tuple[Argument, ...],
    scores: tuple[str, ...],
    tile: Tile,
) -> LogitsKernel:
    """`scores` make the tile `z` of logits, where absent columns are -inf."""
    real = real_of(dtype)
    states = states_of(form, real)
    return LogitsKernel(
        name=f"{name}_statistics",
        template="logits_statistics.py.j2",
        summary=f"{listed(form.states)} of a part of each row.",
        arguments=(
            *sources,
            *bias_pointer(form, dtype),
            *id_pointers(form),
            *(pointer(state, type_of(state, real)) for state in form.states),
            *numbers("first_row", "first_column", "first_part", "n_rows", "n_columns", "part_columns", "all_rows"),
            *strides,
        ),
        states=states,
        row_loads=id_loads(form),
        steps=(*scores, *scan(form)),
        stores=tuple(f"tl.store({state.name}_ptr + place_of, {state.name}, mask=mask_m)" for state in states),
        block_m=tile.block_m,
        block_v=tile.block_v,
        block_d=tile.block_d or None,
        warps=tile.warps,
        stages=tile.stages,
    )


def _merge(name: str, form: LogitsForm, dtype: torch.dtype) -> LogitsKernel:
    real = real_of(dtype)
    states = states_of(form, real)
    loads = [
        f"part_{state.name} = tl.load({state.name}_ptr + place_of, mask=mask_m, other={state.start})"
        for state in states
    ]
    return LogitsKernel(
        name=f"{name}_merge",
        template="logits_merge.py.j2",
        summary=f"{listed(form.results)} of whole rows from the states of their parts.",
        arguments=(
            *(pointer(state, type_of(state, real)) for state in form.states),
            *(pointer(f"row_{result}", result_type_of(result, real)) for result in form.results),
            *numbers("all_rows", "n_parts"),
        ),
        states=states,
        steps=(*loads, *merge_steps(form)),
        stores=result_stores(form),
        block_m=128,
        block_v=1,
        warps=4,
        stages=2,
    )
