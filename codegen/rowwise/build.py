"""A group of fx nodes as a row program.

First the axes are found (axes.py), then every result is asked for its values, which ask for their operands' values: a
reshape passes the question on, `select` and `stack` fix the number of the part they mean.

    halves = unflatten(q, -1, (2, 16)); a = select(halves, -2, 0)      ->      a = load(q, row, [part 0 of 2, pair])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from typing import Any

from torch import fx

from ...dsl.program import Weight
from ..facts import Fact, dimension
from ..functions import cuts
from ..origin import UNKNOWN, Origin, origin
from . import functions as f
from .axes import CannotFuse, Dim, Leaf, fresh, resolved, unify
from .axis_rules import AXES, axes_pointwise
from .functions import Function
from .making import constant, kind_of, make, reduce
from .row_program import (
    Axis,
    How,
    Iota,
    Kind,
    Layout,
    Load,
    Part,
    Reduce,
    Result,
    RowProgram,
    Source,
    Store,
    Val,
    Window,
    axes_of,
)
from .value_rules import VALUES, Where, value_pointwise

# More parts than this written out make a text nobody reads and a kernel that spills.
MOST_PARTS = 16


@dataclass(frozen=True)
class Region:
    """Nodes in the order of the graph, what they read from outside and what others read of them."""

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def region_of(nodes: Iterable[fx.Node]) -> Region:
    inside = set(nodes)
    ordered = tuple(sorted(inside))
    inputs = dict.fromkeys(arg for node in ordered for arg in node.all_input_nodes if arg not in inside)
    outputs = tuple(node for node in ordered if any(user not in inside for user in node.users))
    return Region(ordered, tuple(inputs), outputs)


def build(region: Region, facts: Mapping[fx.Node, Fact], name: str) -> RowProgram:
    """Raises CannotFuse where the group is no row program."""
    builder = Builder(region, facts)
    builder.find_axes()
    program = builder.program(name)
    return builder.merged(program).program(name)


@dataclass
class Builder:
    region: Region
    facts: Mapping[fx.Node, Fact]
    dims: dict[fx.Node, tuple[Dim, ...]] = field(default_factory=dict)
    apart: list[Dim] = field(default_factory=list)  # what `select` and `stack` take apart
    axis_of: dict[Leaf, Axis] = field(default_factory=dict)
    written_out: set[Leaf] = field(default_factory=set)
    joined: list[tuple[Dim, tuple[Dim, ...]]] = field(default_factory=list)  # what `cat` puts together
    parts_of: dict[Leaf, tuple[Leaf, ...]] = field(default_factory=dict)
    sources: dict[tuple[fx.Node, bool], Source] = field(default_factory=dict)
    known: dict[tuple[object, ...], Val] = field(default_factory=dict)
    called: dict[str, int] = field(default_factory=dict)
    current: Origin | None = None
    shift: int = 0  # values are asked for at this many rows after the kernel's

    # -- axes --------------------------------------------------------------------------------------

    def find_axes(self) -> None:
        for node in self.region.inputs:
            if node not in self.facts:
                raise CannotFuse(f"nothing is known of {node.name}")
            self.dims[node] = fresh(self.facts[node].dims)
        for node in self.region.nodes:
            rule = AXES.get(node.target, axes_pointwise)
            self.dims[node] = rule(self, node)
        self._put_together()
        self.written_out = {leaf for dim in self.apart for leaf in resolved(dim)}
        if self.written_out & {leaf for whole, parts in self.parts_of.items() for leaf in (whole, *parts)}:
            raise CannotFuse("an axis is put together and taken apart")
        called: dict[Leaf, str] = {}
        for node, dims in self.dims.items():
            known = origin(node)
            axes = known.type.static_axes if known.value is not None and known.type is not None else ()
            for axis, dim in zip(axes, dims, strict=False):
                if len(axes) == len(dims) and len(resolved(dim)) == 1:
                    called.setdefault(resolved(dim)[0], axis.name)
        names: dict[str, int] = {}
        for node in self.dims:
            for leaf in self.leaves(node):
                if leaf not in self.axis_of:
                    self.axis_of[leaf] = Axis(_unique(called.get(leaf, "entry"), names), leaf.size)

    def _put_together(self) -> None:
        """Two tensors that meet along an axis that is put together have the same parts."""
        for _ in range(1 + len(self.joined)):
            self.parts_of = {}
            for dim, parts in self.joined:
                wholes, found = resolved(dim), [resolved(part) for part in parts]
                if len(wholes) != 1 or any(len(part) != 1 for part in found):
                    raise CannotFuse("an axis is put together of several axes, or taken apart again")
                known = self.parts_of.setdefault(wholes[0], tuple(part[0] for part in found))
                if [leaf.size for leaf in known] != [part[0].size for part in found]:
                    raise CannotFuse("an axis is put together in two ways")
                for one, two in zip(known, found, strict=True):
                    unify((one,), two)
        if self.parts_of.keys() & {leaf for parts in self.parts_of.values() for leaf in parts}:
            raise CannotFuse("an axis is put together of one that is")
        for node in self.dims:
            taken: set[Leaf] = set()
            for leaf in self.leaves(node):
                own = {leaf, *self.parts_of.get(leaf, ())}
                if own & taken:
                    raise CannotFuse("an axis stands beside itself")
                taken |= own

    def leaves(self, node: fx.Node) -> tuple[Leaf, ...]:
        return tuple(leaf for dim in self.dims[node] for leaf in resolved(dim))

    def dim(self, node: fx.Node, dim: int) -> int:
        place = dimension(dim, self.facts[node])
        if place < 0:
            raise CannotFuse("the dimension of rows")
        return place

    # -- values ------------------------------------------------------------------------------------

    def program(self, name: str) -> RowProgram:
        self.known, self.sources = {}, {}
        stores, results = [], []
        called: dict[str, int] = {}
        self.called = {}
        for place, node in enumerate(self.region.outputs):
            fact = self.facts[node]
            name_, is_packed = _unique(spec_name(node), called), node.target is cuts.packed
            results.append(Result(name_, fact.dims, fact.dtype, is_packed=is_packed))
            for where in self.parts(dict.fromkeys(self.leaves(node))):
                value = self.value(node, where)
                stores.append(Store(place, value, self.layout(self.leaves(node), where)))
        program = RowProgram(name, tuple(self.sources.values()), tuple(results), tuple(stores))
        if program.packs and program.axes:
            raise CannotFuse("flags are packed by programs that hold many rows")
        return program

    def value(self, node: Any, where: Where) -> Val:
        """The value of a node, at the given parts of the axes that are written out."""
        if not isinstance(node, fx.Node):
            return constant(node)
        leaves = self.leaves(node)
        where = {leaf: part for leaf, part in where.items() if leaf in leaves}
        key = (node, frozenset(where.items()), self.shift)
        if key not in self.known:
            before, self.current = self.current, origin(node)
            if node in self.region.inputs:
                self.known[key] = self.load(node, leaves, where, None)
            else:
                self.known[key] = VALUES.get(node.target, value_pointwise)(self, node, where)
            self.current = before
        return self.known[key]

    def value_at(self, node: Any, where: Where, rows: int) -> Val:
        """As `value`, so many rows later: of what is stored, and of maps of that, which are computed there again."""
        self.shift += rows
        try:
            return self.value(node, where)
        finally:
            self.shift -= rows

    def load(
        self, node: fx.Node, leaves: tuple[Leaf, ...], where: Where, index: Val | None, in_runs: bool = False
    ) -> Val:
        fact = self.facts[node]
        source = self.source(node, index is not None)
        layout = self.layout(leaves, where)
        axes = frozenset(axes_of(layout))
        by_row = source.by_row
        if index is not None:
            if self.shift:
                raise CannotFuse("rows of a table, read at another row")
            axes, by_row = axes | index.axes, index.by_row
        shift = self.shift if by_row else 0
        return Load(axes, by_row, kind_of(fact), origin(node), source, layout, index, shift, in_runs)

    def source(self, node: fx.Node, is_table: bool) -> Source:
        key = (node, is_table)
        if key not in self.sources:
            fact = self.facts[node]
            dims = fact.dims[1:] if is_table and fact.level is None else fact.dims
            by_row = fact.level is not None and not is_table
            place = self.region.inputs.index(node)
            name = _unique(spec_name(node), self.called)
            self.sources[key] = Source(place, name, by_row, dims, fact.dtype, is_table)
        return self.sources[key]

    def layout(self, leaves: Iterable[Leaf], where: Where) -> Layout:
        entries: list[Axis | Part | Window] = []
        for leaf in leaves:
            if leaf in self.parts_of:
                entry = Window(where[leaf], tuple(self.axis_of[part] for part in self.parts_of[leaf]))
            else:
                entry = Part(where[leaf], leaf.size) if leaf in self.written_out else self.axis_of[leaf]
            # The leaves of a merged axis stand side by side.
            if not (entries and isinstance(entry, Axis) and entries[-1] is entry):
                entries.append(entry)
        return tuple(entries)

    def parts(self, leaves: Iterable[Leaf]) -> list[dict[Leaf, int]]:
        """Every choice of a part for those leaves that have parts."""
        counts = {leaf: leaf.size for leaf in leaves if leaf in self.written_out}
        counts |= {leaf: len(self.parts_of[leaf]) for leaf in leaves if leaf in self.parts_of}
        if prod(counts.values()) > MOST_PARTS:
            raise CannotFuse(f"{prod(counts.values())} parts would be written out")
        return [dict(zip(counts, numbers, strict=True)) for numbers in product(*map(range, counts.values()))]

    def map(self, function: Function, *operands: Val | float) -> Val:
        return make(function, *operands, origin=self.current)

    def reduce(self, how: How, of: Callable[[Where], Val], leaves: tuple[Leaf, ...], where: Where) -> Val:
        """Over leaves, of which some may be written out."""
        if self.shift:
            raise CannotFuse("a reduction, read at another row")
        result: Val | None = None
        for part in self.parts(leaves):
            axes = frozenset(axes_of(self.layout(leaves, part)))
            value = reduce(how, of({**where, **part}), axes, self.current)
            result = value if result is None else self.map(_JOIN[how], result, value)
        assert result is not None
        return result

    def number_in(self, dim: Dim, where: Where) -> Val:
        """The index along a dimension, as a value."""
        total: Val | None = None
        stride = 1
        for leaf in reversed(resolved(dim)):
            if leaf in self.written_out:
                step = constant(where[leaf] * stride)
            else:
                (entry,) = self.layout((leaf,), where)
                (axis,) = axes_of((entry,))
                step = Iota(frozenset((axis,)), False, Kind.INT, self.current or UNKNOWN, axis)
                step = self.map(f.ADD, step, entry.start) if isinstance(entry, Window) else step
                step = step if stride == 1 else self.map(f.MUL, step, stride)
            total = step if total is None else self.map(f.ADD, total, step)
            stride *= leaf.size
        return constant(0) if total is None else total

    # -- fewer axes --------------------------------------------------------------------------------

    def merged(self, program: RowProgram) -> Builder:
        """Axes that always stand side by side become one: a kernel of fewer dimensions with less padding."""
        kept_apart = {value.axis for value in program.values if isinstance(value, Iota)}
        kept_apart |= {self.axis_of[leaf] for parts in self.parts_of.values() for leaf in parts}
        sets = [value.axes for value in program.values]
        sets += [value.over for value in program.values if isinstance(value, Reduce)]
        layouts = [store.layout for store in program.stores]
        layouts += [value.layout for value in program.values if isinstance(value, Load)]
        following: dict[Axis, Axis] = {}
        for layout in layouts:
            for one, two in pairwise(layout):
                if isinstance(one, Axis) and isinstance(two, Axis) and not {one, two} & kept_apart:
                    together = all((one in axes) == (two in axes) for axes in sets)
                    if together and all(_adjacent(one, two, other) for other in layouts):
                        following[one] = two
        chains = {axis for axis in following if axis not in following.values()}
        merged = dict(self.axis_of)
        for start in chains:
            chain = [start]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            size = 1
            for axis in chain:
                size *= axis.size
            whole = Axis("_".join(axis.name for axis in chain) if len(chain) < 4 else chain[0].name, size)
            for leaf, axis in self.axis_of.items():
                if axis in chain:
                    merged[leaf] = whole
        made = Builder(self.region, self.facts, self.dims, self.apart, merged, self.written_out)
        made.parts_of = self.parts_of
        return made


_JOIN = {How.SUM: f.ADD, How.MAX: f.MAXIMUM, How.MIN: f.MINIMUM}


def _adjacent(one: Axis, two: Axis, layout: Layout) -> bool:
    if one not in layout and two not in layout:
        return True
    places = [place for place, entry in enumerate(layout[:-1]) if entry is one and layout[place + 1] is two]
    return len(places) == 1 and layout.count(one) == 1 and layout.count(two) == 1


def spec_name(node: fx.Node) -> str:
    """What the spec calls a node. Equal for equal nodes of all layers, so that their kernels have one text."""
    value = origin(node).value
    if isinstance(value, Weight):
        parts = [part for part in value.path.split(".") if not part.isdigit()]
        return "_".join(parts[-2:])
    name = value.name if value is not None else getattr(node.target, "__name__", "value")
    return name if name.isidentifier() else "value"


def _unique(name: str, names: dict[str, int]) -> str:
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}_{names[name]}"
