"""Kernel plans to Triton text. The only file that knows jinja2; templates print what the plans decided."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .rowwise.plan import RowPlan

PRELUDE = "prelude.py.j2"


def render(template: str, **values: Any) -> str:
    """A template of codegen/templates with every name it uses given."""
    return _environment().get_template(template).render(**values)


def row_kernel(plan: RowPlan) -> str:
    return render("rowwise.py.j2", plan=plan)


@cache
def _environment() -> Environment:
    package = (__package__ or "").removesuffix(".")
    return Environment(
        loader=PackageLoader(package, "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (Python, not HTML)
    )
