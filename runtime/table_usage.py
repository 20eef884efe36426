"""Which rows of its memory tables a model reads, and how evenly (memory_layers.md 7.5, 7.6).

A table of N rows, read L times: shares are p = reads of a row / L, and by weight the same of the sizes of weights.
Their distance to all rows alike is KL = ln N + sum p ln p nats. Few reads look uneven even where each row is as likely
as any other, so that distance is given beside it (`floor`); only what is above it says something.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..codegen.lower import live_nodes, loss_values
from ..codegen.ops.gather import BagAttrs
from ..dsl.program import Node, Program, Value, Weight
from .cut_lengths import add_counts
from .ranks import ALONE, Ranks

SHARES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Reads:
    """Counts that can be added: how often each row was read, and with what weight in all, without signs.
    `[entries]`."""

    counts: Tensor  # int64
    weights: Tensor  # float64

    def __add__(self, other: Reads) -> Reads:
        return Reads(self.counts + other.counts, self.weights + other.weights)

    def nothing(self) -> Reads:
        return Reads(torch.zeros_like(self.counts), torch.zeros_like(self.weights))


@dataclass(frozen=True)
class TableUsage:
    """How a table was read. `kl` and `kl_weights` in nats; `top` is the number of rows that hold 50, 90 and 99 % of
    the reads."""

    entries: int
    reads: int
    used: float  # share of rows that were read at all
    kl: float
    kl_weights: float
    floor: float  # what `kl` would be if every row were as likely
    top: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        top = {f"{share:.0%}": count for share, count in zip(SHARES, self.top, strict=True)}
        return {
            "entries": self.entries, "reads": self.reads, "used": self.used, "kl": self.kl,
            "kl_weights": self.kl_weights, "floor": self.floor, "top": top,
        }  # fmt: skip


def usage(reads: Reads) -> TableUsage:
    entries, total = len(reads.counts), int(reads.counts.sum())
    held = reads.counts.sort(descending=True).values.cumsum(0)
    top = tuple(1 + int((held < share * total).sum()) if total else 0 for share in SHARES)
    used = float((reads.counts > 0).double().mean())
    kl, kl_weights = distance_to_uniform(reads.counts), distance_to_uniform(reads.weights)
    return TableUsage(entries, total, used, kl, kl_weights, uniform_floor(total, entries), top)


def distance_to_uniform(mass: Tensor) -> float:
    """KL of the shares `mass [entries]` to 1 / entries, in nats; 0 where there is nothing to share."""
    total = mass.double().sum()
    if total <= 0:
        return 0.0
    share = mass.double() / total
    return float(math.log(len(mass)) + torch.xlogy(share, share).sum())


def uniform_floor(reads: int, entries: int) -> float:
    """What `distance_to_uniform` is on average when `reads` rows are drawn, each as likely: with c a Poisson number
    of mean m = reads / entries, E[c ln c] / m - ln m."""
    if reads == 0:
        return 0.0
    mean = reads / entries
    if mean > 50:
        return 1 / (2 * mean)  # the series' first term
    counts = torch.arange(1, 200 + int(10 * mean), dtype=torch.float64)
    chance = torch.exp(counts * math.log(mean) - mean - torch.lgamma(counts + 1))
    return float((chance * counts * counts.log()).sum() / mean - math.log(mean))


# -- of programs -----------------------------------------------------------------------------------


def bags_of(program: Program) -> tuple[Node, ...]:
    """The lookups that the losses depend on: `bag` of a weight."""
    live = live_nodes(program, loss_values(program.losses))
    return tuple(node for node in live if isinstance(node.attrs, BagAttrs) and isinstance(node.inputs[0], Weight))


def with_lookups(program: Program, bags: Sequence[Node]) -> Program:
    """The program, whose outputs are the ids and weights of these lookups beside its losses."""
    shown = [(f"lookup {i} {j}", value) for i, bag in enumerate(bags) for j, value in enumerate(bag.inputs[1:])]
    return replace(program, outputs=tuple(shown))


def reads_of(bags: Sequence[Node], values: Sequence[Tensor]) -> dict[str, Reads]:
    """Reads by table, from the outputs of `with_lookups`: all readers of a table together."""
    left = iter(values)
    found: list[dict[str, Reads]] = []
    for bag in bags:
        table = bag.inputs[0]
        assert isinstance(table, Weight)
        assert isinstance(bag.attrs, BagAttrs)
        given = [next(left).detach() for _ in bag.inputs[1:]]
        index, weight = given[0].reshape(-1), torch.ones_like(given[0])
        if len(given) > 1:
            weight = _beside(bag.inputs[2], given[1], bag.inputs[1], given[0])
        entries = bag.attrs.axis.size or 0
        weights = torch.zeros(entries, dtype=torch.float64, device=index.device)
        weights.index_add_(0, index, weight.reshape(-1).double().abs())
        found.append({table.path: Reads(torch.bincount(index, minlength=entries), weights)})
    return add_counts(found)


def _beside(of_weight: Value, weight: Tensor, of_index: Value, index: Tensor) -> Tensor:
    """The weight of each id, in the index's own shape: axes that only the weight has are summed over."""
    mine, wanted = of_weight.type.static_axes, of_index.type.static_axes
    lead = weight.dim() - len(mine)
    extra = [lead + i for i, axis in enumerate(mine) if axis not in wanted]
    weight = weight.sum(extra) if extra else weight
    mine = tuple(axis for axis in mine if axis in wanted)
    order = sorted(range(len(mine)), key=lambda i: wanted.index(mine[i]))
    weight = weight.permute(*range(lead), *(lead + i for i in order))
    for place, axis in enumerate(wanted):
        if axis not in mine:
            weight = weight.unsqueeze(lead + place)
    return weight.expand(index.shape)


class ReadCounter:
    """Reads of an evaluation, all batches together."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._sums: dict[str, Reads] = {}

    def add(self, reads: Mapping[str, Reads]) -> None:
        self._sums = add_counts((self._sums, reads))

    def usage(self) -> dict[str, TableUsage]:
        """Of all ranks."""
        total = self._ranks.sum
        return {path: usage(Reads(total(reads.counts), total(reads.weights))) for path, reads in self._sums.items()}
