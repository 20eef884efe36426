"""A group of fx nodes as a row program.

First the axes are found (axes.py), then every result is asked for its values, which ask for their operands' values: a
reshape passes the question on, `select` and `stack` fix the number of the part they mean.

    halves = unflatten(q, -1, (2, 16)); a = select(halves, -2, 0)      ->      a = load(q, row, [part 0 of 2, pair])
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ...dsl.program import Weight
from ..facts import Fact, dimension
from ..functions import gathers, packing, pointwise, precision, statics
from ..origin import Origin, origin
from . import functions as f
from .axes import CannotFuse, Dim, Leaf, extent, fresh, regrouped, resolved, unify
from .functions import Function
from .graph_functions import POINTWISE
from .row_program import (
    Axis,
    Constant,
    How,
    Iota,
    Kind,
    Layout,
    Load,
    Map,
    Part,
    Reduce,
    Result,
    RowProgram,
    Source,
    Store,
    Val,
)

# More parts than this written out make a text nobody reads and a kernel that spills.
MOST_PARTS = 16
Where = Mapping[Leaf, int]


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
    builder = _Builder(region, facts)
    builder.find_axes()
    program = builder.program(name)
    return builder.merged(program).program(name)


@dataclass
class _Builder:
    region: Region
    facts: Mapping[fx.Node, Fact]
    dims: dict[fx.Node, tuple[Dim, ...]] = field(default_factory=dict)
    apart: list[Dim] = field(default_factory=list)  # what `select` and `stack` take apart
    axis_of: dict[Leaf, Axis] = field(default_factory=dict)
    written_out: set[Leaf] = field(default_factory=set)
    sources: dict[tuple[fx.Node, bool], Source] = field(default_factory=dict)
    known: dict[tuple[object, ...], Val] = field(default_factory=dict)
    called: dict[str, int] = field(default_factory=dict)
    current: Origin | None = None

    # -- axes --------------------------------------------------------------------------------------

    def find_axes(self) -> None:
        for node in self.region.inputs:
            if node not in self.facts:
                raise CannotFuse(f"nothing is known of {node.name}")
            self.dims[node] = fresh(self.facts[node].dims)
        for node in self.region.nodes:
            rule = AXES.get(node.target, _axes_pointwise)
            self.dims[node] = rule(self, node)
        self.written_out = {leaf for dim in self.apart for leaf in resolved(dim)}
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
            results.append(Result(_unique(spec_name(node), called), fact.dims, fact.dtype))
            apart = [leaf for leaf in dict.fromkeys(self.leaves(node)) if leaf in self.written_out]
            for where in _parts(apart):
                value = self.value(node, where)
                stores.append(Store(place, value, self.layout(self.leaves(node), where)))
        return RowProgram(name, tuple(self.sources.values()), tuple(results), tuple(stores))

    def value(self, node: Any, where: Where) -> Val:
        """The value of a node, at the given parts of the axes that are written out."""
        if not isinstance(node, fx.Node):
            return constant(node)
        leaves = self.leaves(node)
        where = {leaf: part for leaf, part in where.items() if leaf in leaves}
        key = (node, frozenset(where.items()))
        if key not in self.known:
            before, self.current = self.current, origin(node)
            if node in self.region.inputs:
                self.known[key] = self.load(node, leaves, where, None)
            else:
                self.known[key] = VALUES.get(node.target, _value_pointwise)(self, node, where)
            self.current = before
        return self.known[key]

    def load(self, node: fx.Node, leaves: tuple[Leaf, ...], where: Where, index: Val | None) -> Val:
        fact = self.facts[node]
        source = self.source(node, index is not None)
        layout = self.layout(leaves, where)
        axes = frozenset(entry for entry in layout if isinstance(entry, Axis))
        by_row = source.by_row
        if index is not None:
            axes, by_row = axes | index.axes, index.by_row
        return Load(axes, by_row, kind_of(fact), origin(node), source, layout, index)

    def source(self, node: fx.Node, is_table: bool) -> Source:
        key = (node, is_table)
        if key not in self.sources:
            fact = self.facts[node]
            dims = fact.dims[1:] if is_table and fact.level is None else fact.dims
            by_row = fact.level is not None and not is_table
            entries = 1
            for size in dims:
                entries *= size
            place = self.region.inputs.index(node)
            name = _unique(spec_name(node), self.called)
            self.sources[key] = Source(place, name, by_row, entries, fact.dtype, is_table)
        return self.sources[key]

    def layout(self, leaves: Iterable[Leaf], where: Where) -> Layout:
        entries: list[Axis | Part] = []
        for leaf in leaves:
            entry = Part(where[leaf], leaf.size) if leaf in self.written_out else self.axis_of[leaf]
            # The leaves of a merged axis stand side by side.
            if not (entries and isinstance(entry, Axis) and entries[-1] is entry):
                entries.append(entry)
        return tuple(entries)

    def map(self, function: Function, *operands: Val | float) -> Val:
        return make(function, *operands, origin=self.current)

    def reduce(self, how: How, of: Callable[[Where], Val], leaves: tuple[Leaf, ...], where: Where) -> Val:
        """Over leaves, of which some may be written out."""
        axes = frozenset(self.axis_of[leaf] for leaf in leaves if leaf not in self.written_out)
        result: Val | None = None
        for part in _parts([leaf for leaf in leaves if leaf in self.written_out]):
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
                axis = self.axis_of[leaf]
                step = Iota(frozenset((axis,)), False, Kind.INT, self.current or origin_of_nothing(), axis)
                step = step if stride == 1 else self.map(f.MUL, step, stride)
            total = step if total is None else self.map(f.ADD, total, step)
            stride *= leaf.size
        return constant(0) if total is None else total

    # -- fewer axes --------------------------------------------------------------------------------

    def merged(self, program: RowProgram) -> _Builder:
        """Axes that always stand side by side become one: a kernel of fewer dimensions with less padding."""
        kept_apart = {value.axis for value in program.values if isinstance(value, Iota)}
        sets = [value.axes for value in program.values]
        sets += [value.over for value in program.values if isinstance(value, Reduce)]
        layouts = [store.layout for store in program.stores]
        layouts += [value.layout for value in program.values if isinstance(value, Load)]
        following: dict[Axis, Axis] = {}
        for layout in layouts:
            for one, two in zip(layout, layout[1:], strict=False):
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
        return _Builder(self.region, self.facts, self.dims, self.apart, merged, self.written_out)


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


def _parts(leaves: Iterable[Leaf]) -> list[dict[Leaf, int]]:
    leaves = list(leaves)
    if extent(leaves) > MOST_PARTS:
        raise CannotFuse(f"{extent(leaves)} parts would be written out")
    return [
        dict(zip(leaves, numbers, strict=True)) for numbers in product(*(range(leaf.size) for leaf in leaves))
    ]


# -- making values -----------------------------------------------------------------------------------------------------


def origin_of_nothing() -> Origin:
    return Origin(None, None)


def kind_of(fact: Fact) -> Kind:
    if fact.dtype.is_floating_point:
        return Kind.REAL
    return Kind.FLAG if fact.dtype == torch.bool else Kind.INT


def constant(number: float | bool) -> Constant:
    kind = Kind.FLAG if isinstance(number, bool) else Kind.INT if isinstance(number, int) else Kind.REAL
    return Constant(frozenset(), False, kind, origin_of_nothing(), number)


def make(function: Function, *operands: Val | float, origin: Origin | None = None) -> Val:
    """A map, of values or numbers. Whole numbers that meet reals become reals."""
    values = [operand if isinstance(operand, Val) else constant(operand) for operand in operands]
    compared = values[1:] if function is f.WHERE else values
    if any(value.kind is Kind.REAL for value in compared) and function is not f.TO_REAL:
        values = [
            constant(float(value.number))
            if isinstance(value, Constant) and value.kind is Kind.INT and value in compared
            else value
            for value in values
        ]
        compared = values[1:] if function is f.WHERE else values
    if function.result is not None:
        kind = Kind(function.result)
    else:
        kinds = {value.kind for value in compared}
        kind = next(kind for kind in (Kind.REAL, Kind.INT, Kind.FLAG) if kind in kinds)
    axes = frozenset().union(*(value.axes for value in values))
    by_row = any(value.by_row for value in values)
    return Map(axes, by_row, kind, origin or origin_of_nothing(), function, tuple(values))


def reduce(how: How, value: Val, over: frozenset[Axis], origin: Origin | None = None) -> Val:
    """Axes that the value lacks count as often as they are long in a sum, and once else."""
    missing = over - value.axes
    if how is How.SUM:
        times = 1
        for axis in missing:
            times *= axis.size
        value = value if times == 1 else make(f.MUL, value, times, origin=origin)
    over &= value.axes
    if not over:
        return value
    return Reduce(value.axes - over, value.by_row, value.kind, origin or origin_of_nothing(), how, value, over)


# -- rules of axes -----------------------------------------------------------------------------------------------------


def _axes_pointwise(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return _joined(b, operands)


def _joined(b: _Builder, operands: list[fx.Node]) -> tuple[Dim, ...]:
    rank = max(len(b.dims[operand]) for operand in operands)
    result: list[Dim] = []
    for place in range(rank):
        found: Dim = ()
        for operand in operands:
            dims = b.dims[operand]
            dim = dims[place - rank + len(dims)] if place - rank + len(dims) >= 0 else ()
            if dim and found:
                unify(found, dim)
            found = found or dim
        result.append(found)
    return tuple(result)


def _axes_same(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    return b.dims[node.args[0]]  # type: ignore[index]


def _axes_regrouped(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    return regrouped((leaf for dim in b.dims[node.args[0]] for leaf in dim), b.facts[node].dims)  # type: ignore[index]


def _axes_permute(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    x: Any = node.args[0]
    places = [dimension(dim, b.facts[x]) for dim in node.args[1]]  # type: ignore[union-attr]
    return tuple(b.dims[x][place] for place in places if place >= 0)


def _axes_expand(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    dims = b.dims[node.args[0]]  # type: ignore[index]
    sizes = b.facts[node].dims
    given = ((),) * (len(sizes) - len(dims)) + dims
    return tuple(dim or fresh((size,))[0] for dim, size in zip(given, sizes, strict=True))


def _axes_select(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    x: Any = node.args[0]
    place = b.dim(x, node.args[1])  # type: ignore[arg-type]
    b.apart.append(b.dims[x][place])
    return (*b.dims[x][:place], *b.dims[x][place + 1 :])


def _axes_stack(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    parts: Any = node.args[0]
    dims = _joined(b, list(parts))
    place = b.dim(node, node.args[1] if len(node.args) > 1 else 0)  # type: ignore[arg-type]
    new = fresh((len(parts),))[0]
    b.apart.append(new)
    return (*dims[:place], new, *dims[place:])


def _reduced(b: _Builder, node: fx.Node) -> tuple[fx.Node, tuple[int, ...]]:
    x: Any = node.args[0]
    dims: Any = node.args[1]
    return x, tuple(b.dim(x, dim) for dim in ((dims,) if isinstance(dims, int) else dims))


def _axes_reduced(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    x, gone = _reduced(b, node)
    return tuple(dim for place, dim in enumerate(b.dims[x]) if place not in gone)


def _axes_embedding(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    index, table = node.args
    return (*b.dims[index], *fresh(b.facts[table].dims[1:]))  # type: ignore[index]


def _axes_rows_of_table(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    table, index = node.args
    return (*b.dims[index], *fresh(b.facts[table].dims[1:]))  # type: ignore[index]


def _axes_index_select(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    return fresh(b.facts[node].dims)


def _axes_entries(b: _Builder, node: fx.Node) -> tuple[Dim, ...]:
    """`entries(x, index, shared)` where the index has no axes of its own."""
    x, index, shared = node.args
    dims, picked = b.dims[x], b.dims[index]  # type: ignore[index]
    if b.facts[x].level is None or shared - 1 != len(picked) or b.facts[index].level != b.facts[x].level:  # type: ignore
        raise CannotFuse("a gather with axes of its own")
    for one, two in zip(dims, picked, strict=False):
        if bool(one) != bool(two):
            raise CannotFuse("a gather that broadcasts")
        unify(one, two)
    return (*dims[: shared - 1], *dims[shared:])  # type: ignore[operator]


# -- rules of values ---------------------------------------------------------------------------------------------------


def _value_pointwise(b: _Builder, node: fx.Node, where: Where) -> Val:
    function = POINTWISE[node.target]
    return b.map(function, *(b.value(arg, where) for arg in node.args))


def _value_passed_on(b: _Builder, node: fx.Node, where: Where) -> Val:
    return b.value(node.args[0], where)


def _value_real(b: _Builder, node: fx.Node, where: Where) -> Val:
    value = b.value(node.args[0], where)
    return value if value.kind is Kind.REAL else b.map(f.TO_REAL, value)


def _value_pow(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, exponent = (b.value(arg, where) for arg in node.args)
    if isinstance(exponent, Constant):
        found = _power(b, x, exponent.number)
        if found is not None:
            return found
    if x.kind is not Kind.REAL and exponent.kind is not Kind.REAL:
        raise CannotFuse("a power of whole numbers")
    return b.map(f.POW, *(v if v.kind is Kind.REAL else b.map(f.TO_REAL, v) for v in (x, exponent)))


def _power(b: _Builder, x: Val, n: float) -> Val | None:
    """Small powers as products, which are exact where exp(n log x) is not."""
    if n == 2:
        return b.map(f.MUL, x, x)
    if n == 3:
        return b.map(f.MUL, x, b.map(f.MUL, x, x))
    if n == 4:
        square = b.map(f.MUL, x, x)
        return b.map(f.MUL, square, square)
    if x.kind is Kind.REAL and n in _ROOTS:
        return _ROOTS[n](b, x)
    return x if n == 1 else None


_ROOTS: dict[float, Callable[[_Builder, Val], Val]] = {
    0.5: lambda b, x: b.map(f.SQRT, x),
    -0.5: lambda b, x: b.map(f.RSQRT, x),
    -1: lambda b, x: b.map(f.DIV, 1.0, x),
    -2: lambda b, x: b.map(f.DIV, 1.0, b.map(f.MUL, x, x)),
}


def _value_clamp(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, low, high = (*node.args, None, None)[:3]
    return b.map(f.clamp(low, high), b.value(x, where))  # type: ignore[arg-type]


def _value_where(b: _Builder, node: fx.Node, where: Where) -> Val:
    condition, one, two = (b.value(arg, where) for arg in node.args[:3])
    return b.map(f.WHERE, condition, one, two)


def _value_fill(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, present, fill = (b.value(arg, where) for arg in node.args)
    return b.map(f.WHERE, present, x, fill)


def _value_straight(b: _Builder, node: fx.Node, where: Where) -> Val:
    value, carrier = (b.value(arg, where) for arg in node.args)
    return b.map(f.STRAIGHT, value, carrier)


def _value_select(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, dim, index = node.args
    number: Any = index
    fixed = dict(where)
    for leaf in reversed(resolved(b.dims[x][b.dim(x, dim)])):  # type: ignore
        fixed[leaf] = number % leaf.size
        number //= leaf.size
    return b.value(x, fixed)


def _value_stack(b: _Builder, node: fx.Node, where: Where) -> Val:
    parts: Any = node.args[0]
    dim = b.dims[node][b.dim(node, node.args[1] if len(node.args) > 1 else 0)]  # type: ignore[arg-type]
    number = 0
    for leaf in resolved(dim):
        number = number * leaf.size + where[leaf]
    return b.value(parts[number], where)


def _of(b: _Builder, x: fx.Node, dims: tuple[int, ...]) -> tuple[Leaf, ...]:
    return tuple(leaf for place in dims for leaf in resolved(b.dims[x][place]))


def _value_sum(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, dims = _reduced(b, node)
    return b.reduce(How.SUM, lambda w: b.value(x, w), _of(b, x, dims), where)


def _value_mean(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, dims = _reduced(b, node)
    return b.map(f.MUL, _value_sum(b, node, where), 1.0 / extent(_of(b, x, dims)))


def _extreme(how: How) -> Callable[[_Builder, fx.Node, Where], Val]:
    def rule(b: _Builder, node: fx.Node, where: Where) -> Val:
        x, dims = _reduced(b, node)
        return b.reduce(how, lambda w: b.value(x, w), _of(b, x, dims), where)

    return rule


def _flags(how: How) -> Callable[[_Builder, fx.Node, Where], Val]:
    def rule(b: _Builder, node: fx.Node, where: Where) -> Val:
        x, dims = _reduced(b, node)
        count = b.reduce(how, lambda w: b.map(f.TO_INT, b.value(x, w)), _of(b, x, dims), where)
        return b.map(f.NOT_EQUAL, count, 0)

    return rule


def _exponentials(b: _Builder, x: fx.Node, leaves: tuple[Leaf, ...], where: Where) -> tuple[Val, Val, Callable[[Where], Val]]:
    """The largest entry, the sum of exponentials over it, and each exponential."""
    rest = {leaf: part for leaf, part in where.items() if leaf not in leaves}
    key = ("exponentials", x, leaves, frozenset(rest.items()))
    top = b.known.get((*key, "top"))
    if top is None:
        top = b.reduce(How.MAX, lambda w: b.value(x, w), leaves, rest)
        # Finite, so that a row of -inf gives exponentials of 0 and not of -inf - -inf.
        top = b.known[(*key, "top")] = b.map(f.STOP, b.map(f.MAXIMUM, top, -3e38))

    def exponential(w: Where) -> Val:
        return b.map(f.EXP, b.map(f.SUB, b.value(x, w), top))

    total = b.known.get((*key, "total"))
    if total is None:
        total = b.known[(*key, "total")] = b.reduce(How.SUM, exponential, leaves, rest)
    return top, total, exponential


def _value_logsumexp(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, dims = _reduced(b, node)
    top, total, _ = _exponentials(b, x, _of(b, x, dims), where)
    return b.map(f.ADD, b.map(f.LOG, total), top)


def _value_softmax(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, dims = _reduced(b, node)
    _, total, exponential = _exponentials(b, x, _of(b, x, dims), where)
    return b.map(f.DIV, exponential(where), total)


def _value_argmax(b: _Builder, node: fx.Node, where: Where) -> Val:
    """The first: the least index among the entries that are as large as the largest."""
    x, dims = _reduced(b, node)
    leaves = _of(b, x, dims)
    top = b.reduce(How.MAX, lambda w: b.value(x, w), leaves, where)

    def index(w: Where) -> Val:
        number = b.number_in(b.dims[x][dims[0]], w)
        return b.map(f.WHERE, b.map(f.EQUAL, b.value(x, w), top), number, extent(leaves))

    return b.reduce(How.MIN, index, leaves, where)


def _value_entries(b: _Builder, node: fx.Node, where: Where) -> Val:
    x, index, shared = node.args
    dim = b.dims[x][shared - 1]  # type: ignore
    wanted = b.value(index, where)

    def picked(w: Where) -> Val:
        return b.map(f.WHERE, b.map(f.EQUAL, b.number_in(dim, w), wanted), b.value(x, w), 0.0)

    return b.reduce(How.SUM, picked, resolved(dim), where)


def _value_gather(table: int, index: int | None) -> Callable[[_Builder, fx.Node, Where], Val]:
    def rule(b: _Builder, node: fx.Node, where: Where) -> Val:
        source: Any = node.args[table]
        picked: Any = node.args[index if index is not None else 0]
        own = len(b.dims[picked])
        rest = tuple(leaf for dim in b.dims[node][own:] for leaf in resolved(dim))
        return b.load(source, rest, where, b.value(picked, where))

    return rule


def tables(node: fx.Node) -> tuple[int, ...]:
    """Which operands are gathered from, and so must be in memory."""
    return _TABLES.get(node.target, ())


_TABLES: dict[Any, tuple[int, ...]] = {
    functional.embedding: (1,), gathers.rows_of_table: (0,), torch.index_select: (0,),
}  # fmt: skip

AXES: dict[Any, Callable[[_Builder, fx.Node], tuple[Dim, ...]]] = {
    **dict.fromkeys((torch.Tensor.to, precision.real, torch.clamp, torch.detach), _axes_same),
    **dict.fromkeys((torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze), _axes_regrouped),
    operator.getitem: _axes_regrouped,
    torch.permute: _axes_permute,
    packing.expand: _axes_expand,
    torch.select: _axes_select,
    torch.stack: _axes_stack,
    **dict.fromkeys(
        (
            statics.sum_static, statics.mean_static, statics.max_static, statics.min_static, statics.any_static,
            statics.all_static, statics.logsumexp_static, statics.argmax_static,
        ),
        _axes_reduced,
    ),
    statics.softmax_static: _axes_same,
    functional.embedding: _axes_embedding,
    gathers.rows_of_table: _axes_rows_of_table,
    torch.index_select: _axes_index_select,
    gathers.entries: _axes_entries,
}  # fmt: skip

VALUES: dict[Any, Callable[[_Builder, fx.Node, Where], Val]] = {
    **dict.fromkeys(
        (
            torch.reshape, torch.flatten, torch.unflatten, torch.unsqueeze, torch.squeeze, operator.getitem,
            torch.permute, packing.expand,
        ),
        _value_passed_on,
    ),
    **dict.fromkeys((torch.Tensor.to, precision.real), _value_real),
    operator.pow: _value_pow,
    torch.clamp: _value_clamp,
    pointwise.where: _value_where,
    pointwise.fill_missing: _value_fill,
    pointwise.straight_through: _value_straight,
    torch.select: _value_select,
    torch.stack: _value_stack,
    statics.sum_static: _value_sum,
    statics.mean_static: _value_mean,
    statics.max_static: _extreme(How.MAX),
    statics.min_static: _extreme(How.MIN),
    statics.any_static: _flags(How.MAX),
    statics.all_static: _flags(How.MIN),
    statics.logsumexp_static: _value_logsumexp,
    statics.softmax_static: _value_softmax,
    statics.argmax_static: _value_argmax,
    functional.embedding: _value_gather(1, 0),
    gathers.rows_of_table: _value_gather(0, 1),
    torch.index_select: _value_gather(0, 2),
    gathers.entries: _value_entries,
}  # fmt: skip

FUSIBLE = frozenset(POINTWISE) | frozenset(VALUES)
