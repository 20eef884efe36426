"""What follows from where segments end is made by one kernel for a cut.

    first = first_rows(ends, inside, row_example);  n = own(first, ..);  c = closed(ends, first, ..);  b = bounds(..)
        ->  s = scan(packed(ends), packed(inside), offsets, rows, ..);   n = s[0];  c = s[1];  b = s[3]

The flags are packed by the kernel that decides them (fuse.py), 32 to a word, so that they are hardly moved at all;
those that `at most` adds are added to the words. Numbers are int32, and int64 for what counts with them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import torch
from torch import fx

from ..facts import FACT, Fact, facts
from ..functions import cuts, packing
from ..functions import segments as reductions
from ..gpu.cut_scans import Scan, capped, flags_of, scan
from ..origin import inherit
from .matching import is_call, node_at, replace

# The parts of a scan, and what made them before.
_OWN, _CLOSED, _BEFORE, _BOUNDS, _ROWS = range(len(Scan._fields))
_NUMBERS = {cuts.own: _OWN, cuts.closed: _CLOSED, cuts.before: _BEFORE}
# What reads numbers of segments as numbers of rows, and where: it takes them in int32.
_READERS: dict[Any, int] = {
    cuts.spread: 1,
    cuts.index: 0,
    torch.index_select: 2,
    **dict.fromkeys((reductions.max_rows, reductions.mean_rows, reductions.sum_rows), 1),
}


def scan_cuts(module: fx.GraphModule) -> None:
    known = facts(module)
    for first in list(module.graph.nodes):
        if is_call(first, cuts.first_rows) and is_call(first.args[2], packing.row_example, packing.row_example_of):
            _use_scan(module.graph, first, known)


def is_bounds_of_scan(node: Any) -> bool:
    return is_call(node, operator.getitem) and is_call(node.args[0], scan) and node.args[1] == _BOUNDS


def _use_scan(graph: fx.Graph, first: fx.Node, known: dict[fx.Node, Fact]) -> None:
    example, inside = node_at(first, 2), first.args[1]
    offsets = node_at(example, 0)
    rows = node_at(example, 1) if is_call(example, packing.row_example) else example
    ends = _ended(graph, node_at(first, 0), offsets, rows, known)
    numbers = {node: _NUMBERS[node.target] for node in first.users if node.target in _NUMBERS}
    later = _readers(first, cuts.index_or_next)
    closed, before = _CLOSED in numbers.values(), _BEFORE in numbers.values() or bool(later)
    of_rows = changed(known[first], dtype=torch.int32)

    def call(function: Callable[..., Any], *args: Any, fact: Fact | None = None) -> fx.Node:
        return _call(graph, first, function, args, fact)

    # As soon as it can be: which rows are in a segment is asked before where segments begin.
    with graph.inserting_before(max(node for node in (ends, inside, example) if isinstance(node, fx.Node)).next):
        among = call(cuts.packed, inside) if inside is not None else None
        made = call(scan, ends, among, offsets, rows, closed, before)
        parts = [call(operator.getitem, made, part, fact=of_rows if part < _BOUNDS else None) for part in range(5)]
        begins = call(cuts.begins_of, parts[_BOUNDS])
        if inside is not None:
            begins = call(torch.index_select, parts[_ROWS], 0, begins)
        of_examples = call(cuts.offsets_among, begins, offsets)
        next_index = call(cuts.index_after, parts[_BEFORE], example, of_examples)
    for node, part in numbers.items():
        _read_narrow(graph, node, parts[part])
    for node in _readers(first, cuts.begins):
        for bounds in _readers(node, cuts.bounds, cuts.bounds_inside):
            replace(bounds, parts[_BOUNDS])
        if node in known:
            begins.meta[FACT] = changed(known[node], dtype=torch.int32)
        replace(node, begins)
    for node in _readers(first, cuts.cut_offsets):
        replace(node, of_examples)
    for node in later:
        next_index.meta[FACT] = known[node]
        replace(node, next_index)
    if isinstance(inside, fx.Node):
        for node in _readers(inside, cuts.rows_inside):
            replace(node, parts[_ROWS])


def _ended(graph: fx.Graph, ends: fx.Node, offsets: fx.Node, rows: fx.Node, known: dict[fx.Node, Fact]) -> fx.Node:
    """The words of flags; where some are added to them, whoever else reads flags reads those of the words."""
    if not is_call(ends, cuts.capped):
        with graph.inserting_after(ends):
            return _call(graph, ends, cuts.packed, (ends,))
    flags, _, at_most = ends.args
    with graph.inserting_before(ends):
        words = _call(graph, ends, capped, (_call(graph, ends, cuts.packed, (flags,)), offsets, rows, at_most))
        read = _call(graph, ends, flags_of, (words, rows), known[ends])
    replace(ends, read)
    return words


def _read_narrow(graph: fx.Graph, node: fx.Node, number: fx.Node) -> None:
    """Readers of a number read what the scan made."""
    wide = None
    for reader in list(node.users):
        if not _is_read_as_row(reader, node) and wide is None:
            with graph.inserting_after(number):
                wide = _call(graph, node, cuts.wide, (number,), changed(number.meta[FACT], dtype=torch.int64))
        reader.replace_input_with(node, number if _is_read_as_row(reader, node) or wide is None else wide)


def _is_read_as_row(reader: fx.Node, number: fx.Node) -> bool:
    if is_call(reader, cuts.bounds):
        return True  # of which the length is read
    if is_call(reader, torch.index_select) and reader.args[0] is number:
        return all(_is_read_as_row(user, reader) for user in reader.users)
    place = _READERS.get(reader.target)
    return [argument is number for argument in reader.args].count(True) == 1 and (
        place is not None and reader.args[place] is number
    )


def _readers(node: fx.Node, *functions: Callable[..., Any]) -> list[fx.Node]:
    return [user for user in node.users if is_call(user, *functions)]


def _call(
    graph: fx.Graph, like: fx.Node, function: Callable[..., Any], arguments: tuple[Any, ...], fact: Fact | None = None
) -> fx.Node:
    node = inherit(graph.call_function(function, arguments), like)
    if fact is not None:
        node.meta[FACT] = fact
    return node
