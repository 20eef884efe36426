"""Pictures and arrays from files: what a part of a document that is not text becomes.

A picture file is cut to its middle in the form of the spec's grid, made as large, and scaled to [-1, 1]. An array
(.npy, .safetensors) is taken as it is: latents, rows of sound. `FILE.safetensors#N` is the item N of a file of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import RuntimeFault
from .feeds import ItemFeed

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
ARRAYS = (".npy", ".safetensors")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the number of channels
LATENTS = "latents"  # the tensor of a file of many items


@dataclass(frozen=True)
class MediaFile:
    """Where an item is stored; `item` is its number in a file of many."""

    path: Path
    item: int | None = None

    def __str__(self) -> str:
        return str(self.path) + ("" if self.item is None else f"#{self.item}")


def named_file(folder: Path, text: str) -> MediaFile:
    """The file that a record names, beside the record's own."""
    name, mark, number = text.rpartition("#")
    if mark and number.isdecimal() and name.endswith(".safetensors"):
        return MediaFile(folder / name, int(number))
    return MediaFile(folder / text)


def read_item(file: MediaFile, feed: ItemFeed) -> np.ndarray:
    """The item as an input takes it: uint8 of a picture's pixels, floats of an array. Mistakes are one line, without
    the place that named the file."""
    suffix = file.path.suffix.lower()
    if suffix in ARRAYS:
        found = _read_npy(file.path) if suffix == ".npy" else _read_tensor(file)
        return _shaped(file, found, feed)
    if feed.sides is None:
        raise RuntimeFault(
            f"{file}: {feed.kind} is read from {' and '.join(ARRAYS)} files ({feed.input} is no picture)"
        )
    return read_picture(file.path, feed.sides, feed.channels)


def as_numbers(item: np.ndarray) -> np.ndarray:
    """float32: bytes of pixels as -1 .. 1, other numbers as they are."""
    if item.dtype == np.uint8:
        return item.astype(np.float32) * np.float32(2 / 255) - 1
    return item.astype(np.float32)


def as_pixels(values: np.ndarray) -> np.ndarray:
    """The bytes of pixels whose values lie in -1 .. 1: what `as_numbers` had them from."""
    return np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)


def read_picture(path: Path, sides: tuple[int, int], channels: int) -> np.ndarray:
    """uint8 [height * width, channels] of the middle of a picture file, row by row."""
    try:
        from PIL import Image, ImageOps  # optional: only files of pictures need it
    except ImportError:
        raise RuntimeFault(f"{path}: pictures need the library `pillow`: pip install 'weft[train]'") from None
    if channels not in MODES:
        raise RuntimeFault(
            f"{path}: a picture has 1, 3 or 4 channels, the input {channels}: give latents (weft latents), or set "
            "the size of the channels"
        )
    height, width = sides
    try:
        with Image.open(path) as opened:
            picture: Any = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):  # 16 bits and more; converting would cut them off at 255
                picture = Image.fromarray(_to_bytes(np.asarray(picture)))
            picture = picture.convert(MODES[channels])
            fitted = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RuntimeFault(f"{path} is not a readable picture: {_reason(error)}") from None
    return np.asarray(fitted, dtype=np.uint8).reshape(height * width, channels)


def items_in(path: Path) -> int:
    """How many items a safetensors file of many has."""
    try:
        with safe_open(path, framework="numpy") as opened:
            if LATENTS not in list(opened.keys()):
                raise RuntimeFault(f"{path} has no tensor `{LATENTS}`: it is no file of `weft latents`")
            return opened.get_slice(LATENTS).get_shape()[0]
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"{path} is not a readable safetensors file: {_reason(error)}") from None


def _to_bytes(values: np.ndarray) -> np.ndarray:
    whole = np.iinfo(values.dtype).max if values.dtype.kind == "u" else (255 if values.max(initial=0) < 256 else 65535)
    return np.clip(values * (255 / whole), 0, 255).astype(np.uint8)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise RuntimeFault(f"{path} is not a readable .npy file: {_reason(error)}") from None


def _read_tensor(file: MediaFile) -> np.ndarray:
    try:
        with safe_open(file.path, framework="numpy") as opened:
            names = list(opened.keys())
            if file.item is None:
                if len(names) != 1:
                    raise RuntimeFault(f"{file} has {len(names)} tensors: write {file}#0 for the first of `{LATENTS}`")
                return opened.get_tensor(names[0])
            if LATENTS not in names:
                raise RuntimeFault(f"{file.path} has no tensor `{LATENTS}`")
            many = opened.get_slice(LATENTS)
            if file.item >= many.get_shape()[0]:
                raise RuntimeFault(f"{file.path} has {many.get_shape()[0]} items, and none of number {file.item}")
            return many[file.item : file.item + 1][0]
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, TypeError) as error:
        raise RuntimeFault(f"{file.path} is not a readable safetensors file: {_reason(error)}") from None


def _shaped(file: MediaFile, found: np.ndarray, feed: ItemFeed) -> np.ndarray:
    """An item in the shape of the input; a picture may keep its two sides."""
    if found.dtype.kind not in "fiu":
        raise RuntimeFault(f"{file} holds {found.dtype}: numbers were wanted")
    if found.dtype == np.uint8:
        found = found.astype(np.float32)  # numbers as they are: only files of pictures are scaled
    if feed.is_rows:
        if found.ndim != 1 + len(feed.shape) or found.shape[1:] != feed.shape or not len(found):
            raise RuntimeFault(f"{file} has shape {_shape(found.shape)}: {_shape(('rows', *feed.shape))} was wanted")
        return found
    allowed = [feed.shape]
    if feed.sides is not None:
        allowed.append((*feed.sides, *feed.shape[1:]))
        if feed.channels == 1:
            allowed += [feed.shape[:1], feed.sides]
    if found.shape not in allowed:
        wanted = " or ".join(_shape(shape) for shape in allowed[:2])
        raise RuntimeFault(f"{file} has shape {_shape(found.shape)}: {wanted} was wanted for {feed.input}")
    if not np.isfinite(found).all():
        raise RuntimeFault(f"{file} holds numbers that are not finite")
    return found.reshape(feed.shape)


def _shape(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
