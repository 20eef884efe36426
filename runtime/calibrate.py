"""The threshold that gives a wanted mean patch length.

A patch ends after a token whose score is above the threshold (strictly), after the first token of an example, where
the rule says so anyway, and where the example ends. Those forced ends are counted, so the mean is that of the patches
a model cuts, not the quantile of the scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..codegen.functions import cuts
from .cut_lengths import CutStatistics, count_lengths, segment_lengths
from .errors import RuntimeFault
from .packed import offsets_of

Rule = Literal["entropy", "monotonic"]


@dataclass(frozen=True)
class Calibration:
    """`statistics` are those of the sample cut at `threshold`."""

    rule: Rule
    wanted: float
    threshold: float
    statistics: CutStatistics


@dataclass(frozen=True, eq=False)
class _Sample:
    """Scores of all examples end to end; where an end is forced whatever the threshold."""

    scores: np.ndarray
    forced: torch.Tensor
    offsets: torch.Tensor
    row_example: torch.Tensor
    longest: int


def calibrate(entropies: Sequence[np.ndarray], wanted: float, rule: Rule = "entropy", longest: int = 0) -> Calibration:
    """The threshold whose mean patch length over these examples is nearest to `wanted`.

    `monotonic` compares the rise from the token before, and always ends a patch after the second token. `longest` is
    the most tokens of a patch; 0: any number.
    """
    sample = _sample(entropies, rule, longest)
    candidates = np.unique(sample.scores[~sample.forced.numpy()])
    if not len(candidates):
        raise RuntimeFault("the sample is too short to calibrate a threshold: no patch end depends on it")
    # Below the lowest score everything is cut. Thresholds are scores: `>` leaves out the one it equals.
    thresholds = np.concatenate([[np.nextafter(candidates[0], np.float32(-np.inf))], candidates])
    tokens = len(sample.scores)
    # The number of patches falls as the threshold rises, also under a longest length.
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        if tokens / _statistics(sample, thresholds[middle]).segments >= wanted:
            high = middle
        else:
            low = middle + 1
    found = [(thresholds[i], _statistics(sample, thresholds[i])) for i in (low - 1, low) if i >= 0]
    threshold, statistics = min(found, key=lambda one: abs(one[1].mean - wanted))
    return Calibration(rule, wanted, float(threshold), statistics)


def _sample(entropies: Sequence[np.ndarray], rule: Rule, longest: int) -> _Sample:
    lengths = [len(values) for values in entropies]
    offsets = offsets_of(lengths)
    values = np.concatenate(entropies)
    begins = offsets[:-1].numpy()
    forced = torch.zeros(len(values), dtype=torch.bool)
    forced[torch.from_numpy(begins).long()] = True
    if rule == "monotonic":
        values = np.diff(values, prepend=values[:1])
        second = begins[np.array(lengths) > 1] + 1
        forced[torch.from_numpy(second).long()] = True
    row_example = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return _Sample(values, forced, offsets, row_example, longest)


def _statistics(sample: _Sample, threshold: float) -> CutStatistics:
    ends = torch.from_numpy(sample.scores > threshold) | sample.forced
    if sample.longest:
        ends = cuts.capped(ends, sample.row_example, sample.longest)
    return count_lengths(segment_lengths(ends, None, sample.offsets)).statistics()
