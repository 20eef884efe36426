"""The largest scores of a product go to kernels that never store the scores.

    scores = scale * einsum("zabd,abcd->zabc", q, keys)
    top(scores, k)                                                  ->  selection.top(q, keys, k, scale)
    top_pairs(select(scores, -2, 0), select(scores, -2, 1), k)      ->  selection.top_pairs(q, keys, k, scale)

The scores that are taken stay in float32, though the graph may round all of them to its type before it chooses.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from dataclasses import replace as replace_fields

import torch
from torch import fx
from torch.nn import functional

from ..cpu import few_scores
from ..facts import FACT, Fact, facts
from ..functions import gathers
from ..gpu import selection
from ..origin import inherit
from .matching import bare, is_call, is_number, products, replace


@dataclass(frozen=True)
class Scores:
    """`scale` times a product of `x [R, *groups, D]` and `keys [*groups, n, D]`."""

    x: fx.Node
    keys: fx.Node
    scale: float


# So many times as many entries as are taken, and their gradients are better those of the few on a CPU too.
FEW = 8


def select_few_of_many(module: fx.GraphModule) -> None:
    """As CPUs do: all scores are computed, and not kept."""
    _select(module, few_scores.top, few_scores.top_pairs, FEW)


def use_selection_kernels(module: fx.GraphModule) -> None:
    _select(module, selection.top, selection.top_pairs, 0)


def _select(module: fx.GraphModule, top: object, top_pairs: object, entries_of_one: int) -> None:
    """Where there are at least `entries_of_one` times as many entries as are taken."""
    known = facts(module)
    for node in list(module.graph.nodes):
        if is_call(node, gathers.top) and len(node.args) == 2:
            scores, count = _without_others(node), node.args[1]
        elif is_call(node, gathers.top_pairs) and len(node.args) == 3:
            scores, count = _of_sides(node), node.args[2]
        else:
            continue
        found = _product(scores, known)
        if found is None or not isinstance(count, int) or count > selection.MOST_TAKEN:
            continue
        entries = known[found.keys].dims[-2]
        if entries < entries_of_one * count:
            continue
        if node.target is gathers.top:
            _use(module, node, top, found, count, known)
        elif entries * entries < selection.MOST:
            _use(module, node, top_pairs, found, count, known)


def _without_others(node: fx.Node) -> fx.Node | None:
    """What is selected from. Where others read it, it is stored for them, and a kernel's own sums would not have its
    rounding: the last score that was taken has to equal its entry."""
    scores = node.args[0]
    return scores if isinstance(scores, fx.Node) and len(scores.users) == 1 else None


def _of_sides(node: fx.Node) -> fx.Node | None:
    """What the first and the second operand are the two sides of, which stand in front of the last dimension."""
    sides = node.args[:2]
    if not all(is_call(side, torch.select) and len(side.users) == 1 for side in sides):  # type: ignore[union-attr]
        return None
    whole = [side.args[0] for side in sides if isinstance(side, fx.Node)]
    places = [side.args[1:] for side in sides if isinstance(side, fx.Node)]
    if whole[0] is not whole[1] or places != [(-2, 0), (-2, 1)]:
        return None
    scores = whole[0]
    return scores if isinstance(scores, fx.Node) and len(scores.users) == 2 else None


def _product(scores: object, known: dict[fx.Node, Fact]) -> Scores | None:
    """The product that scores are, if nothing reads it but what becomes of it."""
    if not isinstance(scores, fx.Node):
        return None
    scale, made = 1.0, bare(scores)
    for number, other in products(made):
        if is_number(number) and isinstance(other, fx.Node):
            scale, made = float(number), other
    if not isinstance(made, fx.Node) or not _has_one_reader(made, scores):
        return None
    operands = _operands(made)
    if operands is None or not all(isinstance(operand, fx.Node) and operand in known for operand in operands):
        return None
    x, keys = operands
    groups, of_x = known[keys].dims[:-2], known[x]
    # The rows of x are its first dimension, and of the keys there are none.
    if of_x.level is None or known[keys].level is not None or of_x.dims[:-1] != groups:
        return None
    return Scores(x, keys, scale)


def _has_one_reader(made: fx.Node, last: fx.Node) -> bool:
    """Of what lies between a product and what is selected from."""
    while made is not last:
        if len(made.users) != 1:
            return False
        (made,) = made.users
    return True


def _operands(made: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """x and keys: rows, then groups, then what is summed; groups, then keys, then what is summed."""
    if is_call(made, functional.linear) and len(made.args) == 2:
        return bare(made.args[0]), bare(made.args[1])
    if not is_call(made, torch.einsum) or len(made.args) != 3:
        return None
    operands, result = str(made.args[0]).replace(" ", "").split("->")
    one, two = operands.split(",")
    for x, keys, first in ((one, two, 1), (two, one, 2)):
        groups = x[1:-1]
        if (
            x == result[:1] + groups + x[-1:]
            and result == x[:-1] + keys[-2:-1]
            and keys == groups + keys[-2:-1] + x[-1]
        ):
            return bare(made.args[first]), bare(made.args[3 - first])
    return None


def _use(
    module: fx.GraphModule,
    node: fx.Node,
    function: object,
    found: Scores,
    count: int,
    known: dict[fx.Node, Fact],
) -> None:
    graph = module.graph
    with graph.inserting_before(node):
        call = graph.call_function(function, (found.x, found.keys, count, found.scale))  # type: ignore[arg-type]
    inherit(call, node)
    for reader in list(node.users):
        with graph.inserting_before(reader):
            result = inherit(graph.call_function(operator.getitem, (call, reader.args[1])), reader)
        fact = known[reader]
        if fact.is_real:
            wide = torch.promote_types(fact.dtype, torch.float32)
            result.meta[FACT] = replace_fields(fact, dtype=wide)
            if wide != fact.dtype:
                _keep_wide(reader, result, wide)
                with graph.inserting_after(result):
                    result = inherit(graph.call_function(torch.Tensor.to, (result, fact.dtype)), reader)
        replace(reader, result)


def _keep_wide(reader: fx.Node, result: fx.Node, wide: torch.dtype) -> None:
    """Who widens what was taken reads it as it is."""
    for user in list(reader.users):
        if is_call(user, torch.Tensor.to) and user.args[1] == wide:
            replace(user, result)
