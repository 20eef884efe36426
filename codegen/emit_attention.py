"""Attention kernels as text: renders templates/attention_*.py.j2."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from .score.decode import DecodeKernelPlan
    from .score.plan import KernelPlan


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def attention_text(kernels: tuple[KernelPlan | DecodeKernelPlan, ...]) -> str:
    """A module: imports, what kernels share, and the kernels."""
    render = _environment().get_template
    pieces = [render("attention_shared.py.j2").render()]
    pieces += [render(f"{kernel.name}.py.j2").render(plan=kernel) for kernel in kernels]
    return "\n\n".join(pieces)
