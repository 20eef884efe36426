"""The samples of an op as specs, and inputs for them.

    x: real[seq, two, dim]; a, b = split(x, over=two) => a - 2 * b

is a model with these parameters, these statements and this result, in a file that declares the axes below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from weft.codegen.lower import lower
from weft.codegen.ops import OPS
from weft.codegen.ops.cut import SegmentAttrs
from weft.codegen.ops.nested import RowsAttrs
from weft.codegen.ops.rows import RowAttrs
from weft.codegen.ops.selection import members_of_axis
from weft.codegen.origin import origin
from weft.codegen.signature import Signature
from weft.dsl.axes import Axis, Scaled, Selected
from weft.dsl.check import check
from weft.dsl.opdef import OpDef
from weft.dsl.program import Program, Value
from weft.dsl.selections import TakeAttrs
from weft.dsl.source import Source
from weft.dsl.value_type import Flag, Id, Real, Tag, ValueType

DECLARATIONS = """
size dim = 5
size heads = 4
size kv_heads = 2
size head_dim = 3
size ffn = 7
size vocab = 11
axis two = 2
axis three = 3
axis four = 4
axis dim_again = dim
axis dim_pair = dim * dim
axis width = heads * head_dim
axis dim_and_heads = dim + heads
axis cell = grid(4, 3)
axis half_cell = cell / 2
enum modality: text, image
block tanh_of(x: real) -> real:
    return 3 * tanh(x / 3)
block near_of(score: real) -> real:
    param near: real[three]
    return score + near[wrap(query(position) - key(position), three)]
axis seq
axis other
axis patch cut from seq
axis pair = seq / 2
axis six = pair / 3
axis item in other
axis part in other
axis word = seq where kind == text
axis spot = seq where kind == image
"""

# Rows of each example along each ordered axis: odd sizes, an empty example first, in the middle and last.
# Of `item`, rows of each row of `other`.
LENGTHS = {"seq": (0, 5, 1, 0, 3, 0), "other": (2, 3, 0, 0, 1, 2), "item": (2, 0, 3, 1, 0, 4, 0, 1)}
OWNERS = {"item": "other", "part": "other"}


Lengths = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sample:
    op: OpDef
    text: str

    @property
    def id(self) -> str:
        return f"{self.op.name}: {self.text}"


def lengths_of(seq: tuple[int, ...], other: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Lengths of examples, and of what is nested in them."""
    return {"seq": seq, "other": other, "item": tuple(islice(cycle((2, 1, 0, 3)), sum(other)))}


def alone(number: int, lengths: Lengths = LENGTHS) -> dict[str, tuple[int, ...]]:
    """Lengths of one example."""
    found = {}
    for axis, counts in lengths.items():
        owner = OWNERS.get(axis)
        before, count = (number, 1) if owner is None else (sum(lengths[owner][:number]), lengths[owner][number])
        found[axis] = counts[before : before + count]
    return found


SAMPLES = tuple(Sample(op, text) for op in OPS.ops.values() for text in op.samples)


def spec(text: str) -> str:
    """The file that a sample stands for."""
    head, result = text.split(" => ")
    parameters, *statements = head.split("; ")
    body = "\n".join(f"    {line}" for line in (*statements, f"return {result}"))
    return f"{DECLARATIONS}\nmodel m({parameters}):\n{body}\n"


def reversed_axes(text: str) -> str:
    """The sample with the static axes of its parameters written in the opposite order."""
    head, rest = text.split(" => ")
    parameters, *statements = head.split("; ")
    parts = parameters.split("[")
    for i in range(1, len(parts)):
        inside, after = parts[i].split("]", 1)
        axes = inside.split(", ")
        ordered = [axis for axis in axes if axis in LENGTHS]
        parts[i] = ", ".join((*ordered, *reversed([axis for axis in axes if axis not in LENGTHS]))) + "]" + after
    return "; ".join(("[".join(parts), *statements)) + " => " + rest


def elaborate(text: str) -> Program:
    """The program of a sample."""
    return check(Source("sample.weft", spec(text)), OPS).value().models["m"]


def module(program: Program, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.fx.GraphModule:
    """The lowered program, its weights filled with numbers of ordinary size."""
    graph = lower(program, working=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return graph


class _Values(torch.fx.Interpreter):
    """Keeps the tensor of every value of the program that a graph computes."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.made: dict[object, Tensor] = {}

    def run_node(self, n: torch.fx.Node):
        result = super().run_node(n)
        value = origin(n).value
        if value is not None:
            self.made[value] = result
        return result


def values_of(graph: torch.fx.GraphModule, arguments: list[Tensor]) -> dict[object, Tensor]:
    run = _Values(graph)
    run.run(*arguments)
    return run.made


def flags_of_cut(program: Program, made: Mapping[object, Tensor], cut: str) -> tuple[list[bool], list[bool]]:
    """Where segments of a cut end, and which rows are in one, from the values of a run."""
    (node,) = (node for node in program.nodes if isinstance(node.attrs, SegmentAttrs) and node.attrs.cut.name == cut)
    ends = made.get(node.outputs[0], made.get(node.inputs[0]))
    assert ends is not None
    inside = made[node.outputs[1]].tolist() if len(node.outputs) > 1 else [True] * len(ends)
    return ends.tolist(), inside


def with_cuts(program: Program, made: Mapping[object, Tensor], lengths: Lengths) -> Lengths:
    """`lengths`, and how many segments and selected rows each example has, counted row by row."""
    found = dict(lengths)

    def select(target: Axis, source: Axis, tag: Value, members: tuple[int, ...]) -> None:
        tags = iter(made[tag].tolist())
        counts = [[next(tags) for _ in range(count)] for count in found[source.name]]
        found[target.name] = tuple(sum(tag in members for tag in own) for own in counts)

    for node in program.nodes:
        if isinstance(node.attrs, TakeAttrs) and node.attrs.source is not None and node.attrs.target is not None:
            select(node.attrs.target, node.attrs.source, node.inputs[1], node.attrs.members)
        if isinstance(node.attrs, RowAttrs) and isinstance(node.attrs.axis.kind, Selected) and node.inputs:
            axis, tag = node.attrs.axis, node.inputs[0]
            select(axis, node.attrs.axis.kind.parent, tag, members_of_axis(tag, axis))
        for axis in (value.type.rows for value in node.outputs):
            if axis is not None and isinstance(axis.kind, Scaled):
                found[axis.name] = tuple(-(-n // axis.kind.divisor) for n in found[axis.kind.parent.name])
        if isinstance(node.attrs, RowsAttrs):
            owners = sum(lengths[node.attrs.outer.name])
            found[node.attrs.rows.name] = (math.prod(axis.size or 0 for axis in node.attrs.inner),) * owners
    for node in program.nodes:
        if isinstance(node.attrs, SegmentAttrs):
            cut, along = node.attrs.cut.name, node.attrs.along.name
            ends, inside = flags_of_cut(program, made, cut)
            counts, start = [], 0
            for count in lengths[along]:
                is_open, segments = False, 0
                for row in range(start, start + count):
                    segments += inside[row] and not is_open
                    is_open = inside[row] and not ends[row]
                counts.append(segments)
                start += count
            found[cut] = tuple(counts)
    return found


def lead(type: ValueType, lengths: Lengths) -> tuple[int, ...]:
    """The dimension in front of the static axes: of all examples together."""
    if type.rows is not None:
        return (sum(lengths[type.rows.name]),)
    return (len(next(iter(lengths.values()))),) if type.per_example else ()


def shape(type: ValueType, lengths: Lengths) -> tuple[int, ...]:
    return (*lead(type, lengths), *(axis.size or 0 for axis in type.static_axes))


def draw(value: Value, lengths: Lengths, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """An input of the value's type."""
    size = shape(value.type, lengths)
    match value.type.kind:
        case Real():
            return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        case Flag():
            return torch.rand(size, generator=generator) < 0.5
        case Id() as kind:
            return torch.randint(kind.count, size, generator=generator)
        case Tag(enum):
            return torch.randint(len(enum.members), size, generator=generator)
        case _:
            return torch.randint(100, size, generator=generator)


def inputs(
    program: Program, lengths: Lengths = LENGTHS, dtype: torch.dtype = torch.float64, seed: int = 1
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [draw(value, lengths, dtype, generator) for value in program.inputs]


def arguments(
    graph: torch.fx.GraphModule,
    values: list[Tensor],
    lengths: Lengths = LENGTHS,
    examples: list[int] | None = None,
) -> list[Tensor]:
    """What the graph is called with: inputs, offsets, and a seed, a step and ids of examples if it draws."""
    signature: Signature = graph.meta["weft_signature"]
    result = [*values, *(offsets(lengths[axis]) for axis in signature.axes)]
    if signature.draws:
        count = len(next(iter(lengths.values())))
        result += [torch.tensor(7), torch.tensor(3), torch.tensor(list(range(count)) if examples is None else examples)]
    return result


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def example(values: list[Tensor], program: Program, number: int, lengths: Lengths = LENGTHS) -> list[Tensor]:
    """One example's part of the inputs."""
    return [part(tensor, value.type, number, lengths) for tensor, value in zip(values, program.inputs, strict=True)]


def part(tensor: Tensor, type: ValueType, number: int, lengths: Lengths = LENGTHS) -> Tensor:
    if type.rows is not None:
        counts = lengths[type.rows.name]
        owner = OWNERS.get(type.rows.name)
        # Rows of one example: of a nested axis those of all its owners.
        first, last = (number, number + 1) if owner is None else (sum(lengths[owner][: number + i]) for i in (0, 1))
        return tensor[sum(counts[:first]) : sum(counts[:last])]
    return tensor[number : number + 1] if type.per_example else tensor


def by_name(tensor: Tensor, type: ValueType, order: tuple[str, ...]) -> Tensor:
    """The tensor with its static dimensions in the order of these axis names."""
    names = [axis.name for axis in type.static_axes]
    leading = tensor.dim() - len(names)
    return tensor.permute(*range(leading), *(names.index(name) + leading for name in order))


def elements(type: ValueType) -> int:
    return math.prod(axis.size or 0 for axis in type.static_axes)
