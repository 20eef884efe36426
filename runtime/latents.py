"""Latents of pictures, made ahead of training by a trained autoencoder and stored beside JSONL that names them.

A folder has

    latents.safetensors    latents [N, *shape]  float16, divided by their spread; metadata says by how much
    NAME.jsonl             the lines of NAME.jsonl, whose pictures are now `latents.safetensors#N`

Letters: N pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..dsl.program import Program
from ..dsl.value_type import Real
from .checkpoint import TEMPORARY, why_not_written
from .documents import JSONL_SUFFIXES, SourceFile, find_files, json_records
from .errors import RuntimeFault
from .feeds import PICTURE, Feeds, ItemFeed, bind
from .interleaved import PARTS, MediaPart, read_part_documents
from .latent_scale import LatentScale
from .media import LATENTS, MediaFile, as_numbers, named_file, read_item
from .model import Model

FILE = f"{LATENTS}.safetensors"
MODEL = "encode"


@dataclass(frozen=True)
class LatentsMade:
    """`factor`: what latents were multiplied by, so that their entries have a variance of 1."""

    pictures: int
    shape: tuple[int, ...]
    factor: float
    files: tuple[str, ...]


def encoder_of(model: Model) -> Program:
    """The model of a spec that makes latents of pictures: the one that is called `encode`."""
    found = model.checked.models.get(MODEL)
    first = found.outputs[0][1].type if found is not None else None
    if found is None or first is None or not isinstance(first.kind, Real) or len(found.inputs) != 1:
        raise RuntimeFault(f"{model.checked.source.name} has no model `{MODEL}` that makes latents of pictures")
    return found


def make_latents(
    model: Model,
    sources: Sequence[str],
    out: Path,
    weights: str,
    at_once: int = 64,
) -> LatentsMade:
    """Encodes every picture that the sources name, and writes the folder. `weights`: the hash of the encoder's."""
    encoder = encoder_of(model)
    feeds = bind(encoder)
    numbers = _numbered(sources, feeds)
    parts = [_encode(model, encoder, feeds.items[0], group) for group in _groups(list(numbers), at_once)]
    latents = np.concatenate(parts)
    spread = float(latents.std(dtype=np.float64))
    if not np.isfinite(spread) or spread == 0:
        raise RuntimeFault(f"the latents of {len(latents)} pictures have a spread of {spread}: nothing can be learned")
    scale = LatentScale(1 / spread, weights)
    scaled = {LATENTS: (latents * scale.factor).astype(np.float16)}
    written = _write(out, scaled, scale.metadata(model.checked.source.name), _lines(sources, numbers))
    return LatentsMade(len(latents), latents.shape[1:], scale.factor, written)


def _numbered(sources: Sequence[str], feeds: Feeds) -> dict[MediaFile, tuple[int, str]]:
    """Each file of a picture once, with its number and the place that named it."""
    numbers: dict[MediaFile, tuple[int, str]] = {}
    for document in read_part_documents(sources, feeds):
        for part in document.parts:
            if isinstance(part, MediaPart) and part.file not in numbers:
                numbers[part.file] = (len(numbers), document.place)
    if not numbers:
        raise RuntimeFault(f"no picture in {', '.join(sources)}")
    feed = feeds.items[0]
    # Before minutes of encoding, and in the order of the data.
    for file, (_, place) in numbers.items():
        _read(file, feed, place)
    return numbers


def _read(file: MediaFile, feed: ItemFeed, place: str) -> np.ndarray:
    try:
        return as_numbers(read_item(file, feed))
    except OSError as error:
        raise RuntimeFault(f"{place}: {file} cannot be read: {error.strerror or error}") from None
    except RuntimeFault as fault:
        raise RuntimeFault(f"{place}: {fault}") from None


def _encode(model: Model, encoder: Program, feed: ItemFeed, files: Sequence[MediaFile]) -> np.ndarray:
    """float32 [files, *shape]"""
    pictures = torch.from_numpy(np.stack([_read(file, feed, str(file)) for file in files]))
    offsets = torch.tensor([0, len(files)], dtype=torch.int32)
    with torch.no_grad():
        found = model.run(encoder, (pictures.to(model.dtype), offsets))
    first = found[encoder.outputs[0][0]] if isinstance(found, dict) else found
    return first.values.float().numpy(force=True)


def _groups(files: Sequence[MediaFile], size: int) -> Iterator[Sequence[MediaFile]]:
    return (files[begin : begin + size] for begin in range(0, len(files), size))


def _lines(sources: Sequence[str], numbers: Mapping[MediaFile, tuple[int, str]]) -> dict[str, list[str]]:
    """The lines of each JSONL file to write. Pictures without one get a file of their own."""
    files = [file for file in find_files(sources) if file.path.suffix.lower() in JSONL_SUFFIXES]
    if not files:
        named = ({PICTURE: f"{FILE}#{number}", "from": str(file)} for file, (number, _) in numbers.items())
        return {f"{LATENTS}.jsonl": [json.dumps(record) for record in named]}
    return {file.name.replace("/", "-"): list(_renamed(file, numbers)) for file in files}


def _renamed(file: SourceFile, numbers: Mapping[MediaFile, tuple[int, str]]) -> Iterator[str]:
    def name(text: str) -> str:
        number, _ = numbers[named_file(file.path.parent, text)]
        return f"{FILE}#{number}"

    for _, record in json_records(file, "with pictures"):
        if PARTS in record:
            record[PARTS] = [
                {PICTURE: name(part[PICTURE])} if isinstance(part, dict) and PICTURE in part else part
                for part in record[PARTS]
            ]
        elif PICTURE in record:
            record[PICTURE] = name(record[PICTURE])
        yield json.dumps(record, ensure_ascii=False)


def _write(
    out: Path, arrays: dict[str, np.ndarray], about: dict[str, str], lines: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The latents first: a line never names what is not there."""
    temporary = out / f"{TEMPORARY}{FILE}-{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(arrays, temporary, metadata=about)
        os.replace(temporary, out / FILE)
        for name, text in lines.items():
            (out / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"{out} could not be written: {why_not_written(error, out)}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return (FILE, *lines)
