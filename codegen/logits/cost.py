"""What the kernels of logits move and compute, for a roofline; the products of the matrix library are not theirs."""

from __future__ import annotations

import torch

from ..cost import Work
from ..gpu.formula import functions
from ..gpu.logits_blocks import blocks
from ..gpu.triton_types import TRITON_TYPES
from .lines import gradient_names, real_of, result_type_of, type_of
from .op import LogitsOp


def logits_work(op: LogitsOp, rows: int) -> dict[str, tuple[Work, int]]:
    """By the launcher's name of each kernel: what one launch moves and computes over its share of `rows`, and how many
    launches there are."""
    form, real = op.form, real_of(op.dtype)
    entries = rows * op.vocabulary
    cut = blocks(rows, op.vocabulary, op.width)
    launches = 1 if op.in_tiles else len(cut.row_starts) * len(cut.column_starts)
    parts = 1 if op.in_tiles else len(cut.column_starts)
    states = rows * parts * sum(type_of(name, real).itemsize for name in form.states)
    results = rows * sum(result_type_of(name, real).itemsize for name in form.results)
    ids = rows * form.picks * torch.int64.itemsize
    bias = op.vocabulary * op.dtype.itemsize if form.has_bias else 0
    taken = ids + bias + rows * sum(type_of(name, real).itemsize for name in gradient_names(form))
    operands = (rows + op.vocabulary) * op.width * op.dtype.itemsize
    product = 2.0 * entries * op.width
    # A maximum, a difference, an exponential, a sum; and as many for each of the others.
    steps = 0 if form.formula is None else functions(form.formula)
    scan = entries * (4.0 + steps + 3.0 * form.mean + 2.0 * form.top + 2.0 * form.place + 2.0 * form.picks)
    slope = entries * (3.0 + 2.0 * steps + 4.0 * form.mean + 2.0 * form.top + 2.0 * form.picks)
    sums = {"x_gradient": rows * op.width * real.itemsize, "weight_gradient": op.vocabulary * op.width * real.itemsize}
    found: dict[str, tuple[float, float, float, float]] = {  # read, written, of products, of vectors
        "statistics": (
            (operands if op.in_tiles else entries * real.itemsize) + ids + bias,
            states, product if op.in_tiles else 0.0, scan,
        ),
        "merge": (states, results, 0.0, 8.0 * rows * parts),
        "slopes": (entries * real.itemsize + taken, entries * op.dtype.itemsize, 0.0, slope),
        **{name: (operands + taken, size, 2 * product, slope) for name, size in sums.items()},
    }  # fmt: skip
    counts = {"statistics": launches, "slopes": launches}
    types = {"matmul_type": TRITON_TYPES[op.dtype], "vector_type": TRITON_TYPES[real]}
    return {
        name: (_share(*found[name], counts.get(name, 1), types), counts.get(name, 1)) for name in op.kernels.launched
    }


def _share(read: float, written: float, matmul: float, vector: float, launches: int, types: dict[str, str]) -> Work:
    return Work(read / launches, written / launches, matmul=matmul / launches, vector=vector / launches, **types)
