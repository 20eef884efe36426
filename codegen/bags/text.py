"""The kernels of a bag that computes its weights, as parts of a module of kernels, and as an ahead-of-time compiler
needs them."""

from __future__ import annotations

from collections.abc import Callable

from .op import BagOp

Render = Callable[..., str]


def parts(op: BagOp, results: tuple[str, ...], render: Render) -> list[str]:
    """Behind the function of the weights; `results` as the call lists them."""
    plan = op.plan
    sources = tuple((source.place, source.by_row) for source in plan.sources)
    return [_kernels(op, render), render("bag_call.py.j2", op=op, sources=sources, results=results)]


def module_text(op: BagOp, render: Render) -> str:
    """What follows the head of a module that has the kernels alone."""
    return "\n\n\n".join([render("prelude.py.j2"), _kernels(op, render)])


def _kernels(op: BagOp, render: Render) -> str:
    return render("bag.py.j2", name=op.name, plan=op.plan)
