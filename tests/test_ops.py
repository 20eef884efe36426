"""Every op in the table, by its samples: no op is named here."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from tests import op_samples
from tests.op_samples import LENGTHS, SAMPLES, Sample
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.diagnostics import SpecError
from weft.dsl.errors import axes, operators
from weft.dsl.opdef import OpDef
from weft.dsl.source import Source
from weft.dsl.value_type import Flag, Real

EACH = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)
EACH_OP = pytest.mark.parametrize("op", OPS.ops.values(), ids=lambda op: op.name)


def is_lowered(op: OpDef) -> bool:
    """Ops that are typed only say so in their rule."""
    return not hasattr(op.infer, "__wrapped__")


def test_table_needs_no_torch(root) -> None:
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import weft.codegen.ops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@EACH_OP
def test_op_is_whole(op: OpDef) -> None:
    assert op.doc.strip().endswith("."), "the manual prints the text as it is"
    assert f"`{op.name}" in op.doc or op.name.endswith("_") or not op.name.isidentifier() or "`" in op.doc
    # Samples are models; what takes no arguments (`step`) is read in objectives, and what `flatten` makes beside its
    # result in test_shown_pictures.
    assert op.samples or not is_lowered(op) or not op.params or op.name == "segment_each"
    assert op.cost is not None or not is_lowered(op)
    assert len({param.name for param in op.params}) == len(op.params)


@EACH
def test_sample_uses_its_op(sample: Sample) -> None:
    program = op_samples.elaborate(sample.text)
    assert any(node.op is sample.op for node in program.nodes)


@EACH
def test_types_agree_with_tensors(sample: Sample) -> None:
    """Every value of the graph has the shape and the kind that its type rule gave."""
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    arguments = op_samples.arguments(graph, op_samples.inputs(program))
    made, output = op_samples.values_of(graph, arguments), program.outputs[0][1]
    lengths = op_samples.with_cuts(program, made, LENGTHS)
    assert tuple(graph(*arguments)[0].shape) == op_samples.shape(output.type, lengths)
    for node in program.nodes:
        for value in node.outputs:
            if value not in made:
                continue
            tensor = made[value]
            assert tuple(tensor.shape) == op_samples.shape(value.type, lengths), f"{value!r}"
            match value.type.kind:
                case Real():
                    assert tensor.dtype == torch.float64
                case Flag():
                    assert tensor.dtype == torch.bool
                case _:
                    assert tensor.dtype == torch.int64


@EACH
def test_examples_do_not_meet(sample: Sample) -> None:
    """A packed batch gives what each example gives alone, empty ones included."""
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    values = op_samples.inputs(program)
    arguments, type = op_samples.arguments(graph, values), program.outputs[0][1].type
    whole = graph(*arguments)[0]
    if type.is_weight_level:
        return
    known = op_samples.with_cuts(program, op_samples.values_of(graph, arguments), LENGTHS)
    for number in range(len(LENGTHS["seq"])):
        lengths = op_samples.alone(number)
        alone = graph(*op_samples.arguments(graph, op_samples.example(values, program, number), lengths, [number]))[0]
        torch.testing.assert_close(op_samples.part(whole, type, number, known), alone, rtol=1e-12, atol=1e-12)


@EACH
def test_no_examples(sample: Sample) -> None:
    """A batch of empty examples works and has gradients."""
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    lengths = op_samples.lengths_of((0, 0), (0, 0))
    arguments = op_samples.arguments(graph, op_samples.inputs(program, lengths), lengths)
    result = graph(*arguments)[0]
    lengths = op_samples.with_cuts(program, op_samples.values_of(graph, arguments), lengths)
    assert tuple(result.shape) == op_samples.shape(program.outputs[0][1].type, lengths)
    if result.is_floating_point():
        assert not result.isnan().any()
    if result.requires_grad:
        result.sum().backward()


@EACH
def test_order_of_axes_means_nothing(sample: Sample) -> None:
    """The same values declared with their axes in another order give the same result by name."""
    program = op_samples.elaborate(sample.text)
    turned = op_samples.elaborate(op_samples.reversed_axes(sample.text))
    values = op_samples.inputs(program)
    by_name = {value.name: (tensor, value.type) for tensor, value in zip(values, program.inputs, strict=True)}
    turned_values = [
        op_samples.by_name(*by_name[value.name], tuple(axis.name for axis in value.type.static_axes)).contiguous()
        for value in turned.inputs
    ]
    if program.weights and [w.type.axes for w in program.weights] != [w.type.axes for w in turned.weights]:
        names = [[axis.name for axis in weight.type.axes] for weight in program.weights]
        assert names == [[axis.name for axis in weight.type.axes] for weight in turned.weights]
    graph, other = op_samples.module(program), op_samples.module(turned)
    if graph.meta["weft_signature"].draws:
        return  # an entry's number in the order of axes is part of its counter
    type = program.outputs[0][1].type
    expected = graph(*op_samples.arguments(graph, values))[0]
    found = other(*op_samples.arguments(other, turned_values))[0]
    order = tuple(axis.name for axis in type.static_axes)
    torch.testing.assert_close(
        op_samples.by_name(found, turned.outputs[0][1].type, order), expected, rtol=1e-12, atol=1e-12
    )


@EACH
def test_gradients(sample: Sample) -> None:
    """Gradients in every real input and weight agree with differences, in float64."""
    program = op_samples.elaborate(sample.text)
    graph = op_samples.module(program)
    lengths = op_samples.lengths_of((2, 0, 3), (1, 2, 0))
    values = op_samples.inputs(program, lengths)
    given = [i for i, tensor in enumerate(values) if tensor.is_floating_point()]
    if not isinstance(program.outputs[0][1].type.kind, Real) or not given:
        return
    weights = list(graph.parameters())

    def run(*reals: torch.Tensor) -> torch.Tensor:
        filled = list(values)
        for i, tensor in zip(given, reals, strict=False):
            filled[i] = tensor
        return graph(*op_samples.arguments(graph, filled, lengths))[0]

    leaves = [values[i].requires_grad_() for i in given]
    result = run(*leaves)
    if not result.requires_grad:
        return
    if any("gradient" in node.op.name or "straight" in node.op.name for node in program.nodes):
        return  # their gradient is not the derivative, on purpose
    assert torch.autograd.gradcheck(lambda *reals: run(*reals[: len(given)]), (*leaves, *weights), atol=1e-6)


@EACH
def test_lower_precision_is_close(sample: Sample) -> None:
    """float32 agrees with float64 to its own accuracy."""
    program = op_samples.elaborate(sample.text)
    if not isinstance(program.outputs[0][1].type.kind, Real):
        return
    exact, single = op_samples.module(program), op_samples.module(program, torch.float32)
    values = op_samples.inputs(program)
    rounded = [tensor.float() if tensor.is_floating_point() else tensor for tensor in values]
    widened = [tensor.double() if tensor.is_floating_point() else tensor for tensor in rounded]
    with torch.no_grad():
        for parameter, other in zip(exact.parameters(), single.parameters(), strict=True):
            parameter.copy_(other)
    expected = exact(*op_samples.arguments(exact, widened))[0]
    found = single(*op_samples.arguments(single, rounded))[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


MISTAKES = sorted(
    (code, cls) for code, cls in SpecError.by_code.items() if cls.__module__ in (axes.__name__, operators.__name__)
)


@pytest.mark.parametrize(("code", "mistake"), MISTAKES, ids=[code for code, _ in MISTAKES])
def test_mistakes_are_what_their_pages_show(code: str, mistake: type[SpecError]) -> None:
    """The wrong spec of every page has this mistake and no other; the right one has none."""
    wrong, right = mistake.page().split("Wrong:\n")[1].split("\nRight:\n")
    problems = check(Source("wrong.weft", textwrap.dedent(wrong)), OPS).problems
    assert [error.code for error in problems.errors] == [code]
    assert not check(Source("right.weft", textwrap.dedent(right)), OPS).problems
    for error in problems.errors:
        diagnostic = error.describe()
        assert diagnostic.title[0] == "`" or diagnostic.title[0].islower()
        assert not diagnostic.title.endswith(".")
