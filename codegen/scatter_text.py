"""The kernels of gradients of tables as others need them: text for an ahead-of-time compiler, where a graph launches
them, bytes for a roofline. They are the same for every table of one width and type."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import fx

from .bag_text import BagCall, bag_calls
from .cost import Work, looked_up
from .facts import Fact, facts
from .gpu import tables
from .gpu.scatter import BLOCK_T, TILE, WARPS, block_entries, longest_tile
from .gpu.triton_types import TRITON_TYPES
from .kernel_text import KernelText
from .rowwise.fused import FusedOp
from .selection_text import SCORES, selection_calls

_FILE = Path(__file__).parent / "gpu" / "scatter_kernels.py"


def scatter_kernels(width: int, dtype: torch.dtype, weight: torch.dtype | None = None) -> tuple[KernelText, KernelText]:
    """For rows of `width` entries of `dtype`, each times a `weight` of a type or not."""
    real = TRITON_TYPES[torch.promote_types(dtype, torch.float32)]
    ids, rows, order = ("ids_ptr", "*i32"), ("rows_ptr", f"*{TRITON_TYPES[dtype]}"), ("order_ptr", "*i64")
    sums, parts = ("sums_ptr", f"*{TRITON_TYPES[dtype]}"), ("parts_ptr", f"*{real}")
    count = ("n_rows", "i32")
    weights = ("weight_ptr", f"*{TRITON_TYPES[weight or torch.int64]}")
    constants = (("WIDTH", width), ("TILE", TILE), ("BLOCK_E", block_entries(width)))
    is_weighted = ("IS_WEIGHTED", weight is not None)
    return (
        _text("sum_runs", (ids, order, weights, rows, sums, parts, count), (*constants, is_weighted)),
        _text(
            "join_parts", (ids, ("run_end_ptr", "*i64"), parts, sums, count), (*constants, ("BLOCK_T", BLOCK_T))
        ),
    )  # fmt: skip


def _text(
    name: str, arguments: tuple[tuple[str, str], ...], constants: tuple[tuple[str, int | bool], ...]
) -> KernelText:
    return KernelText(
        name=name,
        text=_FILE.read_text(encoding="utf-8"),
        arguments=arguments,
        constants=constants,
        divisible=tuple(argument for argument, type in arguments if type.startswith("*")),
        warps=WARPS,
        stages=3,
    )


@dataclass(frozen=True)
class TableGradient:
    """A table `[count, width]` whose gradient arrives as `per_row` rows for each row of the graph, of `dtype`; those of
    bags as numbers of the type `weight` for `lines` rows, each of which many of them share."""

    count: int
    width: int
    per_row: int
    dtype: torch.dtype
    weight: torch.dtype | None = None
    lines: int | None = None


def table_gradients(module: fx.GraphModule) -> list[tuple[TableGradient, fx.Node]]:
    """Every table of a graph that has a gradient, with the node that reads it."""
    known = facts(module)
    found = []
    for node in module.graph.nodes:
        if isinstance(node.target, FusedOp):
            found += [(gradient, node) for gradient in _of_call(node.target, node, known)]
        elif node.target in (tables.embedding, tables.read_rows):
            index, table = node.args if node.target is tables.embedding else reversed(node.args)
            gradient = _of_reader(known.get(index), known.get(table))
            found += [] if gradient is None else [(gradient, node)]
    return found + _of_bags(module) + _of_selections(module)


def _of_bags(module: fx.GraphModule) -> list[tuple[TableGradient, fx.Node]]:
    """Of tables that are read without storing what is read: one gradient for all that share it."""
    readers: dict[fx.Node, list[tuple[BagCall, fx.Node]]] = {}
    for call, node in bag_calls(module):
        table = node.args[0]
        assert isinstance(table, fx.Node)
        if table.op == "get_attr" and module.get_parameter(str(table.target)).requires_grad:
            readers.setdefault(table, []).append((call, node))
    found = []
    for calls in readers.values():
        (one, node), made = calls[0], [call for call, _ in calls]
        per_row, lines = sum(call.lines * call.n for call in made), sum(call.lines for call in made)
        found.append((TableGradient(one.count, one.width, per_row, one.dtype, one.weight, lines), node))
    return found


def _of_selections(module: fx.GraphModule) -> list[tuple[TableGradient, fx.Node]]:
    """Of keys whose scores were selected."""
    found = []
    for call, node in selection_calls(module):
        keys, per_row = call.groups * call.entries, call.groups * call.count
        found.append((TableGradient(keys, call.width, per_row, call.dtype, SCORES, call.groups), node))
    return found


def _of_reader(index: Fact | None, table: Fact | None) -> TableGradient | None:
    if index is None or table is None or index.level is None:
        return None
    count, *entries = table.dims
    return TableGradient(count, prod(entries), prod(index.dims), table.dtype)


def _of_call(op: FusedOp, call: fx.Node, known: dict[fx.Node, Fact]) -> list[TableGradient]:
    """Of the tables that a fused call reads: its backward gives their gradients row by row."""
    if op.derivative is None or op.backward is None:
        return []
    made = []
    for gathered in (g for g in op.derivative.gathered if not g.in_runs):
        rows = op.backward.program.results[gathered.rows]
        *lead, width = rows.dims
        operand = call.args[gathered.place]
        assert isinstance(operand, fx.Node)
        table = known[operand]
        # How many rows one with a level has is data; those of examples or segments are few.
        count = table.dims[0] if table.level is None else 1
        made.append(TableGradient(count, width, prod(lead), rows.dtype))
    return made


def scatter_work(gradient: TableGradient, name: str, rows: int) -> Work:
    """Of a launch over the gradients of `rows` rows of the graph. Ids are taken to be as different as the table
    allows: then every row of it that is read is written once, and parts of runs lie at the ends of tiles only."""
    positions = rows * gradient.per_row
    tiles = -(-positions // longest_tile(TILE, positions))
    real = torch.promote_types(gradient.dtype, torch.float32).itemsize
    row, part = gradient.width * gradient.dtype.itemsize, gradient.width * real
    # Runs that end in another tile than they begin in: at most one for each boundary between tiles.
    crossing = max(0, min(tiles - 1, positions - gradient.count))
    if name == "join_parts":
        return Work(tiles * (4 + 4 + 8) + crossing * 2 * part, crossing * row, vector=crossing * gradient.width)
    written = min(positions, gradient.count) * row + crossing * 2 * part
    read = positions * row if gradient.lines is None else looked_up(positions, rows * gradient.lines, row)
    numbers = positions * (0 if gradient.weight is None else gradient.weight.itemsize)
    return Work(positions * (4 + 8) + numbers + read, written, vector=positions * gradient.width)
