"""Logs of a run on disk.

metrics.jsonl   a line per step and per evaluation; nothing in it depends on the clock, so that a resumed run ends
                with the same bytes as an undisturbed one
timing.jsonl    step, seconds since the run was (re)started, tokens per second
tensorboard/    the same curves, where tensorboard is installed
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .cut_lengths import CutStatistics, bin_names
from .errors import RuntimeFault
from .events import Evaluated, StepDone

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"


class JsonLines:
    """An append-only log that can be cut back to a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def open_at(self, step: int) -> None:
        """Keeps the lines up to `step` and goes on behind them. A line that a kill cut short is dropped."""
        kept = [line for line in _lines(self.path) if _step_of(line) is not None and (_step_of(line) or 0) <= step]
        temporary = self.path.with_name(f".tmp-{self.path.name}")
        try:
            with temporary.open("wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
            self._file = self.path.open("ab")
        except OSError as error:
            raise self._fault(error) from None

    def append(self, record: Mapping[str, Any]) -> None:
        # One write of a whole line: a kill leaves at most the last line short.
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._fault(error) from None

    def sync(self) -> None:
        """On disk before a checkpoint of this step is."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._fault(error) from None

    def close(self) -> None:
        if self._file is not None:
            # A full disk was reported when the line was written.
            with suppress(OSError):
                self._file.close()

    def _fault(self, error: OSError) -> RuntimeFault:
        return RuntimeFault(f"the log {self.path} could not be written: {error.strerror}")


class Curves(Protocol):
    """What is used of tensorboard's SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...

    def close(self) -> None: ...


def open_curves(folder: Path, wanted: str, step: int) -> Curves | None:
    """A TensorBoard writer; None when it is off, or `auto` and not installed."""
    if wanted == "off":
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter  # optional: the JSON lines hold the same numbers
    except ImportError:
        if wanted == "on":
            raise RuntimeFault("TensorBoard is not installed: pip install 'weft[train]', or tensorboard=off") from None
        return None
    try:
        return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
    except OSError as error:
        raise _no_curves(folder, error) from None


def _no_curves(folder: Path, error: OSError) -> RuntimeFault:
    return RuntimeFault(f"the curves in {folder / 'tensorboard'} could not be written: {error.strerror or error}")


class RunLogs:
    """All logs of a run, cut back to where it goes on."""

    def __init__(self, out: Path, tensorboard: str, step: int) -> None:
        self._out = out
        self._metrics = JsonLines(out / METRICS)
        self._timing = JsonLines(out / TIMING)
        self._metrics.open_at(step)
        self._timing.open_at(step)
        self._curves = open_curves(out, tensorboard, step)

    def __enter__(self) -> RunLogs:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._timing.close()
        if self._curves is not None:
            # What is lost here are points of curves; metrics.jsonl holds them too.
            with suppress(OSError):
                self._curves.close()

    def train(self, done: StepDone, seconds: float) -> None:
        record = {"kind": "train", "step": done.step, "tokens": done.tokens, "total": done.total, "losses": done.losses}
        record |= {"gradient_norm": done.gradient_norm, "lr": done.lr, **_measured(done.bits_per_byte, done.cuts)}
        self._metrics.append(record)
        self._timing.append({"step": done.step, "seconds": seconds, "tokens_per_second": done.tokens_per_second})
        numbers = {"total": done.total, "gradient_norm": done.gradient_norm, "lr": done.lr}
        numbers |= _bits(done.bits_per_byte)
        for name, cut in done.cuts.items():
            numbers |= {f"{name}/segments": float(cut.segments), f"{name}/mean": cut.mean}
            numbers |= {f"{name}/length {length}": float(cut.histogram.get(length, 0)) for length in bin_names()}
        self._plot("train", done.step, {**done.losses, **numbers})

    def evaluation(self, done: Evaluated) -> None:
        record = {"kind": "held_out", "step": done.step, "total": done.total, "losses": done.losses}
        tables = {path: usage.to_json() for path, usage in done.tables.items()}
        measured = {**_measured(done.bits_per_byte, {}), **({"tables": tables} if tables else {})}
        self._metrics.append({**record, "rows": done.tokens, **measured})
        numbers = {"total": done.total, **_bits(done.bits_per_byte)}
        for path, usage in done.tables.items():
            numbers |= {f"{path}/used": usage.used, f"{path}/kl": usage.kl, f"{path}/kl_weights": usage.kl_weights}
            numbers |= {f"{path}/kl_floor": usage.floor}
        self._plot("held_out", done.step, {**done.losses, **numbers})

    def sync(self) -> None:
        self._metrics.sync()

    def _plot(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self._curves is None:
            return
        try:
            for name, value in values.items():
                self._curves.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:  # of its writing thread, at a later point
            raise _no_curves(self._out, error) from None


class NoLogs(RunLogs):
    """Of a rank that is not the first."""

    def __init__(self, *_: object) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def train(self, done: StepDone, seconds: float) -> None:
        pass

    def evaluation(self, done: Evaluated) -> None:
        pass

    def sync(self) -> None:
        pass


def measured_record(
    bits_per_byte: float | None, held_out: float | None, cuts: Mapping[str, CutStatistics]
) -> dict[str, Any]:
    """What a checkpoint's manifest says of the step it was saved at, and of the last evaluation."""
    last = {} if held_out is None else {"held_out_bits_per_byte": held_out}
    return {**_measured(bits_per_byte, cuts), **last}


def _bits(bits_per_byte: float | None) -> dict[str, float]:
    return {} if bits_per_byte is None else {"bits_per_byte": bits_per_byte}


def _measured(bits_per_byte: float | None, cuts: Mapping[str, CutStatistics]) -> dict[str, Any]:
    counted = {name: cut.to_json() for name, cut in cuts.items()}
    return {**_bits(bits_per_byte), **({"cuts": counted} if counted else {})}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """A small file, whole or as it was before."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RuntimeFault(f"{path} could not be written: {error.strerror}") from None


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _step_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
