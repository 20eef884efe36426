"""One optimiser step on one packed batch: losses, gradients, clipping, update.

A loss is the mean of its rows over the whole step (SEMANTICS 9): sums and counts of the micro-batches are added
before anything is divided, so that cutting a batch into micro-batches changes the result by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .cut_lengths import CountedLengths, CutStatistics, add_counts, count_lengths
from .errors import RuntimeFault
from .loader import Batch
from .optimiser import Moment, WeightOptimiser
from .ranks import ALONE, Ranks
from .table_usage import ReadCounter, Reads

Parts = Mapping[str, tuple[Tensor, Tensor]]  # a loss by name: sum over its rows, and their number
LossOf = Callable[[Batch], Parts]


# What a model's losses are told besides inputs; an input of such a name cannot be given by name.
LOSS_SETTINGS = ("objective", "seed", "step", "example_ids", "working")


class Trainable(Protocol):
    """What is needed of a model: sums and counts of an objective's losses on packed inputs."""

    def loss(
        self,
        objective: str | None,
        *inputs: Any,
        seed: int,
        step: int,
        example_ids: Tensor | None,
        working: torch.dtype | None,
        **columns: Any,
    ) -> dict[str, tuple[Tensor, Tensor]]: ...


class TrainableWithCuts(Trainable, Protocol):
    """A model that also says how long the segments of its cuts are."""

    def loss_and_cuts(
        self,
        objective: str | None,
        *inputs: Any,
        seed: int,
        step: int,
        example_ids: Tensor | None,
        working: torch.dtype | None,
        **columns: Any,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]: ...


class TrainableWithTables(Trainable, Protocol):
    """A model that also says which rows of its tables were read."""

    def loss_and_reads(
        self,
        objective: str | None,
        *inputs: Any,
        seed: int,
        step: int,
        example_ids: Tensor | None,
        working: torch.dtype | None,
        **columns: Any,
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Reads]]: ...


class CutCounter:
    """Lengths of segments of a step. A micro-batch that is computed twice is counted once; all of a step's are alive
    while it is counted, so that they can be told apart by identity."""

    def __init__(self) -> None:
        self._of_parts: dict[int, Mapping[str, CountedLengths]] = {}

    def add(self, batch: Batch, lengths: Mapping[str, Tensor]) -> None:
        self._of_parts[id(batch)] = {
            name: count_lengths(one[:0] if batch.stands_in else one) for name, one in lengths.items()
        }

    def statistics(self, ranks: Ranks = ALONE) -> dict[str, CutStatistics]:
        """Of all ranks."""
        counted = add_counts(self._of_parts.values())
        return {name: counts.over(ranks.sum).statistics() for name, counts in counted.items()}


@dataclass(frozen=True)
class StepOptions:
    """What stays the same from step to step. `working` is the type of the computation; None: that of the weights.
    `has_cuts`: lengths of segments are counted. `ranks`: those that compute a batch together."""

    objective: str | None = None
    seed: int = 0
    accumulate: int = 1
    working: torch.dtype | None = None
    has_cuts: bool = False
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class StepResult:
    """Losses are means over the step; `total` is their sum. The norm is over all trained weights, before clipping."""

    losses: Mapping[str, float]
    total: float
    gradient_norm: float
    cuts: Mapping[str, CutStatistics] = field(default_factory=dict)


class NonFinite(RuntimeFault):
    """A loss or a gradient is not a finite number. No weight has been changed by the step."""


def train_step(
    model: Trainable,
    optimiser: WeightOptimiser,
    batch: Batch,
    options: StepOptions,
    step: int,
    at: Moment = Moment(),  # noqa: B008 - frozen
) -> StepResult:
    """Step number `step` (from 1), at a moment of the run's schedule. `batch` is that of all ranks. Raises NonFinite
    before weights are touched."""
    ranks = options.ranks
    counter = CutCounter()

    def loss_of(part: Batch) -> Parts:
        return compute_losses(model, part, options, step, counter)

    optimiser.zero_grad()
    micro_batches = batch.share(ranks.number, ranks.count, options.accumulate)
    sums = backward(loss_of, micro_batches, optimiser, ranks)
    norms = optimiser.gradient_norms()
    losses, (gradient_norm,) = _to_numbers(sums, [torch.linalg.vector_norm(torch.stack(norms))])
    result = StepResult(losses, sum(losses.values()), gradient_norm, counter.statistics(ranks))
    _check_finite(result, batch, step)
    optimiser.step(at, norms)
    return result


def evaluate(
    model: Trainable, batches: Iterable[Batch], options: StepOptions, reads: ReadCounter | None = None
) -> tuple[dict[str, float], int]:
    """Mean losses over all rows of all batches, and the number of tokens. Draws are those of step 0 every time.
    `reads` is told the rows of tables that were read."""
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    tokens = 0
    ranks = options.ranks
    with torch.no_grad():
        for batch in batches:
            for part in batch.share(ranks.number, ranks.count):
                _add(totals, compute_losses(model, part, options, 0, reads))
            tokens += batch.rows
    return _to_numbers(_of_all(ranks, totals), [])[0], tokens


def compute_losses(
    model: Trainable, batch: Batch, options: StepOptions, step: int, counter: CutCounter | ReadCounter | None = None
) -> Parts:
    """The objective's losses on one micro-batch. `counter` is told the lengths of its segments, or what was read."""
    columns: dict[str, Any] = {name: (values, batch.offsets) for name, values in batch.columns.items()}
    arguments: dict[str, Any] = {
        "seed": options.seed,
        "step": step,
        "example_ids": batch.example_ids,
        "working": options.working,
        **columns,
    }
    if isinstance(counter, ReadCounter):
        tables = cast(TrainableWithTables, model)
        parts, reads = tables.loss_and_reads(options.objective, *batch.given, **arguments)
        counter.add({path: one.nothing() for path, one in reads.items()} if batch.stands_in else reads)
        return _counted(batch, parts)
    if counter is None or not options.has_cuts:
        return _counted(batch, model.loss(options.objective, *batch.given, **arguments))
    measured = cast(TrainableWithCuts, model)
    parts, lengths = measured.loss_and_cuts(options.objective, *batch.given, **arguments)
    counter.add(batch, lengths)
    return _counted(batch, parts)


def _counted(batch: Batch, parts: Parts) -> Parts:
    if not batch.stands_in:
        return parts
    return {name: (0 * total, 0 * count) for name, (total, count) in parts.items()}


def backward(
    loss_of: LossOf, micro_batches: Sequence[Batch], optimiser: WeightOptimiser, ranks: Ranks = ALONE
) -> Parts:
    """Gradients of the sum of mean losses into `.grad`; returns sums and counts of the whole step, of all ranks."""
    if len(micro_batches) == 1:
        parts = loss_of(micro_batches[0])
        totals = _of_all(ranks, parts)
        _weighted(parts, totals).backward()
        return totals
    totals = _backward_shared(loss_of, micro_batches, optimiser, ranks)
    if totals is not None:
        return totals
    # Losses count different rows, so each has its own divisor, and those are known only when all rows have been seen.
    # Draws do not depend on when they are made: the second pass sees what the first saw.
    optimiser.zero_grad()
    totals = {}
    with torch.no_grad():
        for part in micro_batches:
            _add(totals, loss_of(part))
    totals = _of_all(ranks, totals)
    for part in micro_batches:
        _weighted(loss_of(part), totals).backward()
    return totals


def _backward_shared(
    loss_of: LossOf, micro_batches: Sequence[Batch], optimiser: WeightOptimiser, ranks: Ranks
) -> Parts | None:
    """One pass, where all losses count the same rows: sums go backward, gradients are divided at the end. Else None."""
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    for part in micro_batches:
        parts = loss_of(part)
        of_all = _of_all(ranks, parts)
        counts = [count for _, count in of_all.values()]
        if len(counts) > 1 and len(set(torch.stack(counts).tolist())) > 1:
            return None
        torch.stack([total for total, _ in parts.values()]).sum().backward()
        _add(totals, of_all)
    optimiser.divide_gradients(_divisor(next(count for _, count in totals.values())))
    return totals


def _weighted(parts: Parts, totals: Parts) -> Tensor:
    """The sum of `parts`, each over the count of its loss in `totals`."""
    return torch.stack([total / _divisor(totals[name][1]) for name, (total, _) in parts.items()]).sum()


def _divisor(count: Tensor) -> Tensor:
    # A step in which nothing counts (examples of one token have no target) has a loss of 0, not 0 / 0.
    return count.detach().clamp(min=1)


def _add(totals: dict[str, tuple[Tensor, Tensor]], parts: Parts) -> None:
    for name, (total, count) in _detached(parts).items():
        before = totals.get(name)
        totals[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def _of_all(ranks: Ranks, parts: Parts) -> dict[str, tuple[Tensor, Tensor]]:
    """Sums and counts of all ranks."""
    own = [number for pair in _detached(parts).values() for number in pair]
    numbers = ranks.sum_scalars(own)
    return dict(zip(parts, zip(numbers[::2], numbers[1::2], strict=True), strict=True))


def _detached(parts: Parts) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (total.detach(), count.detach()) for name, (total, count) in parts.items()}


def _to_numbers(parts: Parts, more: Sequence[Tensor]) -> tuple[dict[str, float], list[float]]:
    """Means as Python floats, with other scalars: one transfer from the device."""
    means = [(total.double() / _divisor(count)).reshape(()) for total, count in parts.values()]
    if not means and not more:
        return {}, []
    numbers = torch.stack([*means, *(value.double() for value in more)]).tolist()
    return dict(zip(parts, numbers, strict=False)), numbers[len(means) :]


def _check_finite(result: StepResult, batch: Batch, step: int) -> None:
    if torch.isfinite(torch.tensor([result.total, result.gradient_norm])).all():
        return
    bad = [f"loss {name} is {value}" for name, value in result.losses.items() if value - value != 0.0]
    what = bad[0] if bad else f"the gradient norm is {result.gradient_norm}"
    named = ", ".join(batch.labels[:3]) + (f" and {batch.examples - 3} more" if batch.examples > 3 else "")
    ids = ", ".join(map(str, batch.example_ids[:3].tolist()))
    raise NonFinite(f"step {step}: {what}; the step was not taken (examples {named}; ids {ids})")
