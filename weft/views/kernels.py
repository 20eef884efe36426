"""`weft inspect FILE kernels|cost|ptx|sass`: what generated kernels take, must move and compute, and their code.

Rows come in the order of the spec; kernels that serve the same line stand together, forward before backward, and what
a step of the decoder launches last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from weft.codegen.cost import Roofline, Work, roofline
from weft.codegen.kernel_text import KernelText
from weft.codegen.rowwise.kept import Kept
from weft.codegen.targets import Device, UnknownTarget, devices_of
from weft.dsl.suggest import suggest
from weft.faults import CommandFault
from weft.runtime.ahead_of_time import TIMEOUT, Compiled, compile_each, problems

from .table import amount, table

# Of training, and of a step of the derived decoder.
DIRECTIONS = ("forward", "backward", "decode")
Direction = Literal["forward", "backward", "decode"]
KEPT = {"operand": "operands", "result": "results", "saved": "saved for it"}


@dataclass(frozen=True)
class Planned:
    """A kernel generated for a target, and what it is for.

    spec       the line it serves, as `olmo2.weft:14`
    work       what one launch moves and computes; None where it was not planned
    count      launches in one step: equal kernels of several layers are one row
    written    what stands on the line; "" where that is not known
    kept       for a backward: what it reads of its forward
    note       what no kernel does of what the line says, and why
    """

    kernel: KernelText
    target: str
    spec: str
    direction: Direction
    work: Work | None = None
    count: int = 1
    written: str = ""
    kept: tuple[Kept, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class KernelRow:
    """A compiled kernel; the other fields are those of Planned."""

    made: Compiled
    spec: str
    direction: Direction
    work: Work | None = None
    count: int = 1
    written: str = ""
    kept: tuple[Kept, ...] = ()
    note: str | None = None


def compiled(
    planned: Sequence[Planned], cache: Path | None = None, timeout: float = TIMEOUT, workers: int = 1
) -> list[KernelRow]:
    """A row for each kernel, compiled as `compile_each` does it. CommandFault for a target that is not known."""
    try:
        made = compile_each([(one.kernel, one.target) for one in planned], cache, timeout, workers)
    except UnknownTarget as error:
        raise CommandFault(str(error), 2) from None
    return [
        KernelRow(result, one.spec, one.direction, one.work, one.count, one.written, one.kept, one.note)
        for one, result in zip(planned, made, strict=True)
    ]


def data(rows: Sequence[KernelRow], device: Device | None = None) -> dict[str, Any]:
    """Everything that the tables show, and what they leave out. Times in microseconds, sizes in bytes."""
    return {
        "kernels": [_row_data(row, device) for row in _ordered(rows)],
        "devices": {
            one.name: {"title": one.title, "target": one.target, "copy_bandwidth": one.copy_bandwidth}
            for one in _devices(rows, device)
        },
        "totals": [
            {"target": target, "direction": direction, "launches": launches, "bytes": moved, "roofline_us": time}
            for target, direction, launches, moved, time in _totals(rows, device)
        ],
    }


def text(rows: Sequence[KernelRow]) -> str:
    """What each kernel takes. Kernels that cannot be used as they are stand below the table with the reason."""
    if not rows:
        return "no kernels"
    head = ("kernel", "pass", "launches", "target", "regs", "spills", "shared", "warps", "stages", "matrix", "code")
    lines = _grouped(head, [(row, _taken(row)) for row in _ordered(rows)], right=(2, 4, 5, 6, 7, 8, 10))
    lines += _kept(rows)
    notes = dict.fromkeys(f"{row.made.kernel} ({row.spec}): {row.note}" for row in _ordered(rows) if row.note)
    lines += ["", *notes] if notes else []
    wrong = [f"{_name(row)}: {problem}" for row in _ordered(rows) for problem in problems(row.made)]
    lines += ["", *wrong] if wrong else ["", "no spills, and all within the limits of their targets"]
    return "\n".join(lines)


def cost(rows: Sequence[KernelRow], device: Device | None = None) -> str:
    """What each launch moves and computes, the least time that takes, and what limits it."""
    if not rows:
        return "no kernels"
    head = ("kernel", "pass", "launches", "device", "read", "written", "FLOPs", "FLOPs/byte", "least us", "limited by")
    lines = _grouped(head, [(row, _planned(row, device)) for row in _ordered(rows)], right=(2, 4, 5, 6, 7, 8))
    totals = [
        (target, direction, f"{launches:,}", amount(moved), _us(time))
        for target, direction, launches, moved, time in _totals(rows, device)
    ]
    lines += ["", table(("in all", "pass", "launches", "moved", "least us"), totals, right=(2, 3, 4))]
    lines += ["", *(_rates(one) for one in _devices(rows, device))]
    return "\n".join(lines)


def ptx(rows: Sequence[KernelRow], kernel: str | None = None) -> str:
    """PTX of all kernels or of one. CommandFault where there is none."""
    return _code(rows, kernel, "ptx")


def sass(rows: Sequence[KernelRow], kernel: str | None = None) -> str:
    """Machine code: SASS with the kernel's lines, on AMD its assembly. CommandFault where there is none."""
    return _code(rows, kernel, "sass")


# ---- cells -------------------------------------------------------------------------------------


def _name(row: KernelRow) -> str:
    return f"{row.made.kernel} for {row.made.target} ({row.spec})"


def _taken(row: KernelRow) -> tuple[str, ...]:
    made = row.made
    start = (made.kernel, row.direction, f"{row.count:,}", made.target)
    found = made.resources
    if found is None:
        return (*start, *("-" * 7))
    spills = f"{found.spill_stores}+{found.spill_loads}" if found.spills else "0"
    if found.scalar_spills:
        spills += f" ({found.scalar_spills} scalar)"
    matrix = ", ".join(f"{count} {name}" for name, count in found.matrix) or "-"
    return (
        *start, str(found.registers), spills, amount(found.shared), str(found.warps), str(found.stages), matrix,
        f"{found.instructions:,}",
    )  # fmt: skip


def _kept(rows: Sequence[KernelRow]) -> list[str]:
    """What stays in memory between forward and backward, for each backward that reads something of it."""
    lines = []
    for row in {row.made.kernel: row for row in _ordered(rows) if row.kept}.values():
        names = [", ".join(one.name for one in row.kept if one.how == how) or "-" for how in KEPT]
        lines.append((row.made.kernel, *names, f"{sum(one.bytes_per_row for one in row.kept):,}"))
    return ["", table(("it reads of its forward", *KEPT.values(), "bytes a row"), lines, right=(4,))] if lines else []


def _planned(row: KernelRow, device: Device | None) -> tuple[str, ...]:
    start = (row.made.kernel, row.direction, f"{row.count:,}", _device(row, device).name)
    work, least = row.work, _least(row, device)
    if work is None or least is None:
        return (*start, *("-" * 6))
    intensity = f"{work.flops / work.bytes:,.1f}" if work.bytes else "-"
    return (
        *start, amount(work.read), amount(work.written), _flops(work.flops), intensity, _us(least.microseconds),
        least.limiter,
    )  # fmt: skip


def _row_data(row: KernelRow, device: Device | None) -> dict[str, Any]:
    made, work, least = row.made, row.work, _least(row, device)
    found = None if made.resources is None else asdict(made.resources) | {"matrix": dict(made.resources.matrix)}
    return {
        "kernel": made.kernel,
        "spec": row.spec,
        "direction": row.direction,
        "launches": row.count,
        "target": made.target,
        "triton": made.triton,
        "compile_s": made.seconds,
        "resources": found,
        "work": None if work is None else asdict(work) | {"bytes": work.bytes, "flops": work.flops},
        "device": _device(row, device).name,
        "roofline_us": None if least is None else least.microseconds,
        "limiter": None if least is None else least.limiter,
        "kept": [asdict(one) for one in row.kept],
        "note": row.note,
        "problems": problems(made),
        "error": made.error,
    }


def _flops(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,.0f}"


def _us(microseconds: float) -> str:
    return f"{microseconds:,.1f}"


def _rates(one: Device) -> str:
    return (
        f"{one.name}: {one.title}, copies {one.copy_bandwidth / 1e12:.2f} TB/s, "
        f"multiplies {one.matmul_rate('bf16') / 1e12:,.0f} TFLOP/s in bf16"
    )


# ---- rows --------------------------------------------------------------------------------------


def _ordered(rows: Iterable[KernelRow]) -> list[KernelRow]:
    """By spec line, forward before backward, by kernel; lines, kernels and targets in the order in which they occur."""
    rows = list(rows)
    specs = {spec: place for place, spec in enumerate(dict.fromkeys(row.spec for row in rows))}
    names = {name: place for place, name in enumerate(dict.fromkeys(row.made.kernel for row in rows))}
    return sorted(rows, key=lambda row: (specs[row.spec], DIRECTIONS.index(row.direction), names[row.made.kernel]))


def _grouped(head: Sequence[str], rows: Sequence[tuple[KernelRow, tuple[str, ...]]], right: Sequence[int]) -> list[str]:
    """A table with a heading for each spec line; the columns of all groups line up."""
    cells = [("  " + values[0], *values[1:]) for _, values in rows]
    first, rule, *body = table(head, cells, right).splitlines()
    lines = [first, rule]
    heading = ""
    for (row, _), line in zip(rows, body, strict=True):
        if row.spec != heading:
            heading = row.spec
            lines.append(f"{row.spec}  {row.written}".rstrip())
        lines.append(line)
    return lines


def _device(row: KernelRow, device: Device | None) -> Device:
    """The device asked for where it has the row's target, else the usual one of that target."""
    if device is not None and device.target == row.made.target:
        return device
    return devices_of(row.made.target)[0]


def _devices(rows: Iterable[KernelRow], device: Device | None) -> list[Device]:
    return list({one.name: one for one in (_device(row, device) for row in rows)}.values())


def _least(row: KernelRow, device: Device | None) -> Roofline | None:
    return None if row.work is None else roofline(row.work, _device(row, device))


def _totals(rows: Sequence[KernelRow], device: Device | None) -> list[tuple[str, str, int, float, float]]:
    """Per target and direction: launches of one step, bytes, and the sum of the least times (one after the other)."""
    found: dict[tuple[str, str], tuple[int, float, float]] = {}
    for row in _ordered(rows):
        key = (row.made.target, row.direction)
        launches, moved, time = found.get(key, (0, 0.0, 0.0))
        least = _least(row, device)
        if row.work is not None and least is not None:
            moved += row.count * row.work.bytes
            time += row.count * least.microseconds
        found[key] = (launches + row.count, moved, time)
    return [
        (target, direction, *found[target, direction])
        for target in dict.fromkeys(row.made.target for row in rows)
        for direction in DIRECTIONS
        if (target, direction) in found
    ]


def _code(rows: Sequence[KernelRow], kernel: str | None, kind: Literal["ptx", "sass"]) -> str:
    rows = _ordered(rows)
    if kernel is not None:
        names = dict.fromkeys(row.made.kernel for row in rows)
        if kernel not in names:
            near = suggest(kernel, names)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(names) or 'none'}"
            raise CommandFault(f"no kernel `{kernel}`; {hint}", 2)
        rows = [row for row in rows if row.made.kernel == kernel]
    parts = []
    for row in rows:
        made = row.made
        is_amd = made.target.startswith("hip:")
        if kind == "ptx" and is_amd:
            raise CommandFault(f"{made.target} has no PTX; `sass` shows its assembly", 2)
        mark = ";" if is_amd else "//"
        body = made.sass if kind == "sass" and not is_amd else made.assembly
        if made.error is not None:
            body = "\n".join(f"{mark} {line}" for line in ["does not compile:", *made.error.splitlines()])
        written = [f"{mark} {row.written}"] if row.written else []
        parts.append("\n".join([f"{mark} {made.kernel}, {made.target}, {row.direction}, {row.spec}", *written, body]))
    return "\n\n".join(part.rstrip() for part in parts) if parts else "no kernels"
