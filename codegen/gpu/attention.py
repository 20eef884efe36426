"""Attention over packed examples by generated kernels: the signature and the meaning of functions/attention.py.

    y[query, head] = sum over keys r that the mask allows of softmax_r(score(scale * q . k[r]) + bias[r]) * v[r]

`attend` writes what is no tensor as text, turns the mask into bounds, and calls a custom op that torch.compile and
torch.export keep whole. The op launches kernels on a GPU or under Triton's interpreter, and computes with torch on
other machines.

Letters: Nq query rows, Nk key rows, H heads, G key heads, D and Dv entries of a head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functions.attention import attend_packed
from ..functions.masks import Predicate
from . import attention_torch
from .attention_form import AttentionForm, Capture, read_form, without_gradients
from .attention_kernels import WIDEST, Kernel, find, key_of, target_of
from .formula import folded
from .intervals import Intervals, band_intervals, row_positions

# A namespace of torch operators of this module's own: a compiled model carries a copy of it, in a folder of any name.
LIBRARY = re.sub(r"\W", "_", __name__)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    low: int | None = None,
    high: int | None = None,
    predicate: Predicate | None = None,
    bias: Tensor | None = None,
    score: tuple[Any, ...] | None = None,
    q_position: Tensor | None = None,
    k_position: Tensor | None = None,
    intervals: Intervals | None = None,
) -> Tensor:
    """As `attend_packed`: `q [Nq, H, D]`, `k [Nk, G, D]`, `v [Nk, G, Dv]` to `[Nq, H, Dv]`.

    score: a formula as nested tuples, in the words of functions/scores.py or written like a predicate, with
    ("score",) for scale * q . k, and ("query" or "key", tensor `[rows]` or `[rows, H]`) for captured values; these
    get gradients. ("entry", tensor `[entries]` or `[H, entries]`, formula) reads a table, which gets one too.
    intervals: the rows of either side that the other sees, in place of examples and band (those of a band may be
    given beside the band, to be computed once for many calls); the predicate still holds besides. Heads of more
    than 256 entries are left to torch.
    """
    is_plain = score is None and (intervals is None or intervals.is_band)
    # A tracer follows tensors only; what the machine has is asked when it runs.
    if is_plain and not torch.compiler.is_compiling() and target_of(q) is None:
        mask = {"low": low, "high": high, "predicate": predicate, "q_position": q_position, "k_position": k_position}
        return attend_packed(q, k, v, q_offsets, k_offsets, scale, bias=bias, **mask)

    call = call_of(
        q, k, v, q_offsets, k_offsets, scale, low, high, predicate, bias, score, q_position, k_position, intervals
    )
    return attention_forward(q, k, v, *call.bounds, call.bias, list(call.captured), call.form)[0]


@dataclass(frozen=True)
class Call:
    """What the op is given beside q, k and v: lows and highs of the intervals of queries, then of keys."""

    bounds: tuple[Tensor, Tensor, Tensor, Tensor]
    bias: Tensor | None
    captured: tuple[Tensor, ...]
    form: str


def call_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    scale: float,
    low: int | None,
    high: int | None,
    predicate: Predicate | None,
    bias: Tensor | None,
    score: tuple[Any, ...] | None,
    q_position: Tensor | None,
    k_position: Tensor | None,
    intervals: Intervals | None,
) -> Call:
    """The arguments of `attend` for the op: what is no tensor as text. Needs sizes and types only."""

    def position(side: str) -> Tensor:
        given, offsets, rows = (q_position, q_offsets, q) if side == "query" else (k_position, k_offsets, k)
        return row_positions(offsets, rows.shape[0]) if given is None else given

    if intervals is None:
        if k_position is not None:
            # Nothing says that positions of keys rise: only the example is an interval.
            predicate, low, high = _with_band(predicate, low, high), None, None
        intervals = band_intervals(q_offsets, k_offsets, q.shape[0], k.shape[0], low, high, q_position)
    capture = Capture(position, [], [])
    formula = None if score is None else folded(capture.formula(score, differentiates=True))
    flags = None if predicate is None else folded(capture.formula(predicate, differentiates=False))
    form = AttentionForm(float(scale), formula, flags, tuple(capture.captured), intervals.is_exact)
    if bias is not None:
        bias = bias.expand(-1, q.shape[1])
    bounds = (intervals.queries.low, intervals.queries.high, intervals.keys.low, intervals.keys.high)
    captured = tuple(
        t.contiguous() if t.dim() == 1 or entry.is_table else t.expand(-1, q.shape[1])
        for t, entry in zip(capture.tensors, capture.captured, strict=True)
    )
    return Call(bounds, bias, captured, form.text)


def _with_band(predicate: Predicate | None, low: int | None, high: int | None) -> Predicate | None:
    distance = ("-", ("key", "position"), ("query", "position"))
    if low is not None:
        at_least = (">=", distance, ("number", low))
        predicate = at_least if predicate is None else ("and", predicate, at_least)
    if high is not None:
        at_most = ("<=", distance, ("number", high))
        predicate = at_most if predicate is None else ("and", predicate, at_most)
    return predicate


# -- ops -------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{LIBRARY}::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_low: Tensor,
    q_high: Tensor,
    k_low: Tensor,
    k_high: Tensor,
    bias: Tensor | None,
    captured: list[Tensor],
    form: str,
) -> tuple[Tensor, Tensor]:
    """out [Nq, H, Dv] and the natural logarithm of each row's sum of exponentials, lse [H, Nq]: -inf without a key.

    q_low, q_high [Nq]: keys of each query; k_low, k_high [Nk]: queries of each key; bias [Nk, H]; form: the text of an
    AttentionForm.
    """
    target = _target(q, v)
    if target is None:
        return attention_torch.forward(
            attention_torch.Inputs(q, k, v, q_low, q_high, bias, tuple(captured), read_form(form))
        )
    out, lse = _empty_results(q, v)
    if q.shape[0]:
        key = key_of(q, k, v, bias, without_gradients(form))
        kernel = find(key, "attention_forward", target)
        values = _values(q, k, v, bias, captured)
        values |= {"out_ptr": out, "lse_ptr": lse, "q_low_ptr": q_low, "q_high_ptr": q_high}
        kernel.launch((_tiles(q, kernel, "BLOCK_M"), q.shape[1]), values)
    return out, lse


@attention_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_low: Tensor,
    q_high: Tensor,
    k_low: Tensor,
    k_high: Tensor,
    bias: Tensor | None,
    captured: list[Tensor],
    form: str,
) -> tuple[Tensor, Tensor]:
    return _empty_results(q, v)


@torch.library.custom_op(f"{LIBRARY}::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_low: Tensor,
    q_high: Tensor,
    k_low: Tensor,
    k_high: Tensor,
    bias: Tensor | None,
    captured: list[Tensor],
    form: str,
) -> list[Tensor]:
    """Gradients of q, k, v, of the bias if there is one, and of the captured values that have one, in order."""
    read = read_form(form)
    target = _target(q, v)
    if target is None or read.has_long_table:
        x = attention_torch.Inputs(q, k, v, q_low, q_high, bias, tuple(captured), read)
        return attention_torch.backward(d_out, x)
    key = key_of(q, k, v, bias, form)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    values = _values(q, k, v, bias, captured)
    values |= {"q_low_ptr": q_low, "q_high_ptr": q_high, "k_low_ptr": k_low, "k_high_ptr": k_high}
    values |= {"out_ptr": out, "do_ptr": d_out.contiguous(), "lse_ptr": lse, "delta_ptr": torch.empty_like(lse)}
    values |= {"dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv}
    rows = {} if bias is None else {"dbias_ptr": bias}
    rows |= {f"d_captured_{index}_ptr": captured[index] for index, c in enumerate(read.captured) if c.has_gradient}
    values |= {name: _by_head(q, t.shape[0]) for name, t in rows.items()}
    query_gradient = find(key, "attention_query_gradient", target)
    tiles = _tiles(q, query_gradient, "BLOCK_M")
    values |= table_sums(read, q, tiles)
    if q.shape[0]:
        delta = find(key, "attention_delta", target)
        delta.launch((_tiles(q, delta, "BLOCK_M"), q.shape[1]), values)
        query_gradient.launch((tiles, q.shape[1]), values)
    if k.shape[0]:
        kernel = find(key, "attention_key_gradient", target)
        kernel.launch((_tiles(k, kernel, "BLOCK_N"), k.shape[1]), values)
    return [dq, dk, dv, *(_of_rows(values[name], t) for name, t in rows.items())]


@attention_backward.register_fake
def _(
    d_out: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_low: Tensor,
    q_high: Tensor,
    k_low: Tensor,
    k_high: Tensor,
    bias: Tensor | None,
    captured: list[Tensor],
    form: str,
) -> list[Tensor]:
    trained = [t for t, entry in zip(captured, read_form(form).captured, strict=True) if entry.has_gradient]
    given = [q, k, v, *([] if bias is None else [bias]), *trained]
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in given]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, bias, captured, form = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.form, ctx.has_bias = form, bias is not None
    ctx.save_for_backward(*output, *tensors, *([] if bias is None else [bias]), *captured)


def _differentiate(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
    out, lse, *saved = ctx.saved_tensors
    tensors, rest = saved[:7], saved[7:]
    bias = rest.pop(0) if ctx.has_bias else None
    found = attention_backward(d_out, out, lse, *tensors, bias, rest, ctx.form)
    dq, dk, dv = found[:3]
    trained = iter(found[3:])
    dbias = next(trained) if ctx.has_bias else None
    captured = [next(trained) if entry.has_gradient else None for entry in read_form(ctx.form).captured]
    return dq, dk, dv, None, None, None, None, dbias, captured, None


attention_forward.register_autograd(_differentiate, setup_context=_save)


# -- what kernels are given ------------------------------------------------------------------------


def _target(q: Tensor, v: Tensor) -> str | None:
    return target_of(q) if max(q.shape[2], v.shape[2]) <= WIDEST else None


def _empty_results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty((q.shape[0], q.shape[1], v.shape[2]), dtype=q.dtype, device=q.device)
    return out, _by_head(q, q.shape[0])


def _by_head(q: Tensor, rows: int) -> Tensor:
    """[H, rows], in the type that scores have."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.empty((q.shape[1], rows), dtype=dtype, device=q.device)


def table_sums(form: AttentionForm, q: Tensor, tiles: int) -> dict[str, Tensor]:
    """[tiles, H, entries] for the gradient of each table: what the queries of each tile add to it."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return {
        f"d_captured_{index}_ptr": torch.empty(
            (tiles, q.shape[1], form.captured[index].entries), dtype=dtype, device=q.device
        )
        for index in form.trained_tables
    }


def _of_rows(by_head: Tensor, like: Tensor) -> Tensor:
    """From [H, rows] to the shape and type of a captured value, [rows] or [rows, H]; from [tiles, H, entries] to those
    of a table, [entries] or [H, entries]."""
    if by_head.dim() == 3:
        found = by_head.sum(0)
        return (found.sum(0) if like.dim() == 1 else found).to(like.dtype)
    return (by_head.sum(0) if like.dim() == 1 else by_head.T).to(like.dtype).contiguous()


def _tiles(rows: Tensor, kernel: Kernel, block: str) -> int:
    return -(-rows.shape[0] // kernel.constants[block])


def _values(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, captured: list[Tensor]) -> dict[str, Any]:
    """Arguments of all kernels: pointers and strides of what is read. Heads must lie entry by entry."""
    q, k, v = (t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous() for t in (q, k, v))
    values: dict[str, Any] = {"q_ptr": q, "k_ptr": k, "v_ptr": v, "rows_q": q.shape[0], "rows_k": k.shape[0]}
    values |= {"stride_qm": q.stride(0), "stride_qh": q.stride(1)}
    values |= {"stride_kn": k.stride(0), "stride_kh": k.stride(1)}
    values |= {"stride_vn": v.stride(0), "stride_vh": v.stride(1)}
    if bias is not None:
        values |= {"bias_ptr": bias, "stride_bn": bias.stride(0), "stride_bh": bias.stride(1)}
    for index, tensor in enumerate(captured):
        values[f"captured_{index}_ptr"] = tensor
        if tensor.dim() == 2:  # of a table, which lies entry by entry, kernels know the strides
            values[f"stride_captured_{index}"] = tensor.stride(0)
            values[f"stride_captured_{index}h"] = tensor.stride(1)
    return values
