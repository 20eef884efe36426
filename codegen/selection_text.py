"""The kernels that select the largest scores as others need them: text for an ahead-of-time compiler, where a graph
launches them, bytes and operations for a roofline."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import fx

from .bag_text import BagCall
from .cost import Work
from .facts import Fact, facts
from .gpu import selection
from .gpu.products import precision
from .gpu.rowwise import most_registers
from .gpu.selection import PAIR_WARPS, pair_constants, tile_of, top_constants
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText

_FILE = Path(__file__).parent / "gpu" / "selection_kernels.py"
# What scores are computed in.
SCORES = torch.float32
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "tf32"}


@dataclass(frozen=True)
class SelectionCall:
    """The `count` largest scores of a row against the `entries` keys of each of `groups`, `width` entries of `dtype`;
    where `is_pairs`, of the sums of a score of each of two neighbouring groups."""

    is_pairs: bool
    groups: int
    entries: int
    width: int
    count: int
    scale: float
    dtype: torch.dtype

    @property
    def of_side(self) -> int:
        """Taken of each group by the kernel that scores."""
        return min(self.count, self.entries) if self.is_pairs else self.count

    @property
    def results(self) -> int:
        """Lists of a row."""
        return self.groups // 2 if self.is_pairs else self.groups


def selection_calls(module: fx.GraphModule) -> list[tuple[SelectionCall, fx.Node]]:
    known = facts(module)
    found = []
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in (selection.top, selection.top_pairs):
            made = _call_of(node, known)
            found += [] if made is None else [(made, node)]
    return found


def _call_of(node: fx.Node, known: dict[fx.Node, Fact]) -> SelectionCall | None:
    x, keys, count, scale = node.args
    if not isinstance(x, fx.Node) or not isinstance(keys, fx.Node) or not isinstance(count, int):
        return None
    if x not in known or keys not in known or not isinstance(scale, int | float):
        return None
    *groups, entries, width = known[keys].dims
    dtype = torch.promote_types(known[x].dtype, known[keys].dtype)
    is_pairs = node.target is selection.top_pairs
    return SelectionCall(is_pairs, prod(groups), entries, width, count, float(scale), dtype)


def selection_kernels(call: SelectionCall, target: str, rows: int) -> tuple[KernelText, ...]:
    """Of a launch over so many rows."""
    scored = _score_kernel(call, target, rows)
    return (scored, _pair_kernel(call)) if call.is_pairs else (scored,)


def gradient_bag(call: SelectionCall) -> BagCall:
    """The gradient of x: a sum of keys for each group."""
    count = call.groups * call.entries
    return BagCall(False, call.count, count, call.width, call.dtype, SCORES, lines=call.groups)


def _score_kernel(call: SelectionCall, target: str, rows: int) -> KernelText:
    tile = tile_of(rows, call.entries, call.width, call.of_side, call.dtype)
    real = f"*{TRITON_TYPES[call.dtype]}"
    arguments = (
        ("x_ptr", real), ("keys_ptr", real), ("scores_ptr", "*fp32"), ("index_ptr", "*i32"), ("rows", "i32")
    )  # fmt: skip
    constants = top_constants(call.groups, call.entries, call.width, call.of_side, call.scale, tile)
    multiplied = precision(call.dtype, target.startswith("cuda"))
    return _text("top_scores", arguments, constants | {"PRECISION": multiplied}, tile.warps, tile.stages)


def _pair_kernel(call: SelectionCall) -> KernelText:
    arguments = (
        ("side_scores_ptr", "*fp32"), ("side_index_ptr", "*i32"), ("first_ptr", "*i32"), ("second_ptr", "*i32"),
        ("scores_ptr", "*fp32"), ("slot_ptr", "*i64"), ("lines", "i32"),
    )  # fmt: skip
    return _text("top_pairs", arguments, pair_constants(call.entries, call.count), PAIR_WARPS, 3)


def _text(
    name: str,
    arguments: tuple[tuple[str, str], ...],
    constants: dict[str, int | float | str],
    warps: int,
    stages: int,
) -> KernelText:
    return KernelText(
        name=name,
        text=_FILE.read_text(encoding="utf-8"),
        arguments=arguments,
        constants=tuple(constants.items()),
        divisible=tuple(argument for argument, type in arguments if type.startswith("*")),
        warps=warps,
        stages=stages,
        registers=most_registers(warps),
    )


def selection_work(call: SelectionCall, name: str, rows: int) -> Work:
    """Of a launch over `rows` rows: queries and keys once, what is taken once. Comparing is not counted: how much a
    network of them takes is no property of the result."""
    taken = rows * call.groups * call.of_side * (4 + 4)
    if name == "top_pairs":
        lists = rows * call.results
        sums = lists * dict(pair_constants(call.entries, call.count))["CANDIDATES"]
        return Work(taken, lists * call.count * (4 + 8), vector=sums)
    read = (rows + call.entries) * call.groups * call.width * call.dtype.itemsize
    product = 2.0 * rows * call.groups * call.entries * call.width
    return Work(read, taken, matmul=product, matmul_type=_NAMES[call.dtype])
