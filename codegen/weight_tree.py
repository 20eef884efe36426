"""The parameters of a program as nested modules, so that `state_dict()` names them by path.

A path part may be any name of the spec, and some are also methods of `torch.nn.Module` (`half`, `type`, `train`).
Such a part is registered under its own name, where `state_dict` and `named_parameters` find it, and read by attribute
with a prefix. So are names that the roots of trees use themselves: the runtime's `Model`, and a compiled model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

PREFIX = "part_"
# What a root has beside its parameters, so that a part of that name is not found in its place. Every weight that an
# objective makes is below `objective`.
OF_ROOTS = frozenset({
    "add", "by_path", "checked", "decoders", "device", "dtype", "given", "graph", "hot_reads", "let_go", "load",
    "loss", "loss_and_cuts", "loss_and_reads", "objective", "parameter_count", "passes", "program", "recompute",
    "reference", "reset", "run", "run_in_stages", "signature", "values", "weights", "within",
})  # fmt: skip


class WeightTree(torch.nn.Module):
    """One level of the tree: parameters and further levels by path part."""

    def __getattr__(self, name: str) -> Any:
        # Called only when ordinary lookup fails, so a child called `part_half` itself is found before this.
        try:
            return super().__getattr__(name)
        except AttributeError:
            part = name.removeprefix(PREFIX)
            if part != name and part in self._parameters:
                return self._parameters[part]
            if part != name and part in self._modules:
                return self._modules[part]
            raise

    def add(self, path: str, parameter: torch.nn.Parameter) -> None:
        """Registers a parameter, making the levels above it."""
        *parents, last = path.split(".")
        level: torch.nn.Module = self
        for part in parents:
            below = level._modules.get(part)
            if below is None:
                below = level._modules[part] = WeightTree()
            level = below
        level._parameters[last] = parameter

    def __getitem__(self, path: str) -> torch.nn.Parameter:
        *parents, last = path.split(".")
        level: Any = self
        for part in parents:
            level = level._modules[part]
        return level._parameters[last]

    def within(self, body: Callable[..., Any], *values: Any) -> Any:
        """What reads this level's weights. Where they lie on several ranks, they are here in whole for so long."""
        return body(*values)

    def by_path(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.named_parameters(remove_duplicate=False)


def attribute_path(path: str) -> str:
    """The dotted attribute path that reads a weight from a tree."""
    return ".".join(PREFIX + part if _is_taken(part) else part for part in path.split("."))


def _is_taken(part: str) -> bool:
    # A compiled model has a method `loss_NAME` for each objective.
    return hasattr(torch.nn.Module, part) or part in _INSTANCE or part in OF_ROOTS or part.startswith("loss_")


_INSTANCE = frozenset(vars(torch.nn.Module()))
