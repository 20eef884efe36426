"""Pictures that a model made, as files: pixels as PNG, latents as .npy.

A picture is the value of an input whose first static axis is a grid. With 1, 3 or 4 channels its numbers are pixels,
-1 .. 1 from dark to bright; with others it is the latent of an autoencoder, see latent_pictures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from weft.dsl.grids import sides
from weft.dsl.program import Program, Value
from weft.dsl.value_type import Real
from weft.faults import CommandFault
from weft.runtime.media import MODES, as_pixels

BETWEEN = 2  # pixels between the pictures of a sheet


@dataclass(frozen=True)
class PictureForm:
    """The value `name` of a model, each of which is a picture or its latent."""

    name: str
    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width} x {self.channels}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def has_pixels(self) -> bool:
        return self.channels in MODES


def form_of(value: Value) -> PictureForm | None:
    """Reals that lie on a grid of a known size, with at most one axis of channels; None for others."""
    axes = value.type.static_axes
    if not isinstance(value.type.kind, Real) or value.type.rows is None or not 1 <= len(axes) <= 2:
        return None
    if axes[0].size is None or len(sides(axes[0])) != 2:
        return None
    height, width = sides(axes[0])
    channels = axes[1].size if len(axes) == 2 else 1
    return PictureForm(value.name, height.size, width.size, channels or 0)


def picture_input(model: Program) -> PictureForm | None:
    """The one input that pictures are given to; None when there is none."""
    found = [form for value in model.inputs if (form := form_of(value)) is not None]
    return found[0] if len(found) == 1 else None


def pixels(picture: PictureForm, value: Tensor) -> np.ndarray:
    """uint8 [height, width, channels]."""
    return as_pixels(value.detach().float().cpu().numpy()).reshape(picture.height, picture.width, -1)


def sheet(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """All pictures on one, in rows, as near to a square as they go; dark where there is none."""
    height, width, channels = pictures[0].shape
    columns = ceil(sqrt(len(pictures)))
    rows = ceil(len(pictures) / columns)
    whole = np.zeros((rows * (height + BETWEEN) - BETWEEN, columns * (width + BETWEEN) - BETWEEN, channels), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + BETWEEN), i % columns * (width + BETWEEN)
        whole[top : top + height, left : left + width] = picture
    return whole


def write_png(path: Path, picture: np.ndarray, larger: int = 1) -> None:
    """`larger`: every pixel as a square of so many."""
    data = picture.repeat(larger, 0).repeat(larger, 1)
    channels = data.shape[2]
    _image().fromarray(data[:, :, 0] if channels == 1 else data, MODES[channels]).save(path)


def write_npy(path: Path, picture: PictureForm, value: Tensor) -> None:
    """float32 [height, width, channels]."""
    np.save(path, value.detach().float().cpu().numpy().reshape(picture.height, picture.width, -1))


def require_pillow() -> None:
    """Asked before anything is computed."""
    _image()


def _image() -> Any:
    try:
        from PIL import Image  # optional: only pictures need it
    except ImportError:
        raise CommandFault("pictures are written by the library `pillow`: pip install 'weft[train]'") from None
    return Image
