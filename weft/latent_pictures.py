"""Latents that a model made, as pictures: by the decoder of the autoencoder that its training data was made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weft.dsl.program import Program
from weft.faults import CommandFault
from weft.picture_files import PictureForm, form_of, pixels
from weft.runtime.checkpoint import WEIGHTS, Manifest
from weft.runtime.latent_scale import LatentScale
from weft.runtime.model import Model
from weft.trained_models import open_checkpoint

MODEL = "decode"


@dataclass(frozen=True)
class LatentDecoder:
    """`picture`: what it makes. `factor`: what latents are divided by first."""

    model: Model
    program: Program
    picture: PictureForm
    factor: float

    def pixels(self, latents: Sequence[Tensor]) -> list[np.ndarray]:
        """uint8 [height, width, channels] of each latent [places, channels]."""
        shape = [axis.size or 0 for axis in self.program.inputs[0].type.static_axes]
        offsets = torch.tensor([0, len(latents)], dtype=torch.int32)
        given = torch.stack([latent.reshape(shape) for latent in latents]) / self.factor
        with torch.no_grad():
            made = self.model.run(self.program, (given.to(self.model.device, self.model.dtype), offsets))
        return [pixels(self.picture, one) for one in made.values]


def open_decoder(
    path: str, wanted: PictureForm, scale: LatentScale | None, factor: float | None, device: str | None
) -> LatentDecoder:
    """The model `decode` of a checkpoint, for latents of the form `wanted`. `scale`: what the maker of the latents
    learned from; `factor` is given in its place."""
    opened = open_checkpoint(path, device)
    program = opened.model.checked.models.get(MODEL)
    takes = None if program is None or len(program.inputs) != 1 else form_of(program.inputs[0])
    makes = None if program is None or len(program.outputs) != 1 else form_of(program.outputs[0][1])
    if program is None or takes is None or makes is None or not makes.has_pixels:
        raise CommandFault(f"the spec of {opened.folder} has no model `{MODEL}` that makes pictures of latents", 2)
    if takes.shape != wanted.shape:
        raise CommandFault(f"{opened.folder} decodes latents of {takes}, and the model makes {wanted}", 2)
    if factor is None:
        factor = _factor(opened.manifest, str(opened.folder), scale)
    return LatentDecoder(opened.model, program, makes, factor)


def _factor(manifest: Manifest, folder: str, scale: LatentScale | None) -> float:
    if scale is None:
        raise CommandFault("the checkpoint does not say by what its latents were multiplied: give --factor X", 2)
    own = next(entry.sha256 for entry in manifest.files if entry.name == WEIGHTS)
    if scale.weights != own:
        what = f"the model learned from latents of another autoencoder than {folder}"
        raise CommandFault(
            f"{what}: give its checkpoint, or --factor {scale.factor:.6g} to decode them with this one", 2
        )
    return scale.factor
