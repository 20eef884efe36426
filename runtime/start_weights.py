"""Weights that start as those of another checkpoint: a part of a model that was trained alone, by its path.

    start_from(model, {"entropy_lm": "runs/entropy"})      entropy_lm.embed.weight  <-  embed.weight, and so on

Strict: every weight below the path is filled, and every weight of the checkpoint is used.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import WEIGHTS, StartedFrom, read_manifest, read_weights
from .errors import RuntimeFault
from .run_folder import latest_checkpoint


def start_from(target: Mapping[str, Tensor], sources: Mapping[str, str]) -> tuple[StartedFrom, ...]:
    """Fills the weights of `target` (by path) below each name of `sources` from a checkpoint or the newest of a run."""
    _check_names(target, sources)
    return tuple(_fill(target, name, source) for name, source in sources.items())


def _check_names(target: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    names = list(sources)
    for name in names:
        if not any(_below(path, name) for path in target):
            known = {path[:i] for path in target for i, letter in enumerate(path) if letter == "."}
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise RuntimeFault(f"weights {name}={sources[name]}: the model has no weights below {name}{hint}")
        around = [other for other in names if other != name and _below(name + ".", other)]
        if around:
            raise RuntimeFault(f"weights are given twice for {name}: also for {around[0]}, which holds it")


def _fill(target: Mapping[str, Tensor], name: str, source: str) -> StartedFrom:
    path = latest_checkpoint(Path(source))
    manifest = read_manifest(path)
    saved = {f"{name}.{own}": weight for own, weight in read_weights(path, manifest).items()}
    wanted = {own: weight for own, weight in target.items() if _below(own, name)}
    missing = [own for own in wanted if own not in saved]
    extra = [own.removeprefix(f"{name}.") for own in saved if own not in wanted]
    said = f"weights {name}={source}: {path} does not fit"
    more = f" ({len(missing) + len(extra)} differ)" if len(missing) + len(extra) > 1 else ""
    if missing:
        raise RuntimeFault(f"{said}: it has no {missing[0].removeprefix(f'{name}.')} for {missing[0]}{more}")
    if extra:
        raise RuntimeFault(f"{said}: its {extra[0]} has no place below {name}{more}")
    for own, weight in wanted.items():
        if saved[own].shape != weight.shape:
            shapes = f"{tuple(saved[own].shape)}, the model's {own} has {tuple(weight.shape)}"
            raise RuntimeFault(f"{said}: its {own.removeprefix(f'{name}.')} has shape {shapes}")
    with torch.no_grad():
        for own, weight in wanted.items():
            weight.copy_(saved[own])
    digest = next(entry.sha256 for entry in manifest.files if entry.name == WEIGHTS)
    return StartedFrom(name, str(path), manifest.step, digest)


def _below(path: str, name: str) -> bool:
    return path.startswith(f"{name}.")
