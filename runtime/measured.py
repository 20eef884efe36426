"""From a file of measurements to the choices of one device: what `weft tune` wrote is looked up here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

from ..codegen.choices import Choice, Choices
from .errors import LoadFault
from .tuning import Key, Table, read

# The file that is read without being asked for, beside a spec.
BESIDE = "tuning.json"
# How sizes are called that are not known when a kernel is generated, and what a choice is made for: a step of training
# or a prompt, and decoding.
USUAL_SIZES = {"rows": 16384, "columns": 4096, "sequences": 8}
INTERPRETER = "Triton's interpreter"


def versions() -> tuple[tuple[str, str], ...]:
    """Of what compiles and runs kernels here, sorted by name."""
    found = [("torch", torch.__version__.partition("+")[0])]
    with contextlib.suppress(metadata.PackageNotFoundError):
        found.append(("triton", metadata.version("triton")))
    return tuple(sorted(found))


def device_name(device: torch.device) -> str:
    """The name under which measurements on a device are kept."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else INTERPRETER


def choices_for(table: Table, device: str, sizes: Mapping[str, int] = USUAL_SIZES) -> Choices:
    """The fastest configuration of each kernel on a device, for sizes of about `sizes`."""
    known: dict[str, tuple[str, ...]] = {}
    for row in table.rows:
        if row.key.device == device and row.microseconds is not None:
            known[row.key.kernel] = tuple(name for name, _ in row.key.bucket)
    best: dict[str, Choice] = {}
    for kernel, names in known.items():
        wanted = Key(kernel, device, tuple((name, sizes.get(name, 1)) for name in names))
        row = table.fastest(wanted, versions())
        if row is not None:
            best[kernel] = Choice(row.configuration, row.microseconds)
    return Choices(device, best)


def table_for(file: str | Path | None, spec: Path | None = None) -> Table | None:
    """The measurements of a file or artifact, or else of the file beside a spec; None where there are none."""
    if file is not None:
        if not Path(file).exists():
            raise LoadFault(f"there is no file {file} with measurements: `weft tune` writes one")
        return read(Path(file))
    beside = None if spec is None else spec.parent / BESIDE
    return read(beside) if beside is not None and beside.is_file() else None


def measured_on(table: Table, wanted: str | None, what: str) -> str:
    """The device whose measurements are meant, where the machine itself does not say: the only one of the file, or the
    one that is named."""
    devices = table.devices
    if wanted is not None:
        near = [name for name in devices if wanted.lower() in name.lower()]
        if len(near) == 1 or wanted in devices:
            return wanted if wanted in devices else near[0]
        raise LoadFault(f"{what} has measurements of {', '.join(devices) or 'no device'}, not of {wanted}")
    if len(devices) != 1:
        raise LoadFault(f"{what} has measurements of {', '.join(devices) or 'no device'}: name one with --tuned-for")
    return devices[0]
