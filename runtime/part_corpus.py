"""A corpus of documents with parts: read, checked, cut into examples, hashed.

Every picture and array is opened once before the first step, so that a damaged one is a line at the start and not in
the night. What fits into `MOST_BYTES_KEPT` stays in memory; the rest is read again for each batch, which is what a file
of latents is made for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from .data import Corpus, DataManifest, DataOptions, Windows, hold_out, window_ids
from .documents import kind_of
from .errors import RuntimeFault
from .examples import Example, InOrder, Item, Marks, Orders, Run, Words, cut_runs, pair_of
from .feeds import Feeds, ItemFeed, ValueFeed
from .interleaved import MediaPart, Part, PartDocument, TextPart, read_part_documents
from .latent_scale import LatentScale, read_scale
from .media import MediaFile, as_numbers, read_item
from .tokens import Tokens, check_ids

CAP = "cap"  # the input that is told how far the noise of an example's pictures goes
MOST_BYTES_KEPT = 2**31
DOCUMENTS_PER_ENCODE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class PartCorpus(Corpus):
    """`examples` are laid out anew in each epoch; `begins` of its windows are their numbers, `lengths` their rows in
    epoch 0. `store` has the items."""

    feeds: Feeds
    examples: tuple[Example, ...]
    store: ItemStore
    orders: Orders


class ItemStore:
    """Items by number. A file that is named twice is one item."""

    def __init__(self) -> None:
        self._files: list[tuple[MediaFile, ItemFeed]] = []
        self._numbers: dict[tuple[MediaFile, str], int] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0
        self.rows: list[int] = []
        self.digests: dict[str, str] = {}  # of files, by their stable names
        self.scales: set[LatentScale] = set()  # of the files of latents among them
        self._hashed: dict[str, str] = {}

    def add(self, part: MediaPart, feed: ItemFeed, place: str) -> Item:
        number = self._numbers.get((part.file, part.kind))
        if number is None:
            number = self._read(part, feed, place)
        return Item(part.kind, number, self.rows[number])

    def numbers(self, number: int) -> np.ndarray:
        """float32 of an item, or of its rows."""
        kept = self._kept.get(number)
        if kept is None:
            file, feed = self._files[number]
            try:
                kept = read_item(file, feed)
            except OSError as error:
                raise RuntimeFault(f"{file} cannot be read: {error.strerror or error}") from None
        return as_numbers(kept)

    def _read(self, part: MediaPart, feed: ItemFeed, place: str) -> int:
        try:
            found = read_item(part.file, feed)
            self.digests[part.name.partition("#")[0]] = self._digest(part.file)
        except OSError as error:
            raise RuntimeFault(f"{place}: {part.file} cannot be read: {error.strerror or error}") from None
        except RuntimeFault as fault:
            raise RuntimeFault(f"{place}: {fault}") from None
        number = self._numbers[part.file, part.kind] = len(self._files)
        self._files.append((part.file, feed))
        self.rows.append(len(found) if feed.rows is None else feed.rows)
        if self._bytes + found.nbytes <= MOST_BYTES_KEPT:
            self._kept[number] = found
            self._bytes += found.nbytes
        return number

    def _digest(self, file: MediaFile) -> str:
        path = str(file.path)
        if path not in self._hashed:
            with file.path.open("rb") as opened:
                self._hashed[path] = hashlib.file_digest(opened, "sha256").hexdigest()
            scale = read_scale(file.path) if file.item is not None else None
            self.scales |= {scale} if scale is not None else set()
        return self._hashed[path]


def load_part_corpus(
    options: DataOptions, feeds: Feeds, tokens: Tokens | None, marks: Marks, orders: Orders
) -> PartCorpus:
    """Reads everything `options` names. Each mistake in the data is one clear line. `tokens` None: there is no text."""
    reader = _Reader(options, feeds, tokens, marks)
    documents = read_part_documents(options.sources, feeds, options.format, options.field, options.suffixes)
    for group in iter(lambda: list(islice(documents, DOCUMENTS_PER_ENCODE)), []):
        reader.add(group)
    if not reader.names:
        wanted = " or ".join(feeds.kinds)
        raise RuntimeFault(f"no example in {', '.join(options.sources)}: {reader.empty} documents, none with {wanted}")
    windows = reader.windows(orders)
    train, held_out, by_window = hold_out(windows, reader.names, options.eval_fraction)
    return PartCorpus(
        np.empty(0, np.uint8),
        tuple(reader.names),
        train,
        held_out,
        reader.manifest(windows, orders),
        by_window,
        feeds=feeds,
        examples=tuple(reader.examples),
        store=reader.store,
        orders=orders,
    )


class _Reader:
    def __init__(self, options: DataOptions, feeds: Feeds, tokens: Tokens | None, marks: Marks) -> None:
        self.options = options
        self.feeds = feeds
        self.tokens = tokens
        self.marks = marks
        self.store = ItemStore()
        self.names: list[str] = []
        self.examples: list[Example] = []
        self.documents: list[int] = []  # of each example, the number of its document
        self.empty = 0
        self.sources: dict[str, hashlib._Hash] = {}

    def add(self, group: Sequence[PartDocument]) -> None:
        texts = [part for document in group for part in document.parts if isinstance(part, TextPart)]
        encoded = iter(self._encoded(texts))
        for document in group:
            self.sources.setdefault(document.source, hashlib.sha256()).update(_framed(document))
            runs = tuple(self._run(part, encoded, document.place) for part in document.parts)
            self._add(document, runs)

    def windows(self, orders: Orders) -> Windows:
        documents = np.array(self.documents)
        counts = np.bincount(documents)
        numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = window_ids(self.names, documents, numbers)
        rows = [one.laid(orders, 0, int(id_)).rows for one, id_ in zip(self.examples, ids, strict=True)]
        return Windows(np.arange(len(documents)), np.array(rows, np.int64), documents, numbers, ids)

    def manifest(self, windows: Windows, orders: Orders) -> DataManifest:
        options = self.options
        sources = {name: digest.hexdigest() for name, digest in self.sources.items()}
        files = tuple((sources | self.store.digests).items())
        read = (self.tokens.digest if self.tokens else "", options.max_length, options.eval_fraction)
        digest = hashlib.sha256(repr((read, self.feeds, _ids_of(self.marks), orders)).encode())
        for name, part in files:
            digest.update(f"\n{name} {part}".encode("utf-8", "surrogateescape"))
        scale = next(iter(self.store.scales)) if len(self.store.scales) == 1 else None
        return DataManifest(digest.hexdigest(), len(self.names), windows.token_count, files, scale)

    def _encoded(self, texts: Sequence[TextPart]) -> Iterator[np.ndarray]:
        filled = [part for part in texts if part.document.text]
        if filled and self.tokens is not None:
            ids = iter(self.tokens.encode_documents([part.document for part in filled]))
        else:
            ids = iter(())
        for part in texts:
            yield self._checked(part, next(ids)) if part.document.text else np.empty(0, np.int64)

    def _checked(self, part: TextPart, ids: np.ndarray) -> np.ndarray:
        assert self.tokens is not None
        feed = self.feeds.text_of(part.kind)
        assert feed is not None
        check_ids(ids, part.document, self.tokens, feed.vocab)
        return ids.astype(np.min_scalar_type(max(feed.vocab - 1, 0)))

    def _run(self, part: Part, encoded: Iterator[np.ndarray], place: str) -> Run:
        if isinstance(part, TextPart):
            return Words(part.kind, next(encoded))
        feed = self.feeds.item_of(part.kind)
        assert feed is not None
        return self.store.add(part, feed, place)

    def _add(self, document: PartDocument, runs: Sequence[Run]) -> None:
        filled = [run for run in runs if run.rows]
        if not filled:
            self.empty += 1
            return
        values = {feed.input: _value(feed, document) for feed in self.feeds.values if feed.input != CAP}
        self.names.append(document.name)
        for example in self._examples_of(document, filled, values):
            self.examples.append(example)
            self.documents.append(len(self.names) - 1)

    def _examples_of(self, document: PartDocument, runs: Sequence[Run], values: Mapping[str, Any]) -> Iterator[Example]:
        longest = self.options.max_length
        if document.is_pair and len(runs) == 2:
            caption, item = runs
            assert isinstance(caption, Words)
            assert isinstance(item, Item)
            yield pair_of(caption, item, self.marks, values, longest)
            return
        for window in cut_runs(runs, self.marks, longest):
            yield InOrder(window, values)


def _value(feed: ValueFeed, document: PartDocument) -> float | int:
    """What a record says for an input of one value."""
    if feed.input not in document.values:
        raise RuntimeFault(f"{document.place}: no field {feed.input!r}, which an input of that name is given")
    found = document.values[feed.input]
    if feed.members and isinstance(found, str):
        if found not in feed.members:
            known = ", ".join(feed.members)
            raise RuntimeFault(f"{document.place}: the field {feed.input!r} is {found!r}, not one of {known}")
        return feed.members.index(found)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if not is_number or (feed.is_whole and not isinstance(found, int)):
        wanted = " or ".join(feed.members) or ("a whole number" if feed.is_whole else "a number")
        raise RuntimeFault(f"{document.place}: the field {feed.input!r} is {kind_of(found)}, not {wanted}")
    if feed.limit and not 0 <= found < feed.limit:
        raise RuntimeFault(f"{document.place}: the field {feed.input!r} is {found}, not in 0 .. {feed.limit - 1}")
    return found


def _framed(document: PartDocument) -> bytes:
    """What a document says, files by their names: their contents are hashed by themselves."""
    parts = [(part.kind, part.document.text if isinstance(part, TextPart) else part.name) for part in document.parts]
    return repr((document.name, document.is_pair, parts, sorted(document.values.items()))).encode()


def _ids_of(marks: Marks) -> tuple[Any, ...]:
    return marks.begin, marks.end, sorted(marks.around.items())
