"""The attention ops on machines without kernels: torch, from bounds and a form, rows of queries in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functions.precision import narrow, widen
from ..functions.scores import each_head
from .attention_form import AttentionForm
from .formula import Entry, Row, Score, derivative, evaluate, leaves

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


@dataclass(frozen=True)
class _Scores:
    """Of some queries and all keys. q, k, v [H, rows or Nk, entries], widened, heads of keys written out; the others
    [H, rows, Nk], logits with -inf where the mask says no."""

    q: Tensor
    k: Tensor
    v: Tensor
    score: Tensor
    logits: Tensor
    weights: Tensor
    flags: Tensor


def forward(x: Inputs) -> tuple[Tensor, Tensor]:
    """out [Nq, H, Dv] and lse [H, Nq]."""
    heads = x.q.shape[1]
    out = x.q.new_zeros(x.q.shape[0], heads, x.v.shape[2])
    lse = widen(x.q).new_zeros(heads, x.q.shape[0])
    for rows in _turns(x):
        s = _scores(x, rows)
        out[rows] = narrow((s.weights @ s.v).transpose(0, 1), x.q)
        lse[:, rows] = torch.logsumexp(s.logits, -1)
    return out, lse


def backward(d_out: Tensor, x: Inputs) -> list[Tensor]:
    """Gradients of q, k, v, the bias if there is one, and of the captured values that have one, in order.

    Written out: inside an op torch records nothing that it could differentiate.
    """
    sources = [x.q, x.k, x.v, *([] if x.bias is None else [x.bias])]
    trained = [index for index, entry in enumerate(x.form.captured) if entry.has_gradient]
    sources += [x.captured[index] for index in trained]
    totals = [torch.zeros(t.shape, dtype=widen(t).dtype, device=t.device) for t in sources]
    for rows in _turns(x):
        s = _scores(x, rows)
        given = widen(d_out[rows]).transpose(0, 1)
        dp = given @ s.v.transpose(1, 2)
        gradient = s.weights * (dp - (s.weights * dp).sum(-1, keepdim=True))
        _add(totals[2], (s.weights.transpose(1, 2) @ given), x.k.shape[1])
        if x.bias is not None:
            totals[3] += gradient.sum(1).T
        for index, total in zip(trained, totals[len(totals) - len(trained) :], strict=True):
            side = x.form.captured[index].side
            if side == "table":
                _add_entries(total, x, rows, s, gradient, index)
                continue
            # [H, rows of the side]
            found = _times(x, rows, s, gradient, Row(side, index)).sum(2 if side == "query" else 1)
            target = total[rows] if side == "query" else total
            target += found.T if total.dim() == 2 else found.sum(0)
        gradient = x.form.scale * (gradient if x.form.score is None else _times(x, rows, s, gradient, Score()))
        totals[0][rows] = (gradient @ s.k).transpose(0, 1)
        _add(totals[1], gradient.transpose(1, 2) @ s.q, x.k.shape[1])
    return [total.to(source.dtype) for total, source in zip(totals, sources, strict=True)]


def _add(total: Tensor, by_head: Tensor, key_heads: int) -> None:
    """Adds [H, Nk, entries] to [Nk, G, entries]."""
    total += by_head.unflatten(0, (key_heads, -1)).sum(1).transpose(0, 1)


def _add_entries(total: Tensor, x: Inputs, rows: slice, s: _Scores, gradient: Tensor, index: int) -> None:
    """Adds to a table, `[entries]` or `[heads, entries]`, what each of its entries that a score read is given."""
    assert x.form.score is not None
    read = _reader(x, rows, s.score.dtype)
    read_here = (leaf for leaf in leaves(x.form.score) if isinstance(leaf, Entry) and leaf.index == index)
    for entry in dict.fromkeys(read_here):
        at = torch.as_tensor(evaluate(entry.at, s.score, read, s.score.dtype), device=total.device)
        at = at.to(torch.int64).expand_as(gradient)
        places = (at,) if total.dim() == 1 else (each_head(total).expand_as(at), at)
        total.index_put_(places, _times(x, rows, s, gradient, entry), accumulate=True)


def _times(x: Inputs, rows: slice, s: _Scores, gradient: Tensor, by: Score | Row | Entry) -> Tensor:
    """A gradient of logits times the derivative of the score's formula, which may be no number where the mask says
    no."""
    assert x.form.score is not None
    factor = evaluate(derivative(x.form.score, by), s.score, _reader(x, rows, s.score.dtype), s.score.dtype)
    return torch.where(s.flags, gradient * factor, 0)


def _turns(x: Inputs) -> list[slice]:
    step = max(1, _SCORES // max(1, x.q.shape[1] * x.k.shape[0]))
    return [slice(start, min(start + step, len(x.q))) for start in range(0, len(x.q), step)]


def _reader(x: Inputs, rows: slice, real: torch.dtype) -> Callable[[Row], Tensor]:
    def read(row: Row) -> Tensor:
        """[H or 1, rows or 1, keys or 1], or a table."""
        if row.side == "table":
            table = x.captured[row.index]
            return table.to(real) if table.is_floating_point() else table
        value = x.captured[row.index][rows] if row.side == "query" else x.captured[row.index]
        value = value.T if value.dim() == 2 else value[None]
        value = value.to(real) if value.is_floating_point() else value
        return value[:, :, None] if row.side == "query" else value[:, None]

    return read


def _scores(x: Inputs, rows: slice) -> _Scores:
    group = x.q.shape[1] // x.k.shape[1]
    q, k, v = (widen(t).transpose(0, 1) for t in (x.q[rows], x.k, x.v))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    score = logits = x.form.scale * (q @ k.transpose(1, 2))
    read = _reader(x, rows, score.dtype)
    if x.form.score is not None:
        logits = torch.as_tensor(evaluate(x.form.score, score, read, score.dtype), dtype=score.dtype)
    if x.bias is not None:
        logits = logits + widen(x.bias).T[:, None]
    numbers = torch.arange(x.k.shape[0], device=x.q.device)
    flags = (numbers >= x.q_low[rows, None]) & (numbers < x.q_high[rows, None])
    if x.form.predicate is not None:
        flags = flags & torch.as_tensor(evaluate(x.form.predicate, None, read, score.dtype))
    flags, logits = flags.expand_as(score), logits.expand_as(score)
    some = flags.any(-1, keepdim=True)
    logits = torch.where(flags, logits, float("-inf"))
    # A row without keys is computed on zeros and then dropped: a softmax of nothing is not a number.
    weights = torch.softmax(torch.where(some, logits, 0), -1).masked_fill(~some, 0)
    return _Scores(q, k, v, score, logits, weights, flags)
