"""What kernels really read and write, counted while Triton's interpreter runs them, and what torch allocates.

    with counted() as launches:
        call(x, weight)
    launches[0]["x_ptr"].read          bytes of all loads; .distinct_read of different addresses
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
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
        grid = self.grid(options) if callable(self.grid) else self.grid
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
        builder.create_masked_load, builder.create_masked_store = loaded, stored
        executor.__call__ = launched
        yield found
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        executor.__call__ = call


class Largest(TorchDispatchMode):
    """The tensors that torch makes, by their shapes, and the bytes that were alive at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[tuple[int, ...], int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                # What is made is its storage: an expanded view holds less than its shape says.
                bytes_ = tensor.untyped_storage().nbytes() if tensor.device.type != "meta" else 0
                shape = tuple(tensor.shape)
                self.shapes[shape] = max(self.shapes.get(shape, 0), bytes_)
        return made

    @property
    def entries(self) -> int:
        """Of the largest tensor, if each entry is as small as any number."""
        return max((int(np.prod(shape)) for shape in self.shapes), default=0)
