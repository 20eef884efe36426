"""The kernels over bags of rows as others need them: text for an ahead-of-time compiler, where a graph launches them,
bytes for a roofline. They are the same for all lists of one length over rows of one width and type."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import fx

from .bags.op import BagOp
from .bags.text import module_text
from .cost import Work, looked_up
from .emit_kernels import render
from .facts import Fact, facts
from .gpu import shared_tables
from .gpu.bags import BLOCK_N, BLOCK_S, WARPS, are_few, block_entries, splits_of
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText

_FOLDER = Path(__file__).parent / "gpu"
READERS = (shared_tables.bag, shared_tables.products_of_rows)


@dataclass(frozen=True)
class BagCall:
    """A sum of `n` rows of a table `[count, width]` of `dtype` for each line, times weights of a type or not; or, where
    `is_products`, their products with the line. `lines`: of each row of the graph."""

    is_products: bool
    n: int
    count: int
    width: int
    dtype: torch.dtype
    weight: torch.dtype | None
    lines: int = 1
    op: BagOp | None = None

    @property
    def operands(self) -> int:
        """Bytes of what the weights of a row are made of."""
        return 0 if self.op is None else sum(one.entries * one.dtype.itemsize for one in self.op.plan.sources)

    @property
    def gradients(self) -> int:
        """Bytes of their gradients."""
        return 0 if self.op is None else sum(prod(one.dims) * one.dtype.itemsize for one in self.op.plan.results)


def bag_calls(module: fx.GraphModule) -> list[tuple[BagCall, fx.Node]]:
    known = facts(module)
    found = []
    for node in module.graph.nodes:
        if isinstance(node.target, BagOp) or (node.op == "call_function" and node.target in READERS):
            made = _call_of(node, known)
            found += [] if made is None else [(made, node)]
    return found


def _call_of(node: fx.Node, known: dict[fx.Node, Fact]) -> BagCall | None:
    table, index, other = (known.get(one) if isinstance(one, fx.Node) else None for one in node.args[:3])
    if table is None or index is None:
        return None
    count, *entries = table.dims
    if isinstance(node.target, BagOp):
        *lead, n = index.dims
        return BagCall(False, n, count, prod(entries), table.dtype, node.target.plan.dtype, prod(lead), node.target)
    if node.target is shared_tables.bag:
        *lead, n = index.dims
        weight = None if other is None else other.dtype
        return BagCall(False, n, count, prod(entries), table.dtype, weight, prod(lead))
    if other is None:
        return None
    lines = prod(other.dims[:-1])
    return BagCall(True, prod(index.dims) // lines, count, prod(entries), table.dtype, table.dtype, lines)


def forward_kernels(call: BagCall, rows: int) -> tuple[KernelText, ...]:
    """Of a launch over the lists of `rows` rows of the graph."""
    return (_product_kernel(call),) if call.is_products else _sum_kernels(call, rows)


def backward_kernels(call: BagCall, rows: int) -> tuple[KernelText, ...]:
    """Of the gradient of weights or lines, where there is one: the other way round."""
    if call.weight is None:
        return ()
    if call.op is not None:
        few = are_few(rows)
        return (*((_product_kernel(call),) if few else ()), _weighed_kernel(call, "gradients", multiplies=not few))
    return _sum_kernels(call, rows) if call.is_products else (_product_kernel(call),)


def _sum_kernels(call: BagCall, rows: int) -> tuple[KernelText, ...]:
    """A few lines are summed in parts, which one more kernel adds up."""
    made = _sum_kernel(call) if call.op is None else _weighed_kernel(call, "sum")
    return (made, _join_kernel(call)) if _splits(call, rows) > 1 else (made,)


def _splits(call: BagCall, rows: int) -> int:
    blocks = -(-call.width // block_entries(call.width))
    return splits_of(max(1, rows * call.lines * blocks), call.n)[0]


def _sum_kernel(call: BagCall) -> KernelText:
    real = f"*{TRITON_TYPES[call.dtype]}"
    weight = "*i64" if call.weight is None else f"*{TRITON_TYPES[call.weight]}"
    arguments = (
        ("table_ptr", real), ("index_ptr", "*i64"), ("weight_ptr", weight), ("sums_ptr", real), ("splits", "i32"),
        ("per_split", "i32"),
    )  # fmt: skip
    return _text("sum_bags", arguments, (("IS_WEIGHTED", call.weight is not None), *_sizes(call)))


def _join_kernel(call: BagCall) -> KernelText:
    wide = torch.promote_types(call.dtype, torch.float32)
    arguments = (
        ("parts_ptr", f"*{TRITON_TYPES[wide]}"), ("sums_ptr", f"*{TRITON_TYPES[call.dtype]}"), ("splits", "i32")
    )  # fmt: skip
    constants = (("WIDTH", call.width), ("BLOCK_S", BLOCK_S), ("BLOCK_E", block_entries(call.width)))
    return _text("join_bags", arguments, constants)


def _product_kernel(call: BagCall) -> KernelText:
    real = f"*{TRITON_TYPES[call.dtype]}"
    made = f"*{TRITON_TYPES[call.weight or call.dtype]}"
    arguments = (("table_ptr", real), ("index_ptr", "*i64"), ("x_ptr", real), ("products_ptr", made))
    return _text("multiply_bags", arguments, _sizes(call))


def _weighed_kernel(call: BagCall, side: str, multiplies: bool = True) -> KernelText:
    """Of a bag that computes its weights; the gradients, with the weights for the table's."""
    assert call.op is not None
    plan, real, made = call.op.plan, f"*{TRITON_TYPES[call.dtype]}", f"*{TRITON_TYPES[call.op.plan.dtype]}"
    own = [(argument.name, argument.type) for argument in plan.arguments]
    if side == "sum":
        after, constants = [("sums_ptr", real), ("splits", "i32"), ("per_split", "i32")], ()
    else:
        after = [*((argument.name, argument.type) for argument in plan.gradients), ("weight_ptr", made)]
        own = [("d_sums_ptr", real), ("d_weight_ptr", made), *own]
        constants = (("MULTIPLIES", multiplies), ("STORES", True))
    arguments = (("table_ptr", real), ("index_ptr", "*i64"), *own, *after)
    return KernelText(
        name=f"{call.op.name}_{side}",
        text=_helpers() + module_text(call.op, render),
        arguments=arguments,
        constants=(("LISTS", call.lines), *_sizes(call), *constants),
        divisible=tuple(
            name
            for name, type in arguments
            if type.startswith("*") or any(one.name == name and one.divisible for one in plan.arguments)
        ),
        warps=WARPS,
        stages=3,
    )


def _sizes(call: BagCall) -> tuple[tuple[str, int], ...]:
    return ("N", call.n), ("WIDTH", call.width), ("BLOCK_N", BLOCK_N), ("BLOCK_E", block_entries(call.width))


def _text(
    name: str, arguments: tuple[tuple[str, str], ...], constants: tuple[tuple[str, int | bool], ...]
) -> KernelText:
    """With the rounding that the file imports, as one module."""
    own = (_FOLDER / "bag_kernels.py").read_text(encoding="utf-8")
    return KernelText(
        name=name,
        text=_helpers() + own.partition("from .scatter_kernels import rounded\n")[2],
        arguments=arguments,
        constants=constants,
        divisible=tuple(argument for argument, type in arguments if type.startswith("*")),
        warps=WARPS,
        stages=3,
    )


def _helpers() -> str:
    """The rounding of sums, with a module's head."""
    return (_FOLDER / "scatter_kernels.py").read_text(encoding="utf-8").partition("@triton.jit(do_not")[0]


def bag_work(call: BagCall, name: str, rows: int) -> Work:
    """Of one launch over the lists of `rows` rows of the graph."""
    lines, splits = rows * call.lines, _splits(call, rows)
    lookups, row = lines * call.n, call.width * call.dtype.itemsize
    part = call.width * torch.promote_types(call.dtype, torch.float32).itemsize if splits > 1 else row
    vector_type = "fp64" if call.dtype == torch.float64 else "fp32"
    if name == "join_bags":
        return Work(lines * splits * part, lines * row, vector=lines * splits * call.width, vector_type=vector_type)
    read = looked_up(lookups, call.count, row) + 8 * lookups
    numbers = lookups * (0 if call.weight is None else call.weight.itemsize)
    vector = 2 * lookups * call.width
    if name == "multiply_bags":
        return Work(read + lines * row, numbers, vector=vector, vector_type=vector_type)
    if call.op is not None and name.endswith("_gradients"):
        written = rows * call.gradients + numbers
        if are_few(rows):
            return Work(numbers + rows * call.operands, written, vector=lookups, vector_type=vector_type)
        return Work(read + rows * call.operands + lines * row, written, vector=vector, vector_type=vector_type)
    numbers = rows * call.operands if call.op is not None else numbers
    return Work(read + numbers, lines * splits * part, vector=vector, vector_type=vector_type)
