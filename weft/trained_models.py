"""Trained models as the command line names them: a checkpoint, or the newest of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from weft.faults import CommandFault, want_checkpoint
from weft.runtime.checkpoint import Manifest, read_manifest
from weft.runtime.model import Model, load
from weft.runtime.run_folder import latest_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A model with what its checkpoint says of it."""

    folder: Path
    manifest: Manifest
    model: Model


def open_checkpoint(
    path: str,
    device: str | None,
    dtype: torch.dtype | None = None,
    tuning: str | None = None,
    mapped: bool = False,
    hot: float | None = None,
) -> TrainedModel:
    """The checkpoint meant by a path, or one line on why there is none."""
    want_checkpoint(path)
    folder = latest_checkpoint(Path(path))
    manifest = read_manifest(folder)
    stays = mapped and hot is None and device in (None, "auto")
    device = "cpu" if stays else device_named(device)
    model = load(folder, dtype=dtype, device=device, tuning=tuning, mapped=mapped, hot=hot)
    if not isinstance(model, Model):
        raise CommandFault(f"{folder} is a compiled artifact, not a checkpoint")
    return TrainedModel(folder, manifest, model)


def device_named(name: str | None) -> str:
    """`auto` or None takes CUDA where there is one."""
    if name in (None, "auto"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise CommandFault(f"the device {name} cannot be used: {str(error).splitlines()[0]}", 2) from None
    return name or "cpu"
