"""Where text comes from: files, folders, globs, JSONL and parquet to a stream of documents.

The order is fixed by the names alone, so every machine and every run reads the same sequence. What a document becomes
(bytes or tokens) is left to tokens.py.
"""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RuntimeFault

FORMATS = ("auto", "text", "jsonl", "parquet")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)


@dataclass(frozen=True)
class Document:
    """One text. `name` is stable across machines: it never holds the folder a source lies in."""

    name: str
    text: bytes
    file: str  # for messages
    row: int | None = None  # line of a JSONL file, row of a parquet file, from 1; None: the whole file

    @property
    def source_name(self) -> str:
        """The name of the file it was read from, as stable as `name`."""
        return self.name if self.row is None else self.name.rpartition(":")[0]

    def place(self, line: int) -> str:
        """Where `line` of the text is, as `file:line`."""
        if self.row is None:
            return f"{self.file}:{line}"
        return f"{self.file}:{self.row}" + (f" (line {line} of its text)" if line > 1 else "")


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `name` is relative to the source it was found in, beginning with that source's own name."""

    path: Path
    name: str


def find_files(sources: Sequence[str], suffixes: Sequence[str] = ()) -> tuple[SourceFile, ...]:
    """Files of all sources: sources as given, files of a folder or glob by name. Hidden ones are left out."""
    if not sources:
        raise RuntimeFault("no data: give at least one file, folder or glob")
    wanted = tuple(suffix if suffix.startswith(".") else f".{suffix}" for suffix in suffixes)
    found: list[SourceFile] = []
    for source in sources:
        files = _files_of(source)
        kept = [file for file in files if not wanted or file.path.name.endswith(wanted)]
        if not kept:
            why = f"none of its {len(files)} files ends in {' or '.join(wanted)}" if files else "there is no file in it"
            raise RuntimeFault(f"no data in {source}: {why}")
        found += kept
    return _with_distinct_names(found)


def read_documents(
    sources: Sequence[str], format: str = "auto", field: str = "text", suffixes: Sequence[str] = ()
) -> Iterator[Document]:
    """All documents of all sources. Empty ones are passed on: the caller counts them."""
    for file in find_files(sources, suffixes):
        try:
            yield from read_file(file, format, field)
        except OSError as error:
            raise RuntimeFault(f"{file.path} cannot be read: {error.strerror or error}") from None


def _files_of(source: str) -> list[SourceFile]:
    path = Path(source).expanduser()
    if path.is_file():
        return [SourceFile(path, path.name)]
    if path.is_dir():
        root = path.resolve().name
        inside = ((file.relative_to(path), file) for file in path.rglob("*"))
        visible = [(name, file) for name, file in inside if not _is_hidden(name) and file.is_file()]
        names = sorted((f"{root}/{name.as_posix()}", file) for name, file in visible)
        return [SourceFile(file, name) for name, file in names]
    if glob.has_magic(source):
        fixed = Path(*_parts_before_magic(path))
        matched = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matched if match.is_file()]
        return [SourceFile(file, file.relative_to(fixed).as_posix()) for file in files]
    near = near_name(path)
    raise RuntimeFault(f"no such data: {source}" + (f" (did you mean {near}?)" if near else ""))


def _parts_before_magic(path: Path) -> list[str]:
    parts = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.parts)


def near_name(path: Path) -> str | None:
    """A file beside it whose name is nearly the same."""
    if not path.parent.is_dir():
        return None
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return str(path.parent / near[0]) if near else None


def _with_distinct_names(files: list[SourceFile]) -> tuple[SourceFile, ...]:
    """Two sources may hold files of one name; the later ones are numbered, so that ids of documents stay distinct."""
    seen: dict[str, int] = {}
    distinct = []
    for file in files:
        count = seen[file.name] = seen.get(file.name, 0) + 1
        distinct.append(file if count == 1 else SourceFile(file.path, f"{file.name}~{count}"))
    return tuple(distinct)


def read_file(file: SourceFile, format: str, field: str) -> Iterator[Document]:
    """The documents of one file."""
    suffix = file.path.suffix.lower()
    if format == "jsonl" or (format == "auto" and suffix in JSONL_SUFFIXES):
        return _read_jsonl(file, field)
    if format == "parquet" or (format == "auto" and suffix in PARQUET_SUFFIXES):
        return _read_parquet(file, field)
    return iter([Document(file.name, file.path.read_bytes(), str(file.path))])


def _read_jsonl(file: SourceFile, field: str) -> Iterator[Document]:
    for number, record in json_records(file, f"with the field {field!r}"):
        place = f"{file.path}:{number}"
        if field not in record:
            raise RuntimeFault(f"{place}: {_no_field(field, list(record))}")
        yield Document(f"{file.name}:{number}", text_of(record[field], field, place), str(file.path), number)


def json_records(file: SourceFile, wanted: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file, each with the number of its line. `wanted` tells what they should be like."""
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{file.path}:{number}"
            try:
                record = json.loads(line)
            except UnicodeDecodeError as error:
                raise RuntimeFault(f"{place}: byte {line[error.start]:#04x} is not UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise RuntimeFault(f"{place}: not JSON: {getattr(error, 'msg', error)}") from None
            if not isinstance(record, dict):
                raise RuntimeFault(f"{place}: a JSON object {wanted} was wanted, not {kind_of(record)}")
            yield number, record


def _read_parquet(file: SourceFile, field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet  # optional: only parquet files need it
    except ImportError:
        raise RuntimeFault(f"{file.path}: parquet needs the library `pyarrow`: pip install 'weft[train]'") from None
    try:
        with parquet.ParquetFile(file.path) as table:
            columns = table.schema_arrow.names
            if field not in columns:
                raise RuntimeFault(f"{file.path}: {_no_field(field, columns, 'column')}")
            number = 0
            for rows in table.iter_batches(columns=[field], batch_size=1024):
                for value in rows.column(0).to_pylist():
                    number += 1
                    text = text_of(value, field, f"{file.path}:{number}")
                    yield Document(f"{file.name}:{number}", text, str(file.path), number)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise RuntimeFault(f"{file.path} is not a readable parquet file: {str(error).splitlines()[0]}") from None


def text_of(value: object, field: str, place: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise RuntimeFault(f"{place}: the field {field!r} must be text, not {kind_of(value)}")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise RuntimeFault(f"{place}: the field {field!r} holds half of a surrogate pair, no character") from None


def _no_field(field: str, known: list[str], word: str = "field") -> str:
    near = difflib.get_close_matches(field, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there is " + (", ".join(map(repr, known[:6])) or "nothing in it")
    return f"no {word} {field!r} ({hint})"


def kind_of(value: object) -> str:
    names = {type(None): "null", bool: "a flag", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
