"""Attention kernels as text: templates/attention_*.py.j2, printed from their plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .emit_kernels import render

if TYPE_CHECKING:
    from .score.decode import DecodeKernelPlan
    from .score.plan import KernelPlan


def attention_text(kernels: tuple[KernelPlan | DecodeKernelPlan, ...]) -> str:
    """A module: imports, what kernels share, and the kernels."""
    pieces = [render("attention_shared.py.j2"), *(render(f"{kernel.name}.py.j2", plan=kernel) for kernel in kernels)]
    return "\n\n".join(pieces)
