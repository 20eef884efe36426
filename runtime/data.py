"""Documents to examples: encode, cut into windows, hold some out.

An example is a window of at most `max_length` tokens of one document; windows of a document follow each other without
overlap, the last may be short. Nothing is padded. The corpus lies in memory as one array of the smallest integers
that hold its ids (one byte per byte of text).

**Held-out split.** A document is held out when a hash of its name falls below `eval_fraction`: the choice depends on
nothing else, so adding files moves no document from one side to the other. With fewer than 20 documents whole
documents are too coarse, and windows are held out by the same rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from .columns import Column, check_reading
from .documents import Document, read_documents
from .errors import RuntimeFault
from .latent_scale import LatentScale
from .tokens import Tokens, check_ids

FEWEST_DOCUMENTS_TO_HOLD_OUT_WHOLE = 20
DOCUMENTS_PER_ENCODE = 256


@dataclass(frozen=True)
class DataOptions:
    """What decides the examples. All of it is part of the manifest's hash."""

    sources: tuple[str, ...]
    format: str = "auto"
    field: str = "text"
    suffixes: tuple[str, ...] = ()
    max_length: int = 1024
    eval_fraction: float = 0.05
    begin_mark: bool = False  # put the vocabulary's begin mark in front of every document


@dataclass(frozen=True)
class DataManifest:
    """What data a run reads. Equal hashes mean equal examples with equal ids."""

    hash: str
    documents: int
    tokens: int
    files: tuple[tuple[str, str], ...]  # name and hash of what was read from it
    latents: LatentScale | None = None  # where pictures are latents of one autoencoder


@dataclass(frozen=True, eq=False)
class Windows:
    """Examples as slices of the corpus, parallel arrays. `ids` are stable: hashes of document name and window."""

    begins: np.ndarray  # int64: first token in the corpus
    lengths: np.ndarray  # int64
    documents: np.ndarray  # int64: number of the document
    numbers: np.ndarray  # int64: number of the window in its document
    ids: np.ndarray  # int64, not negative

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def token_count(self) -> int:
        return int(self.lengths.sum())

    def keep(self, flags: np.ndarray) -> Windows:
        return Windows(
            self.begins[flags], self.lengths[flags], self.documents[flags], self.numbers[flags], self.ids[flags]
        )


@dataclass(frozen=True, eq=False)
class Corpus:
    """All tokens of all documents end to end, and the examples they are cut into. `columns` have a value for each
    token."""

    tokens: np.ndarray
    names: tuple[str, ...]
    train: Windows
    held_out: Windows
    manifest: DataManifest
    held_out_by_window: bool
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def label(self, windows: Windows, index: int) -> str:
        """What messages call an example: its document, and which window of it."""
        return f"{self.names[int(windows.documents[index])]}[{int(windows.numbers[index])}]"


def load_corpus(
    options: DataOptions, tokens: Tokens, vocab: int, columns: Mapping[str, Column] | None = None
) -> Corpus:
    """Reads everything `options` names. Each mistake in the data is one clear line."""
    for column in (columns or {}).values():
        check_reading(column, tokens.digest, options.begin_mark, options.max_length)
    names, encoded, files = encode_documents(options, tokens, vocab)
    aligned = {name: column.aligned(names, encoded) for name, column in (columns or {}).items()}
    # A column is data too: with other values a resumed run would be another one.
    hashes = files + tuple(
        (f"column {name}", hashlib.sha256(values.tobytes()).hexdigest()) for name, values in aligned.items()
    )
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    windows = cut_windows(names, lengths, options.max_length)
    train, held_out, by_window = hold_out(windows, names, options.eval_fraction)
    manifest = DataManifest(_hash_of(options, tokens, hashes), len(names), int(lengths.sum()), hashes)
    return Corpus(np.concatenate(encoded), tuple(names), train, held_out, manifest, by_window, aligned)


def encode_documents(
    options: DataOptions, tokens: Tokens, vocab: int
) -> tuple[list[str], list[np.ndarray], tuple[tuple[str, str], ...]]:
    """The names of all documents that are not empty, their ids with marks, and hashes of the files they are from."""
    documents = read_documents(options.sources, options.format, options.field, options.suffixes)
    names: list[str] = []
    encoded: list[np.ndarray] = []
    files: dict[str, hashlib._Hash] = {}
    empty = 0
    narrow = np.min_scalar_type(max(vocab - 1, 0))
    for group in _groups_of(documents, DOCUMENTS_PER_ENCODE):
        for document in group:
            files.setdefault(document.source_name, hashlib.sha256()).update(_framed(document))
        filled = [document for document in group if document.text]
        empty += len(group) - len(filled)
        for document, ids in zip(filled, tokens.encode_documents(filled), strict=True):
            check_ids(ids, document, tokens, vocab)
            names.append(document.name)
            encoded.append(_marked(ids, tokens, options.begin_mark).astype(narrow))
    if not names:
        raise RuntimeFault(f"no text in {', '.join(options.sources)}: {empty} documents, all empty")
    return names, encoded, tuple((name, digest.hexdigest()) for name, digest in files.items())


def cut_windows(names: Sequence[str], lengths: np.ndarray, max_length: int) -> Windows:
    """Windows of `max_length` tokens, the rest of each document as its last."""
    counts = -(-lengths // max_length)
    documents = np.repeat(np.arange(len(lengths)), counts)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.cumsum(lengths) - lengths
    begins = starts[documents] + numbers * max_length
    sizes = np.minimum(lengths[documents] - numbers * max_length, max_length)
    return Windows(begins, sizes, documents, numbers, window_ids(names, documents, numbers))


def window_ids(names: Sequence[str], documents: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Stable ids of windows, from the names of their documents and their numbers in them."""
    bases = np.array([_name_hash(name) for name in names], dtype=np.uint64)
    return (mix(bases[documents] + numbers.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def hold_out(windows: Windows, names: Sequence[str], fraction: float) -> tuple[Windows, Windows, bool]:
    """Training examples, held-out ones, and whether single windows (not whole documents) were held out."""
    by_window = len(names) < FEWEST_DOCUMENTS_TO_HOLD_OUT_WHOLE
    if fraction <= 0:
        return windows, windows.keep(np.zeros(len(windows), dtype=bool)), by_window
    if by_window:
        scores = mix(windows.ids.astype(np.uint64))
    else:
        # Mixed once more than for the ids, so that the split says nothing about draws made from them.
        scores = mix(mix(np.array([_name_hash(name) for name in names], dtype=np.uint64)))[windows.documents]
    # The lowest score is always out: a run that asks for evaluation gets some.
    out = (scores < np.uint64(min(fraction, 1.0) * (2**64 - 2**11))) | (scores == scores.min())
    if out.all():
        raise RuntimeFault(
            f"too little data: all of its {len(windows)} windows would be held out for evaluation (eval_fraction = "
            f"{fraction:g}; with 0 none is)"
        )
    return windows.keep(~out), windows.keep(out), by_window


def explain_change(saved: DataManifest, found: DataManifest) -> str:
    """One line on how the data differs from what a checkpoint was trained on."""
    before, after = dict(saved.files), dict(found.files)
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    changed = [name for name in before if name in after and before[name] != after[name]]
    for word, named in (("is missing", gone), ("is new", new), ("has changed", changed)):
        if named:
            more = len(gone) + len(new) + len(changed) - 1
            return f"{named[0]} {word}" + (f", and {more} more" if more else "")
    return "the files are the same, but they are read with other settings or in another order"


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64: a hash of 64-bit integers that never changes with a library's version."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _groups_of(documents: Iterator[Document], size: int) -> Iterable[list[Document]]:
    # Encoding in groups lets a tokenizer use all cores; a group at a time keeps texts out of memory.
    return iter(lambda: list(islice(documents, size)), [])


def _marked(ids: np.ndarray, tokens: Tokens, begin_mark: bool) -> np.ndarray:
    front = [tokens.begin] if begin_mark and tokens.begin is not None else []
    back = [tokens.end] if tokens.end is not None else []
    return np.concatenate([np.array(front, np.int64), ids, np.array(back, np.int64)])


def _framed(document: Document) -> bytes:
    # With its length in front, so that moving text from one document to the next changes the hash.
    return f"{document.name}\0{len(document.text)}\0".encode("utf-8", "surrogateescape") + document.text


def _hash_of(options: DataOptions, tokens: Tokens, files: tuple[tuple[str, str], ...]) -> str:
    digest = hashlib.sha256()
    parts = (tokens.digest, options.max_length, options.eval_fraction, options.begin_mark, *(part for _, part in files))
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()
