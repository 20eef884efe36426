"""Columns: a value for each token of documents, computed ahead of training and kept in a file beside the data.

A file is safetensors:

    values         [N]      float32, one for each token of all documents end to end, marks included
    offsets        [D + 1]  int64: where each document begins in `values`
    contents       [D]      int64: hashes of the ids of each document
    names          [D]      int64: hashes of the names of documents, to word what is missing

and metadata that says how the documents were read. A document is found by its contents, whatever its name and order:
a file may hold more documents than a run reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .checkpoint import TEMPORARY, why_not_written
from .errors import RuntimeFault

FORMAT = "weft column 1"


@dataclass(frozen=True)
class ColumnOrigin:
    """How values were made. `window` 0: each document was read from its start; else in windows of so many tokens, each
    from its own start."""

    name: str  # the value: `surprise`
    tokens: str  # digest of the vocabulary
    begin_mark: bool
    window: int
    weights: str  # hash of the weights that computed it


@dataclass(frozen=True, eq=False)
class Column:
    """A column file, read."""

    path: Path
    origin: ColumnOrigin
    values: np.ndarray
    offsets: np.ndarray
    contents: np.ndarray
    names: np.ndarray

    @cached_property
    def _places(self) -> dict[int, int]:
        return {int(content): index for index, content in enumerate(self.contents)}

    def aligned(self, names: Sequence[str], documents: Sequence[np.ndarray]) -> np.ndarray:
        """[tokens]: the values of these documents (ids with their marks) end to end."""
        parts = []
        for name, ids in zip(names, documents, strict=True):
            index = self._places.get(content_hash(ids))
            if index is None:
                known = name_hash(name) in set(self.names.tolist())
                what = f"{name} has changed since it was made" if known else f"it has no values for {name}"
                raise RuntimeFault(f"{self.path} does not fit the data: {what} (make it again: weft entropies)")
            part = self.values[self.offsets[index] : self.offsets[index + 1]]
            if len(part) != len(ids):
                raise RuntimeFault(f"{self.path} is damaged: it has {len(part)} values for the {len(ids)} of {name}")
            parts.append(part)
        return np.concatenate(parts)


def content_hash(ids: np.ndarray) -> int:
    """Of a document's ids, whatever integers hold them."""
    return _hash(np.ascontiguousarray(ids, dtype="<i8").tobytes())


def name_hash(name: str) -> int:
    return _hash(name.encode("utf-8", "surrogateescape"))


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def write_column(
    path: Path,
    origin: ColumnOrigin,
    names: Sequence[str],
    documents: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
) -> None:
    """Writes the file whole, or leaves what was there."""
    arrays = {
        "values": np.concatenate(values).astype(np.float32),
        "offsets": np.cumsum([0, *map(len, values)], dtype=np.int64),
        "contents": np.array([content_hash(ids) for ids in documents], dtype=np.int64),
        "names": np.array([name_hash(name) for name in names], dtype=np.int64),
    }
    metadata = {"format": FORMAT, **{key: str(value) for key, value in asdict(origin).items()}}
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        save_file(arrays, temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise RuntimeFault(f"{path} could not be written: {why_not_written(error, path.parent)}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_column(path: Path) -> Column:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise RuntimeFault(f"{path} is not a file of `weft entropies`")
            arrays = {name: file.get_tensor(name) for name in ("values", "offsets", "contents", "names")}
        begin_mark = metadata["begin_mark"] == "True"
        window = int(metadata["window"])
        origin = ColumnOrigin(metadata["name"], metadata["tokens"], begin_mark, window, metadata["weights"])
    except OSError as error:
        raise RuntimeFault(f"{path} cannot be read: {error.strerror or 'there is no such file'}") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise RuntimeFault(f"{path} is damaged, or no file of `weft entropies`: {str(error).splitlines()[0]}") from None
    column = Column(path, origin, **arrays)
    _check(column)
    return column


def _check(column: Column) -> None:
    offsets, count = column.offsets, len(column.contents)
    fits = offsets.ndim == column.values.ndim == 1 and len(offsets) == count + 1 == len(column.names) + 1
    if not fits or offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != len(column.values):
        raise RuntimeFault(f"{column.path} is damaged: its offsets do not fit its values")


def check_reading(column: Column, tokens: str, begin_mark: bool, max_length: int) -> None:
    """Raises when a run reads documents in another way than the column was made."""
    origin = column.origin
    found = {"vocabulary": tokens, "begin_mark": begin_mark}
    for word, own, wanted in (
        ("vocabulary", origin.tokens, found["vocabulary"]),
        ("begin_mark", origin.begin_mark, found["begin_mark"]),
    ):
        if own != wanted:
            raise RuntimeFault(f"{column.path} does not fit the run: it was made with {word} {own}, not {wanted}")
    if origin.window not in (0, max_length):
        raise RuntimeFault(
            f"{column.path} does not fit the run: it was made for windows of {origin.window} tokens (max_length), "
            f"not {max_length}"
        )
