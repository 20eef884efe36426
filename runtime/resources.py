"""What a compiled kernel occupies, read from the texts that compilers print: no device and no driver is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# NVIDIA machine code: `        /*0a40*/              @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;`
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)
_AMDGCN = re.compile(r"^\s+([a-z]+_[a-z0-9_]+)\b(.*)$", re.MULTILINE)

# Matrix instructions by generation: Volta to Ampere and fp32 on later ones, doubles, integers, fp8 before Hopper,
# Hopper, Blackwell.
_MATRIX = frozenset(
    ("HMMA", "DMMA", "IMMA", "QMMA", "HGMMA", "QGMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA", "OMMA")
)
# Global to shared memory without passing registers: one thread's bytes, or a whole tile.
_ASYNC_COPY = frozenset(("LDGSTS", "UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP"))
_LOCAL = frozenset(("LDL", "STL"))


@dataclass(frozen=True)
class Resources:
    """What one program (block) of a kernel takes, and the instructions that tell how it works.

    registers         32-bit vector registers per thread; on AMD with the accumulation registers
    scalar_registers  registers shared by the threads of a wavefront; 0 on NVIDIA, where they are not limited
    spill_stores      bytes per thread written because registers ran out
    spill_loads       bytes per thread read back
    scalar_spills     scalar registers put aside (AMD): into lanes of vector registers while there are some, which costs
                      instructions but no memory
    stack             bytes of private memory per thread, spills included
    shared            bytes of shared memory per program, static and dynamic
    warps             after compilation: warp specialization adds some
    stages            as asked for
    matrix            (instruction, count) of matrix instructions, most frequent first
    local_memory      instructions that read or write private memory
    async_copies      instructions that copy from global to shared memory past the registers
    instructions      all of them
    """

    registers: int
    scalar_registers: int
    spill_stores: int
    spill_loads: int
    scalar_spills: int
    stack: int
    shared: int
    warps: int
    stages: int
    matrix: tuple[tuple[str, int], ...]
    local_memory: int
    async_copies: int
    instructions: int

    @property
    def spills(self) -> int:
        """Bytes per thread that go through memory because registers ran out."""
        scalar = 4 * self.scalar_spills if self.stack else 0
        return self.spill_stores + self.spill_loads + scalar

    @property
    def matrix_instructions(self) -> int:
        return sum(count for _, count in self.matrix)


def nvidia(usage: str, log: str, sass: str, metadata: Mapping[str, Any]) -> Resources:
    """From `cuobjdump --dump-resource-usage`, ptxas's log, machine code, and what Triton noted.

    ValueError when a text does not hold what it should: a tool of another version.
    """
    # cuobjdump's SHARED holds what the system reserves on newer devices; ptxas's smem is the kernel's own.
    static = re.search(r"(\d+) bytes smem", log)
    operations = Counter(_SASS.findall(sass))
    if not operations:
        raise ValueError("the machine code holds no instruction that could be read")
    return Resources(
        registers=max(_numbers(r"\bREG:(\d+)", usage, "cuobjdump")),
        scalar_registers=0,
        spill_stores=sum(_numbers(r"(\d+) bytes spill stores", log, "ptxas")),
        spill_loads=sum(_numbers(r"(\d+) bytes spill loads", log, "ptxas")),
        scalar_spills=0,
        stack=max(_numbers(r"\bSTACK:(\d+)", usage, "cuobjdump")),
        shared=metadata["shared"] + (int(static[1]) if static else 0),
        warps=metadata["warps"],
        stages=metadata["stages"],
        matrix=_ranked({name: count for name, count in operations.items() if name in _MATRIX}),
        local_memory=sum(operations[name] for name in _LOCAL),
        async_copies=sum(operations[name] for name in _ASYNC_COPY),
        instructions=operations.total(),
    )


def amd(assembly: str, metadata: Mapping[str, Any]) -> Resources:
    """From the assembly text, whose end describes the kernel, and what Triton noted. ValueError as `nvidia`."""

    def described(name: str) -> int:
        return max(_numbers(rf"^\s*(?:- )?\.{name}:\s+(\d+)", assembly, "the assembly's metadata"))

    code = assembly.partition("\t.section")[0]
    operations: Counter[str] = Counter()
    to_shared = 0
    for name, operands in _AMDGCN.findall(code):
        operations[name] += 1
        to_shared += name.startswith("global_load_lds") or (name.startswith("buffer_load") and " lds" in operands)
    if not operations:
        raise ValueError("the assembly holds no instruction that could be read")
    vector_spills = described("vgpr_spill_count")
    return Resources(
        registers=described("vgpr_count"),
        scalar_registers=described("sgpr_count"),
        # Counted in registers there: each is stored and loaded at least once.
        spill_stores=4 * vector_spills,
        spill_loads=4 * vector_spills,
        scalar_spills=described("sgpr_spill_count"),
        stack=described("private_segment_fixed_size"),
        shared=metadata["shared"] + described("group_segment_fixed_size"),
        warps=metadata["warps"],
        stages=metadata["stages"],
        matrix=_ranked({name: count for name, count in operations.items() if name.startswith(("v_mfma", "v_smfmac"))}),
        local_memory=sum(count for name, count in operations.items() if name.startswith("scratch_")),
        async_copies=to_shared,
        instructions=operations.total(),
    )


def _ranked(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _numbers(pattern: str, text: str, of: str) -> list[int]:
    """One per function: a kernel may call some that were not inlined."""
    found = re.findall(pattern, text, re.MULTILINE)
    if not found:
        raise ValueError(f"no {pattern!r} in what {of} says: {text.strip()[:200]!r}")
    return [int(number) for number in found]
