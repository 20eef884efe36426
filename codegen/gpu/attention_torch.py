"""The attention ops on machines without kernels: torch, from bounds and a form, rows of queries in turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functions.precision import narrow, widen
from .attention_form import AttentionForm
from .formula import Row, evaluate

# Scores held at once.
_SCORES = 1 << 24


@dataclass(frozen=True)
class Inputs:
    """q [Nq, H, D], k [Nk, G, D], v [Nk, G, Dv], q_low, q_high [Nq], bias [Nk, H] or None, captured [rows] or [rows,
    H]."""

    q: Tensor
    k: Tensor
    v: Tensor
    q_low: Tensor
    q_high: Tensor
    bias: Tensor | None
    captured: tuple[Tensor, ...]
    form: AttentionForm


def forward(x: Inputs) -> tuple[Tensor, Tensor]:
    """out [Nq, H, Dv] and lse [H, Nq]."""
    pieces = [_rows(x, rows) for rows in _turns(x)]
    heads = x.q.shape[1]
    if not pieces:
        return x.q.new_zeros(0, heads, x.v.shape[2]), widen(x.q).new_zeros(heads, 0)
    return torch.cat([narrow(out, x.q) for out, _ in pieces]), torch.cat([lse for _, lse in pieces], 1)


def backward(d_out: Tensor, x: Inputs) -> list[Tensor]:
    """Gradients of q, k, v, the bias if there is one, and of the captured values that have one, in order."""
    sources = [x.q, x.k, x.v, *([] if x.bias is None else [x.bias])]
    sources += [t for t, c in zip(x.captured, x.form.captured, strict=True) if c.has_gradient]
    wide = iter([widen(t).detach().requires_grad_() for t in sources])
    q, k, v = next(wide), next(wide), next(wide)
    bias = None if x.bias is None else next(wide)
    captured = tuple(
        next(wide) if c.has_gradient else t for t, c in zip(x.captured, x.form.captured, strict=True)
    )
    given = Inputs(q, k, v, x.q_low, x.q_high, bias, captured, x.form)
    leaves = [q, k, v, *([] if bias is None else [bias])]
    leaves += [t for t, c in zip(captured, x.form.captured, strict=True) if c.has_gradient]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.enable_grad():
        for rows in _turns(x):
            out, _ = _rows(given, rows)
            found = torch.autograd.grad(out, leaves, widen(d_out[rows]), allow_unused=True)
            for total, gradient in zip(totals, found, strict=True):
                if gradient is not None:
                    total += gradient
    return [total.to(source.dtype) for total, source in zip(totals, sources, strict=True)]


def _turns(x: Inputs) -> list[slice]:
    step = max(1, _SCORES // max(1, x.q.shape[1] * x.k.shape[0]))
    return [slice(start, min(start + step, len(x.q))) for start in range(0, len(x.q), step)]


def _rows(x: Inputs, rows: slice) -> tuple[Tensor, Tensor]:
    """Some queries against all keys: out [rows, H, Dv], not narrowed, and lse [H, rows]."""
    group = x.q.shape[1] // x.k.shape[1]
    q, k, v = (widen(t).transpose(0, 1) for t in (x.q[rows], x.k, x.v))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    logits = x.form.scale * (q @ k.transpose(1, 2))

    def read(row: Row) -> Tensor:
        """[H or 1, rows or 1, keys or 1]"""
        value = x.captured[row.index][rows] if row.side == "query" else x.captured[row.index]
        value = value.T if value.dim() == 2 else value[None]
        value = value.to(logits.dtype) if value.is_floating_point() else value
        return value[:, :, None] if row.side == "query" else value[:, None]

    if x.form.score is not None:
        logits = torch.as_tensor(evaluate(x.form.score, logits, read), dtype=logits.dtype).expand_as(logits)
    if x.bias is not None:
        logits = logits + widen(x.bias).T[:, None]
    numbers = torch.arange(x.k.shape[0], device=x.q.device)
    flags = (numbers >= x.q_low[rows, None]) & (numbers < x.q_high[rows, None])
    if x.form.predicate is not None:
        flags = flags & torch.as_tensor(evaluate(x.form.predicate, None, read))
    flags = flags.expand_as(logits)
    some = flags.any(-1, keepdim=True)
    logits = torch.where(flags, logits, float("-inf"))
    # A row without keys is computed on zeros and then dropped: a softmax of nothing is not a number.
    weights = torch.softmax(torch.where(some, logits, 0), -1).masked_fill(~some, 0)
    return (weights @ v).transpose(0, 1), torch.logsumexp(logits, -1)
