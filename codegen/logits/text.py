"""The kernels of logits and the call that launches them, as parts of a module of kernels."""

from __future__ import annotations

from collections.abc import Callable

from ..gpu.products import precision
from ..kernel_text import KernelText
from .lines import LogitsKernel
from .op import LogitsOp

Render = Callable[..., str]

_HEAD = "import triton\nimport triton.language as tl"


def parts(op: LogitsOp, render: Render) -> list[str]:
    """In the order of the module."""
    made = op.kernels
    kernels = [_text(kernel, render) for kernel in (*made.helpers, *made.launched.values())]
    call = render("logits.py.j2", op=op, call="TiledLogits" if op.in_tiles else "Logits", roles=made.launched.items())
    return [*kernels, call]


def _text(kernel: LogitsKernel, render: Render) -> str:
    return render(kernel.template, plan=kernel)


def kernel_texts(op: LogitsOp, target: str, render: Render) -> dict[str, KernelText]:
    """As an ahead-of-time compiler needs them, for a target such as "cuda:90"; by the launcher's names."""
    made = op.kernels
    head = "\n\n\n".join([_HEAD, render("prelude.py.j2"), *(_text(helper, render) for helper in made.helpers)])
    return {role: _kernel_text(kernel, op, target, head, render) for role, kernel in made.launched.items()}


def _kernel_text(kernel: LogitsKernel, op: LogitsOp, target: str, head: str, render: Render) -> KernelText:
    values: dict[str, int | str | None] = {
        "BLOCK_M": kernel.block_m,
        "BLOCK_V": kernel.block_v,
        "BLOCK_D": kernel.block_d,
        "PRECISION": precision(op.dtype, target.startswith("cuda")),
    }
    return KernelText(
        name=kernel.name,
        text=f"{head}\n\n\n{_text(kernel, render)}",
        arguments=tuple((argument.name, argument.type) for argument in kernel.arguments),
        constants=tuple((name, value) for name in kernel.constants if (value := values[name]) is not None),
        divisible=tuple(argument.name for argument in kernel.arguments if argument.divisible),
        warps=kernel.warps,
        stages=kernel.stages,
    )
