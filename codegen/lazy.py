"""torch, imported when first used.

The op table holds type rules and lowerings side by side, and `weft check` reads it: importing torch there would make
every check take seconds. Modules under codegen/ops write `from ..lazy import torch` and use it as always.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _LazyModule:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch
    import torch.nn.functional as functional
else:
    torch = _LazyModule("torch")
    functional = _LazyModule("torch.nn.functional")

__all__ = ["functional", "torch"]
