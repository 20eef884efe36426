"""Documents of parts: text, pictures and whatever else a spec has tags for, in JSONL.

    {"parts": ["some text", {"image": "a.png"}, "more", {"code": "x = 1"}]}     parts in their order
    {"caption": "a three", "image": "a.png"}                                   a pair whose order is drawn
    {"text": "only text"}                                                      as in any other JSONL

A text is a part of the plain kind; an object names the kind of its part. What is not text names a file beside the
JSONL. Files of pictures are documents of one part each, where no JSONL stands among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .documents import (
    JSONL_SUFFIXES,
    Document,
    SourceFile,
    find_files,
    json_records,
    kind_of,
    near_name,
    read_file,
    text_of,
)
from .errors import RuntimeFault
from .feeds import Feeds
from .media import ARRAYS, PICTURES, MediaFile, items_in, named_file

CAPTION = "caption"
PARTS = "parts"


@dataclass(frozen=True)
class TextPart:
    kind: str
    document: Document  # its name tells the documents of one file apart


@dataclass(frozen=True)
class MediaPart:
    kind: str
    file: MediaFile
    name: str  # as stable as the name of a document


Part = TextPart | MediaPart


@dataclass(frozen=True)
class PartDocument:
    """One example before it is laid out. `is_pair`: a caption and what it tells of, in no order. `values` are what
    inputs of that name are given; `place` is for messages. `source`: the name of the file that says all this."""

    name: str
    source: str
    parts: tuple[Part, ...]
    place: str
    is_pair: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


def read_part_documents(
    sources: Sequence[str], feeds: Feeds, format: str = "auto", text_field: str = "text", suffixes: Sequence[str] = ()
) -> Iterator[PartDocument]:
    """All documents of all sources. Files are not opened yet, but must be there."""
    files = find_files(sources, suffixes)
    has_lines = any(_is_jsonl(file, format) for file in files)
    for file in files:
        try:
            yield from _read(file, feeds, format, text_field, has_lines)
        except OSError as error:
            raise RuntimeFault(f"{file.path} cannot be read: {error.strerror or error}") from None


def _read(file: SourceFile, feeds: Feeds, format: str, text_field: str, has_lines: bool) -> Iterator[PartDocument]:
    suffix = file.path.suffix.lower()
    if _is_jsonl(file, format):
        yield from _read_lines(file, feeds, text_field)
    elif suffix in PICTURES + ARRAYS:
        # Beside JSONL they are what its lines name.
        if not has_lines and len(feeds.items) == 1:
            yield from _read_media(file, feeds.items[0].kind)
    elif feeds.plain is not None:
        for document in read_file(file, format, text_field):
            yield _of_text(document, feeds.plain)


def _is_jsonl(file: SourceFile, format: str) -> bool:
    return format == "jsonl" or (format == "auto" and file.path.suffix.lower() in JSONL_SUFFIXES)


def _of_text(document: Document, kind: str) -> PartDocument:
    return PartDocument(document.name, document.source_name, (TextPart(kind, document),), document.place(1))


def _read_media(file: SourceFile, kind: str) -> Iterator[PartDocument]:
    if file.path.suffix.lower() != ".safetensors":
        part = MediaPart(kind, MediaFile(file.path), file.name)
        yield PartDocument(file.name, file.name, (part,), str(file.path))
        return
    for number in range(items_in(file.path)):
        name = f"{file.name}#{number}"
        part = MediaPart(kind, MediaFile(file.path, number), name)
        yield PartDocument(name, file.name, (part,), f"{file.path}#{number}")


def _read_lines(file: SourceFile, feeds: Feeds, text_field: str) -> Iterator[PartDocument]:
    for number, record in json_records(file, "with parts or a caption"):
        yield _Line(file, number, feeds).document(record, text_field)


@dataclass(frozen=True)
class _Line:
    """One line of a JSONL file."""

    file: SourceFile
    number: int
    feeds: Feeds

    @property
    def place(self) -> str:
        return f"{self.file.path}:{self.number}"

    @property
    def name(self) -> str:
        return f"{self.file.name}:{self.number}"

    def document(self, record: dict[str, Any], text_field: str) -> PartDocument:
        values = {feed.input: record[feed.input] for feed in self.feeds.values if feed.input in record}
        named = [kind for kind in record if self.feeds.item_of(kind) is not None]
        if PARTS in record:
            parts = self._listed(record[PARTS])
        elif CAPTION in record or named:
            parts = self._pair(record, named)
        elif text_field in record:
            parts = () if self.feeds.plain is None else (self._text(self.feeds.plain, record[text_field], 1),)
        else:
            found = ", ".join(map(repr, list(record)[:6])) or "nothing"
            raise RuntimeFault(f"{self.place}: {self._wanted(text_field)} was wanted, not {found}")
        is_pair = PARTS not in record and len(parts) == 2
        return PartDocument(self.name, self.file.name, parts, self.place, is_pair, values)

    def _wanted(self, text_field: str) -> str:
        kinds = [f"{CAPTION!r} and {feed.kind!r}" for feed in self.feeds.items]
        return ", ".join([repr(PARTS), *kinds]) + f" or {text_field!r}"

    def _listed(self, parts: object) -> tuple[Part, ...]:
        if not isinstance(parts, list):
            raise RuntimeFault(f"{self.place}: {PARTS!r} must be a list, not {kind_of(parts)}")
        made = (self._part(part, number) for number, part in enumerate(parts, start=1))
        return tuple(part for part in made if part is not None)

    def _part(self, part: object, number: int) -> Part | None:
        if isinstance(part, str):
            return None if self.feeds.plain is None else self._text(self.feeds.plain, part, number)
        if not isinstance(part, dict) or len(part) != 1:
            what = f"an object of {len(part)} fields" if isinstance(part, dict) else kind_of(part)
            raise RuntimeFault(f"{self.place}: part {number} is {what}: text, or an object with one kind, was wanted")
        kind, content = next(iter(part.items()))
        if self.feeds.item_of(kind) is not None:
            return self._media(kind, content)
        if self.feeds.text_of(kind) is not None:
            return self._text(kind, content, number)
        near = difflib.get_close_matches(kind, self.feeds.kinds, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "it is fed by " + ", ".join(map(repr, self.feeds.kinds))
        raise RuntimeFault(f"{self.place}: part {number} is of the kind {kind!r}, which no input of "
                           f"{self.feeds.objective} reads ({hint})")  # fmt: skip

    def _pair(self, record: dict[str, Any], named: list[str]) -> tuple[Part, ...]:
        if len(named) != 1:
            kinds = " or ".join(repr(feed.kind) for feed in self.feeds.items)
            found = " and ".join(map(repr, named)) or "it alone"
            raise RuntimeFault(f"{self.place}: a {CAPTION!r} goes with one of {kinds}, not with {found}")
        media = self._media(named[0], record[named[0]])
        if CAPTION not in record or self.feeds.plain is None:
            return (media,)
        return self._text(self.feeds.plain, record[CAPTION], 1), media

    def _text(self, kind: str, content: object, number: int) -> TextPart:
        text = text_of(content, kind, self.place)
        return TextPart(kind, Document(f"{self.name}/{number}", text, str(self.file.path), self.number))

    def _media(self, kind: str, content: object) -> MediaPart:
        if not isinstance(content, str):
            raise RuntimeFault(f"{self.place}: {kind!r} must name a file, not {kind_of(content)}")
        file = named_file(self.file.path.parent, content)
        if not file.path.is_file():
            near = near_name(file.path)
            hint = f" (did you mean {Path(near).name}?)" if near else ""
            raise RuntimeFault(f"{self.place}: there is no file {content}{hint}")
        folder = self.file.name.rpartition("/")[0]
        return MediaPart(kind, file, f"{folder}/{content}" if folder else content)
