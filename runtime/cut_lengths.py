"""How long the segments of cuts are: what a spec with patches is looked at by while it trains.

Letters: N rows of all examples, B examples, P segments of all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..codegen.functions import cuts
from ..codegen.lower import live_nodes, loss_values
from ..codegen.ops.cut import SegmentAttrs
from ..dsl.causality import makers
from ..dsl.frontier_elements import owner_of
from ..dsl.program import Node, Program, Weight

# The longest segment of each bin of a histogram; the last bin has no end.
BINS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 64, 128)


@dataclass(frozen=True)
class CutStatistics:
    """Segments of one cut. `histogram` has the number of segments by length, `9-12` for example; bins without a
    segment are left out."""

    segments: int
    rows: int
    histogram: Mapping[str, int]

    @property
    def mean(self) -> float:
        """Rows of a segment on average; 0 where there is none."""
        return self.rows / self.segments if self.segments else 0.0

    def to_json(self) -> dict[str, object]:
        return {"segments": self.segments, "mean": self.mean, "histogram": dict(self.histogram)}


def bin_names() -> tuple[str, ...]:
    """`1`, `2`, .. `9-12`, .. `129-`."""
    lows = [1, *(high + 1 for high in BINS)]
    return (
        *(str(low) if low == high else f"{low}-{high}" for low, high in zip(lows, BINS, strict=False)),
        f"{lows[-1]}-",
    )


@dataclass(frozen=True)
class CountedLengths:
    """Counts that can be added: segments in each bin, and rows in all."""

    counts: Tensor  # int64 [bins]
    rows: Tensor  # int64 []

    def __add__(self, other: CountedLengths) -> CountedLengths:
        return CountedLengths(self.counts + other.counts, self.rows + other.rows)

    def over(self, total: Callable[[Tensor], Tensor]) -> CountedLengths:
        """After `total` has added up what each of several ranks has."""
        return CountedLengths(total(self.counts), total(self.rows))

    def statistics(self) -> CutStatistics:
        counts = self.counts.tolist()
        shown = {name: count for name, count in zip(bin_names(), counts, strict=True) if count}
        return CutStatistics(sum(counts), int(self.rows), shown)


def count_lengths(lengths: Tensor) -> CountedLengths:
    """int64 [P] to counts by bin."""
    bins = torch.bucketize(lengths, torch.tensor(BINS, device=lengths.device))
    return CountedLengths(torch.bincount(bins, minlength=len(BINS) + 1), lengths.sum())


def segment_lengths(ends: Tensor, inside: Tensor | None, offsets: Tensor) -> Tensor:
    """int64 [P] of segments that end after rows `ends` [N]; what is open at the end of an example is one, too."""
    counts = (offsets[1:] - offsets[:-1]).to(torch.int64)
    row_example = torch.repeat_interleave(torch.arange(len(counts), device=ends.device), counts)
    number = cuts.own(cuts.first_rows(ends, inside, row_example), inside)
    return torch.bincount(number[number >= 0])


# -- of programs -----------------------------------------------------------------------------------


def cuts_of(program: Program) -> dict[str, Node]:
    """The `segment` statements that the program's results depend on, by the name of their cut. A cut that is made
    twice (a block called twice) is numbered. Segments that all have one length, of pictures, are left out."""
    wanted = (*(value for _, value in program.outputs), *loss_values(program.losses))
    found: dict[str, Node] = {}
    for node in live_nodes(program, wanted):
        if isinstance(node.attrs, SegmentAttrs) and owner_of(node.attrs.cut) is None:
            name, number = node.attrs.cut.name, 1
            while name in found:
                number += 1
                name = f"{node.attrs.cut.name}.{number}"
            found[name] = node
    return found


def with_cuts(program: Program, found: Mapping[str, Node]) -> Program:
    """The program, whose outputs are the flags of these cuts beside its losses."""
    shown = [(f"cut {name} {i}", value) for name, node in found.items() for i, value in enumerate(node.outputs)]
    return replace(program, outputs=tuple(shown))


def reads_weights(program: Program) -> bool:
    """Whether the program's outputs depend on weights."""
    nodes = live_nodes(program, (value for _, value in program.outputs))
    return any(isinstance(value, Weight) for node in nodes for value in node.inputs)


def lengths_of(found: Mapping[str, Node], flags: Sequence[Tensor], offsets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The lengths of all segments by cut, from the flags that `with_cuts` returns."""
    left = iter(flags)
    lengths = {}
    for name, node in found.items():
        given = [next(left) for _ in node.outputs]
        assert isinstance(node.attrs, SegmentAttrs)
        inside = given[1] if len(given) > 1 else None
        lengths[name] = segment_lengths(given[0], inside, offsets[node.attrs.along.name])
    return lengths


def cross_entropy_of(program: Program) -> str | None:
    """The one loss that the block `cross_entropy` makes: nats of the next token. None where there is not just one."""
    made = makers(program)
    names = [term.name for term in program.losses if _is_made_in(made.get(term.value), "cross_entropy")]
    return names[0] if len(names) == 1 else None


def _is_made_in(node: Node | None, block: str) -> bool:
    return node is not None and bool(node.scope) and node.scope[-1].name == block


class _Counted(Protocol):
    """Counts that can be added to others of their kind."""

    def __add__(self, other: Self, /) -> Self: ...


_Counts = TypeVar("_Counts", bound=_Counted)


def add_counts(counted: Iterable[Mapping[str, _Counts]]) -> dict[str, _Counts]:
    """Counts by name, of micro-batches or of several readers, added."""
    sums: dict[str, _Counts] = {}
    for counts in counted:
        for name, value in counts.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums
