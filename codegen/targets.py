"""What kernels can be compiled for, and what is known about the devices: sizes, and rates for rooflines.

A target is an instruction set (`cuda:90`), a device is a product (`h200`): one target can have several devices, which
differ in memory only. Rates come in two kinds. The data sheet's are what the maker promises. The attained ones are what
a plain copy and a large matrix product reach, and rooflines use these, as a kernel that reaches 100 % of them is done.

Marks in the comments: measured (on such a device, by whom), published (by others), assumed (the same fraction of the
data sheet as on a device that was measured). Replace an assumed number when one has been measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..dsl.suggest import suggest


class UnknownTarget(ValueError):
    """A target or device that is not in the tables. The text is one line for the user."""


@dataclass(frozen=True)
class Target:
    """An instruction set to compile for.

    arch            the compute capability times ten on NVIDIA (90), the name on AMD ("gfx942")
    shared          bytes of shared memory that one program may have
    registers       32-bit registers that one thread may have without spilling
    """

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared: int
    registers: int


@dataclass(frozen=True, eq=False)
class Device:
    """A product.

    processors        streaming multiprocessors (compute units on AMD)
    register_file     32-bit registers of one processor
    bandwidth         bytes per second of the data sheet
    copy_bandwidth    bytes per second, read plus written, that a large copy attains
    matmul            FLOP/s of the data sheet by type of the operands, dense, on matrix units
    matmul_attained   the fraction of `matmul` that a large matrix product attains
    vector            FLOP/s of the data sheet by type, outside matrix units
    """

    name: str
    title: str
    target: str
    processors: int
    register_file: int
    bandwidth: float
    copy_bandwidth: float
    matmul: Mapping[str, float]
    matmul_attained: float
    vector: Mapping[str, float]

    def matmul_rate(self, type: str) -> float:
        """FLOP/s of matrix products with operands of `type` ("bf16", "fp32", ...), as attained.

        A type without matrix units (fp32 that must stay exact) is multiplied in vector units. ValueError for a type
        that the device computes nowhere.
        """
        if type in self.matmul:
            return self.matmul[type] * self.matmul_attained
        return self.vector_rate(type)

    def vector_rate(self, type: str) -> float:
        """FLOP/s of elementwise work in `type`; bf16 and fp16 are computed in fp32. ValueError as `matmul_rate`."""
        rate = self.vector.get({"bf16": "fp32", "fp16": "fp32"}.get(type, type))
        if rate is None:
            raise ValueError(f"{self.title} has no rate for {type}; known are {', '.join(sorted(self.vector))}")
        return rate


# Shared memory of a program: CUDA C++ Programming Guide, table of technical specifications per compute capability (163
# and 227 KB); AMD CDNA 3 instruction set guide (64 KB of LDS for a work group). Registers of a thread: the same
# guides; CDNA 3 has 512 in one file, half of them reachable by matrix and memory instructions only.
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cuda:80", "cuda", 80, 32, shared=163 * 1024, registers=255),
        Target("cuda:90", "cuda", 90, 32, shared=227 * 1024, registers=255),
        Target("cuda:100", "cuda", 100, 32, shared=227 * 1024, registers=255),
        Target("hip:gfx942", "hip", "gfx942", 64, shared=64 * 1024, registers=512),
    )
}

_HOPPER = {"fp8": 1978.9e12, "fp16": 989.4e12, "bf16": 989.4e12, "tf32": 494.7e12, "fp64": 66.9e12}

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            # NVIDIA A100 80GB SXM data sheet; 108 SMs: NVIDIA Ampere architecture white paper.
            name="a100",
            title="NVIDIA A100 SXM 80GB",
            target="cuda:80",
            processors=108,
            register_file=65536,
            bandwidth=2.039e12,
            copy_bandwidth=0.90 * 2.039e12,  # assumed, as on the H100
            matmul={"fp16": 312e12, "bf16": 312e12, "tf32": 156e12, "fp64": 19.5e12},
            matmul_attained=0.80,  # assumed, as on the H200
            vector={"fp32": 19.5e12, "fp64": 9.7e12},
        ),
        Device(
            # NVIDIA H100 SXM5 data sheet and Hopper architecture white paper.
            name="h100",
            title="NVIDIA H100 SXM 80GB",
            target="cuda:90",
            processors=132,
            register_file=65536,
            bandwidth=3.35e12,
            copy_bandwidth=3.0e12,  # published: QuACK's RMSNorm and softmax, 90 % of the data sheet
            matmul=_HOPPER,
            matmul_attained=0.80,  # assumed, as on the H200
            vector={"fp32": 66.9e12, "fp64": 33.5e12},
        ),
        Device(
            # NVIDIA H200 SXM data sheet: the H100 with other memory.
            name="h200",
            title="NVIDIA H200 SXM 141GB",
            target="cuda:90",
            processors=132,
            register_file=65536,
            bandwidth=4.8e12,
            copy_bandwidth=4.3e12,  # measured by us on such a device
            matmul=_HOPPER,
            matmul_attained=0.80,  # measured by us: 790 TFLOP/s in bf16 at 8192 x 8192 x 8192, random data
            vector={"fp32": 66.9e12, "fp64": 33.5e12},
        ),
        Device(
            # NVIDIA HGX B200 data sheet, an eighth of it, without sparsity; 148 SMs: published by Chips and Cheese.
            name="b200",
            title="NVIDIA B200 SXM 180GB",
            target="cuda:100",
            processors=148,
            register_file=65536,
            bandwidth=7.7e12,
            copy_bandwidth=0.90 * 7.7e12,  # assumed, as on the H100
            matmul={"fp8": 4500e12, "fp16": 2250e12, "bf16": 2250e12, "tf32": 1100e12, "fp64": 37e12},
            matmul_attained=0.80,  # assumed, as on the H200
            vector={"fp32": 75e12, "fp64": 37e12},
        ),
        Device(
            # AMD Instinct MI300X data sheet. Its four SIMDs have 512 registers for each of 64 lanes.
            name="mi300x",
            title="AMD Instinct MI300X 192GB",
            target="hip:gfx942",
            processors=304,
            register_file=4 * 512 * 64,
            bandwidth=5.3e12,
            copy_bandwidth=0.81 * 5.3e12,  # published: 81 % of the data sheet
            matmul={
                "fp8": 2614.9e12,
                "fp16": 1307.4e12,
                "bf16": 1307.4e12,
                "tf32": 653.7e12,
                "fp32": 163.4e12,
                "fp64": 163.4e12,
            },
            matmul_attained=0.45,  # published, in the same study: about 45 % in fp8, fp16 and bf16
            vector={"fp32": 163.4e12, "fp64": 81.7e12},
        ),
    )
}

# The first device of a target is the one to show when none is named.
_SHOWN_FIRST = {"cuda:90": "h200"}


def target(name: str) -> Target:
    """The target of that name. UnknownTarget with the nearest name, or the target of a device or alias."""
    if name in TARGETS:
        return TARGETS[name]
    raise UnknownTarget(_unknown("target", name, TARGETS, _aliases()))


def device(name: str) -> Device:
    """The device of that name (`h200`), or the usual one of a target (`cuda:90`). UnknownTarget for another name."""
    if name in DEVICES:
        return DEVICES[name]
    if name in TARGETS:
        return devices_of(name)[0]
    raise UnknownTarget(_unknown("device", name, DEVICES, {}))


def devices_of(name: str) -> tuple[Device, ...]:
    """The devices of a target; the first is shown when none is asked for."""
    wanted = target(name).name
    found = [device for device in DEVICES.values() if device.target == wanted]
    return tuple(sorted(found, key=lambda device: device.name != _SHOWN_FIRST.get(wanted)))


def _aliases() -> dict[str, str]:
    """Other words that people use for a target."""
    words = {device.name: device.target for device in DEVICES.values()}
    for one in TARGETS.values():
        words[str(one.arch)] = one.name
        if one.backend == "cuda":
            words |= {f"sm_{one.arch}": one.name, f"sm{one.arch}": one.name, f"sm_{one.arch}a": one.name}
    return words


def _unknown(kind: str, name: str, known: Mapping[str, object], aliases: Mapping[str, str]) -> str:
    wanted = name.strip().lower()
    near = wanted if wanted in known else aliases.get(wanted)
    if near is None:
        guess = suggest(wanted, [*known, *aliases])
        near = aliases.get(guess, guess) if guess else None
    hint = f"; did you mean {near}?" if near else ";"
    return f"unknown {kind} `{name}`{hint} known are {', '.join(known)}"
