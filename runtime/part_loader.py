"""Packed batches of examples with parts: tags along the rows, ids along the words, items end to end.

As loader.py, with one difference: how many rows an example has is drawn with its order, anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Windows
from .errors import RuntimeFault
from .examples import Laid, Words
from .feeds import ItemFeed, TextFeed, ValueFeed
from .loader import Batch, BatchPlan, TokenLoader
from .part_corpus import CAP, PartCorpus


@dataclass(frozen=True, eq=False, kw_only=True)
class PartBatch(Batch):
    """`tokens` are the tags of the rows. Items are read when they are asked for, so a rank reads those of its share."""

    corpus: PartCorpus
    laid: tuple[Laid, ...]
    values: tuple[Mapping[str, Any], ...]

    @property
    def given(self) -> tuple[Any, ...]:
        feeds = self.corpus.feeds
        made: dict[str, Any] = {}
        if feeds.tags is not None:
            made[feeds.tags] = (self.tokens, self.offsets)
        made |= {feed.input: self._words(feed) for feed in feeds.texts}
        made |= {feed.input: self._items(feed) for feed in feeds.items}
        made |= {feed.input: self._values(feed) for feed in feeds.values}
        return tuple(made[name] for name in feeds.order)

    def _slice(self, first: int, last: int) -> PartBatch:
        part = super()._slice(first, last)
        return replace(
            self,
            tokens=part.tokens,
            offsets=part.offsets,
            example_ids=part.example_ids,
            labels=part.labels,
            laid=self.laid[first:last],
            values=self.values[first:last],
        )

    def _words(self, feed: TextFeed) -> tuple[Tensor, Tensor]:
        """int64 [words], and where those of each example begin."""
        runs = [[run.ids for run in _words_of(laid, feed.kinds)] for laid in self.laid]
        ids = np.concatenate([np.empty(0, np.int64), *(part for parts in runs for part in parts)])
        counts = [sum(map(len, parts)) for parts in runs]
        return torch.from_numpy(ids.astype(np.int64)), _offsets(counts)

    def _items(self, feed: ItemFeed) -> tuple[Tensor, Tensor]:
        """float32 [items or their rows, *shape], and where those of each example begin."""
        items = [laid.items(feed.kind) for laid in self.laid]
        numbers = [self.corpus.store.numbers(item.number) for own in items for item in own]
        empty = np.empty((0, *feed.shape), np.float32)
        if feed.is_rows:
            return torch.from_numpy(np.concatenate([empty, *numbers])), _offsets(
                [sum(item.rows for item in own) for own in items]
            )
        stacked = np.stack(numbers) if numbers else empty
        return torch.from_numpy(stacked), _offsets([len(own) for own in items])

    def _values(self, feed: ValueFeed) -> Any:
        if feed.input == CAP:
            return self._caps(feed)
        numbers = [values[feed.input] for values in self.values]
        return torch.tensor(numbers, dtype=torch.int64 if feed.is_whole else torch.float64)

    def _caps(self, feed: ValueFeed) -> Any:
        """The exclusive upper bound of the step of the noise, of examples or of their items."""
        orders = self.corpus.orders
        kinds = [one.kind for one in self.corpus.feeds.items if feed.of in (None, one.kind)]
        early = [[flag for kind in kinds for flag in laid.is_early(kind)] for laid in self.laid]
        if feed.of is None:
            return torch.tensor([orders.early_cap if any(flags) else orders.noise_steps for flags in early])
        caps = [orders.early_cap if flag else orders.noise_steps for flags in early for flag in flags]
        return torch.tensor(caps, dtype=torch.int64), _offsets(list(map(len, early)))


class PartLoader(TokenLoader):
    """As TokenLoader, on a corpus of documents with parts."""

    def __init__(self, corpus: PartCorpus, plan: BatchPlan) -> None:
        if plan.patches is not None:
            raise RuntimeFault("patches_per_step cuts text; this objective takes examples with parts, which stay whole")
        super().__init__(corpus, plan)
        self.parts = corpus

    def next_batch(self) -> PartBatch:
        windows, plan = self.parts.train, self.plan
        taken: list[_Taken] = []
        rows = 0
        while plan.examples is None or len(taken) < plan.examples:
            one = _take(self.parts, windows, int(self._order[self.position]), self.epoch)
            if taken and plan.tokens is not None and rows + one.laid.rows > plan.tokens:
                break
            taken.append(one)
            rows += one.laid.rows
            self._advance()
        return _packed(self.parts, taken)


def pack_parts(corpus: PartCorpus, windows: Windows, indices: list[int]) -> PartBatch:
    """Examples as they are in epoch 0: for evaluation, always the same."""
    return _packed(corpus, [_take(corpus, windows, index, 0) for index in indices])


@dataclass(frozen=True)
class _Taken:
    laid: Laid
    values: Mapping[str, Any]
    id: int
    label: str


def _take(corpus: PartCorpus, windows: Windows, index: int, epoch: int) -> _Taken:
    example, own = corpus.examples[int(windows.begins[index])], int(windows.ids[index])
    return _Taken(example.laid(corpus.orders, epoch, own), example.values, own, corpus.label(windows, index))


def _packed(corpus: PartCorpus, taken: Sequence[_Taken]) -> PartBatch:
    tags = [_tags(corpus, one.laid) for one in taken]
    return PartBatch(
        tokens=torch.from_numpy(np.concatenate(tags)),
        offsets=_offsets([one.laid.rows for one in taken]),
        example_ids=torch.tensor([one.id for one in taken], dtype=torch.int64),
        labels=tuple(one.label for one in taken),
        corpus=corpus,
        laid=tuple(one.laid for one in taken),
        values=tuple(one.values for one in taken),
    )


def _tags(corpus: PartCorpus, laid: Laid) -> np.ndarray:
    """int64 [rows]; zeros where the objective has no tags."""
    members = corpus.feeds.members
    tags = [members.index(run.kind) if members else 0 for run in laid.runs]
    return np.repeat(np.array(tags, np.int64), [run.rows for run in laid.runs])


def _words_of(laid: Laid, kinds: Sequence[str]) -> Iterator[Words]:
    return (run for run in laid.runs if isinstance(run, Words) and run.kind in kinds)


def _offsets(counts: Sequence[int]) -> Tensor:
    """int32 [examples + 1]"""
    offsets = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    return torch.from_numpy(offsets)
