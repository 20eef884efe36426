"""What a bag's weights are computed of goes into the bag, where it needs no more than a row's own lists.

    w = softmax(score, over=top); y = bag(values, index, flatten(w))      ->      y = memory(values, index, score)

Whatever the formula: as much of it is taken as one program has registers for (bags/plan.py).
"""

from __future__ import annotations

from itertools import takewhile
from math import prod

from torch import fx

from ..bags.op import BagOp, bag_op
from ..facts import Fact, facts
from ..gpu import shared_tables
from ..rowwise.axes import CannotFuse
from ..rowwise.build import region_of
from ..rowwise.steps import RESERVED
from .fuse import is_fusible, needs_gradient, region_name, work_of
from .matching import is_call, node_at


def weigh_in_bags(module: fx.GraphModule) -> None:
    known = facts(module)
    wanted = needs_gradient(module, known)
    made: dict[object, BagOp] = {}
    taken = dict.fromkeys(RESERVED, 1)
    for node in list(module.graph.nodes):
        if is_call(node, shared_tables.bag) and isinstance(node.args[2], fx.Node):
            op, inputs = _op(node, known, wanted)
            if op is None:
                continue
            if op.key not in made:
                taken[op.name] = taken.get(op.name, 0) + 1
                number = taken[op.name]
                made[op.key] = op if number == 1 else op.renamed(f"{op.name}_{number}")
            node.target, node.args = made[op.key], (*node.args[:2], *inputs)


def _op(bag: fx.Node, known: dict[fx.Node, Fact], wanted: set[fx.Node]) -> tuple[BagOp | None, tuple[fx.Node, ...]]:
    """From the weights up, each step that the bag can take in with those behind it."""
    _, index, weight = bag.args
    if not isinstance(index, fx.Node) or not isinstance(weight, fx.Node) or not {index, weight} <= known.keys():
        return None, ()
    if known[index].dims != known[weight].dims or known[index].level != known[weight].level:
        return None, ()
    op, inputs, taken = None, (), set()
    for node in reversed(list(takewhile(lambda node: node is not bag, bag.graph.nodes))):
        if (taken or node is weight) and _may_be_taken(node, bag, taken, known):
            try:
                op, inputs = _with({node, *taken}, known, wanted)
                taken.add(node)
            except CannotFuse:
                continue
    return (op, inputs) if work_of(taken) else (None, ())


def _may_be_taken(node: fx.Node, bag: fx.Node, taken: set[fx.Node], known: dict[fx.Node, Fact]) -> bool:
    """What only the weights need and is no larger than they are."""
    if not node.users or not all(user is bag or user in taken for user in node.users):
        return False
    weights = known[node_at(bag, 2)]
    fact = known.get(node)
    return (
        fact is not None
        and fact.level == weights.level
        and prod(fact.dims) <= prod(weights.dims)
        and is_fusible(node, known)
    )


def _with(nodes: set[fx.Node], known: dict[fx.Node, Fact], wanted: set[fx.Node]) -> tuple[BagOp, tuple[fx.Node, ...]]:
    region = region_of(nodes)
    return bag_op(region, known, f"{region_name(region)}_bag", wanted), region.inputs
