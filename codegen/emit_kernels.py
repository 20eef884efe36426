"""Kernel plans to Triton text. The only file that knows jinja2; templates print what the plans decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .bags import text as bag_text
from .bags.op import BagOp
from .emit import Imports, KernelOp, function
from .gpu.rowwise import PROGRAMS
from .grouped import text as grouped_text
from .grouped.op import GroupedOp
from .logits import text as logits_text
from .logits.op import LogitsOp
from .rowwise.derivative import Gathered
from .rowwise.fused import FusedOp
from .rowwise.plan import RowPlan
from .rowwise.row_program import Result


def render(template: str, **values: Any) -> str:
    """A template of codegen/templates with every name it uses given."""
    return _environment().get_template(template).render(**values)


def kernels_text(ops: Iterable[KernelOp], imports: Imports, made_from: str) -> str:
    """A module with a callable for each fused call: what it means, its kernels, and how they are launched."""
    parts = []
    for op in ops:
        if isinstance(op, LogitsOp):
            parts += logits_text.parts(op, render)
            continue
        if isinstance(op, GroupedOp):
            if op.epilogue is not None:
                parts += _fused(op.epilogue.call.renamed(f"{op.name}_epilogue"), imports)
            parts += grouped_text.parts(op, render)
            continue
        if isinstance(op, BagOp):
            results = tuple(map(_made, op.plan.results))
            parts += [function(f"{op.name}_meaning", op.meaning, imports), *bag_text.parts(op, results, render)]
            continue
        parts += _fused(op, imports)
    return render("kernels.py.j2", made_from=made_from, imports=imports, parts=parts)


def _fused(op: FusedOp, imports: Imports) -> list[str]:
    meaning = function(f"{op.name}_meaning", op.meaning, imports)
    kernels = [row_kernel(plan) for plan in (op.forward, op.backward) if plan is not None]
    return [meaning, *kernels, render("fused.py.j2", op=_call(op), usual_programs=PROGRAMS)]


def row_kernel(plan: RowPlan) -> str:
    return render("rowwise.py.j2", plan=plan)


@dataclass(frozen=True)
class _Kernel:
    sources: tuple[tuple[int, bool], ...]
    results: tuple[str, ...]
    block_rows: int
    columns: int
    warps: int
    stages: int
    is_accumulated: bool
    programs: int
    runs: tuple[int, int] | None
    waits: bool


@dataclass(frozen=True)
class _Call:
    name: str
    operands: int
    forward: _Kernel
    backward: _Kernel | None
    wanted: tuple[int, ...]
    owners: tuple[tuple[int, int], ...]
    gathered: tuple[str, ...]
    passed: tuple[tuple[int, int], ...]
    saved: tuple[int, ...]


def _call(op: FusedOp) -> _Call:
    derivative = op.derivative
    return _Call(
        name=op.name,
        operands=op.operands,
        forward=_kernel(op.forward),
        backward=None if op.backward is None else _kernel(op.backward),
        wanted=() if derivative is None else derivative.wanted,
        owners=() if derivative is None else derivative.owners,
        gathered=() if derivative is None else tuple(map(_gathered, derivative.gathered)),
        passed=() if derivative is None else derivative.passed,
        saved=() if derivative is None else derivative.saved,
    )


def _gathered(made: Gathered) -> str:
    numbers = f"{made.place}, {made.rows}, {made.index}, {made.index_result}"
    flags = (", in_runs=True" if made.in_runs else "") + (", is_summed=True" if made.is_summed else "")
    return f"Gathered({numbers}{flags})"


def _kernel(plan: RowPlan) -> _Kernel:
    program = plan.program
    return _Kernel(
        sources=tuple((source.place, source.by_row) for source in program.sources),
        results=tuple(_made(result) for result in program.results),
        block_rows=plan.block_rows,
        columns=plan.columns,
        warps=plan.warps,
        stages=plan.stages,
        is_accumulated=plan.is_accumulated,
        programs=plan.programs if plan.has_sums else PROGRAMS,
        runs=program.runs,
        waits=plan.waits,
    )


def _made(result: Result) -> str:
    flags = ("" if result.by_row else ", by_row=False") + (", is_saved=True" if result.is_saved else "")
    flags += (", by_run=True" if result.by_run else "") + (", is_packed=True" if result.is_packed else "")
    return f"Made({result.dims}, {result.dtype}{flags})"


@cache
def _environment() -> Environment:
    package = (__package__ or "").removesuffix(".")
    return Environment(
        loader=PackageLoader(package, "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
