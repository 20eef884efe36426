"""What kernels really read and write, counted while Triton's interpreter runs them, and what torch allocates.

with counted() as launches:
    call(x, weight)
launches[0]["x_ptr"].read          bytes of all loads; .distinct_read of different addresses
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from triton.runtime import interpreter


@dataclass
class Touched:
    """Bytes of one argument of a kernel: all that loads and stores name, and how many different ones those are."""

    size: int
    _loads: list[np.ndarray] = field(default_factory=list)
    _stores: list[np.ndarray] = field(default_factory=list)
    itemsize: int = 1

    @property
    def read(self) -> int:
        return sum(map(len, self._loads)) * self.itemsize

    @property
    def written(self) -> int:
        return sum(map(len, self._stores)) * self.itemsize

    @property
    def distinct_read(self) -> int:
        return _distinct(self._loads) * self.itemsize

    @property
    def distinct_written(self) -> int:
        return _distinct(self._stores) * self.itemsize


def _distinct(addresses: list[np.ndarray]) -> int:
    return len(np.unique(np.concatenate(addresses))) if addresses else 0


@dataclass
class Launch:
    """`arguments`: the tensors by the names of the kernel's parameters."""

    kernel: str
    programs: int
    arguments: dict[str, Touched]
    _starts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(self, pointers: np.ndarray, mask: np.ndarray, itemsize: int, is_store: bool) -> None:
        addresses = np.broadcast_to(pointers, np.broadcast_shapes(pointers.shape, mask.shape))[
            np.broadcast_to(mask, np.broadcast_shapes(pointers.shape, mask.shape)).astype(bool)
        ]
        if not addresses.size:
            return
        first = int(addresses.min())
        name = next(name for name, (start, stop) in self._starts.items() if start <= first < stop)
        assert int(addresses.max()) < self._starts[name][1], f"{self.kernel} leaves {name}"
        touched = self.arguments[name]
        touched.itemsize = itemsize
        (touched._stores if is_store else touched._loads).append(addresses.reshape(-1).copy())


@contextmanager
def counted() -> Iterator[list[Launch]]:
    """All launches inside, in order."""
    found: list[Launch] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__

    def launched(self, *arguments, **options):
        grid: Any = self.grid(options) if callable(self.grid) else self.grid
        names = [name for name in self.arg_names if name not in options]
        tensors = {name: x for name, x in zip(names, arguments, strict=False) if isinstance(x, Tensor)}
        tensors |= {name: x for name, x in options.items() if isinstance(x, Tensor)}
        starts = {
            name: (x.data_ptr(), x.untyped_storage().data_ptr() + x.untyped_storage().nbytes())
            for name, x in tensors.items()
        }
        touched = {name: Touched(x.numel() * x.element_size()) for name, x in tensors.items()}
        found.append(Launch(self.fn.__name__, int(np.prod([int(n) for n in grid])), touched, starts))
        return call(self, *arguments, **options)

    def loaded(self, ptrs, mask, *rest):
        found[-1].note(ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8 or 1, False)
        return load(self, ptrs, mask, *rest)

    def stored(self, ptrs, value, mask, *rest):
        found[-1].note(ptrs.data, mask.data, ptrs.get_element_ty().primitive_bitwidth // 8 or 1, True)
        return store(self, ptrs, value, mask, *rest)

    try:
        for place, name, other in ((builder, "create_masked_load", loaded), (builder, "create_masked_store", stored),
                                   (executor, "__call__", launched)):  # fmt: skip
            setattr(place, name, other)
        yield found
    finally:
        for place, name, other in ((builder, "create_masked_load", load), (builder, "create_masked_store", store),
                                   (executor, "__call__", call)):  # fmt: skip
            setattr(place, name, other)


@dataclass
class Memory:
    """What torch allocated on the CPU: bytes of the largest piece, and of all that was alive at once at most."""

    largest: int = 0
    peak: int = 0


@contextmanager
def allocated() -> Iterator[Memory]:
    """Every allocation of torch's allocator, inside operators and libraries too. What was there before is not
    counted."""
    found = Memory()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield found
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    assert results is not None
    alive = 0
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        found.largest = max(found.largest, event.nbytes())
        found.peak = max(found.peak, alive)
