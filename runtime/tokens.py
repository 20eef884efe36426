"""Text to token ids and back: plain bytes, or a Hugging Face `tokenizers` file.

Bytes need no library. Ids 0 .. 255 are the bytes themselves; a larger vocabulary (260 is usual) adds

    256  end of document      put behind every document, and what generation stops on
    257  begin of document    put in front only when asked
    258, 259                  around a picture; unused else, so that the table has a round number of rows

A vocabulary of 256 has no marks at all. Documents then end where their rows end, which packed attention respects
anyway.

`bytes4` is the layout of the Byte Latent Transformer: four marks (0 padding, 1 begin, 2 end, 3 unused), then byte b as
id b + 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .documents import Document
from .errors import RuntimeFault

BYTE_COUNT = 256
BYTE_END = 256
BYTE_BEGIN = 257
BYTE_AROUND = 258
MARKS_IN_FRONT = 4
MARKED_BEGIN = 1
MARKED_END = 2
BYTE_VOCABULARIES = ("bytes", "bytes4")

# What published tokenizers call the mark between documents, most specific first.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|eos|>", "<|end|>", "[EOS]", "[SEP]")
AROUND_NAMES = ("<|{0}_{1}|>", "<{0}_{1}>", "<|vision_{1}|>")
BEGIN_NAMES = ("<|begin_of_text|>", "<bos>", "<s>", "<|bos|>", "[BOS]", "[CLS]")


class Tokens(Protocol):
    """A vocabulary. Equal digests: the same one. `end` and `begin` are None where there is no mark."""

    @property
    def name(self) -> str: ...

    @property
    def end(self) -> int | None: ...

    @property
    def begin(self) -> int | None: ...

    @property
    def digest(self) -> str: ...

    def around(self, kind: str, number: int) -> tuple[int, int] | None:
        """The marks in front of and behind a part that is no text; `number` counts the kinds of such parts. None where
        the vocabulary has none."""
        ...

    def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """Ids of each document, without marks."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, without marks."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; marks are left out, broken characters are replaced."""
        ...


@dataclass(frozen=True)
class ByteTokens:
    """Every byte is a token. `vocab` is the model's."""

    vocab: int
    name: str = "bytes"

    @property
    def end(self) -> int | None:
        return BYTE_END if self.vocab > BYTE_END else None

    @property
    def begin(self) -> int | None:
        return BYTE_BEGIN if self.vocab > BYTE_BEGIN else None

    @property
    def digest(self) -> str:
        return f"bytes-{self.vocab}"

    def around(self, kind: str, number: int) -> tuple[int, int] | None:
        return _pair(BYTE_AROUND + 2 * number, self.vocab)

    def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
        return [np.frombuffer(document.text, dtype=np.uint8) for document in documents]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(index for index in ids if index < BYTE_COUNT).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class MarkedByteTokens:
    """Four marks, then the bytes. `vocab` is the model's."""

    vocab: int
    name: str = "bytes4"
    end: int | None = MARKED_END
    begin: int | None = MARKED_BEGIN

    @property
    def digest(self) -> str:
        return f"bytes4-{self.vocab}"

    def around(self, kind: str, number: int) -> tuple[int, int] | None:
        return _pair(MARKS_IN_FRONT + BYTE_COUNT + 2 * number, self.vocab)

    def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
        return [np.frombuffer(document.text, np.uint8).astype(np.int64) + MARKS_IN_FRONT for document in documents]

    def encode(self, text: str) -> list[int]:
        return [byte + MARKS_IN_FRONT for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        own = (index - MARKS_IN_FRONT for index in ids)
        return bytes(byte for byte in own if 0 <= byte < BYTE_COUNT).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class FileTokens:
    """A `tokenizer.json`. Its own post-processing (begin marks, templates) is not applied to documents."""

    name: str
    vocab: int
    end: int | None
    begin: int | None
    digest: str
    tokenizer: Any  # tokenizers.Tokenizer; the library is optional

    def around(self, kind: str, number: int) -> tuple[int, int] | None:
        for pattern in AROUND_NAMES:
            found = [self.tokenizer.token_to_id(pattern.format(kind, side)) for side in ("start", "end")]
            if None not in found:
                return found[0], found[1]
        return None

    def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
        texts = [_utf8(document) for document in documents]
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(entry.ids, dtype=np.uint32) for entry in encoded]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def line_of(self, document: Document, index: int) -> int:
        """The line of the document's text that its token number `index` stands on."""
        text = _utf8(document)
        start = self.tokenizer.encode(text, add_special_tokens=False).offsets[index][0]
        return text.count("\n", 0, start) + 1


def load_tokens(tokenizer: str, vocab: int, end_token: str | None = None) -> Tokens:
    """`tokenizer` is `bytes`, `bytes4` or the path of a `tokenizers` JSON file; `vocab` is the size of the model's
    vocabulary."""
    if tokenizer in BYTE_VOCABULARIES:
        if end_token is not None:
            raise RuntimeFault("end_token names an entry of a tokenizer file; byte vocabularies have their own")
        if tokenizer == "bytes":
            return ByteTokens(vocab)
        if vocab < MARKS_IN_FRONT + BYTE_COUNT:
            raise RuntimeFault(f"the tokenizer bytes4 has 260 ids, four marks and the bytes; the model has {vocab}")
        return MarkedByteTokens(vocab)
    return _from_file(Path(tokenizer), vocab, end_token)


def bytes_of(tokens: Tokens, index: int) -> bytes | None:
    """What one id spells; None for marks and for ids of no text."""
    match tokens:
        case ByteTokens():
            byte = index
        case MarkedByteTokens():
            byte = index - MARKS_IN_FRONT
        case _:
            return None if index in (tokens.begin, tokens.end) else tokens.decode([index]).encode("utf-8")
    return bytes([byte]) if 0 <= byte < BYTE_COUNT else None


def marks_begin(tokenizer: str, run: Mapping[str, Any] | None) -> bool:
    """Whether texts begin with the vocabulary's mark: as in the run that trained the model. A model that was imported
    has no run; those that read `bytes4` are published with the mark."""
    return tokenizer == "bytes4" if run is None else bool(run.get("begin_mark"))


def check_ids(ids: np.ndarray, document: Document, tokens: Tokens, vocab: int) -> None:
    """One clear line when a document holds an id that the model has no row for."""
    if not ids.size or int(ids.max()) < vocab:
        return
    index = int(np.argmax(ids >= vocab))
    if isinstance(tokens, FileTokens):
        line = tokens.line_of(document, index)
    else:
        line = document.text.count(b"\n", 0, index) + 1
    raise RuntimeFault(
        f"{document.place(line)}: token id {int(ids[index])} of {tokens.name} is not in the model's vocabulary of "
        f"{vocab}: a larger vocab, or another tokenizer, is needed"
    )


def find_marks(tokens: Tokens, kind: str, number: int, wanted: Sequence[int | str] | None) -> tuple[int, ...]:
    """The ids around parts of a kind: those of the vocabulary, or the two `wanted` (ids, or names of tokens). Wanted
    without any: none."""
    if wanted is None:
        found = tokens.around(kind, number)
        if found is None:
            raise RuntimeFault(
                f"{tokens.name} has no marks around parts of the kind {kind}: name two tokens, part_marks.{kind} = "
                "[.., ..], or [] for none" + (" (or a larger vocab)" if not isinstance(tokens, FileTokens) else "")
            )
        return found
    if len(wanted) not in (0, 2):
        raise RuntimeFault(f"part_marks.{kind}: two tokens were wanted, in front of and behind a part")
    return tuple(_mark(tokens, kind, one) for one in wanted)


def _mark(tokens: Tokens, kind: str, wanted: int | str) -> int:
    index = wanted
    if isinstance(wanted, str):
        index = tokens.tokenizer.token_to_id(wanted) if isinstance(tokens, FileTokens) else None
    if not isinstance(index, int):
        raise RuntimeFault(f"part_marks.{kind}: {tokens.name} has no token {wanted!r}")
    return index


def _pair(first: int, vocab: int) -> tuple[int, int] | None:
    return (first, first + 1) if first + 1 < vocab else None


def _from_file(path: Path, vocab: int, end_token: str | None) -> FileTokens:
    try:
        from tokenizers import Tokenizer  # optional: only text that is not read as bytes needs it
    except ImportError:
        raise RuntimeFault(
            f"the tokenizer {path} needs the library `tokenizers`: pip install 'weft[train]', or use `bytes`"
        ) from None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeFault(f"the tokenizer {path} cannot be read: {_reason(error)}") from None
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise RuntimeFault(f"{path} is not a `tokenizers` file: {_reason(error)}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    end = _find_mark(tokenizer, path, end_token, END_NAMES)
    begin = _find_mark(tokenizer, path, None, BEGIN_NAMES)
    for mark in (end, begin):
        if mark is not None and mark >= vocab:
            name = tokenizer.id_to_token(mark)
            raise RuntimeFault(f"{path}: the mark {name!r} has id {mark}, outside the model's vocabulary of {vocab}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return FileTokens(path.name, vocab, end, begin, digest, tokenizer)


def _find_mark(tokenizer: Any, path: Path, wanted: str | None, names: tuple[str, ...]) -> int | None:
    if wanted is not None:
        index = tokenizer.token_to_id(wanted)
        if index is None:
            raise RuntimeFault(f"{path} has no token {wanted!r} (end_token)")
        return index
    known = (tokenizer.token_to_id(name) for name in names)
    return next((index for index in known if index is not None), None)


def _utf8(document: Document) -> str:
    try:
        return document.text.decode("utf-8")
    except UnicodeDecodeError as error:
        line = document.text.count(b"\n", 0, error.start) + 1
        raise RuntimeFault(
            f"{document.place(line)}: byte {document.text[error.start]:#04x} is not UTF-8: convert the file, or use "
            "the tokenizer `bytes`"
        ) from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
