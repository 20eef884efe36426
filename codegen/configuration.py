"""What may be chosen freely of a kernel, and the names under which choices are kept: equal for all candidates."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from .kernel_text import KernelText


@dataclass(frozen=True)
class Configuration:
    """What may be chosen freely without changing what is computed.

    implementation   "triton" for ours; another name for a library's that does the same, such as "torch"
    constants        (name, value) of the constants that are chosen, sorted by name
    warps, stages    as in KernelText; 0 where the implementation has none
    """

    constants: tuple[tuple[str, Any], ...] = ()
    warps: int = 0
    stages: int = 0
    implementation: str = "triton"

    def applied(self, kernel: KernelText) -> KernelText:
        """The kernel in this configuration. ValueError for a constant that it does not have."""
        chosen = dict(self.constants)
        stray = chosen.keys() - {name for name, _ in kernel.constants}
        if stray:
            raise ValueError(f"kernel `{kernel.name}` has no constant {', '.join(sorted(stray))}")
        constants = tuple((name, chosen.get(name, value)) for name, value in kernel.constants)
        return replace(kernel, constants=constants, warps=self.warps, stages=self.stages)


def configuration(kernel: KernelText, tuned: Collection[str]) -> Configuration:
    """The configuration that a kernel is in; `tuned` names the constants that are chosen freely."""
    constants = tuple(sorted((name, value) for name, value in kernel.constants if name in tuned))
    return Configuration(constants, kernel.warps, kernel.stages)


def kernel_hash(kernel: KernelText, tuned: Collection[str]) -> str:
    """A kernel without its configuration: equal for all candidates, another one whenever the text changes."""
    fixed = [(name, value) for name, value in kernel.constants if name not in tuned]
    parts = [kernel.name, kernel.text, kernel.arguments, fixed, sorted(tuned), sorted(kernel.divisible)]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()[:16]


def anonymous(kernel: KernelText) -> KernelText:
    """The kernel without its name, comments and docstrings: these tell which spec it was made from, and change where
    the code does not."""
    tree = ast.parse(kernel.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == kernel.name:
            node.name = "kernel"
        if isinstance(node, ast.FunctionDef | ast.Module) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return replace(kernel, name="kernel", text=ast.unparse(tree))
