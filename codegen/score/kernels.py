"""The kernels of one attention: what each takes, loads and computes, and their text.

attention_forward          out [Nq, H, Dv], lse [H, Nq]
attention_delta            delta [H, Nq] = sum of out * dout over a head, which both gradients need
attention_query_gradient   dq, gradients of values captured at queries [H, Nq], and of tables [tiles, H, entries]
attention_key_gradient     dk, dv, gradients of values captured at keys and of the bias [H, Nk]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..emit_attention import Launch, attention_module, attention_text
from ..gpu.attention_form import MOST_ENTRIES, read_form, without_gradients
from ..gpu.attention_kernels import AttentionKey
from ..kernel_text import KernelText
from .configurations import Configuration, default_configuration
from .formulas import TableSums, table_sums
from .plan import (
    BY_KEY,
    BY_QUERY,
    AttentionPlan,
    Gradient,
    KernelPlan,
    Load,
    gradients_of,
    logit_lines,
    loops_over,
    parts,
    range_line,
    tables_read,
    tile_loads,
    values_read,
    vector_loads,
)

Arguments = list[tuple[str, str]]
Measured = Callable[[KernelText, str], Configuration | None]
CONSTANTS = ("HEADS", "GROUP", "BLOCK_M", "BLOCK_N", "PRECISION", "INTERPRETED")


def forward(plan: AttentionPlan) -> KernelPlan:
    loads = {
        masked: [
            *tile_loads(plan, ("k", "v"), "_tile", "n", "mask_n" if masked else None),
            *vector_loads(plan, "key", "n", "mask_n" if masked else None, "[None, :]"),
        ]
        for masked in (False, True)
    }
    arguments = _tensors(plan, ("q", "k", "v", "out"), ("q_low", "q_high"), ("lse",))
    row_loads = [
        *tile_loads(plan, ("q",), "", "m", "mask_m"),
        *vector_loads(plan, "query", "m", "mask_m", "[:, None]"),
    ]
    summary = "Softmax over keys of a formula of q . k, times v; scores never leave the tile."
    return _kernel(plan, "attention_forward", summary, arguments, True, row_loads, loads, ())


def delta(plan: AttentionPlan) -> KernelPlan:
    arguments = [*_tensors(plan, ("out", "do"), (), ("delta",)), ("rows_q", "i32")]
    return KernelPlan(
        name="attention_delta",
        summary="delta [heads, query rows] = sum over a head's entries of out * dout.",
        arguments=tuple(arguments),
        constants=("HEADS", "BLOCK_M"),
        real=plan.real,
        range="",
        q_parts=(),
        v_parts=parts(plan.v_width, "v"),
        q_width=plan.q_width,
        v_width=plan.v_width,
        row_loads=(),
        head_loads=(),
        loops=(),
        logit=(),
        captured=(),
        scale=plan.form.scale,
    )


def query_gradient(plan: AttentionPlan) -> KernelPlan:
    loads = {
        masked: [
            *tile_loads(plan, ("k", "v"), "_tile", "n", "mask_n" if masked else None),
            *vector_loads(plan, "key", "n", "mask_n" if masked else None, "[None, :]"),
        ]
        for masked in (False, True)
    }
    gradients = gradients_of(plan, "query")
    row_loads = [
        *tile_loads(plan, ("q", "do"), "", "m", "mask_m"),
        *vector_loads(plan, "query", "m", "mask_m", "[:, None]"),
    ]
    arguments = _tensors(plan, ("q", "k", "v", "do", "dq"), ("q_low", "q_high"), ("lse", "delta"))
    tables = table_sums(plan.form)
    made = ["queries", *(["values captured at query rows"] if gradients else []), *(["tables"] if tables else [])]
    summary = f"Gradient of the {made[0]}" + "".join(f", and of {one}" for one in made[1:]) + "."
    name = "attention_query_gradient"
    return _kernel(plan, name, summary, arguments, True, row_loads, loads, gradients, tables)


def key_gradient(plan: AttentionPlan) -> KernelPlan:
    gradients = gradients_of(plan, "key")
    loads = {}
    for masked in (False, True):
        mask = "mask_m" if masked else None
        suffix = ", mask=mask_m, other=0" if masked else ""
        bounds = [Load(f"q_{end}", f"tl.load(q_{end}_ptr + offs_m{suffix})") for end in ("low", "high")]
        loads[masked] = [
            *tile_loads(plan, ("q", "do"), "_tile", "m", mask),
            Load("lse", f"tl.load(lse_head_ptr + offs_m{suffix})"),
            Load("delta", f"tl.load(delta_head_ptr + offs_m{suffix})"),
            *vector_loads(plan, "query", "m", mask, "[None, :]"),
            *(bounds if masked else ()),
        ]
    row_loads = tile_loads(plan, ("k", "v"), "", "n", "mask_n")
    bounds = ("q_low", "q_high", "k_low", "k_high")
    arguments = _tensors(plan, ("q", "k", "v", "do", "dk", "dv"), bounds, ("lse", "delta"))
    names = " and ".join(["keys and values", *(["of what is read at key rows"] if gradients else [])])
    return _kernel(
        plan, "attention_key_gradient", f"Gradient of {names}.", arguments, False, row_loads, loads, gradients
    )


def _tensors(
    plan: AttentionPlan, operands: tuple[str, ...], bounds: tuple[str, ...], rows: tuple[str, ...]
) -> Arguments:
    real = "*fp64" if plan.dtype == "fp64" else "*fp32"
    return [
        *((f"{name}_ptr", f"*{plan.dtype}") for name in operands),
        *((f"{name}_ptr", "*i32") for name in bounds),
        *((f"{name}_ptr", real) for name in rows),
    ]


def _kernel(
    plan: AttentionPlan,
    name: str,
    summary: str,
    tensors: Arguments,
    is_by_query: bool,
    row_loads: list[Load],
    loads: dict[bool, list[Load]],
    gradients: tuple[Gradient, ...],
    tables: tuple[TableSums, ...] = (),
) -> KernelPlan:
    sides = BY_QUERY if is_by_query else BY_KEY
    is_exact = is_by_query or plan.form.has_exact_key_bounds
    loops = loops_over(plan, sides, loads, gradients, is_exact, bool(tables))
    columns = ("rows_k", "BLOCK_N") if is_by_query else ("rows_q", "BLOCK_M")
    column_mask = "mask_n = offs_n < rows_k" if is_by_query else "mask_m = offs_m < rows_q"
    return KernelPlan(
        name=name,
        summary=summary,
        arguments=(*tensors, *_captured_arguments(plan, (*gradients, *tables)), *_numbers(plan)),
        constants=CONSTANTS,
        real=plan.real,
        range=range_line(plan, *columns, is_exact),
        q_parts=parts(plan.q_width, "d"),
        v_parts=parts(plan.v_width, "v"),
        q_width=plan.q_width,
        v_width=plan.v_width,
        row_loads=tuple(row_loads),
        head_loads=() if is_by_query else tuple(vector_loads(plan, "key", "n", "mask_n", "[:, None]")),
        loops=loops,
        logit=logit_lines(plan),
        captured=gradients,
        scale=plan.form.scale,
        tables=tables,
        column_mask=column_mask,
    )


def _captured_arguments(plan: AttentionPlan, gradients: tuple[Gradient | TableSums, ...]) -> Arguments:
    real = "*fp64" if plan.dtype == "fp64" else "*fp32"
    arguments: Arguments = [("bias_ptr", f"*{plan.bias_type}")] if plan.has_bias else []
    read = sorted((*values_read(plan), *tables_read(plan)))
    arguments += [(f"captured_{index}_ptr", f"*{plan.form.captured[index].type}") for index in read]
    return arguments + [(gradient.pointer, real) for gradient in gradients]


def _numbers(plan: AttentionPlan) -> Arguments:
    names = ["rows_q", "rows_k", "stride_qm", "stride_qh", "stride_kn", "stride_kh", "stride_vn", "stride_vh"]
    if plan.has_bias:
        names += ["stride_bn", "stride_bh"]
    for index in values_read(plan):
        if plan.form.captured[index].has_heads:
            names += [f"stride_captured_{index}", f"stride_captured_{index}h"]
    return [(name, "i32") for name in names]


# -- text ------------------------------------------------------------------------------------------

KERNELS = {
    "attention_forward": forward,
    "attention_delta": delta,
    "attention_query_gradient": query_gradient,
    "attention_key_gradient": key_gradient,
}


def kernel_text(plan: AttentionPlan, name: str, target: str, configuration: Configuration | None = None) -> KernelText:
    """One of KERNELS for a target such as "cuda:90", "hip:gfx942" or "interpreter", in its default configuration
    unless given."""
    kernel = KERNELS[name](plan)
    chosen = configuration or default_configuration(plan, name, target)
    values: dict[str, int | bool | str] = {
        "HEADS": plan.heads,
        "GROUP": plan.group,
        "BLOCK_M": chosen.block_m,
        "BLOCK_N": chosen.block_n,
        "PRECISION": precision(plan.dtype, target),
        "INTERPRETED": target == "interpreter",
    }
    return KernelText(
        name=name,
        text=attention_text((kernel,)),
        arguments=kernel.arguments,
        constants=tuple((constant, values[constant]) for constant in kernel.constants),
        divisible=_divisible(plan, kernel),
        warps=chosen.warps,
        stages=chosen.stages,
    )


def left_to_torch(plan: AttentionPlan) -> str | None:
    """Why torch computes the gradients; None: kernels do."""
    if not plan.form.has_long_table:
        return None
    longest = max(plan.form.captured[index].entries for index in plan.form.trained_tables)
    return (
        f"torch computes the gradients, some queries at a time with all of their scores: a table of {longest:,} "
        f"entries that the score reads is trained, and kernels sum the gradients of at most {MOST_ENTRIES:,}"
    )


def training_kernels(plan: AttentionPlan, target: str) -> tuple[KernelText, ...]:
    """All that training needs, in default configurations. The forward kernel is the same whatever has a gradient."""
    names = ("attention_forward",) if plan.form.has_long_table else tuple(KERNELS)
    return tuple(kernel_text(plan, name, target) for name in names)


def plan_of(key: AttentionKey) -> AttentionPlan:
    form = read_form(key.form)
    return AttentionPlan(form, key.dtype, key.heads, key.key_heads, key.q_width, key.v_width, key.bias_type)


def module_text(
    key: AttentionKey, targets: Sequence[str], made_from: str, measured: Measured = lambda text, target: None
) -> str:
    """A module with all kernels of an attention, in the configurations of each target: the default one where
    `measured` says nothing of a kernel in it."""
    plan, forward_form = plan_of(key), without_gradients(key.form)
    launches = []
    for target in targets:
        for text in training_kernels(plan, target):
            tiles = measured(text, target)
            if tiles is not None:
                text = kernel_text(plan, text.name, target, tiles)
            arguments = tuple(argument for argument, _ in text.arguments)
            entry = "FORWARD_KEY" if text.name == "attention_forward" and forward_form != key.form else "KEY"
            launches.append(Launch(entry, text.name, target, arguments, dict(text.constants), text.warps, text.stages))
    kernels = tuple(make(plan) for make in KERNELS.values())
    return attention_module(key, forward_form, kernels, tuple(launches), made_from)


def precision(dtype: str, target: str) -> str:
    """How float32 is multiplied: three products of tensor cores where they exist, which keeps float32's digits."""
    return "tf32x3" if dtype == "fp32" and target.startswith("cuda") else "ieee"


def _divisible(plan: AttentionPlan, kernel: KernelPlan) -> tuple[str, ...]:
    """Pointers that torch allocates, and strides of contiguous tensors."""
    strides = {
        "stride_qm": plan.heads * plan.q_width,
        "stride_qh": plan.q_width,
        "stride_kn": plan.key_heads * plan.q_width,
        "stride_kh": plan.q_width,
        "stride_vn": plan.key_heads * plan.v_width,
        "stride_vh": plan.v_width,
    }
    return tuple(
        name for name, type in kernel.arguments if type.startswith("*") or (name in strides and strides[name] % 16 == 0)
    )
