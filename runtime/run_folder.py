"""The folder of a run: who may write in it, and where a resumed run goes on.

run.json          the resolved config
metrics.jsonl     and the other logs of metrics.py
checkpoints/      see checkpoint.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checkpoint import (
    NAME,
    Manifest,
    TrainingState,
    find_checkpoints,
    incompleteness,
    read_manifest,
    read_training,
    read_weights,
    remove_leftovers,
)
from .errors import RuntimeFault

RUN = "run.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint, read and verified."""

    path: Path
    manifest: Manifest
    weights: dict[str, Tensor]
    training: TrainingState


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Creates the folder and holds it: two runs in one would tear each other's logs. A dead process holds nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RuntimeFault(f"the run folder {out} cannot be written: {error.strerror}") from None
    try:
        _take(handle, out)
        yield
    finally:
        os.close(handle)


def read_resume_point(path: Path) -> ResumePoint:
    """A checkpoint that was found by `find_resume_point`."""
    return _read(path, path.parent)


def latest_checkpoint(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the newest of a run folder. One that is damaged is not passed over in
    silence: an older model would be taken for the last."""
    folder = path / CHECKPOINTS
    if not folder.is_dir():
        return path
    written = _written(folder)
    if not written:
        raise RuntimeFault(f"the run {path} has no checkpoint yet")
    damage = incompleteness(written[-1])
    if damage is not None:
        raise RuntimeFault(f"{damage}; {_offer(written[-1], folder)}")
    return written[-1]


def find_resume_point(out: Path, resume: bool | str) -> ResumePoint | None:
    """What to go on from; None at step 0. A damaged checkpoint is an error that offers the last good one."""
    folder = out / CHECKPOINTS
    remove_leftovers(folder)
    if not resume:
        if find_checkpoints(folder):
            raise RuntimeFault(f"{out} already holds a run: go on with it (--resume), or choose another folder (--out)")
        return None
    if isinstance(resume, str):
        path = latest_checkpoint(Path(resume))
        point = _read(path, path.parent)
        _set_aside_newer(folder, point.manifest.step)
        return point
    written = _written(folder)
    if written:
        return _read(written[-1], folder)
    if not (out / RUN).is_file():
        raise RuntimeFault(f"there is nothing to resume in {out}: start without --resume")
    # The run was killed before its first checkpoint.
    return None


def _written(folder: Path) -> list[Path]:
    """Folders that should be checkpoints, oldest first."""
    named = [(int(name[1]), path) for path in folder.glob("step-*") if (name := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named)]


def _read(path: Path, folder: Path) -> ResumePoint:
    try:
        manifest = read_manifest(path)
        return ResumePoint(path, manifest, read_weights(path, manifest), read_training(path, manifest))
    except RuntimeFault as fault:
        raise RuntimeFault(f"{fault}; {_offer(path, folder)}") from None


def _offer(damaged: Path, folder: Path) -> str:
    for entry in reversed(find_checkpoints(folder)):
        if entry.path != damaged and _is_good(entry.path):
            return f"the last good one is {entry.path} (move the damaged one away to go on from it)"
    return "there is no good one beside it"


def _is_good(path: Path) -> bool:
    if incompleteness(path) is not None:
        return False
    try:
        manifest = read_manifest(path)
        read_weights(path, manifest)
        read_training(path, manifest)
    except RuntimeFault:
        return False
    return True


def _set_aside_newer(folder: Path, step: int) -> None:
    """Checkpoints after the step a run goes back to would be taken for its latest. Nothing is deleted."""
    for path in folder.iterdir() if folder.is_dir() else ():
        name = NAME.fullmatch(path.name)
        if name and int(name[1]) > step:
            number = 1
            while (target := folder / f"{path.name}.aside-{number}").exists():
                number += 1
            path.rename(target)


def _take(handle: int, out: Path) -> None:
    try:
        import fcntl  # not on Windows, where two runs in one folder stay the user's own care
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RuntimeFault(f"another run is writing in {out}") from None
