"""Attention of few new rows to long caches: a stretch of the cache per program, and a second kernel that merges.

attention_decode    sums of each stretch, with the maximum they refer to
attention_merge     out [sequences, new rows, heads, Dv]
"""

from __future__ import annotations

from dataclasses import dataclass

from ..emit_attention import attention_text
from ..gpu.formula import Row, leaves
from ..kernel_text import KernelText
from .configurations import Configuration, default_decode_configuration
from .formulas import INTEGERS, formula_text
from .kernels import precision
from .plan import AttentionPlan, Load, Part, logit_lines, parts, tables_read, tile_loads


@dataclass(frozen=True)
class DecodePlan:
    """`attention` says what a score is; the first two of its captured values are the positions. A query sees the rows
    low <= key - query <= high (low None: from the first); `rows` new rows per sequence."""

    attention: AttentionPlan
    rows: int
    low: int | None
    high: int


@dataclass(frozen=True)
class DecodeKernelPlan:
    """What a template prints."""

    name: str
    summary: str
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    real: str
    q_parts: tuple[Part, ...]
    v_parts: tuple[Part, ...]
    v_width: int
    first_column: str = ""
    row_loads: tuple[Load, ...] = ()
    column_loads: tuple[Load, ...] = ()
    logit: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    needs_query_position: bool = False
    needs_key_position: bool = False

    @property
    def all_parts(self) -> tuple[Part, ...]:
        return (*self.q_parts, *self.v_parts)

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*(name for name, _ in self.arguments), *(f"{name}: tl.constexpr" for name in self.constants))


def decode(plan: DecodePlan) -> DecodeKernelPlan:
    attention = plan.attention
    form = attention.form
    read = {leaf for f in (form.score, form.predicate) if f is not None for leaf in leaves(f) if isinstance(leaf, Row)}
    sides = {leaf.side for leaf in read if leaf.index == 0}
    values = sorted((leaf for leaf in read if leaf.index > 0), key=lambda leaf: leaf.index)
    real = _real(attention)
    tensors = [(f"{name}_ptr", f"*{attention.dtype}") for name in "qkv"]
    tensors += [("position_ptr", "*i64"), ("part_ptr", real), ("part_max_ptr", real), ("part_sum_ptr", real)]
    tensors += [(f"captured_{leaf.index}_ptr", f"*{form.captured[leaf.index].type}") for leaf in values]
    tensors += [(f"captured_{index}_ptr", f"*{form.captured[index].type}") for index in tables_read(attention)]
    strides = ["stride_qb", "stride_qm", "stride_qh", "stride_kb", "stride_kh", "stride_kn"]
    strides += ["stride_vb", "stride_vh", "stride_vn"]
    first = "0"
    if plan.low is not None:
        # Rows before the window are skipped as long as the cache has not been written around.
        first = f"tl.where(newest < slots, tl.maximum(position + {plan.low}, 0), 0)"
    allowed = [
        f"allowed = mask_n[None, :] & (key_row[None, :] <= query_row[:, None] + {plan.high})",
        *([] if plan.low is None else [f"allowed &= key_row[None, :] >= query_row[:, None] + {plan.low}"]),
        *([] if form.predicate is None else [f"allowed &= {formula_text(attention, form.predicate)}"]),
    ]
    q_loads = [
        Load(
            f"q{part.suffix}",
            f"operand(tl.load(q_ptr + rows_q + {part.offsets}, mask=mask_m[:, None]{part.and_mask}, other=0.0), "
            "INTERPRETED)",
        )
        for part in parts(attention.q_width, "d")
    ]
    q_loads += [_value_load(attention, leaf) for leaf in values if leaf.side == "query"]
    k_loads = [_value_load(attention, leaf) for leaf in values if leaf.side == "key"]
    return DecodeKernelPlan(
        name="attention_decode",
        summary="Softmax over a stretch of the cached rows of a formula of q . k, times v.",
        arguments=(*tensors, *((name, "i32") for name in ("slots", "columns", *strides))),
        constants=("HEADS", "GROUP", "ROWS", "BLOCK_M", "BLOCK_N", "PRECISION", "INTERPRETED"),
        real=attention.real,
        q_parts=parts(attention.q_width, "d"),
        v_parts=parts(attention.v_width, "v"),
        v_width=attention.v_width,
        first_column=first,
        row_loads=tuple(q_loads),
        column_loads=(*tile_loads(attention, ("k", "v"), "_tile", "n", "mask_n"), *k_loads),
        logit=logit_lines(attention, "head[:, None]"),
        allowed=tuple(allowed),
        needs_query_position="query" in sides,
        needs_key_position="key" in sides,
    )


def _value_load(plan: AttentionPlan, leaf: Row) -> Load:
    """A captured value: of new rows `[sequences, ROWS(, HEADS)]`, of cached ones `[sequences, slots(, HEADS)]`."""
    captured = plan.form.captured[leaf.index]
    pointer = f"captured_{leaf.index}_ptr"
    if leaf.side == "query":
        place, mask, shape = "sequence.to(tl.int64) * ROWS + row", "mask_m", "[:, None]"
        place = f"({place}) * HEADS + head" if captured.has_heads else place
    elif captured.has_heads:
        place = "(sequence.to(tl.int64) * slots + offs_n)[None, :] * HEADS + head[:, None]"
        mask, shape = "mask_m[:, None] & mask_n[None, :]", ""
    else:
        place, mask, shape = "sequence.to(tl.int64) * slots + offs_n", "mask_n", "[None, :]"
    cast = "" if captured.type in INTEGERS else f".to({plan.real})"
    return Load(f"{leaf.side}_{leaf.index}", f"tl.load({pointer} + {place}, mask={mask}, other=0){cast}{shape}")


def merge(plan: DecodePlan) -> DecodeKernelPlan:
    attention = plan.attention
    real = _real(attention)
    tensors = [("part_ptr", real), ("part_max_ptr", real), ("part_sum_ptr", real), ("out_ptr", f"*{attention.dtype}")]
    return DecodeKernelPlan(
        name="attention_merge",
        summary="One program: a head of a new row. Its sums over all stretches, put on one maximum and divided.",
        arguments=(*tensors, ("splits", "i32")),
        constants=("BLOCK_M", "INTERPRETED"),
        real=attention.real,
        q_parts=(),
        v_parts=parts(attention.v_width, "v"),
        v_width=attention.v_width,
    )


def _real(plan: AttentionPlan) -> str:
    return "*fp64" if plan.dtype == "fp64" else "*fp32"


DECODE_KERNELS = {"attention_decode": decode, "attention_merge": merge}


def decode_text(plan: DecodePlan, name: str, target: str, configuration: Configuration | None = None) -> KernelText:
    """One of DECODE_KERNELS for a target, in its default configuration unless given."""
    kernel = DECODE_KERNELS[name](plan)
    attention = plan.attention
    chosen = configuration or default_decode_configuration(plan, name, target)
    values: dict[str, int | bool | str] = {
        "HEADS": attention.heads,
        "GROUP": attention.group,
        "ROWS": plan.rows,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "PRECISION": precision(attention.dtype, target),
        "INTERPRETED": target == "interpreter",
    }
    strides = {"q": attention.q_width, "k": attention.q_width, "v": attention.v_width}
    divisible = tuple(
        name
        for name, type in kernel.arguments
        if type.startswith("*") or (name.startswith("stride_") and strides[name[7]] % 16 == 0)
    )
    constants = tuple((constant, values[constant]) for constant in kernel.constants)
    return KernelText(
        name, attention_text((kernel,)), kernel.arguments, constants, divisible, chosen.warps, chosen.stages
    )
