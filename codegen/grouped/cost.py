"""What the kernels of a grouped linear move and compute, for a roofline."""

from __future__ import annotations

from math import prod

from ..cost import Work
from ..gpu.triton_types import TRITON_TYPES
from .op import GroupedOp


def grouped_work(op: GroupedOp, product: str, rows: int, trained: int) -> Work:
    """Of one launch over `rows` rows of all groups together; `trained`: weights that want a gradient. Each operand and
    each result once, and where rows are in another order their numbers."""
    form = op.form
    outputs = sum(form.outputs)
    x, y = rows * form.inputs, rows * outputs
    weights = form.groups * outputs * form.inputs
    biases = form.groups * outputs if form.has_bias else 0
    # Rows of groups that are not trained are not read for the gradients of weights; how many those are is data.
    share = trained / form.weights
    read, written, flops = {
        "forward": (x + weights + biases, y, 1.0),
        "x_gradient": (y + weights, x, 1.0),
        "weight_gradient": (share * (x + y), share * (weights + biases), share),
    }[product]
    vector = 0.0
    if op.epilogue is not None and product == "forward":
        # The pieces that a gradient reads are stored beside what is made of them.
        read += rows * sum(source.entries for source in op.epilogue.others if source.by_row)
        written = rows * sum(prod(result.dims) for result in op.epilogue.call.program.results)
        written += rows * sum(form.outputs[j] for j in (*op.epilogue.left(form.pieces), *op.epilogue.saved))
        vector = rows * max(form.outputs) * float(len(op.epilogue.call.program.values))
    numbers = 8 * rows if form.moves else 0
    size = op.dtype.itemsize
    return Work(
        read * size + numbers, written * size, matmul=2.0 * flops * rows * form.inputs * outputs,
        matmul_type=TRITON_TYPES[op.dtype], vector=vector,
    )  # fmt: skip
