"""Examples with parts: which rows they have, in an order that may be drawn anew in each epoch.

A document of parts is rows in their order, with marks:

    BEGIN text OPEN <rows of a picture> CLOSE text END

A caption and its picture are an example of either order: mostly the caption first, so that pictures are learned from
words, else the picture first, so that words are. Now and then the caption is left out: `BEGIN OPEN <picture> CLOSE END`
teaches what guidance subtracts. The draws depend on the seed, the epoch and the example alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .data import mix


@dataclass(frozen=True)
class Orders:
    """How captions and pictures are laid out. Shares are of the examples; `noise_steps` is the length of the noise's
    schedule, and pictures that words follow get the first `early_noise` of it."""

    seed: int = 0
    picture_first: float = 0.2
    drop_caption: float = 0.1
    noise_steps: int = 1000
    early_noise: float = 0.5

    @property
    def early_cap(self) -> int:
        """One more than the last step of a picture that words follow: 501 of 1000."""
        return min(int(self.early_noise * self.noise_steps) + 1, self.noise_steps)


@dataclass(frozen=True, eq=False)
class Words:
    """Ids of one kind of text. `is_mark`: they were put there, and say nothing."""

    kind: str
    ids: np.ndarray
    is_mark: bool = False

    @property
    def rows(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Item:
    """A part that is no text: its number among all of the corpus, and how many rows it has."""

    kind: str
    number: int
    rows: int


Run = Words | Item


@dataclass(frozen=True)
class Marks:
    """Ids of marks: in front of and behind a document, and around items by their kind; empty where there is none."""

    kind: str  # of text
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    around: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def words(self, ids: Sequence[int]) -> tuple[Words, ...]:
        return (Words(self.kind, np.array(ids, np.int64), is_mark=True),) if ids else ()

    def marked(self, item: Item) -> tuple[Run, ...]:
        around = self.around.get(item.kind, ())
        return (*self.words(around[:1]), item, *self.words(around[1:]))


@dataclass(frozen=True, eq=False)
class Laid:
    """The rows of an example as it is in one epoch."""

    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        return sum(run.rows for run in self.runs)

    def items(self, kind: str) -> tuple[Item, ...]:
        return tuple(run for run in self.runs if isinstance(run, Item) and run.kind == kind)

    def is_early(self, kind: str) -> tuple[bool, ...]:
        """Of each item of a kind, whether words follow it."""
        last = max((i for i, run in enumerate(self.runs) if isinstance(run, Words) and not run.is_mark), default=-1)
        return tuple(i < last for i, run in enumerate(self.runs) if isinstance(run, Item) and run.kind == kind)


class Example(Protocol):
    """What is laid out once for an epoch."""

    @property
    def values(self) -> Mapping[str, Any]: ...

    def laid(self, orders: Orders, epoch: int, example_id: int) -> Laid: ...


@dataclass(frozen=True, eq=False)
class InOrder:
    """Rows as the document has them."""

    runs: tuple[Run, ...]
    values: Mapping[str, Any]

    def laid(self, orders: Orders, epoch: int, example_id: int) -> Laid:
        return Laid(self.runs)


@dataclass(frozen=True, eq=False)
class Pair:
    """A caption and an item."""

    caption: Words
    item: Item
    marks: Marks
    values: Mapping[str, Any]

    def laid(self, orders: Orders, epoch: int, example_id: int) -> Laid:
        order, drop = drawn(orders.seed, epoch, example_id, 2)
        item = self.marks.marked(self.item)
        if drop < orders.drop_caption:
            inside = item
        else:
            inside = (*item, self.caption) if order < orders.picture_first else (self.caption, *item)
        return Laid((*self.marks.words(self.marks.begin), *inside, *self.marks.words(self.marks.end)))


def drawn(seed: int, epoch: int, example_id: int, count: int) -> list[float]:
    """Numbers in 0 .. 1 that follow from their arguments alone."""
    with np.errstate(over="ignore"):
        salt = mix(mix(np.array([seed], np.uint64)) + np.uint64(epoch))
        # Hashed once more than the order of the epoch is, so that the place of an example in it says nothing here.
        own = mix(mix(np.array([example_id], np.uint64) ^ salt)) + np.arange(1, count + 1, dtype=np.uint64)
    return ((mix(own) >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()


def pair_of(caption: Words, item: Item, marks: Marks, values: Mapping[str, Any], max_length: int) -> Pair:
    """The caption is cut to what fits beside its item."""
    room = max_length - len(marks.begin) - len(marks.end) - sum(run.rows for run in marks.marked(item))
    return Pair(Words(caption.kind, caption.ids[: max(room, 0)]), item, marks, values)


def cut_runs(parts: Sequence[Run], marks: Marks, max_length: int) -> Iterator[tuple[Run, ...]]:
    """A document's rows in windows of at most `max_length`. Words are cut anywhere, an item with its marks nowhere;
    one that is longer is alone in its window."""
    window: list[Run] = []
    rows = 0
    for group in _groups(parts, marks):
        size = sum(run.rows for run in group)
        if isinstance(group[0], Words) and len(group) == 1:
            words, begun = group[0], 0
            while begun < words.rows:
                if rows == max_length:
                    yield tuple(window)
                    window, rows = [], 0
                piece = words.ids[begun : begun + max_length - rows]
                window.append(Words(words.kind, piece, words.is_mark))
                begun, rows = begun + len(piece), rows + len(piece)
            continue
        if window and rows + size > max_length:
            yield tuple(window)
            window, rows = [], 0
        window += group
        rows += size
        if rows >= max_length:
            yield tuple(window)
            window, rows = [], 0
    if window:
        yield tuple(window)


def _groups(parts: Sequence[Run], marks: Marks) -> Iterator[tuple[Run, ...]]:
    """What stays together: words one by one, items with their marks."""
    for words in marks.words(marks.begin):
        yield (words,)
    for part in parts:
        yield (part,) if isinstance(part, Words) else marks.marked(part)
    for words in marks.words(marks.end):
        yield (words,)
