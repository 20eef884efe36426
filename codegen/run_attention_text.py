"""The kernels of attention of segments to their own rows as others need them: text for an ahead-of-time compiler, where
a graph launches them, bytes and operations for a roofline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from .cost import Work
from .facts import facts
from .gpu.run_attention import WARPS, attend_runs, constants
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText

_FOLDER = Path(__file__).parent / "gpu"
_STRIDES = ("stride_qp", "stride_qs", "stride_qh", "stride_kn", "stride_kh", "stride_vn", "stride_vh")
FORWARD, BACKWARD = "attend_runs", "attend_runs_backward"
# Operations for each pair of a query's and a row's entry: of q and k, of v.
_PRODUCTS = {FORWARD: (2, 2), BACKWARD: (6, 4)}


@dataclass(frozen=True)
class RunAttention:
    """What the kernels are made for: queries of a segment, heads, entries of a head of q and k, and of v."""

    queries: int
    heads: int
    width: int
    v_width: int
    scale: float
    dtype: torch.dtype


def run_attentions(module: fx.GraphModule) -> dict[RunAttention, list[fx.Node]]:
    """The calls of a graph by what their kernels are made for."""
    known = facts(module)
    found: dict[RunAttention, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target is attend_runs:
            given: tuple[Any, ...] = node.args
            q, v, scale = known[given[0]], known[given[2]], given[4]
            queries, heads, width = q.dims
            found.setdefault(RunAttention(queries, heads, width, v.dims[-1], scale, q.dtype), []).append(node)
    return found


def run_attention_kernels(made: RunAttention) -> tuple[KernelText, KernelText]:
    """Forward and backward."""
    real = f"*{TRITON_TYPES[made.dtype]}"
    q, k, v = ("q_ptr", real), ("k_ptr", real), ("v_ptr", real)
    bounds = ("bounds_ptr", "*i32")
    gradients = [(f"d{name}_ptr", real) for name in ("q", "k", "v")]
    return (
        _text(FORWARD, made, (q, k, v, bounds, ("out_ptr", real))),
        _text(BACKWARD, made, (q, k, v, ("do_ptr", real), bounds, *gradients)),
    )


def _text(name: str, made: RunAttention, pointers: tuple[tuple[str, str], ...]) -> KernelText:
    """With the rounding that the file imports, as one module."""
    helpers = (_FOLDER / "scatter_kernels.py").read_text(encoding="utf-8").partition("@triton.jit(do_not")[0]
    own = (_FOLDER / "run_attention_kernels.py").read_text(encoding="utf-8")
    own = own.partition("from .scatter_kernels import rounded\n")[2]
    is_double = made.dtype == torch.float64
    is_aligned = {"q": made.width % 16 == 0, "k": made.width % 16 == 0, "v": made.v_width % 16 == 0}
    return KernelText(
        name=name,
        text=helpers + own,
        arguments=(*pointers, *((stride, "i32") for stride in _STRIDES)),
        constants=tuple(constants(made.queries, made.heads, made.width, made.v_width, made.scale, is_double).items()),
        divisible=(*(pointer for pointer, _ in pointers), *(s for s in _STRIDES if is_aligned[s[len("stride_")]])),
        warps=WARPS[name],
        stages=3,
    )


def run_attention_work(made: RunAttention, name: str, rows: int, segments: int) -> Work:
    """Of a launch over `rows` rows in `segments` segments: every operand and every result once."""
    of_keys, of_values = (rows * made.heads * width for width in (made.width, made.v_width))
    of_queries, of_results = (segments * made.queries * made.heads * w for w in (made.width, made.v_width))
    of_both = made.queries * (of_keys * _PRODUCTS[name][0] + of_values * _PRODUCTS[name][1])
    vector_type = "fp64" if made.dtype == torch.float64 else "fp32"
    read, bounds = (of_keys + of_values + of_queries) * made.dtype.itemsize, 4 * (segments + 1)
    results = of_results * made.dtype.itemsize
    if name == FORWARD:
        return Work(read + bounds, results, vector=of_both, vector_type=vector_type)
    return Work(read + bounds + results, read, vector=of_both, vector_type=vector_type)
