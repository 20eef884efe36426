"""The three products of a grouped linear as kernels: their arguments and lines, in the order of the text.

    forward            y[row] = x[row] W_g^T + b_g         a tile has rows of one group, and entries of one piece
    x_gradient         dx[row] = sum over pieces of  dy[row] W_g
    weight_gradient    dW_g = dy_g^T x_g, db_g             a tile of one weight sums all rows of its group, in order

Tensors of a group are arguments, among which a program chooses by its tile. Where rows are in another order on one
side, a group's rows have numbers there, by which they are read or written: nothing is moved for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..gpu.grouped_form import GroupedForm
from ..gpu.linear_tiles import Tiles
from ..gpu.triton_types import TRITON_TYPES
from ..kernel_text import Argument
from .epilogue import Epilogue

PRODUCTS = ("forward", "x_gradient", "weight_gradient")
CONSTANTS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "PRECISION")
_TRITON_NAMES = {torch.float16: "tl.float16", torch.float32: "tl.float32", torch.float64: "tl.float64"}


@dataclass(frozen=True)
class Factor:
    """What is multiplied by one weight: `operand` the name of what is read, `stride` of its rows, `depth` entries of
    it, `weight` the name of the pointer, `total` of the sum."""

    weight: str
    total: str
    operand: str = "x"
    stride: str = "stride_x"
    depth: int = 0


@dataclass(frozen=True)
class GroupedKernel:
    """All a template may know. `tiles` number the tiles of rows or weights, `chosen` are the steps that choose a tile's
    tensors, `stores` those after the products."""

    name: str
    template: str
    summary: str
    arguments: tuple[Argument, ...]
    unspecialized: tuple[str, ...]
    tiles: tuple[str, ...]
    chosen: tuple[str, ...]
    factors: tuple[Factor, ...]
    stores: tuple[str, ...]
    read_row: str
    written_row: str
    inputs: int
    real: str
    has_bias: bool
    column: str = "offs_n"  # which entries of a piece a tile has; of its parts, those of the first


def grouped_kernel(
    name: str, product: str, form: GroupedForm, dtype: torch.dtype, epilogue: Epilogue | None = None
) -> GroupedKernel:
    """`product`: of PRODUCTS; `dtype` of all operands and results."""
    if product == "forward" and epilogue is not None:
        make_with = _forward_with if epilogue.parts is None else _forward_of_parts
        return make_with(epilogue, f"{name}_{product}", form, dtype)
    make = {"forward": _forward, "x_gradient": _x_gradient, "weight_gradient": _weight_gradient}[product]
    return make(f"{name}_{product}", form, dtype)


def default_tiles(dtype: torch.dtype, is_together: bool = False) -> Tiles:
    """By what ahead-of-time compilation shows: no register is spilled on any target. None of them has been timed.
    `is_together`: a tile has sums of several pieces."""
    if dtype.itemsize > 2:
        return Tiles(32, 32, 32, 4, 2)
    if is_together:
        return Tiles(128, 64, 64, 8, 3)
    return Tiles(128, 128, 64, 8, 3)


# -- the products ------------------------------------------------------------------------------------


def _forward(name: str, form: GroupedForm, dtype: torch.dtype, parts: int = 1) -> GroupedKernel:
    """`parts`: a tile has the same entries of so many parts of a piece."""
    groups, pieces, sizes = range(form.groups), range(form.pieces), [size // parts for size in form.outputs]
    ends = _ends("column", "BLOCK_N", sizes)
    of_piece = [_by_group(f"weight_{j}", [f"weight_{g}_{j}_ptr" for g in groups]) for j in pieces]
    of_piece += [_by_group(f"y_{j}", _results("y", form, j)) for j in pieces]
    of_piece += [_by_group(f"bias_{j}", [f"bias_{g}_{j}_ptr" for g in groups]) for j in pieces if form.has_bias]
    names = ("weight", "y", *(("bias",) if form.has_bias else ()))
    x = ["x_ptr"] * form.groups if form.gathers else [f"x_{g}_ptr" for g in groups]
    of_piece.append(_by_group("x", x))
    choices = [line for name in names for line in _by_piece(name, [f"{name}_{j}" for j in pieces])]
    choices += _by_piece("columns", [str(size) for size in sizes])
    choices += _by_piece("first_n", ["0", *(f"column_end_{j}" for j in pieces)][: form.pieces])
    add_bias = (
        "bias_row = tl.load(bias + offs_n, mask=mask_n, other=0.0)",
        f"acc += bias_row.to({_real(dtype)})[None, :]",
    )
    store = (
        "at = y + written[:, None] * columns + offs_n[None, :]",
        f"tl.store(at, {_rounded('acc', dtype)}, mask=mask_m[:, None] & mask_n[None, :])",
    )
    return GroupedKernel(
        name=name,
        template="grouped_forward.py.j2",
        summary=f"Rows of {form.inputs} entries times the weights of their group: {_sizes(form)}.",
        arguments=(
            *_x_pointers(form, dtype),
            *_row_pointers(form),
            *_weight_pointers("weight", form, dtype),
            *(_weight_pointers("bias", form, dtype) if form.has_bias else ()),
            *(_pointer(f"{result}", dtype) for j in pieces for result in dict.fromkeys(_results("y", form, j))),
            *_counts(form),
            _stride("stride_x", form.inputs),
        ),
        unspecialized=_count_names(form),
        tiles=(*_tiles_of_rows(form), *ends, f"tiles_n = column_end_{form.pieces - 1}"),
        chosen=(*_group_steps(form), *(line for lines in of_piece for line in lines), *choices),
        factors=(Factor("weight", "acc", depth=form.inputs),),
        stores=(*(add_bias if form.has_bias else ()), *store),
        read_row="chosen" if form.gathers else "own",
        written_row="chosen" if form.scatters else "own",
        inputs=form.inputs,
        real=_real(dtype),
        has_bias=form.has_bias,
    )


def _forward_with(epilogue: Epilogue, name: str, form: GroupedForm, dtype: torch.dtype) -> GroupedKernel:
    """A tile has the same entries of all pieces, and of what is made of them."""
    groups, pieces, real = range(form.groups), range(form.pieces), _real(dtype)
    width, results, saved = form.outputs[0], range(epilogue.made), epilogue.saved
    choices = [_by_group(f"weight_{j}", [f"weight_{g}_{j}_ptr" for g in groups]) for j in pieces]
    choices.append(_by_group("x", ["x_ptr"] * form.groups if form.gathers else [f"x_{g}_ptr" for g in groups]))
    choices += [_by_group(f"y_{j}", [f"y_{g}_{j}_ptr" for g in groups]) for j in saved]
    choices += [_by_group(f"result_{r}", [f"result_{g}_{r}_ptr" for g in groups]) for r in results]
    choices += [_by_group(f"bias_{j}", [f"bias_{g}_{j}_ptr" for g in groups]) for j in pieces if form.has_bias]
    others = range(len(epilogue.others))
    choices += [_by_group(f"other_{i}", [f"other_{g}_{i}_ptr" for g in groups]) for i in others]
    add_bias = [
        f"acc_{j} += tl.load(bias_{j} + offs_n, mask=mask_n, other=0.0).to({real})[None, :]"
        for j in pieces
        if form.has_bias
    ]
    mask = "mask=mask_m[:, None] & mask_n[None, :]"
    # For a gradient alone, of groups that have one.
    keeps = [f"keeps_{g}" for g in groups] if saved else []
    choices += [_by_group("keeps", keeps)] if saved else []
    stores = [f"if keeps: tl.store(y_{j} + at, {_rounded(f'acc_{j}', dtype)}, {mask})" for j in saved]
    stores += [f"tl.store(result_{r} + at, {_rounded(f'made_{r}', dtype)}, {mask})" for r in results]
    pairs = [(y, i) for y in range(form.tensors_of_y) for i in others]
    return GroupedKernel(
        name=name,
        template="grouped_forward.py.j2",
        summary=f"Rows of {form.inputs} entries times the weights of their group, {_sizes(form)}, and on.",
        arguments=(
            *_x_pointers(form, dtype),
            *_row_pointers(form),
            *_weight_pointers("weight", form, dtype),
            *(_weight_pointers("bias", form, dtype) if form.has_bias else ()),
            *(_pointer(f"other_{g}_{i}_ptr", dtype) for g, i in pairs),
            *(_pointer(f"result_{g}_{r}_ptr", dtype) for g in groups for r in results),
            *(_pointer(f"y_{g}_{j}_ptr", dtype) for g in groups for j in saved),
            *_counts(form),
            *(Argument(name, "i32") for name in keeps),
            _stride("stride_x", form.inputs),
            *(_stride(f"stride_other_{i}", width) for i in others),
        ),
        unspecialized=(*_count_names(form), *keeps),
        tiles=(*_tiles_of_rows(form), f"tiles_n = tl.cdiv({width}, BLOCK_N)"),
        chosen=(
            *_group_steps(form),
            *(line for lines in choices for line in lines),
            f"columns = {width}",
            "first_n = 0",
        ),
        factors=tuple(Factor(f"weight_{j}", f"acc_{j}", depth=form.inputs) for j in pieces),
        stores=(
            *add_bias,
            *epilogue.lines(real),
            f"at = written[:, None] * {width} + offs_n[None, :]",
            *stores,
        ),
        read_row="chosen" if form.gathers else "own",
        written_row="own",
        inputs=form.inputs,
        real=real,
        has_bias=form.has_bias,
    )


def _forward_of_parts(epilogue: Epilogue, name: str, form: GroupedForm, dtype: torch.dtype) -> GroupedKernel:
    """A tile has entries of one piece, the same ones of each of its parts, and what is made of them in their place."""
    parts, real, others = epilogue.parts, _real(dtype), epilogue.others
    assert parts is not None
    plain = _forward(name, form, dtype, parts.count)
    starts = [p * parts.after for p in range(parts.count)]
    column = f"(offs_n // {parts.after} * {parts.count * parts.after} + offs_n % {parts.after})"
    of_group = [0] * form.groups if form.scatters else range(form.groups)
    choices = _by_piece("width", list(map(str, form.outputs))) + _by_piece("piece", list(map(str, range(form.pieces))))
    for i in range(len(others)):
        choices += _by_group(f"other_{i}", [f"other_{y}_{i}_ptr" for y in of_group])
    choices += [f"part_{p} = weight + {start * form.inputs}" for p, start in enumerate(starts)]
    stores = []
    if form.has_bias:
        loads = [f"tl.load(bias + {start} + {column}, mask=mask_n, other=0.0)" for start in starts]
        stores += [f"acc_{p} += {load}.to({real})[None, :]" for p, load in enumerate(loads)]
    stores += [f"made_{p} = acc_{p}" for p in range(parts.count)]
    texts: dict[tuple[str, ...], list[int]] = {}
    for piece in epilogue.read:
        texts.setdefault(tuple(epilogue.lines_of(piece, real)), []).append(piece)
    for lines, pieces in texts.items():
        stores += [f"if {' or '.join(f'piece == {j}' for j in pieces)}:", *(f"    {line}" for line in lines)]
    stores.append(f"at = y + written[:, None] * width + {column}[None, :]")
    for p, start in enumerate(starts):
        made = _rounded(f"made_{p}", dtype)
        stores.append(f"tl.store(at + {start}, {made}, mask=mask_m[:, None] & mask_n[None, :])")
    pointers = [
        _pointer(f"other_{y}_{i}_ptr", source.dtype)
        for y in range(form.tensors_of_y)
        for i, source in enumerate(others)
    ]
    first = next(place for place, argument in enumerate(plain.arguments) if argument.name.startswith("y_"))
    strides = (_stride(f"stride_other_{i}", source.entries) for i, source in enumerate(others))
    return replace(
        plain,
        summary=f"{plain.summary[:-1]}, and on, {parts.count} parts of a piece at a time.",
        arguments=(*plain.arguments[:first], *pointers, *plain.arguments[first:], *strides),
        chosen=(*plain.chosen, *choices),
        factors=tuple(Factor(f"part_{p}", f"acc_{p}", depth=form.inputs) for p in range(parts.count)),
        stores=tuple(stores),
        column=column,
    )


def _x_gradient(name: str, form: GroupedForm, dtype: torch.dtype) -> GroupedKernel:
    groups, pieces = range(form.groups), range(form.pieces)
    choices = [_by_group(f"weight_{j}", [f"weight_{g}_{j}_ptr" for g in groups]) for j in pieces]
    choices += [_by_group(f"dy_{j}", _results("dy", form, j)) for j in pieces]
    dx = ["dx_ptr"] * form.groups if form.gathers else [f"dx_{g}_ptr" for g in groups]
    choices.append(_by_group("dx", dx))
    return GroupedKernel(
        name=name,
        template="grouped_x_gradient.py.j2",
        summary=f"The gradient of rows of {form.inputs} entries, from those of {_sizes(form)}.",
        arguments=(
            *_gradient_pointers(form, dtype),
            *_row_pointers(form),
            *_weight_pointers("weight", form, dtype),
            *(_pointer(result, dtype) for result in dict.fromkeys(dx)),
            *_counts(form),
            *_gradient_strides(form),
        ),
        unspecialized=_count_names(form),
        tiles=(*_tiles_of_rows(form), f"tiles_n = tl.cdiv({form.inputs}, BLOCK_N)"),
        chosen=(*_group_steps(form), *(line for lines in choices for line in lines)),
        factors=tuple(
            Factor(f"weight_{j}", "acc", f"dy_{j}", f"stride_{j}", size) for j, size in enumerate(form.outputs)
        ),
        stores=(
            f"at = dx + written[:, None] * {form.inputs} + offs_n[None, :]",
            f"tl.store(at, {_rounded('acc', dtype)}, mask=mask_m[:, None] & mask_n[None, :])",
        ),
        read_row="chosen" if form.scatters else "own",
        written_row="chosen" if form.gathers else "own",
        inputs=form.inputs,
        real=_real(dtype),
        has_bias=False,
    )


def _weight_gradient(name: str, form: GroupedForm, dtype: torch.dtype) -> GroupedKernel:
    pairs = [(g, j) for g in range(form.groups) for j in range(form.pieces)]
    sizes = [form.outputs[j] for _, j in pairs]
    ends = []
    for place, ((g, j), size) in enumerate(zip(pairs, sizes, strict=True)):
        before = f"end_{place - 1} + " if place else ""
        ends.append(f"end_{place} = {before}wants_{g}_{j} * tl.cdiv({size}, BLOCK_M) * tiles_n")
    dy = [_results("dy", form, j)[g] for g, j in pairs]
    values = {
        "first": ["0", *(f"end_{place}" for place in range(len(pairs)))][: len(pairs)],
        "columns": [str(size) for size in sizes],
        "n_rows": [f"n_{g}" for g, _ in pairs],
        "stride": [f"stride_{j}" for _, j in pairs],
        "x": ["x_ptr" if form.gathers else f"x_{g}_ptr" for g, _ in pairs],
        "dy": dy,
        "dw": [f"dw_{g}_{j}_ptr" for g, j in pairs],
        **({"db": [f"db_{g}_{j}_ptr" for g, j in pairs]} if form.has_bias else {}),
        **({"rows": [f"rows_{g}_ptr" for g, _ in pairs]} if form.moves else {}),
    }
    wants = tuple(f"wants_{g}_{j}" for g, j in pairs)
    bias_sum = _rounded("bias_sum", dtype)
    return GroupedKernel(
        name=name,
        template="grouped_weight_gradient.py.j2",
        summary=f"The gradients of the weights that want one: {_sizes(form)} by {form.inputs} of each group.",
        arguments=(
            *_gradient_pointers(form, dtype),
            *_x_pointers(form, dtype),
            *_row_pointers(form),
            *_weight_pointers("dw", form, dtype),
            *(_weight_pointers("db", form, dtype) if form.has_bias else ()),
            *_counts(form),
            *(Argument(name, "i32") for name in wants),
            *_gradient_strides(form),
            _stride("stride_x", form.inputs),
        ),
        unspecialized=(*_count_names(form), *wants),
        tiles=(f"tiles_n = tl.cdiv({form.inputs}, BLOCK_N)", *ends),
        chosen=tuple(
            line
            for variable, found in values.items()
            for line in _choice(variable, found, [f"tl.program_id(0) >= end_{p}" for p in range(len(pairs) - 1)])
        ),
        factors=(),
        stores=(
            f"at = dw + offs_m[:, None].to(tl.int64) * {form.inputs} + offs_n[None, :]",
            f"tl.store(at, {_rounded('acc', dtype)}, mask=mask_m[:, None] & mask_n[None, :])",
            *((f"tl.store(db + offs_m, {bias_sum}, mask=mask_m & (inside // height == 0))",) if form.has_bias else ()),
        ),
        read_row="chosen" if form.scatters else "own",
        written_row="chosen" if form.gathers else "own",
        inputs=form.inputs,
        real=_real(dtype),
        has_bias=form.has_bias,
    )


# -- steps -------------------------------------------------------------------------------------------


def _choice(name: str, values: Sequence[str], conditions: Sequence[str]) -> list[str]:
    """`values[i + 1]` from where `conditions[i]` holds on."""
    lines = [f"{name} = {values[0]}"]
    for before, value, condition in zip(values, values[1:], conditions, strict=False):
        if value != before:
            lines.append(f"{name} = tl.where({condition}, {value}, {name})")
    return lines


def _by_group(name: str, values: Sequence[str]) -> list[str]:
    return _choice(name, values, [f"tile_m >= end_{g}" for g in range(len(values) - 1)])


def _by_piece(name: str, values: Sequence[str]) -> list[str]:
    return _choice(name, values, [f"tile_n >= column_end_{j}" for j in range(len(values) - 1)])


def _group_steps(form: GroupedForm) -> list[str]:
    groups = range(form.groups)
    lines = _by_group("n_rows", [f"n_{g}" for g in groups])
    lines += _by_group("first_m", ["0", *(f"end_{g}" for g in groups)][: form.groups])
    if form.moves:
        lines += _by_group("rows", [f"rows_{g}_ptr" for g in groups])
    return lines


def _tiles_of_rows(form: GroupedForm) -> tuple[str, ...]:
    return (*_ends("", "BLOCK_M", [f"n_{g}" for g in range(form.groups)]), f"tiles_m = end_{form.groups - 1}")


def _ends(what: str, block: str, sizes: Iterable[object]) -> list[str]:
    """Where the tiles of each of several sizes end, all of them one behind another."""
    lines, prefix = [], f"{what}_end" if what else "end"
    for place, size in enumerate(sizes):
        before = f"{prefix}_{place - 1} + " if place else ""
        lines.append(f"{prefix}_{place} = {before}tl.cdiv({size}, {block})")
    return lines


# -- arguments ---------------------------------------------------------------------------------------


def _results(name: str, form: GroupedForm, piece: int) -> list[str]:
    """What holds a piece of each group."""
    if form.scatters:
        return [f"{name}_{piece}_ptr"] * form.groups
    return [f"{name}_{g}_{piece}_ptr" for g in range(form.groups)]


def _x_pointers(form: GroupedForm, dtype: torch.dtype) -> tuple[Argument, ...]:
    names = ["x_ptr"] if form.gathers else [f"x_{g}_ptr" for g in range(form.groups)]
    return tuple(_pointer(name, dtype) for name in names)


def _row_pointers(form: GroupedForm) -> tuple[Argument, ...]:
    return tuple(_pointer(f"rows_{g}_ptr", torch.int64) for g in range(form.groups if form.moves else 0))


def _weight_pointers(name: str, form: GroupedForm, dtype: torch.dtype) -> tuple[Argument, ...]:
    return tuple(_pointer(f"{name}_{g}_{j}_ptr", dtype) for g in range(form.groups) for j in range(form.pieces))


def _gradient_pointers(form: GroupedForm, dtype: torch.dtype) -> tuple[Argument, ...]:
    """In the order of the results."""
    if form.scatters:
        return tuple(_pointer(f"dy_{j}_ptr", dtype) for j in range(form.pieces))
    return _weight_pointers("dy", form, dtype)


def _gradient_strides(form: GroupedForm) -> tuple[Argument, ...]:
    return tuple(_stride(f"stride_{j}", size) for j, size in enumerate(form.outputs))


def _counts(form: GroupedForm) -> tuple[Argument, ...]:
    return tuple(Argument(name, "i32") for name in _count_names(form))


def _count_names(form: GroupedForm) -> tuple[str, ...]:
    return tuple(f"n_{g}" for g in range(form.groups))


def _stride(name: str, width: int) -> Argument:
    return Argument(name, "i32", width % 16 == 0)


def _pointer(name: str, dtype: torch.dtype) -> Argument:
    return Argument(name, f"*{TRITON_TYPES[dtype]}", True)


def _real(dtype: torch.dtype) -> str:
    return _TRITON_NAMES[torch.promote_types(dtype, torch.float32)]


def _rounded(value: str, dtype: torch.dtype) -> str:
    """As it is stored."""
    return f"to_bfloat16({value})" if dtype == torch.bfloat16 else f"{value}.to({_TRITON_NAMES[dtype]})"


def _sizes(form: GroupedForm) -> str:
    return ", ".join(map(str, form.outputs))
