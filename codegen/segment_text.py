"""The kernels over segments as others need them: text for an ahead-of-time compiler, where a graph launches them, bytes
for a roofline. They are the same for all values of one width and type."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import fx

from .cost import SEGMENT, Work
from .facts import facts
from .gpu import segments
from .gpu.segments import BLOCK_N, BLOCK_T, WARPS, block_entries
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText
from .rowwise.fused import FusedOp

_FOLDER = Path(__file__).parent / "gpu"
_POOLS = {segments.max_rows: "max", segments.mean_rows: "mean", segments.sum_rows: "sum"}
_BOUNDS = ("bounds_ptr", "*i32")


def pool_kernels(by: str, width: int, dtype: torch.dtype) -> tuple[KernelText, KernelText]:
    """Of a pool of rows of `width` entries of `dtype`: forward and backward."""
    real = f"*{TRITON_TYPES[dtype]}"
    sizes = _sizes(width, dtype)
    x, y, dx, dy = ("x_ptr", real), ("y_ptr", real), ("dx_ptr", real), ("dy_ptr", real)
    forward = _text("pool_runs", (x, _BOUNDS, y), (("STEP", 1), ("BY", by), *sizes))
    if by == "max":
        return forward, _text("share_max", (x, dy, _BOUNDS, dx), sizes)
    return forward, _text("spread_runs", (y, _BOUNDS, x), (("BY", by), *sizes))


def spread_kernels(
    width: int, dtype: torch.dtype, numbers: torch.dtype = torch.int32
) -> tuple[KernelText, KernelText, KernelText]:
    """Of values of segments at rows, whose `numbers` have a type: forward, and the two of the backward."""
    return (_read_kernel(width, dtype, numbers), *run_kernels(width, dtype, numbers))


def run_kernels(width: int, dtype: torch.dtype, numbers: torch.dtype = torch.int32) -> tuple[KernelText, KernelText]:
    """What adds up rows that lie side by side: where they begin and end, and the sums."""
    real, number = f"*{TRITON_TYPES[dtype]}", f"*{TRITON_TYPES[numbers]}"
    find = _text("find_runs", (("number_ptr", number), _BOUNDS, ("n_rows", "i32")), (("BLOCK_N", BLOCK_N),))
    constants = (("STEP", 2), ("BY", "sum"), *_sizes(width, dtype))
    return find, _text("pool_runs", (("x_ptr", real), _BOUNDS, ("y_ptr", real)), constants)


def _read_kernel(width: int, dtype: torch.dtype, numbers: torch.dtype) -> KernelText:
    real, number = f"*{TRITON_TYPES[dtype]}", f"*{TRITON_TYPES[numbers]}"
    arguments = (("p_ptr", real), ("number_ptr", number), ("x_ptr", real), ("n_rows", "i32"))
    return _text("read_runs", arguments, (("WIDTH", width), ("BLOCK_T", BLOCK_T), ("BLOCK_E", block_entries(width))))


def _sizes(width: int, dtype: torch.dtype) -> tuple[tuple[str, int | bool], ...]:
    is_double = dtype == torch.float64
    return ("WIDTH", width), ("IS_DOUBLE", is_double), ("BLOCK_T", BLOCK_T), ("BLOCK_E", block_entries(width))


def _text(
    name: str, arguments: tuple[tuple[str, str], ...], constants: tuple[tuple[str, int | bool | str], ...]
) -> KernelText:
    """With the rounding that the file imports, as one module."""
    helpers = (_FOLDER / "scatter_kernels.py").read_text(encoding="utf-8").partition("@triton.jit(do_not")[0]
    own = (_FOLDER / "segment_kernels.py").read_text(encoding="utf-8")
    own = own.partition("from .scatter_kernels import rounded\n")[2]
    return KernelText(
        name=name,
        text=helpers + own,
        arguments=arguments,
        constants=constants,
        divisible=tuple(argument for argument, type in arguments if type.startswith("*")),
        warps=WARPS,
        stages=3,
    )


# -- where a graph launches them ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentCall:
    """A call over rows of `width` entries of `dtype`. `by`: max, mean or sum of a pool; "spread"; and in the backward
    of a fused call "find", where runs begin and end, and "runs", their sums. `numbers`: the type of what says which
    segment a row reads."""

    by: str
    width: int
    dtype: torch.dtype
    numbers: torch.dtype = torch.int32


def segment_calls(module: fx.GraphModule) -> list[tuple[SegmentCall, fx.Node]]:
    known = facts(module)
    found = []
    for node in module.graph.nodes:
        if isinstance(node.target, FusedOp):
            found += [(call, node) for call in _of_fused(node.target)]
        elif node.target in _POOLS or node.target is segments.spread:
            fact, number = known.get(node.args[0]), known.get(node.args[1])
            if fact is not None:
                by, numbers = _POOLS.get(node.target, "spread"), torch.int64 if number is None else number.dtype
                found.append((SegmentCall(by, prod(fact.dims), fact.dtype, numbers), node))
    return found


def _of_fused(op: FusedOp) -> list[SegmentCall]:
    if op.derivative is None or op.backward is None:
        return []
    gathered = [g for g in op.derivative.gathered if g.in_runs and not g.is_summed]
    made = [op.backward.program.results[g.rows] for g in gathered]
    of_operands = {source.place: source.dtype for source in op.program.sources}
    indices = dict.fromkeys((g.index, g.index_result) for g in gathered)
    numbers = [torch.int64 if place is None else of_operands[place] for place, _ in indices]
    finds = [SegmentCall("find", 1, dtype, dtype) for dtype in numbers]
    return finds + [SegmentCall("runs", prod(result.dims), result.dtype) for result in made]


def call_kernels(call: SegmentCall) -> tuple[KernelText, ...]:
    """Forward first, where there is one."""
    match call.by:
        case "find":
            return run_kernels(call.width, torch.float32, call.numbers)[:1]
        case "runs":
            return run_kernels(call.width, call.dtype)[1:]
        case "spread":
            return spread_kernels(call.width, call.dtype, call.numbers)
        case _:
            return pool_kernels(call.by, call.width, call.dtype)


def call_work(call: SegmentCall, name: str, rows: int) -> Work:
    """Of a launch over `rows` rows in segments of SEGMENT rows."""
    count = -(-rows // SEGMENT)
    if call.by in ("find", "runs", "spread"):
        return spread_work(name, call.width, call.dtype, rows, count, call.numbers)
    return pool_work(name, call.by, call.width, call.dtype, rows, count)


def pool_work(name: str, by: str, width: int, dtype: torch.dtype, rows: int, count: int) -> Work:
    """Of a launch of one of `pool_kernels` over `rows` rows in `count` segments."""
    row = width * dtype.itemsize
    bounds, vector = 4 * (count + 1), rows * width
    if name == "pool_runs":
        return Work(rows * row + bounds, count * row, vector=vector)
    read = (rows if by == "max" else 0) * row + count * row + bounds
    return Work(read, rows * row, vector=2 * vector if by == "max" else vector)


def spread_work(
    name: str, width: int, dtype: torch.dtype, rows: int, count: int, numbers: torch.dtype = torch.int32
) -> Work:
    """Of a launch of one of `spread_kernels`: each segment is read by a run of rows, once for all of them."""
    row = width * dtype.itemsize
    if name == "find_runs":
        return Work(numbers.itemsize * rows, 8 * count)
    if name == "read_runs":
        return Work(numbers.itemsize * rows + count * row, rows * row)
    return Work(rows * row + 8 * count, count * row, vector=rows * width)
