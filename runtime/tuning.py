"""Which configuration of a kernel is fast on which device: measured once, kept in a file, looked up for ever.

    table = read(path)
    table, best = tune(table, key, candidates, run, budget=30.0, versions=versions)
    write(path, table)
    table.choose(key, default)

The file has a line of JSON per row, in one order, so that it can be committed and two of them merged. Nothing here
knows a GPU: `run` times a candidate, and may raise.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..codegen.artifact import MANIFEST
from ..codegen.configuration import Configuration
from .errors import LoadFault, RuntimeFault

# A message can be a compiler's whole module.
_LONGEST_FAILURE = 200


def bucket(**sizes: int) -> tuple[tuple[str, int], ...]:
    """The sizes that are not known when a kernel is generated, each rounded up to a power of two, sorted by name."""
    return tuple(sorted((name, 1 << max(0, size - 1).bit_length()) for name, size in sizes.items()))


@dataclass(frozen=True)
class Key:
    """What a choice is made for: a kernel (by `kernel_hash`) on a device, for sizes of about a `bucket`."""

    kernel: str
    device: str
    bucket: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Row:
    """One measurement: a time, or why there is none.

    versions   (package, version), sorted: what compiled and ran it
    """

    key: Key
    configuration: Configuration
    versions: tuple[tuple[str, str], ...]
    microseconds: float | None
    failure: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows as they are kept: for each key and versions the fastest, and the failures; in one order."""

    rows: tuple[Row, ...] = ()

    def choose(self, key: Key, default: Configuration, versions: tuple[tuple[str, str], ...] = ()) -> Configuration:
        """The fastest known configuration; `default` where nothing is known of the kernel on this device."""
        found = self.fastest(key, versions)
        return default if found is None else found.configuration

    def fastest(self, key: Key, versions: tuple[tuple[str, str], ...] = ()) -> Row | None:
        """The row of the fastest configuration: of these versions where they were measured, else of any.

        Sizes that were not measured take the nearest that were, by powers of two.
        """
        known = [
            row
            for row in self.rows
            if row.microseconds is not None and (row.key.kernel, row.key.device) == (key.kernel, key.device)
        ]
        found = [
            (distance, row.versions != versions, row.microseconds, _order(row), row)
            for row in known
            if (distance := _distance(row.key.bucket, key.bucket)) is not None
        ]
        return min(found, key=lambda one: one[:-1])[-1] if found else None

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that something was measured on, sorted."""
        return tuple(sorted({row.key.device for row in self.rows if row.microseconds is not None}))

    def failed(self, key: Key, versions: tuple[tuple[str, str], ...]) -> frozenset[Configuration]:
        """What need not be tried again: it failed in the same versions, and did not turn out the fastest since."""
        own = [row for row in self.rows if row.key == key and row.versions == versions]
        fastest = {row.configuration for row in own if row.microseconds is not None}
        return frozenset(row.configuration for row in own if row.failure is not None) - fastest


def merge(*tables: Table | Iterable[Row]) -> Table:
    """One table: the fastest row of each key and versions, and every failure.

    Neither the order of the arguments nor how they are grouped matters.
    """
    rows = [row for table in tables for row in (table.rows if isinstance(table, Table) else table)]
    kept: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=_order):
        kept.setdefault((row.key, row.versions, None if row.failure is None else row.configuration), row)
    return Table(tuple(sorted(kept.values(), key=_order)))


class DeviceLost(RuntimeFault):
    """Nothing runs on the device any more: what a candidate did to it, the others would be blamed for."""


# ---- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A candidate's time, or why there is none."""

    configuration: Configuration
    microseconds: float | None
    failure: str | None = None


def measure(
    candidates: Iterable[Configuration],
    run: Callable[[Configuration], float],
    budget: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[Trial]:
    """Times candidates in their order until `budget` seconds have passed; the first is tried in any case.

    `run` gives microseconds. What it raises, and a time that is none, is the candidate's failure.
    """
    trials: list[Trial] = []
    end = clock() + budget
    for candidate in dict.fromkeys(candidates):
        if trials and clock() >= end:
            break
        try:
            microseconds = float(run(candidate))
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  drivers and compilers raise anything; another candidate may do
            text = " ".join(f"{type(error).__name__}: {error}".split())
            trials.append(Trial(candidate, None, text[:_LONGEST_FAILURE]))
            continue
        if math.isfinite(microseconds) and microseconds > 0:
            trials.append(Trial(candidate, round(microseconds, 3)))
        else:
            trials.append(Trial(candidate, None, f"the time is {microseconds}"))
    return trials


def tune(
    table: Table,
    key: Key,
    candidates: Sequence[Configuration],
    run: Callable[[Configuration], float],
    budget: float,
    versions: tuple[tuple[str, str], ...],
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Table, Configuration]:
    """The table with what was measured, and the choice. The first candidate is the safe default.

    Candidates that failed before in these versions are skipped. ValueError without candidates.
    """
    if not candidates:
        raise ValueError("there is nothing to choose from")
    known = table.failed(key, versions)
    tried = measure([one for one in candidates if one not in known], run, budget, clock)
    table = merge(table, [Row(key, one.configuration, versions, one.microseconds, one.failure) for one in tried])
    return table, table.choose(key, candidates[0], versions)


# ---- the file ----------------------------------------------------------------------------------


def read(path: Path) -> Table:
    """The rows of a file, or of an artifact's manifest; an empty table where there is none. LoadFault for what is not a
    row."""
    if path.is_dir():
        return _of_artifact(path)
    if not path.exists():
        return Table()
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LoadFault(f"{path}:{number}: not a row of measurements ({error})") from None
    return merge(rows)


def _of_artifact(folder: Path) -> Table:
    """An artifact says what it was made with."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return merge([_row(data) for data in manifest.get("tuning", [])])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise LoadFault(f"{folder} is no compiled artifact with measurements in its {MANIFEST}") from None


def plain_rows(table: Table, device: str) -> list[dict[str, Any]]:
    """What was measured to be fastest on a device, as data for a manifest."""
    return [_plain(row) for row in table.rows if row.key.device == device and row.microseconds is not None]


def write(path: Path, table: Table) -> None:
    """The whole file, at once: a reader sees the rows of before or these."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(_plain(row), sort_keys=True) + "\n" for row in merge(table).rows)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _plain(row: Row) -> dict[str, Any]:
    data = {
        "kernel": row.key.kernel,
        "device": row.key.device,
        "bucket": dict(row.key.bucket),
        "configuration": asdict(row.configuration) | {"constants": dict(row.configuration.constants)},
        "versions": dict(row.versions),
    }
    if row.failure is not None:
        return data | {"failure": row.failure}
    return data | {"microseconds": row.microseconds}


def _row(data: dict[str, Any]) -> Row:
    made, sizes = data["configuration"], data["bucket"]
    microseconds, failure = data.get("microseconds"), data.get("failure")
    if (microseconds is None) == (failure is None):
        raise ValueError("it needs microseconds or a failure")
    if not all(isinstance(size, int) and size >= 1 for size in sizes.values()):
        raise ValueError("the sizes of a bucket are at least 1")
    constants = tuple(sorted((name, _constant(value)) for name, value in made["constants"].items()))
    return Row(
        key=Key(str(data["kernel"]), str(data["device"]), tuple(sorted(sizes.items()))),
        configuration=Configuration(constants, int(made["warps"]), int(made["stages"]), str(made["implementation"])),
        versions=tuple(sorted(data["versions"].items())),
        microseconds=None if microseconds is None else float(microseconds),
        failure=None if failure is None else str(failure),
    )


def _constant(value: Any) -> Any:
    """Tuples become lists in JSON."""
    return tuple(_constant(item) for item in value) if isinstance(value, list) else value


def _order(row: Row) -> tuple[Any, ...]:
    """By key, then successes before failures, faster first; ties by what is written."""
    key = (row.key.kernel, row.key.device, row.key.bucket)
    time = math.inf if row.microseconds is None else row.microseconds
    return (*key, row.versions, time, json.dumps(_plain(row), sort_keys=True))


def _distance(known: tuple[tuple[str, int], ...], wanted: tuple[tuple[str, int], ...]) -> float | None:
    """How many doublings apart two buckets are; None for buckets of other sizes."""
    if [name for name, _ in known] != [name for name, _ in wanted]:
        return None
    return sum(abs(math.log2(a) - math.log2(b)) for (_, a), (_, b) in zip(known, wanted, strict=True))
