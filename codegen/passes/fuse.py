"""Groups of row-by-row nodes become one call each.

    p = pow(x, 2); m = mean(p); r = rsqrt(m + eps); n = x * r * gain; y = h + n      ->      y = rms_norm(x, gain, h)

Groups grow along edges, then take in neighbours that read the same rows, as long as what they are together is a row
program (rowwise/build.py) and no path leaves a group and comes back. What follows from ids and positions alone (masks,
rotary angles) makes groups of its own, so that all layers share it, unless one group alone reads it. Equal layers have
groups of equal shapes (group_shapes.py), of which each is looked at once.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from ..facts import FACT, Fact, facts
from ..functions import cuts, packing
from ..graph_context import CompilerBug
from ..grouped.op import GroupedOp
from ..origin import inherit, mark, origin
from ..rowwise.axes import CannotFuse
from ..rowwise.axis_rules import tables
from ..rowwise.build import Region, build, region_of, spec_name
from ..rowwise.derivative import derive
from ..rowwise.fused import FusedOp, fused_op
from ..rowwise.steps import RESERVED
from ..rowwise.tiles import MOST_LIVE, Tiles
from ..rowwise.value_rules import FUSIBLE
from .group_shapes import Shape, Shapes
from .ordering import put_in_order

# Only names change: a group that ends in one may as well leave it to its readers.
RESHAPES = (torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze, operator.getitem)
VIEWS = (*RESHAPES, torch.permute, torch.select, packing.expand, torch.Tensor.to, torch.detach)
# Steps of a group: one alone is a call either way.
FEWEST = 2
# What one kernel may hold before its text and its registers grow beyond reason.
MOST_VALUES = 400


def fuse_rows(module: fx.GraphModule, fewest: int = FEWEST) -> None:
    """Groups of at least `fewest` steps; with 1, every function is a kernel of its own if it joins no other (tests)."""
    groups = _Groups(module, fewest)
    groups.grow()
    regions = [region for region in map(groups.trimmed, groups.members()) if region is not None]
    _rewrite(module, regions, groups.facts, groups.shapes)


class _Groups:
    def __init__(self, module: fx.GraphModule, fewest: int) -> None:
        self.fewest = fewest
        self.facts = facts(module)
        self.shapes = Shapes(self.facts, frozenset(needs_gradient(module, self.facts)))
        self.programs: dict[Shape, bool] = {}
        self.builds: dict[Shape, bool] = {}
        self.place = {node: number for number, node in enumerate(module.graph.nodes)}
        self.reach = list(range(len(self.place)))  # how far groups go of which a part stands here or before
        self.group: dict[fx.Node, fx.Node] = {}  # by the first node of each
        self.nodes: dict[fx.Node, set[fx.Node]] = {}
        fusible = {node for node in module.graph.nodes if is_fusible(node, self.facts)}
        for node in module.graph.nodes:
            if node in fusible and not self._is_shared_view(node, fusible):
                self.group[node] = node
                self.nodes[node] = {node}
        self.plans = _plans(module, self.facts)

    def _is_shared_view(self, node: fx.Node, fusible: set[fx.Node]) -> bool:
        """A view of what no group makes, which others than groups read too, costs nothing outside of groups. Inside
        of one it would keep the group from all that follows from those others."""
        is_first = node.target in VIEWS and not any(operand in self.group for operand in node.all_input_nodes)
        return is_first and any(user not in fusible for user in node.users)

    def grow(self) -> None:
        candidates = list(self.group)
        for node in candidates:
            forced = [node.args[place] for place in tables(node)]
            for operand in node.all_input_nodes:
                is_open = operand in self.group and operand not in forced
                if is_open and (operand in self.plans) == (node in self.plans):
                    self.merge(operand, node)
        readers: dict[fx.Node, dict[fx.Node, None]] = defaultdict(dict)
        for node in candidates:
            for operand in node.all_input_nodes:
                fact = self.facts.get(operand)
                if fact is not None and fact.level is not None and self.group.get(operand) is not self.group[node]:
                    readers[operand].setdefault(node)
        for shared in readers.values():
            heads = list(shared)
            for one, two in pairwise(heads):
                if self.plans.isdisjoint((one, two)) and self.works(one) and self.works(two):
                    self.merge(one, two)
        for node in candidates:
            if node in self.plans:
                used = {self.group.get(user, user) for user in self._outside(self.group[node])}
                only = next(iter(used)) if len(used) == 1 else None
                if only in self.nodes and self._may_take_in(only, self.group[node]):
                    self.merge(node, only)

    def _may_take_in(self, group: fx.Node, plan: fx.Node) -> bool:
        made = self.nodes[plan]
        return all(node.args[place] not in made for node in self.nodes[group] for place in tables(node))

    def _outside(self, group: fx.Node) -> set[fx.Node]:
        inside = self.nodes[group]
        return {user for node in inside for user in node.users if user not in inside}

    def works(self, node: fx.Node) -> bool:
        return work_of(self.nodes[self.group[node]]) >= self.fewest

    def merge(self, one: fx.Node, two: fx.Node) -> bool:
        """Joins the groups of two nodes where that is allowed."""
        first, second = self.group[one], self.group[two]
        if first is second:
            return True
        if self.facts[one].level != self.facts[two].level:
            return False
        if self.place[first] > self.place[second]:
            first, second = second, first
        together = self.nodes[first] | self.nodes[second]
        if self._leaves_and_returns(together) or not self._is_program(together):
            return False
        self.nodes[first] = together
        for node in self.nodes.pop(second):
            self.group[node] = first
        places = [self.place[node] for node in together]
        last = max(places)
        for place in range(min(places), last):
            self.reach[place] = max(self.reach[place], last)
        return True

    def _is_program(self, nodes: set[fx.Node]) -> bool:
        if any(node.args[place] in nodes for node in nodes for place in tables(node)):
            return False
        if work_of(nodes) < self.fewest:
            return True
        region = region_of(nodes)
        shape = self.shapes.of_region(region)
        if shape not in self.programs:
            self.programs[shape] = _fits(region, self.facts)
        return self.programs[shape]

    def _leaves_and_returns(self, nodes: set[fx.Node]) -> bool:
        """Whether a path from the nodes comes back to them by way of others. Groups are passed through whole."""
        # From behind the last of them a path comes back by way of a group that stands on both sides.
        last = max(self.place[node] for node in nodes)
        while self.reach[last] > last:
            last = self.reach[last]
        stack = [user for node in nodes for user in node.users if user not in nodes]
        seen: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node in nodes:
                return True
            unit = self.group.get(node, node)
            if unit in seen:
                continue
            seen.add(unit)
            for member in self.nodes.get(unit, {node}):
                stack += [user for user in member.users if self.place[user] <= last]
        return False

    def members(self) -> Iterable[set[fx.Node]]:
        return self.nodes.values()

    def trimmed(self, nodes: set[fx.Node]) -> Region | None:
        """Without names at its edges that cost nothing outside; None for a group that does too little."""
        kept = set(nodes)
        changed = True
        while changed:
            changed = False
            for node in sorted(kept):
                given = [arg for arg in node.all_input_nodes if arg in kept]
                outside = [user for user in node.users if user not in kept]
                is_first = node.target in VIEWS and not given and outside
                is_last = node.target in RESHAPES and given and len(outside) == len(node.users)
                beside = is_last and any(user not in kept for arg in given for user in arg.users)
                if is_first or beside:
                    kept.discard(node)
                    changed = True
        if work_of(kept) < self.fewest:
            return None
        region = region_of(kept)
        by_row = any(self.facts[node].level is not None for node in region.inputs)
        return region if by_row and region.outputs and self._builds(region) else None

    def _builds(self, region: Region) -> bool:
        """What was merged does; a node that joined no other, or views alone, were never asked."""
        shape = self.shapes.of_region(region)
        if shape not in self.builds:
            try:
                build(region, self.facts, "candidate")
                self.builds[shape] = True
            except CannotFuse:
                self.builds[shape] = False
        return self.builds[shape]


def _fits(region: Region, known: dict[fx.Node, Fact]) -> bool:
    """Whether a region is a program, and with its gradients holds no more of a row than there are registers for."""
    try:
        program = build(region, known, "candidate")
    except CannotFuse:
        return False
    if len(program.values) > MOST_VALUES or Tiles(program).live > MOST_LIVE:
        return False
    gradients = derive(program, len(program.sources), {source.place for source in program.sources}).program
    return not gradients.stores or Tiles(gradients).live <= MOST_LIVE


def work_of(nodes: Iterable[fx.Node]) -> int:
    """Steps that are more than a view."""
    # Packing flags alone is several functions of torch.
    return sum(FEWEST if node.target is cuts.packed else node.target not in VIEWS for node in nodes)


def is_fusible(node: fx.Node, known: dict[fx.Node, Fact]) -> bool:
    """Whether a row program may have it."""
    if node.op != "call_function" or node.target not in FUSIBLE:
        return False
    fact = known.get(node)
    if fact is None or fact.level is None or fact.dtype in (torch.complex64, torch.complex128):
        return False
    return all(operand in known for operand in node.all_input_nodes if operand not in _ignored(node))


def _ignored(node: fx.Node) -> tuple[Any, ...]:
    return (node.args[1],) if node.target is packing.expand else ()


def _plans(module: fx.GraphModule, known: dict[fx.Node, Fact]) -> set[fx.Node]:
    """Nodes that no weight and no real input reaches."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        match node.op:
            case "placeholder":
                fact = known.get(node)
                if fact is None or not fact.is_real:
                    found.add(node)
            case "call_function":
                if all(operand in found for operand in node.all_input_nodes):
                    found.add(node)
    return found


# -- the graph ---------------------------------------------------------------------------------------------------------


def _rewrite(module: fx.GraphModule, regions: list[Region], known: dict[fx.Node, Fact], shapes: Shapes) -> None:
    by_shape: dict[object, FusedOp] = {}
    calls: dict[object, FusedOp] = {}
    taken = dict.fromkeys(RESERVED, 1)
    made: list[tuple[Region, FusedOp]] = []
    for region in sorted(regions, key=lambda region: region.nodes[0]):
        name = region_name(region)
        shape = name, shapes.of_region(region)
        if shape not in by_shape:
            op = fused_op(region, known, name, shapes.wanted)
            # Texts may be equal where shapes are not: one kernel serves both.
            if op.key not in calls:
                taken[name] = taken.get(name, 0) + 1
                calls[op.key] = op if taken[name] == 1 else op.renamed(f"{name}_{taken[name]}")
            by_shape[shape] = calls[op.key]
        made.append((region, by_shape[shape]))
    replaced: dict[fx.Node, fx.Node] = {}
    for region, op in made:
        _replace(module, region, op, replaced, known)
    put_in_order(module, "fusing")


def _replace(
    module: fx.GraphModule,
    region: Region,
    op: FusedOp,
    replaced: dict[fx.Node, fx.Node],
    known: dict[fx.Node, Fact],
) -> None:
    graph = module.graph
    with graph.inserting_after(region.nodes[-1]):
        inputs = tuple(replaced.get(node, node) for node in region.inputs)
        call = inherit(graph.call_function(op, inputs), region.outputs[-1])
        if len(region.outputs) > 1:
            mark(call, dataclasses.replace(origin(call), value=None))  # its parts compute values
    for number, output in reversed(list(enumerate(region.outputs))):
        result = call
        if len(region.outputs) > 1:
            with graph.inserting_after(call):
                result = inherit(graph.call_function(operator.getitem, (call, number)), output)
        if output in known:
            result.meta[FACT] = known[output]  # for passes after this one, and for kernels that read it
        output.replace_all_uses_with(result)
        replaced[output] = result
    for node in reversed(region.nodes):
        if node.users:
            raise CompilerBug(f"{node.name} is still read after it was fused")
        graph.erase_node(node)


def region_name(region: Region) -> str:
    """The blocks a region's nodes stand in, as the spec calls them."""
    names: dict[str, int] = {}  # with how deep the block is
    for node in region.nodes:
        scope = origin(node).scope
        deepest = max((depth for depth, frame in enumerate(scope) if depth and frame.index is None), default=0)
        if node.target not in VIEWS and deepest:
            names.setdefault(scope[deepest].name, deepest)
    # What stands in the model itself needs no name beside the blocks.
    inner = [name for name, depth in names.items() if depth > 1] or list(names)
    return "_".join(inner[:4]) or spec_name(region.outputs[-1])


def needs_gradient(module: fx.GraphModule, known: dict[fx.Node, Fact]) -> set[fx.Node]:
    """Real nodes that a trained weight or a real input reaches."""
    found: set[fx.Node] = set()
    for node in module.graph.nodes:
        fact = known.get(node)
        match node.op:
            case "get_attr":
                if module.get_parameter(str(node.target)).requires_grad:
                    found.add(node)
            case "placeholder":
                if fact is not None and fact.is_real:
                    found.add(node)
            case "call_function":
                reached = _is_reached(node, found)
                if reached and (fact is None or fact.is_real) and node.target is not torch.detach:
                    found.add(node)
    return found


def _is_reached(node: fx.Node, found: set[fx.Node]) -> bool:
    """Of results of a grouped linear, those of a group are reached by its own operands."""
    call, place = node.args[:2] if node.target is operator.getitem else (None, None)
    # A place is a result of several; a single result may have a dimension put in like any other value.
    if isinstance(place, int) and isinstance(call, fx.Node) and isinstance(call.target, GroupedOp):
        return call.target.has_gradient(place, [operand in found for operand in call.args])
    return any(operand in found for operand in node.all_input_nodes)
