"""Attention kernels as text: templates/attention_*.py.j2, printed from their plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .emit_kernels import render

if TYPE_CHECKING:
    from .gpu.attention_kernels import AttentionKey
    from .score.decode import DecodeKernelPlan
    from .score.plan import KernelPlan


def attention_text(kernels: tuple[KernelPlan | DecodeKernelPlan, ...]) -> str:
    """A module: imports, what kernels share, and the kernels."""
    pieces = [render("attention_shared.py.j2"), *(render(f"{kernel.name}.py.j2", plan=kernel) for kernel in kernels)]
    return "\n\n".join(pieces)


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched on a target, as text. `key`: under which of the module's keys it is entered."""

    key: str
    name: str
    target: str
    arguments: tuple[str, ...]
    constants: dict[str, object]
    warps: int
    stages: int


def attention_module(
    key: AttentionKey,
    forward_form: str,
    kernels: tuple[KernelPlan, ...],
    launches: tuple[Launch, ...],
    made_from: str,
    home: str = ".",
) -> str:
    """A module with the kernels of one attention, which enters them into the table that launchers look in.
    `forward_form`: that of the forward kernel."""
    # Text and None are printed as Python writes them.
    shown = replace(key, form=repr(key.form), bias_type=repr(key.bias_type))
    return render(
        "attention_module.py.j2",
        attention=shown,
        forward_form=repr(forward_form) if forward_form != key.form else None,
        kernels=attention_text(kernels),
        launches=launches,
        made_from=made_from,
        home=home,
    )
