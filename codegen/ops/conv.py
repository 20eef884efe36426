"""`conv(x, G -> H, A -> B)`: a convolution over places."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ...dsl import frontier
from ...dsl.axes import Axis, Static
from ...dsl.errors.axes import WrongAxisKind
from ...dsl.errors.later import NotBuiltYet
from ...dsl.errors.operators import BadNumber, NotACut
from ...dsl.frontier import Frontier
from ...dsl.grids import is_grid, scale, sides
from ...dsl.length import Length
from ...dsl.opdef import Accepts, AxisMapping, Cost, Inferred, OpCall, OpDef, Param
from ...dsl.program import Distribution, Node, Value
from ...dsl.record import record
from ...dsl.value_type import Real, ValueType, ordered_first
from ..functions_lazy import places, windows
from ..lazy import torch
from ..lowering import LowerContext
from .axis_pairs import one_pair, want_along
from .joining import want_axes, want_real, want_static, want_whole
from .linear import ZEROS, check_added, scaled_normal
from .operands import entries, has_leading, own, result_type, sizes, traffic
from .scaled import is_scaled_pair


@record
class ConvAttrs:
    """`before`: by how many places a window begins in front of the first place it is about."""

    source: Axis
    target: Axis
    contracted: tuple[Axis, ...]
    added: tuple[Axis, ...]
    size: int
    stride: int
    before: int
    has_bias: bool

    @property
    def reach(self) -> int:
        """How many places a window reads behind the first place it is about."""
        return self.size - 1 - self.before


def _infer(
    call: OpCall,
    x: Value,
    places: AxisMapping,
    axes: AxisMapping,
    size: int,
    stride: int,
    pad: str,
    bias: bool,
    init: Distribution | None,
) -> Inferred:
    want_real(call, "conv", x=x)
    want_whole(call, "conv", x=x)
    source, target = one_pair(call, "conv", places, "places")
    for name, number in (("size", size), ("stride", stride)):
        if number < 1:
            raise call.fail(BadNumber(call.at(name), "conv", name, str(number), "at least 1"))
    want_static(call, "conv", call.at("axes"), (*axes.left, *axes.right))
    want_axes(call, "conv", "x", x, call.at("places"), (source,))
    want_axes(call, "conv", "x", x, call.at("axes"), axes.left)
    if source.is_ordered:
        want_along(call, "conv", x, source, "places")
        if source.parent is not None or is_grid(source):
            kind = "ragged grid" if is_grid(source) else "nested axis"
            raise call.fail(NotBuiltYet(call.at("places"), f"`conv` along the {kind} {source.name}"))
    if source in (*axes.left, *axes.right):
        raise call.fail(WrongAxisKind(call.at("axes"), "conv", source.name, "other axes than the places", "the places"))
    _check_target(call, source, target, stride)
    dimensions = 1 if source.is_ordered else len(sides(source))
    if dimensions > 1 and pad == "causal":
        raise call.fail(
            BadNumber(call.at("pad"), "conv", "pad", "causal", "`same` or `after`: a grid has no order of its places")
        )
    kept = tuple(target if axis is source else axis for axis in x.type.axes if axis not in axes.left)
    check_added(call, "conv", kept, axes.right, "x")
    kernel = tuple(
        Axis(name, Static(), Length.number(size), size, call.span)
        for name in (("kernel",) if dimensions == 1 else ("kernel_row", "kernel_column"))
    )
    fan_in = math.prod(sizes((*axes.left, *kernel)))
    weight_axes = (*axes.right, *axes.left, *kernel)
    weight = call.weight("weight", weight_axes, init or scaled_normal(fan_in), len(axes.right), kernel=len(kernel))
    inputs = (x, weight)
    if bias:
        inputs += (call.weight("bias", axes.right, ZEROS),)
    before = {"same": (size - 1) // 2, "causal": size - 1, "after": 0}[pad]
    attrs = ConvAttrs(source, target, axes.left, axes.right, size, stride, before, bias)
    type = ValueType(Real(), ordered_first((*kept, *axes.right)), x.type.per_example)
    return Inferred(attrs, inputs, (type,))


def _check_target(call: OpCall, source: Axis, target: Axis, stride: int) -> None:
    """The target is the source, or the source scaled by the stride."""
    if target is source and stride == 1:
        return
    if source.is_static and target.is_static:
        wanted = [side.length.ceil_divided(stride) for side in sides(source)]
        found = [side.length for side in sides(target)]
        if scale(source, target) == stride or (len(wanted) == len(found) and all(map(call.equal, wanted, found))):
            return
    elif is_scaled_pair(source, target) and scale(source, target) == stride:
        return
    what = f"the axis scaled by the stride {stride} of" if stride > 1 else "the same places as"
    raise call.fail(NotACut(call.at("places"), "conv", source.name, target.name, what))


def _lower(ctx: LowerContext, node: Node) -> None:
    attrs, x, place = node.attrs, node.inputs[0], result_type(node)
    assert isinstance(attrs, ConvAttrs)
    others = tuple(axis for axis in x.type.static_axes if axis is not attrs.source and axis not in attrs.contracted)
    places_here = (attrs.source,) if attrs.source.is_static else ()
    read = own(ctx, x, (*others, *places_here, *attrs.contracted))
    if len(attrs.contracted) != 1:
        lead = has_leading(x.type) + len(others) + len(places_here)
        read = ctx.call(torch.flatten, read, lead) if attrs.contracted else ctx.call(torch.unsqueeze, read, -1)
    bias = None
    if attrs.has_bias:
        bias = ctx.call(torch.reshape, own(ctx, node.inputs[2], attrs.added), (math.prod(sizes(attrs.added)),))
    weight = ctx.read(node.inputs[1])
    if attrs.source.is_static:
        extents = [tuple(side.size for side in sides(axis)) for axis in (attrs.source, attrs.target)]
        result = ctx.call(places.conv, read, weight, bias, *extents, attrs.stride, attrs.before)
    else:
        index = ctx.windows(attrs.source, attrs.target, attrs.size, attrs.stride, attrs.before)
        result = ctx.call(windows.conv_rows, read, index, weight, bias)
    if len(attrs.added) > 1:
        result = ctx.call(torch.unflatten, result, -1, sizes(attrs.added))
    elif not attrs.added:
        result = ctx.call(torch.squeeze, result, -1)
    made = (*others, *((attrs.target,) if places_here else ()), *attrs.added)
    if made != place.static_axes:
        leading = has_leading(place)
        order = [made.index(axis) + leading for axis in place.static_axes]
        result = ctx.call(torch.permute, result, [0, *order] if leading else order)
    ctx.define(node.outputs[0], result)


def _frontier(node: Node, given: tuple[Frontier, ...]) -> Frontier:
    attrs = node.attrs
    assert isinstance(attrs, ConvAttrs)
    if attrs.stride == 1 or attrs.source.is_static:
        return frontier.conv(given[0], attrs.source, attrs.reach)
    # Counted from the last row that is the target's own.
    behind = max(0, attrs.reach - (attrs.stride - 1))
    return frontier.conv_strided(given[0], frontier.segments(attrs.target, None, attrs.source), behind)


def _cost(node: Node, rows: Mapping[Axis, int]) -> Cost:
    attrs, weight = node.attrs, node.inputs[1]
    assert isinstance(attrs, ConvAttrs)
    per_entry = math.prod(sizes(weight.type.axes)) / max(math.prod(sizes(attrs.added)), 1)
    return Cost(2 * entries(result_type(node), rows) * per_entry, traffic(node, rows))


CONV = OpDef(
    name="conv",
    params=(
        Param("x", Accepts.VALUE),
        Param("places", Accepts.MAPPING),
        Param("axes", Accepts.MAPPING),
        Param("size", Accepts.INTEGER),
        Param("stride", Accepts.INTEGER, 1),
        Param("pad", Accepts.CHOICE, "same", ("same", "causal", "after")),
        Param("bias", Accepts.FLAG, False),
        Param("init", Accepts.INIT, None),
    ),
    infer=_infer,
    frontier=_frontier,
    lower=_lower,
    row_wise=False,
    row_wise_when=lambda node: isinstance(node.attrs, ConvAttrs) and node.attrs.source.is_static,
    cost=_cost,
    doc=(
        "`conv(x, G -> H, A -> B, size=3, stride=1, pad=same, bias=false)`: a convolution over the places G, a grid, "
        "another static axis or the rows of a ragged one, which contracts A and adds B. H is G, or G scaled by the "
        "stride. A window of `size` places on each side has its middle at its place (the first of the two middle ones "
        "if `size` is even), and zeros where there is no place; with `causal` it ends there, with `after` it begins "
        "there."
    ),
    multiplies=True,
    samples=(
        "x: real[seq, cell, dim] => conv(x, cell -> cell, dim -> ffn, size=3)",
        "x: real[seq, cell, dim] => conv(x, cell -> half_cell, dim -> ffn, size=3, stride=2, bias=true)",
        "x: real[seq, heads, cell, dim] => conv(x, cell -> half_cell, (heads, dim) -> ffn, size=2, stride=2)",
        "x: real[seq, cell, heads, dim] => conv(x, cell -> half_cell, dim -> (head_dim, two), size=4, stride=2)",
        "x: real[seq, half_cell, dim] => conv(x, half_cell -> half_cell, dim -> dim, size=1)",
        "x: real[seq, ffn, dim] => conv(x, ffn -> ffn, dim -> heads, size=3, pad=causal)",
        "x: real[seq, cell, dim] => conv(x, cell -> half_cell, dim -> ffn, size=3, stride=2, pad=after)",
        "x: real[seq, dim] => conv(x, seq -> seq, dim -> ffn, size=3, pad=after)",
        "x: real[cell, dim] => conv(x, cell -> half_cell, dim -> two, size=3, stride=2)",
        "x: real[seq, dim] => conv(x, seq -> seq, dim -> ffn, size=3)",
        "x: real[seq, dim] => conv(x, seq -> seq, dim -> ffn, size=4, bias=true)",
        "x: real[seq, heads, dim] => conv(x, seq -> seq, dim -> (two, three), size=3, pad=causal)",
        (
            "x: real[seq, dim]; p = conv(x, seq -> pair, dim -> dim, size=3, stride=2, pad=causal) => "
            "x + spread(p, pair -> seq, closed)"
        ),
        (
            "x: real[seq, dim]; p = conv(x, seq -> pair, dim -> dim, size=5, stride=2) => "
            "x + spread(p, pair -> seq, closed)"
        ),
    ),
)
