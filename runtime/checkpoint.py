"""Checkpoints: one folder per saved step, complete or not there.

    step-00000100/
      weft.json              what it is: spec text, size, overrides, step, run config, versions, checksums of the files
      model.safetensors      weights by path
      optimizer.safetensors  moments/first/<path>, moments/second/<path>
      loader.json            position in the data

A folder is written under a temporary name, every file is synced, then it is renamed: a kill or a power cut at any
moment leaves either the whole folder or a temporary one that nothing reads and the next run removes. What is the
latest is found by looking, never from a pointer that could be stale. Nothing is unpickled. A folder without the last
two files is a model that was not trained here (`weft import`): it loads, but there is nothing to resume.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..dsl.sizes import Override
from .errors import RuntimeFault
from .latent_scale import LatentScale
from .optimiser import OptimiserState
from .tensor_files import map_tensors, write_tensors

FORMAT = 1
MANIFEST = "weft.json"
WEIGHTS = "model.safetensors"
OPTIMISER = "optimizer.safetensors"
LOADER = "loader.json"
OWN_DIGEST = "sha256"  # of the manifest, in the manifest
TEMPORARY = ".tmp-"
NAME = re.compile(r"step-(\d{8,})")
LIBRARIES = ("weft", "torch", "safetensors", "numpy", "tokenizers")


@dataclass(frozen=True)
class SpecText:
    """A spec file as it was trained. The first of a checkpoint is the model's own, the others are what it uses."""

    name: str
    text: str


@dataclass(frozen=True)
class FileEntry:
    """A file of the checkpoint as it must be."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelIdentity:
    """What makes a model from weights: the spec and the choices of its sizes."""

    spec: tuple[SpecText, ...]
    size: str | None = None
    overrides: Mapping[str, Override] | None = None
    objective: str | None = None

    @property
    def spec_hash(self) -> str:
        digest = hashlib.sha256()
        for entry in self.spec:
            digest.update(f"{len(entry.text)}\n{entry.text}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class StartedFrom:
    """Weights below `path` started as those of another checkpoint: where it lay, and the hash of its weights."""

    path: str
    checkpoint: str
    step: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`weft.json`."""

    format: int
    model: ModelIdentity
    spec_hash: str
    step: int
    tokens: int
    run: Mapping[str, Any] | None  # the resolved run config; None for an imported model
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...]
    # What was noted while training. Checkpoints that were written without them are as if they had none.
    started_from: tuple[StartedFrom, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)  # at this step: see metrics.py
    latents: LatentScale | None = None  # of the pictures that it learned from


@dataclass(frozen=True)
class TrainingState:
    """What a run needs besides the weights to go on."""

    optimiser: OptimiserState
    loader: Mapping[str, Any]
    run: Mapping[str, Any]
    started_from: tuple[StartedFrom, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    latents: LatentScale | None = None


@dataclass(frozen=True)
class FoundCheckpoint:
    """A folder with a readable manifest whose files all have their full size."""

    path: Path
    step: int


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(
    path: Path,
    model: ModelIdentity,
    weights: Mapping[str, Tensor],
    step: int = 0,
    tokens: int = 0,
    training: TrainingState | None = None,
) -> Path:
    """Writes a complete folder at `path`, replacing a checkpoint that is there and nothing else. On failure `path` is
    as it was before."""
    refuse_to_replace(path)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        files = [_write_tensors(temporary / WEIGHTS, weights)]
        if training is not None:
            files.append(_write_tensors(temporary / OPTIMISER, _flat(training.optimiser)))
            files.append(_write_text(temporary / LOADER, json.dumps(training.loader)))
        run = training.run if training else None
        manifest = Manifest(FORMAT, model, model.spec_hash, step, tokens, run, _versions(), tuple(files))
        if training is not None:
            noted = {"measured": training.measured, "latents": training.latents}
            manifest = replace(manifest, started_from=training.started_from, **noted)
        record = asdict(manifest)
        _write_text(temporary / MANIFEST, json.dumps({**record, OWN_DIGEST: digest_of_record(record)}, indent=1))
        _sync(temporary)
        doomed = _set_aside(path) if path.exists() else None
        os.rename(temporary, path)
        _sync(path.parent)
        if doomed is not None:
            shutil.rmtree(doomed, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        why = why_not_written(error, path.parent)
        raise RuntimeFault(f"the checkpoint {path} could not be written: {why}") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def refuse_to_replace(path: Path) -> None:
    """Raises when something is at `path` that is neither an empty folder nor a checkpoint."""
    try:
        if not path.exists() or (path / MANIFEST).is_file() or (path.is_dir() and not any(path.iterdir())):
            return
    except OSError as error:
        raise RuntimeFault(f"{path} cannot be looked at: {error.strerror}") from None
    raise RuntimeFault(f"{path} is there and is no checkpoint: name a new or empty folder")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint folder. The files it lists are not looked at."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        what = f"it has no {MANIFEST}" if path.is_dir() else "there is no such folder"
        raise RuntimeFault(f"{path} is not a checkpoint: {what}") from None
    except UnicodeDecodeError:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {MANIFEST} is not text") from None
    except OSError as error:
        raise RuntimeFault(f"the checkpoint {path} cannot be read: {error.strerror}") from None
    try:
        record = json.loads(text)
        written = record.pop(OWN_DIGEST, None)
        if record["format"] != FORMAT:
            found = record["format"]
            raise RuntimeFault(f"the checkpoint {path} has format {found}; this version of weft reads format {FORMAT}")
        model = record["model"]
        identity = ModelIdentity(
            tuple(SpecText(**entry) for entry in model["spec"]), model["size"], model["overrides"], model["objective"]
        )
        files = tuple(FileEntry(**entry) for entry in record["files"])
        counts = {"step": int(record["step"]), "tokens": int(record["tokens"])}
        started = tuple(StartedFrom(**entry) for entry in record.get("started_from", ()))
        latents = LatentScale(**record["latents"]) if record.get("latents") else None
        noted = {"started_from": started, "latents": latents}
        manifest = Manifest(**{**record, **counts, "model": identity, "files": files, **noted})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RuntimeFault(f"the checkpoint {path} is damaged: {MANIFEST} is not what weft writes") from None
    if identity.spec_hash != manifest.spec_hash:
        raise RuntimeFault(f"the checkpoint {path} is damaged: its spec text does not have the hash written beside it")
    if written != digest_of_record(record):
        what = f"the contents of {MANIFEST} are not those that were written"
        raise RuntimeFault(f"the checkpoint {path} is damaged: {what}")
    return manifest


def digest_of_record(record: Mapping[str, Any]) -> str:
    """What a manifest says of itself, so that a changed digit in it is seen."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_weights(path: Path, manifest: Manifest | None = None) -> dict[str, Tensor]:
    """Weights by path, after checking the file against the manifest."""
    _check_file(path, manifest or read_manifest(path), WEIGHTS)
    return _read_tensors(path, WEIGHTS)


def map_weights(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Weights by path where they lie in the file. Its size is compared; to check its contents is to read all of it."""
    entry = next((entry for entry in manifest.files if entry.name == WEIGHTS), None)
    if entry is None:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {MANIFEST} does not list {WEIGHTS}")
    _check_size(path, entry)
    try:
        return map_tensors(path / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {WEIGHTS} cannot be read ({error})") from None


def read_training(path: Path, manifest: Manifest | None = None) -> TrainingState:
    """What a run needs to go on from here."""
    manifest = manifest or read_manifest(path)
    if manifest.run is None:
        raise RuntimeFault(f"the checkpoint {path} holds a model only, without a training state to resume")
    _check_file(path, manifest, OPTIMISER)
    _check_file(path, manifest, LOADER)
    state = _unflat(path, _read_tensors(path, OPTIMISER))
    loader = json.loads((path / LOADER).read_text(encoding="utf-8"))
    return TrainingState(state, loader, manifest.run, manifest.started_from, manifest.measured, manifest.latents)


def find_checkpoints(folder: Path) -> tuple[FoundCheckpoint, ...]:
    """Complete checkpoints under `folder`, oldest first. Cheap: sizes are compared, contents are not read."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = NAME.fullmatch(path.name)
        if name and incompleteness(path) is None:
            found.append(FoundCheckpoint(path, int(name[1])))
    return tuple(sorted(found, key=lambda entry: entry.step))


def incompleteness(path: Path) -> str | None:
    """What a look at names and sizes finds wrong with a checkpoint folder."""
    try:
        manifest = read_manifest(path)
        for entry in manifest.files:
            _check_size(path, entry)
    except RuntimeFault as fault:
        return str(fault)
    return None


def keep_last(folder: Path, count: int) -> None:
    """Removes all but the newest `count` checkpoints, and what writers that were killed have left."""
    for entry in find_checkpoints(folder)[: -max(count, 1)]:
        _remove_folder(entry.path)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def apply_weights(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    """Copies saved weights into a model's, strictly: the same names, shapes and types."""
    check_weights(target, saved, path)
    with torch.no_grad():
        for name, weight in target.items():
            weight.copy_(saved[name])


def check_weights(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    """Saved weights have the names and shapes of a model's, or one line says which differs."""
    missing = [name for name in target if name not in saved]
    extra = [name for name in saved if name not in target]
    if missing or extra:
        what = f"it lacks {missing[0]}" if missing else f"the spec has no {extra[0]}"
        more = f" ({len(missing) + len(extra)} differ)" if len(missing) + len(extra) > 1 else ""
        raise RuntimeFault(f"the weights of {path} do not fit the spec: {what}{more}")
    for name, weight in target.items():
        if saved[name].shape != weight.shape:
            shapes = f"{tuple(saved[name].shape)}, the spec makes it {tuple(weight.shape)}"
            raise RuntimeFault(f"the weights of {path} do not fit the spec: {name} has shape {shapes}")


# --- files ---------------------------------------------------------------------------------------------------------


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    write_tensors(path, tensors)
    return _synced_entry(path)


def _write_text(path: Path, text: str) -> FileEntry:
    path.write_text(text + "\n", encoding="utf-8")
    return _synced_entry(path)


def _synced_entry(path: Path) -> FileEntry:
    _sync(path)
    return FileEntry(path.name, path.stat().st_size, _digest_of(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_folder(path: Path) -> None:
    # Renamed first: a kill half-way through removing must not leave something that looks like a checkpoint.
    shutil.rmtree(_set_aside(path), ignore_errors=True)


def _set_aside(path: Path) -> Path:
    aside = path.parent / f"{TEMPORARY}{path.name}-old-{os.getpid()}"
    os.rename(path, aside)
    return aside


def _check_size(path: Path, entry: FileEntry) -> None:
    if os.sep in entry.name or entry.name.startswith("."):
        raise RuntimeFault(f"the checkpoint {path} is damaged: {MANIFEST} lists the file {entry.name!r}")
    try:
        size = (path / entry.name).stat().st_size
    except OSError:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {entry.name} is missing") from None
    if size != entry.size:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {entry.name} has {size} bytes, not {entry.size}")


def _check_file(path: Path, manifest: Manifest, name: str) -> None:
    entry = next((entry for entry in manifest.files if entry.name == name), None)
    if entry is None:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {MANIFEST} does not list {name}")
    _check_size(path, entry)
    if _digest_of(path / name) != entry.sha256:
        raise RuntimeFault(f"the checkpoint {path} is damaged: the contents of {name} are not those that were written")


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RuntimeFault(f"{path} cannot be read: {error.strerror}") from None


def _read_tensors(path: Path, name: str) -> dict[str, Tensor]:
    try:
        return load_file(path / name)
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {name} cannot be read ({error})") from None


def _flat(state: OptimiserState) -> dict[str, Tensor]:
    first = {f"moments/first/{path}": first for path, (first, _) in state.moments.items() if first is not None}
    second = {f"moments/second/{path}": second for path, (_, second) in state.moments.items()}
    return {**first, **second, "updates": torch.tensor(state.updates, dtype=torch.int64)}


def _unflat(path: Path, tensors: dict[str, Tensor]) -> OptimiserState:
    prefix = "moments/first/"
    firsts = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    prefix = "moments/second/"
    seconds = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        # A table with a moment for each row has no first one.
        moments = {name: (firsts.get(name), seconds[name]) for name in (*firsts, *seconds)}
        return OptimiserState(moments, int(tensors["updates"]))
    except KeyError as error:
        raise RuntimeFault(f"the checkpoint {path} is damaged: {OPTIMISER} has no {error.args[0]}") from None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def why_not_written(error: Exception, folder: Path) -> str:
    """What stopped the writing of a file, also where a library words it."""
    text = str(error)
    number = getattr(error, "errno", None)
    if number == errno.ENOSPC or "os error 28" in text or "No space left" in text:
        free = shutil.disk_usage(folder).free if folder.is_dir() else 0
        return f"the disk is full ({free / 1e6:.0f} MB free in {folder})"
    if number == errno.EDQUOT or "os error 122" in text:
        return "the disk quota is used up"
    if number == errno.EFBIG or "os error 27" in text:
        return "a file would be larger than this system allows"
    return getattr(error, "strerror", None) or text.splitlines()[0]
