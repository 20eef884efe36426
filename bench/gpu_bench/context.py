"""What every section is given: the device, sizes, time, and how a failure becomes a row."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_LONGEST = 300


class DeviceLost(Exception):
    """Nothing runs on the device any more in this process: another process has to go on.

    `row`: what had been measured of the row in work, if anything.
    """

    row: dict[str, Any] | None = None


@dataclass(frozen=True)
class Context:
    """`tiny`: sizes for a machine without a GPU, of every section alike. `end`: when time is up, by time.monotonic.

    `peers`: who is compared with, of the names in gpu.py; `backend` of torch.compile. `done`: rows that are there
    already. `begin(name)` notes what is being measured, for whoever takes over if the process ends.
    """

    device: torch.device
    tiny: bool
    end: float
    peers: frozenset[str]
    backend: str = "inductor"
    done: frozenset[str] = field(default_factory=frozenset)
    begin: Callable[[str], None] = lambda name: None

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    def attempt(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        """The result, or why there is none. DeviceLost where the device is what broke."""
        try:
            return work(), None
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  a peer or a kernel may raise anything; the rest goes on
            said = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            del error
            self.free()
            return None, said

    def free(self) -> None:
        """Lets go of what a failed or finished piece held."""
        gc.collect()
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize(self.device)
            except RuntimeError as error:
                raise DeviceLost(str(error).splitlines()[0]) from None
            torch.cuda.empty_cache()

    def compiled(self, function: Any) -> Any:
        """torch.compile, from a clean start: what was compiled for other shapes would make it recompile for any."""
        torch.compiler.reset()
        return torch.compile(function, backend=self.backend, dynamic=False)
