"""Equal groups of nodes are looked at once: what a model of many layers costs to fuse, and what keeps groups apart."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from weft import spec_files
from weft.codegen.facts import Fact, facts
from weft.codegen.lower import empty_weights, lower
from weft.codegen.passes import fuse
from weft.codegen.passes.group_shapes import Shape, Shapes
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.build import region_of
from weft.codegen.rowwise.fused import FusedOp


@pytest.mark.parametrize("name", ["olmo2", "llama"])
def test_more_layers_cost_no_more_programs(root, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    kernels: list[set[FusedOp]] = []

    def counted(*given):
        built[-1] += 1
        return build(*given)

    build = fuse.build
    monkeypatch.setattr(fuse, "build", counted)
    for layers in (3, 9):
        built.append(0)
        source = spec_files.read(str(root / "specs" / f"{name}.weft"))
        program = spec_files.checked_source(source, "tiny", {"layers": str(layers)}).model
        graph = optimise(
            lower(program, empty_weights(program.weights, torch.bfloat16, "meta"), torch.bfloat16), GPU_PASSES
        )
        kernels.append({node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)})
    assert built[0] == built[1] > 0
    assert [op.name for op in sorted(kernels[0], key=lambda op: op.name)] == sorted(op.name for op in kernels[1])


F32 = Fact("seq", (4,), torch.float32)
STEPS = ((operator.mul, 2.0), (operator.add, "x"))


def shapes_of(*groups: dict) -> list[Shape]:
    """Of chains of calls, each on an input of its own: `steps`, `fact` of all its values, whether they are wanted."""
    graph = fx.Graph()
    known: dict[fx.Node, Fact] = {}
    wanted: set[fx.Node] = set()
    chains, ends = [], []
    for group in groups:
        x = node = graph.placeholder("x")
        chain = []
        for function, one in group.get("steps", STEPS):
            node = graph.call_function(function, (node, x if isinstance(one, str) else one))
            chain.append(node)
        known |= {one: group.get("fact", F32) for one in (x, *chain)}
        wanted |= {x, *chain} if group.get("wanted", False) else set()
        chains.append(chain)
        ends.append(node)
    graph.output(tuple(ends))
    shapes = Shapes(known, wanted)
    return [shapes.of_region(region_of(chain)) for chain in chains]


def test_equal_groups_have_equal_shapes() -> None:
    one, two = shapes_of({}, {})
    assert one == two


@pytest.mark.parametrize(
    "other",
    [
        {"steps": ((operator.mul, 2.5), (operator.add, "x"))},
        {"steps": ((operator.mul, 2.0), (operator.sub, "x"))},
        {"steps": ((operator.mul, 2.0), (operator.add, 2.0))},
        {"steps": ((operator.mul, "x"), (operator.add, 2.0))},
        {"fact": Fact("seq", (5,), torch.float32)},
        {"fact": Fact("seq", (4,), torch.bfloat16)},
        {"fact": Fact(None, (4,), torch.float32)},
        {"wanted": True},
    ],
    ids=str,
)
def test_other_groups_have_other_shapes(other: dict) -> None:
    one, two = shapes_of({}, other)
    assert one != two


def test_numbers_of_other_kinds_are_other_numbers() -> None:
    found = shapes_of(*({"steps": ((operator.mul, one),)} for one in (1, 1.0, True, 0.0, -0.0)))
    assert len(set(found)) == 5


def test_two_layers_of_a_model_have_one_shape(root) -> None:
    """Nodes at the same place of two turns, by the spec lines they come from."""
    source = spec_files.read(str(root / "specs" / "olmo2.weft"))
    program = spec_files.checked_source(source, "tiny", {"layers": "3"}).model
    graph = lower(program, empty_weights(program.weights, torch.bfloat16, "meta"), torch.bfloat16)
    known = facts(graph)
    shapes = Shapes(known, fuse.needs_gradient(graph, known))
    gates = [node for node in graph.graph.nodes if node.target is torch.sigmoid]
    assert len(gates) == 3
    found = {shapes.of_region(region_of({node, *node.users})) for node in gates}
    assert len(found) == 1
