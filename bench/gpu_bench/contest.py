"""One operation by several contenders on the same operands: forward alone, and forward with backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .context import Context, DeviceLost
from .results import Row
from .timing import microseconds

Function = Callable[..., Any]

# More entries than this are not compared with float64, which would need the memory of several GPUs.
MOST_COMPARED = 1 << 28


@dataclass(frozen=True)
class Work:
    """Of one pass: bytes each read or written once, operations of matrix products."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Contest:
    """`ours(*operands)` and `peers` by name, each of which computes what ours does; gradients are asked for the
    operands numbered in `trained`.

    `forward` and `both` are the work of forward alone, and with backward. `truth` takes operands in float64.
    """

    name: str
    labels: Row
    operands: Sequence[Tensor]
    trained: frozenset[int]
    ours: Function
    peers: dict[str, Function]
    forward: Work
    both: Work
    truth: Function | None = None


def run(context: Context, contest: Contest, ceilings: dict[str, float]) -> Row:
    """The times of all contenders, and how far ours is from what the device attains."""
    row: Row = {"name": contest.name, **contest.labels, "passes": {}}
    names = ("forward", "both") if contest.trained else ("forward",)
    error, failure = (None, None) if contest.truth is None else context.attempt(lambda: _error(contest))
    row["error"] = error
    if failure is not None:
        row["error_failure"] = failure
    for name in names:
        work = contest.forward if name == "forward" else contest.both
        ours, failure = _time(context, contest.ours, contest, name)
        peers: Row = {}
        for peer, function in contest.peers.items():
            if context.is_over:
                peers[peer] = {"failure": "the time budget was used up"}
                continue
            try:
                found, why = _time(context, function, contest, name)
            except DeviceLost as lost:
                peers[peer] = {"failure": f"the device failed: {lost}"}
                row["passes"][name] = _figures(ours, None, failure, peers, work, ceilings)
                lost.row = row
                raise
            peers[peer] = {"us": found} if why is None else {"failure": why}
        # Once more after the others: what lies between the two is noise.
        again, _ = (None, None) if ours is None else _time(context, contest.ours, contest, name)
        row["passes"][name] = _figures(ours, again, failure, peers, work, ceilings)
    return row


def _figures(
    ours: float | None, again: float | None, failure: str | None, peers: Row, work: Work, ceilings: dict[str, float]
) -> Row:
    found: Row = {"us": ours, "again_us": again, "bytes": work.bytes, "flops": work.flops, "peers": peers}
    if failure is not None:
        found["failure"] = failure
    timed = {name: peer["us"] for name, peer in peers.items() if "us" in peer}
    if ours is not None:
        found["bytes_per_s"], found["flops_per_s"] = (1e6 * amount / ours for amount in (work.bytes, work.flops))
        found["of_copy"] = found["bytes_per_s"] / ceilings["copy_bytes_per_s"]
        found["of_matmul"] = found["flops_per_s"] / ceilings["matmul_flops_per_s"]
        if timed:
            best = min(timed, key=lambda name: timed[name])
            found["best_peer"], found["ratio"] = best, timed[best] / ours
    return found


def _time(context: Context, function: Function, contest: Contest, name: str) -> tuple[float | None, str | None]:
    return context.attempt(lambda: microseconds(context, _prepared(function, contest, name)))


def _prepared(function: Function, contest: Contest, name: str) -> Callable[[], object]:
    if name == "forward":

        def forward() -> object:
            with torch.no_grad():
                return function(*contest.operands)

        return forward
    leaves = _leaves(contest.operands, contest.trained)
    wanted = [leaves[place] for place in sorted(contest.trained)]
    grads = [torch.randn_like(x) for x in _results(function(*leaves))]

    def both() -> object:
        return torch.autograd.grad(_results(function(*leaves)), wanted, grads, allow_unused=True)

    return both


def _leaves(operands: Sequence[Tensor], trained: frozenset[int], dtype: torch.dtype | None = None) -> list[Tensor]:
    return [
        x.detach().to(dtype or x.dtype).requires_grad_() if place in trained
        else x.detach().to(dtype) if dtype is not None and x.is_floating_point() else x.detach()
        for place, x in enumerate(operands)
    ]  # fmt: skip


def _results(found: Any) -> list[Tensor]:
    """Those that a gradient passes through."""
    listed = found if isinstance(found, tuple | list) else (found,)
    return [x for x in listed if isinstance(x, Tensor) and x.requires_grad]


def _error(contest: Contest) -> float:
    """Largest difference of results and gradients from float64, of the largest entry of each; the worst of them."""
    truth = contest.truth
    assert truth is not None
    wanted = sorted(contest.trained)
    grads: list[Tensor] = []
    found = []
    for function, dtype in ((contest.ours, None), (truth, torch.float64)):
        leaves = _leaves(contest.operands, contest.trained, dtype)
        made = function(*leaves)
        listed = [x for x in (made if isinstance(made, tuple | list) else (made,)) if x.is_floating_point()]
        free = [x for x in listed if x.requires_grad]
        grads = [grad.double() for grad in grads] or [torch.randn_like(x) for x in free]
        places = [leaves[place] for place in wanted]
        gradients = torch.autograd.grad(free, places, grads, allow_unused=True) if free and places else ()
        found.append([x.detach() for x in (*listed, *gradients) if x is not None])
    worst = 0.0
    for one, two in zip(*found, strict=True):
        if two.numel():
            size = max(two.abs().max().item(), 1e-30)
            worst = max(worst, (one.double() - two).abs().max().item() / size)
    return worst


def contests(
    context: Context,
    ceilings: dict[str, float],
    spec: str,
    shape: Any,
    makers: dict[str, Callable[[Context, Any, str, Row], Contest]],
) -> Iterator[Row]:
    """A row for each kernel that `makers` name, at one shape of a spec, which has a `name` and `rows`."""
    for kernel, make in makers.items():
        name = f"{shape.name}: {kernel}"
        if name in context.done:
            continue
        labels: Row = {"size": shape.name, "kernel": kernel, "spec": spec, "rows": shape.rows, "dtype": "bfloat16"}
        if context.is_over:
            yield {"name": name, **labels, "failure": "the time budget was used up"}
            continue
        context.begin(name)
        made, why = context.attempt(partial(make, context, shape, name, labels))
        row, failed = (None, why) if made is None else context.attempt(partial(run, context, made, ceilings))
        yield row if row is not None else {"name": name, **labels, "failure": failed}
        del made
        context.free()
