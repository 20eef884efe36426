"""What the kernels of logits compute, in torch: for CPUs, and as their oracle.

Letters in shapes: R rows and C columns of a block of logits, S parts of a row, N rows of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formula import Row, Score, derivative, evaluate
from .logits_form import LogitsForm

# Below any logit, and finite: differences with it are no nan.
LOWEST = -3e38


def block_states(form: LogitsForm, logits: Tensor, ids: Sequence[Tensor], first_column: int) -> dict[str, Tensor]:
    """The states `[R]` of columns `first_column`, ... of the logits: `logits [R, C]` before the form's formula, `ids
    [R]` each."""
    logits = changed(form, logits)
    top = logits.amax(1).clamp(min=LOWEST)
    distance = logits - top[:, None]
    found = {"top": top}
    exponentials = torch.exp(distance)
    if form.partition:
        found["total"] = exponentials.sum(1)
    if form.mean:
        found["weighted"] = torch.where(exponentials > 0, exponentials * distance, 0).sum(1)
    if form.top:
        found["ties"] = (distance == 0).sum(1, dtype=torch.int32)
    if form.place:
        found["place"] = (first_column + logits.argmax(1)).to(torch.int32)
    for name, wanted in zip(form.pick_names, ids, strict=True):
        column = wanted - first_column
        is_here = (column >= 0) & (column < logits.shape[1])
        picked = logits.gather(1, torch.where(is_here, column, 0)[:, None])[:, 0]
        found[name] = torch.where(is_here, picked, 0)
    return found


def merged(form: LogitsForm, states: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results `[N]` from states `[S, N]` of the parts of the rows, in their order."""
    top = states["top"].amax(0)
    behind = states["top"] - top
    shrink = torch.exp(behind)
    found = {}
    if form.partition:
        total = (states["total"] * shrink).sum(0)
        found["partition"] = torch.log(total) + top
        if form.mean:
            weighted = (shrink * (states["weighted"] + states["total"] * behind)).sum(0)
            found["mean"] = top + weighted / total
    if form.top:
        found["top"] = top
        found["ties"] = torch.where(behind == 0, states["ties"], 0).sum(0, dtype=torch.int32)
    if form.place:
        # Parts are in the order of their columns, so the first part that has the maximum has the first place.
        part = (behind == 0).to(torch.int32).argmax(0)
        found["place"] = states["place"].gather(0, part[None])[0].to(torch.int64)
    for name in form.pick_names:
        found[name] = states[name].sum(0)
    return found


def slopes(
    form: LogitsForm,
    logits: Tensor,
    ids: Sequence[Tensor],
    first_column: int,
    kept: dict[str, Tensor],
    grads: dict[str, Tensor],
) -> Tensor:
    """The gradient of a block of logits before the form's formula, `[R, C]`; `kept` and `grads` hold results and their
    gradients, `[R]`."""
    given, logits = logits, changed(form, logits)
    slope = torch.zeros_like(logits)
    if form.partition:
        p = torch.exp(logits - kept["partition"][:, None])
        factor = grads["partition"][:, None]
        if form.mean:
            apart = torch.where(p > 0, 1 + logits - kept["mean"][:, None], 0)
            factor = factor + grads["mean"][:, None] * apart
        slope = p * factor
    if form.top:
        shared = grads["top"] / kept["ties"]
        slope = slope + torch.where(logits == kept["top"][:, None], shared[:, None], 0)
    column = first_column + torch.arange(logits.shape[1], device=logits.device)
    for name, wanted in zip(form.pick_names, ids, strict=True):
        slope = slope + torch.where(column == wanted[:, None], grads[name][:, None], 0)
    if form.formula is None:
        return slope
    return slope * evaluate(derivative(form.formula, Score()), given, _no_rows, given.dtype)


def changed(form: LogitsForm, logits: Tensor) -> Tensor:
    """The form's formula of every logit."""
    return logits if form.formula is None else evaluate(form.formula, logits, _no_rows, logits.dtype)


def _no_rows(row: Row) -> Tensor:
    raise AssertionError(f"a formula of logits reads {row}")


def whole(form: LogitsForm, logits: Tensor, ids: Sequence[Tensor]) -> dict[str, Tensor]:
    """What is asked of `logits [N, V]`, which are before the form's formula, from all of them at once: the results
    `[N]`, with torch's own gradients."""
    logits = changed(form, logits)
    found = {}
    if form.partition:
        found["partition"] = torch.logsumexp(logits, 1)
    if form.mean:
        found["mean"] = (torch.softmax(logits, 1) * logits).sum(1)
    if form.top:
        found["top"] = logits.amax(1)
        found["ties"] = (logits == found["top"][:, None]).sum(1, dtype=torch.int32)
    if form.place:
        found["place"] = logits.max(1).indices
    for name, wanted in zip(form.pick_names, ids, strict=True):
        found[name] = logits.gather(1, wanted[:, None])[:, 0]
    return found
