"""Puts generated kernels in the place of the fused calls of a graph.

The text is written to a file, because Triton reads the source of what it compiles; equal texts are one module.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

from torch import fx

from ..codegen.emit import Imports, KernelOp
from ..codegen.emit_kernels import kernels_text
from ..codegen.pipeline import ATTENTION
from ..codegen.score.load import connect


def attach_kernels(module: fx.GraphModule) -> None:
    """Afterwards fused calls launch their kernels on a GPU, and run what they stand for on a CPU."""
    if any(node.target in ATTENTION for node in module.graph.nodes):
        connect()
    ops = {node.target.name: node.target for node in module.graph.nodes if isinstance(node.target, KernelOp)}
    if not ops:
        return
    home = Imports.__module__.rpartition(".")[0]
    text = kernels_text(ops.values(), Imports(home=f"{home}."), f"of {module._get_name()}")
    kernels = _load(text)
    for node in module.graph.nodes:
        if isinstance(node.target, KernelOp):
            node.target = getattr(kernels, node.target.name)
    module.recompile()


@cache
def _load(text: str) -> ModuleType:
    name = f"weft_kernels_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    file = Path(_folder().name) / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Kept until the process ends."""
    return tempfile.TemporaryDirectory(prefix="weft-kernels-")
