"""Where launchers find attention kernels: a table filled by a compiled model, or on demand by the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .triton_types import TRITON_TYPES

# Entries of a head that kernels hold.
WIDEST = 256


@dataclass(frozen=True)
class AttentionKey:
    """All that an attention kernel is made for. `form` is the text of an AttentionForm; types are Triton's names."""

    form: str
    dtype: str
    heads: int
    key_heads: int
    q_width: int
    v_width: int
    bias_type: str | None


@dataclass(frozen=True)
class DecodeKey:
    """The same for kernels over caches: `rows` new rows per sequence, which see low <= key - query <= high."""

    form: str
    dtype: str
    heads: int
    key_heads: int
    q_width: int
    v_width: int
    rows: int
    low: int | None
    high: int


@dataclass(frozen=True)
class Kernel:
    """A jitted function, the names of its run-time arguments in order, its constexpr values, and launch options."""

    function: Any
    arguments: tuple[str, ...]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    def launch(self, grid: tuple[int, ...], values: Mapping[str, Any]) -> None:
        """values: the run-time arguments by name, and any others."""
        arguments = [values[name] for name in self.arguments]
        self.function[grid](*arguments, **self.constants, num_warps=self.warps, num_stages=self.stages)


Key = AttentionKey | DecodeKey
Maker = Callable[[Key, str, str], Kernel]
_kernels: dict[tuple[Key, str, str], Kernel] = {}
_makers: list[Maker] = []


def register(key: Key, name: str, target: str, kernel: Kernel) -> None:
    _kernels[key, name, target] = kernel


def provide(maker: Maker) -> None:
    """Lets `maker` make kernels that are not in the table."""
    if maker not in _makers:
        _makers.append(maker)


def forget() -> None:
    """Kernels are made anew when they are next called for."""
    if _makers:
        _kernels.clear()


def made() -> tuple[tuple[Key, str, str], ...]:
    """What is in the table: keys, names and targets."""
    return tuple(_kernels)


def find(key: Key, name: str, target: str) -> Kernel:
    """The kernel `name` for a target such as "cuda:90" or "interpreter". KeyError: nobody has it or can make it."""
    found = _kernels.get((key, name, target))
    if found is None:
        found = _makers[0](key, name, target) if _makers else _nearest(key, name, target)
        if found is None:
            raise KeyError(f"no kernel {name} for {target} was compiled with this model: {key}")
        _kernels[key, name, target] = found
    return found


def _nearest(key: Key, name: str, target: str) -> Kernel | None:
    """That of the newest architecture of the same maker that is no newer: its configuration fits."""
    maker, _, number = target.partition(":")
    known = {
        int(other.removeprefix("cuda:")): kernel
        for (known_key, known_name, other), kernel in _kernels.items()
        if (known_key, known_name) == (key, name) and other.startswith("cuda:")
    }
    older = [version for version in known if maker == "cuda" and version <= int(number)]
    return known[max(older)] if older else None


def key_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, form: str) -> AttentionKey:
    """Of `q [rows, heads, D]`, `k [rows, key heads, D]`, `v [rows, key heads, Dv]`."""
    bias_type = None if bias is None else TRITON_TYPES[bias.dtype]
    return AttentionKey(form, TRITON_TYPES[q.dtype], q.shape[1], k.shape[1], q.shape[2], v.shape[2], bias_type)


def target_of(tensor: Tensor) -> str | None:
    """What kernels on this tensor run on; None: on nothing, so that torch computes."""
    if tensor.device.type == "cpu":
        return "interpreter" if _is_interpreting() else None
    return device_target(tensor.device.index or 0)


_device_targets: dict[int, str] = {}


def device_target(index: int) -> str:
    if index not in _device_targets:
        if torch.version.hip is not None:
            name = torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
            _device_targets[index] = f"hip:{name}"
        else:
            major, minor = torch.cuda.get_device_capability(index)
            _device_targets[index] = f"cuda:{major * 10 + minor}"
    return _device_targets[index]


def _is_interpreting() -> bool:
    try:
        from triton import knobs  # absent where only the CPU is used
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)
