"""How long a kernel must take at least: the planned bytes and operations against what a device attains."""

from __future__ import annotations

from dataclasses import dataclass

from .targets import Device

# Rows of a segment, where how many segments there are is data: as patches of bytes have them.
SEGMENT = 4
# Bytes that the largest cache holds, about: rows of a table that is larger are read from memory each time.
CACHE = 64 << 20


@dataclass(frozen=True)
class Work:
    """What one launch moves and computes, as planned.

    read, written   bytes from and to the device's memory, each once however often a cache serves them
    matmul          floating-point operations of matrix products (2 per multiply-add)
    matmul_type     the operands' type there: "bf16", "fp16", "fp8", "tf32", "fp32" or "fp64"
    vector          floating-point operations outside matrix products
    vector_type     the type they are computed in
    """

    read: float
    written: float
    matmul: float = 0.0
    matmul_type: str = "bf16"
    vector: float = 0.0
    vector_type: str = "fp32"

    @property
    def bytes(self) -> float:
        return self.read + self.written

    @property
    def flops(self) -> float:
        return self.matmul + self.vector

    def __add__(self, other: Work) -> Work:
        """The work of two launches. ValueError where they multiply in different types: the sum would have no rate."""
        if self.matmul and other.matmul and self.matmul_type != other.matmul_type:
            raise ValueError(f"matrix products in {self.matmul_type} and {other.matmul_type} have no common rate")
        if self.vector and other.vector and self.vector_type != other.vector_type:
            raise ValueError(f"vector work in {self.vector_type} and {other.vector_type} has no common rate")
        return Work(
            self.read + other.read,
            self.written + other.written,
            self.matmul + other.matmul,
            self.matmul_type if self.matmul else other.matmul_type,
            self.vector + other.vector,
            self.vector_type if self.vector else other.vector_type,
        )


def looked_up(lookups: int, count: int, row: int) -> int:
    """Bytes that so many lookups read of `count` rows of `row` bytes each, by ids as different as there are rows."""
    return row * (lookups if count * row > CACHE else min(lookups, count))


@dataclass(frozen=True)
class Roofline:
    """The least time of some work on a device, in microseconds, and what takes it: "memory", "matmul" or "vector"."""

    microseconds: float
    limiter: str


def roofline(work: Work, device: Device) -> Roofline:
    """max(bytes / bandwidth, operations / rate). Matrix and vector units and the memory are taken to work at once.

    Launch overhead and caches are not in it: a working set that stays in L2 can be faster. ValueError for a type that
    the device does not compute.
    """
    seconds = {
        "memory": work.bytes / device.copy_bandwidth,
        "matmul": work.matmul / device.matmul_rate(work.matmul_type) if work.matmul else 0.0,
        "vector": work.vector / device.vector_rate(work.vector_type) if work.vector else 0.0,
    }
    limiter = max(seconds, key=lambda name: seconds[name])
    return Roofline(seconds[limiter] * 1e6, limiter)
