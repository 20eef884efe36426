"""Examples to packed batches, resumable at any step.

A step's batch is the next examples of a shuffled order, as many as fit the budget, laid end to end; where an epoch
ends, the next one's order goes on in the same batch. The order is a sort by a hash of (seed, epoch, example), so the
whole state is two numbers: epoch and position. Nothing is buffered or read ahead, which is what makes a resumed run
see the batches of an uninterrupted one.

**Patches.** With `BatchPlan.patches`, a step has exactly so many segments of a cut: the example that has more than are
left is cut where one ends, and the next step begins with its rest (the third number of the state). The rest is an
example of its own: its first row begins a segment, as the first row of every example does.

**Ranks.** Every rank makes the same global batch and computes its share of it (`Batch.share`): contiguous examples of
about equal rows. The global batch, and with it the sums of the losses, does not depend on the number of ranks, nor does
the state. Where a batch has fewer examples than there are ranks, those that are left without compute one that counts
for nothing, because the others wait for their part of the weights.

`TokenLoader` has the protocol of torchdata's stateful loaders (`__iter__`, `state_dict`, `load_state_dict`) and can
be wrapped by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Corpus, DataManifest, Windows, explain_change, mix
from .errors import RuntimeFault

# A manifest that lists more files than this is saved as its hash alone: it lies in every checkpoint.
MOST_FILES_LISTED = 2000


@dataclass(frozen=True)
class BatchPlan:
    """How many examples make a step: at most `tokens` rows in all and at most `examples`; None is no limit. `patches`
    segments, with `segments_of` to count them."""

    tokens: int | None
    examples: int | None
    seed: int
    shuffle: bool = True
    patches: int | None = None


# int64 [segments]: how many rows each segment of one example has, from its tokens and columns.
SegmentsOf = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """Packed examples: rows end to end, and where each begins. `labels` name the examples in messages; `columns` are
    optional inputs along the same rows."""

    tokens: Tensor  # int64 [rows]
    offsets: Tensor  # int32 [examples + 1]
    example_ids: Tensor  # int64 [examples]
    labels: tuple[str, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # [rows] each
    stands_in: bool = False  # computed, and counts for nothing

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def examples(self) -> int:
        return len(self.labels)

    @property
    def given(self) -> tuple[Any, ...]:
        """What the inputs of the objective are given, in their order."""
        return ((self.tokens, self.offsets),)

    def split(self, parts: int) -> tuple[Batch, ...]:
        """`parts` batches of contiguous examples with about equal rows; some may be empty."""
        if parts == 1:
            return (self,)
        offsets = self.offsets.numpy(force=True).astype(np.int64)
        # An example goes where its middle row lies; doubled, so that middles stay whole numbers.
        middles = offsets[:-1] + offsets[1:]
        owners = middles * parts // max(2 * self.rows, 1)
        bounds = np.searchsorted(owners, np.arange(parts + 1))
        return tuple(self._slice(int(a), int(b)) for a, b in pairwise(bounds))

    def share(self, rank: int, ranks: int, parts: int = 1) -> tuple[Batch, ...]:
        """What one of several ranks computes, in at most `parts` micro-batches: as many on each of them."""
        every = self.split(parts * ranks)
        together = [every[i : i + ranks] for i in range(0, len(every), ranks)]
        return tuple(
            part[rank] if part[rank].examples else self._stand_in()
            for part in together
            if any(one.examples for one in part)
        )

    def _stand_in(self) -> Batch:
        """The shortest example."""
        place = int((self.offsets[1:] - self.offsets[:-1]).argmin())
        return replace(self._slice(place, place + 1), stands_in=True)

    def _slice(self, first: int, last: int) -> Batch:
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        return Batch(
            self.tokens[begin:end],
            self.offsets[first : last + 1] - begin,
            self.example_ids[first:last],
            self.labels[first:last],
            {name: values[begin:end] for name, values in self.columns.items()},
        )


class TokenLoader:
    """An endless stream of training batches. `next_batch` advances; the state is that of the batch to come."""

    def __init__(
        self,
        corpus: Corpus,
        plan: BatchPlan,
        segments_of: SegmentsOf | None = None,
    ) -> None:
        assert (plan.patches is None) == (segments_of is None), "a plan by patches needs to count them"
        self.segments_of = segments_of
        self.begun = 0  # rows of the example at `position` that have been taken; 0 without a plan by patches
        self.corpus = corpus
        self.plan = plan
        self.epoch = 0
        self.position = 0
        self._order = self._order_of(0)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> Batch:
        if self.segments_of is not None:
            return self._next_by_patches(self.segments_of)
        windows, plan = self.corpus.train, self.plan
        taken: list[int] = []
        rows = 0
        while plan.examples is None or len(taken) < plan.examples:
            index = int(self._order[self.position])
            length = int(windows.lengths[index])
            # A first example over the budget by itself is taken all the same: the run could not go on otherwise.
            if taken and plan.tokens is not None and rows + length > plan.tokens:
                break
            taken.append(index)
            rows += length
            self._advance()
        return pack_windows(self.corpus, windows, taken)

    def _next_by_patches(self, segments_of: SegmentsOf) -> Batch:
        windows, plan = self.corpus.train, self.plan
        assert plan.patches is not None
        taken: list[_Piece] = []
        rows = patches = 0
        while patches < plan.patches and (plan.examples is None or len(taken) < plan.examples):
            index = int(self._order[self.position])
            piece = _piece(self.corpus, windows, index, self.begun)
            values = {name: _rows(column, (piece,)) for name, column in self.corpus.columns.items()}
            ends = np.cumsum(segments_of(_ids(self.corpus, (piece,)), values).numpy(force=True))
            count = min(plan.patches - patches, len(ends))
            if plan.tokens is not None:
                fitting = int(np.searchsorted(ends, plan.tokens - rows, side="right"))
                # A first segment over the budget by itself is taken all the same.
                count = min(count, fitting if taken else max(fitting, 1))
            if count == 0:
                break
            length = int(ends[count - 1])
            taken.append(replace(piece, length=length))
            rows, patches = rows + length, patches + count
            if count == len(ends):
                self.begun = 0
                self._advance()
            else:
                self.begun += length
                if patches < plan.patches:
                    break  # it is the budget of rows that is full
        return _packed(self.corpus, taken)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        manifest = self.corpus.manifest
        files = [list(entry) for entry in manifest.files] if len(manifest.files) <= MOST_FILES_LISTED else []
        data = {"hash": manifest.hash, "documents": manifest.documents, "tokens": manifest.tokens, "files": files}
        begun = {"begun": self.begun} if self.plan.patches is not None else {}
        return {"epoch": self.epoch, "position": self.position, **begun, "seed": self.plan.seed, "data": data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state. Data that has changed since is an error."""
        try:
            data = state["data"]
            files = tuple((str(name), str(digest)) for name, digest in data["files"])
            saved = DataManifest(data["hash"], data["documents"], data["tokens"], files)
            epoch, position, seed = int(state["epoch"]), int(state["position"]), int(state["seed"])
            begun = int(state["begun"]) if self.plan.patches is not None else 0
        except (KeyError, TypeError, ValueError):
            raise RuntimeFault("the saved state of the data loader is damaged") from None
        if saved.hash != self.corpus.manifest.hash:
            what = explain_change(saved, self.corpus.manifest) if files else "it was other files"
            raise RuntimeFault(f"the data is not what this run was trained on: {what} (restore it, or start a new run)")
        if seed != self.plan.seed or not 0 <= position < len(self.corpus.train):
            raise RuntimeFault(
                f"the saved state of the data loader is of another run (seed {seed}, position {position})"
            )
        self.epoch, self.position, self.begun = epoch, position, begun
        self._order = self._order_of(epoch)

    def _advance(self) -> None:
        self.position += 1
        if self.position == len(self._order):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._order_of(self.epoch)

    def _order_of(self, epoch: int) -> np.ndarray:
        windows = self.corpus.train
        if not self.plan.shuffle:
            return np.arange(len(windows))
        # Our own hash and a stable sort: numpy does not promise that its shuffles stay the same over versions.
        salt = mix(mix(np.array([self.plan.seed], np.uint64)) + np.uint64(epoch))
        return np.argsort(mix(windows.ids.astype(np.uint64) ^ salt), kind="stable")


Pack = Callable[[Any, Windows, list[int]], Batch]


def held_out_batches(
    corpus: Corpus, plan: BatchPlan, most_tokens: int | None = None, pack: Pack | None = None
) -> tuple[Batch, ...]:
    """The same evaluation batches every time: held-out examples in an order of their hash, up to `most_tokens` rows."""
    windows, pack = corpus.held_out, pack or pack_windows
    batches: list[Batch] = []
    taken: list[int] = []
    rows = total = 0
    # By hash, so that a cut leaves a fair sample of the documents.
    for index in np.argsort(windows.ids, kind="stable"):
        length = int(windows.lengths[index])
        if most_tokens is not None and total and total + length > most_tokens:
            break
        is_full = (plan.tokens is not None and rows + length > plan.tokens) or len(taken) == plan.examples
        if taken and is_full:
            batches.append(pack(corpus, windows, taken))
            taken, rows = [], 0
        taken.append(int(index))
        rows += length
        total += length
    if taken:
        batches.append(pack(corpus, windows, taken))
    return tuple(batches)


def pack_windows(corpus: Corpus, windows: Windows, indices: list[int]) -> Batch:
    """The examples end to end."""
    return _packed(corpus, [_piece(corpus, windows, index, 0) for index in indices])


@dataclass(frozen=True)
class _Piece:
    """An example: rows of the corpus, from `begin`."""

    begin: int
    length: int
    id: int
    label: str


def _piece(corpus: Corpus, windows: Windows, index: int, begun: int) -> _Piece:
    """A window without its first `begun` rows."""
    own, label = int(windows.ids[index]), corpus.label(windows, index)
    if begun:
        # Draws follow the id: what begins later is another example.
        own = int(mix(np.array([own ^ (begun << 1)], np.uint64))[0] >> np.uint64(1))
        label += f"+{begun}"
    return _Piece(int(windows.begins[index]) + begun, int(windows.lengths[index]) - begun, own, label)


def _rows(values: np.ndarray, pieces: Sequence[_Piece]) -> Tensor:
    return torch.from_numpy(np.concatenate([values[p.begin : p.begin + p.length] for p in pieces]))


def _ids(corpus: Corpus, pieces: Sequence[_Piece]) -> Tensor:
    return _rows(corpus.tokens, pieces).to(torch.int64)


def _packed(corpus: Corpus, pieces: Sequence[_Piece]) -> Batch:
    offsets = np.zeros(len(pieces) + 1, dtype=np.int32)
    np.cumsum([piece.length for piece in pieces], out=offsets[1:])
    return Batch(
        _ids(corpus, pieces),
        torch.from_numpy(offsets),
        torch.tensor([piece.id for piece in pieces], dtype=torch.int64),
        tuple(piece.label for piece in pieces),
        {name: _rows(values, pieces) for name, values in corpus.columns.items()},
    )
