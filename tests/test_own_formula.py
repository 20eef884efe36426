"""A formula that no library has a kernel for: as many kernels as are announced, one region, gradients that check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from tests.counted_memory import counted
from tests.fused_models import assert_equal, gradients
from weft.codegen.gpu.fused import Fused
from weft.codegen.ops import OPS
from weft.codegen.origin import user_span
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.dsl.check import Checked, check
from weft.dsl.source import Source
from weft.runtime.kernels import attach_kernels
from weft.runtime.model import Model
from weft.views.planned_kernels import of_graph

# A norm by the third absolute moment, whose strength a gate of each head decides, inside the output of attention; then
# what two tables say of a token and the one before it, each under a hash of its own.
SPEC = """
size dim = 12
size heads = 3
size vocab = 11
size many = 7
size few = 5
axis head_dim = dim / heads
axis seq

block cubic(x: real[seq, heads, head_dim]) -> real[seq, heads, head_dim]:
    param gate: real[heads] = normal(1.0)
    moment = mean(abs(x)^3, over=head_dim)
    return x * (moment + 0.001)^(-1 / 3) * sigmoid(gate * moment)

block remembered(x: real[seq, dim], tokens: id[seq] in vocab) -> real[seq, dim]:
    param one: real[many, dim] = normal(1.0)
    param two: real[few, dim] = normal(1.0)
    number = int(tokens)
    before = int(previous(tokens))
    first = embed(wrap(number * 31 + before * 17, many), many -> dim, weight=one)
    second = embed(wrap(number * 13 + before * 7 + 3, few), few -> dim, weight=two)
    return x + first * second

model m(tokens: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(tokens, vocab -> dim) as embed
    q = linear(x, dim -> (heads, head_dim))
    k = linear(x, dim -> (heads, head_dim))
    v = linear(x, dim -> (heads, head_dim))
    mixed = attend(q, k, v, over=head_dim, along=seq, mask=causal)
    made = remembered(flatten(cubic(mixed), (heads, head_dim) -> dim), tokens)
    return linear(made, dim -> vocab) as head

init ** = normal(0.7)
"""
OFFSETS = torch.tensor([0, 6, 6, 7, 60], dtype=torch.int32)
TOKENS = torch.randint(11, (60,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checked() -> Checked:
    return check(Source("own.weft", SPEC), OPS).value()


def graph_of(checked: Checked, passes, dtype: torch.dtype = torch.float64) -> fx.GraphModule:
    model = Model(checked, dtype, seed=3, passes=())
    return optimise(model.reference(checked.model), passes)


def lines_of(op: FusedOp) -> set[str]:
    """What the spec says where a fused call's steps stand."""
    spans = [user_span(node) for node in op.meaning.graph.nodes if node.op == "call_function"]
    return {span.source.text.splitlines()[span.line - 1].strip() for span in spans if span is not None}


def test_it_is_one_region(checked: Checked) -> None:
    """From the norm to the sum of what the tables say, hashes included."""
    graph = graph_of(checked, GPU_PASSES)
    (op,) = [node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)]
    assert {
        "moment = mean(abs(x)^3, over=head_dim)",
        "return x * (moment + 0.001)^(-1 / 3) * sigmoid(gate * moment)",
        "first = embed(wrap(number * 31 + before * 17, many), many -> dim, weight=one)",
        "second = embed(wrap(number * 13 + before * 7 + 3, few), few -> dim, weight=two)",
        "return x + first * second",
    } <= lines_of(op)
    assert op.backward is not None
    # Nothing of it is left to torch.
    left = {user_span(node) for node in graph.graph.nodes if node.op == "call_function" and node.target is not op}
    texts = {span.source.text.splitlines()[span.line - 1].strip() for span in left if span is not None}
    assert not [text for text in texts if "moment" in text or "embed(wrap" in text]


def test_as_many_kernels_run_as_are_announced(checked: Checked) -> None:
    graph = graph_of(checked, GPU_PASSES, torch.float32)
    announced: Counter[str] = Counter()
    for one in of_graph(graph, "cuda:90", len(TOKENS)):
        announced[one.kernel.name] += one.count
    attach_kernels(graph)
    with counted() as launches:
        (logits,) = graph(TOKENS, OFFSETS)
        logits.square().sum().backward()
    assert Counter(launch.kernel for launch in launches) == announced
    rowwise = [name for name in announced if "cubic" in name]
    assert sorted(announced[name] for name in rowwise) == [1, 1]
    # Tables that are read alone and those of the region: three reads of rows of one width, each with its gradient.
    assert (announced["sum_runs"], announced["join_parts"]) == (3, 3)


def test_against_the_unfused_graph(checked: Checked) -> None:
    want, want_gradients = gradients(graph_of(checked, ()), [TOKENS, OFFSETS])
    graph = graph_of(checked, GPU_PASSES)
    attach_kernels(graph)
    got, got_gradients = gradients(graph, [TOKENS, OFFSETS])
    assert_equal(got[0], want[0], "logits", 1e-10)
    assert len(want_gradients) == 8
    for name in want_gradients:
        assert_equal(got_gradients[name], want_gradients[name], f"gradient of {name}", 1e-9)


def call_of(checked: Checked) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The fused call, and operands as the model gives them."""
    graph = graph_of(checked, GPU_PASSES)
    attach_kernels(graph)
    found: list[Tensor] = []

    class Operands(fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if isinstance(target, Fused):
                found.extend(x for x in args if isinstance(x, Tensor))
            return super().call_function(target, args, kwargs)

    tokens, offsets = TOKENS[:7], torch.tensor([0, 5, 5, 6, 7], dtype=torch.int32)
    Operands(graph).run(tokens, offsets)
    (call,) = [node.target for node in graph.graph.nodes if isinstance(node.target, Fused)]
    return call, [x.detach().clone().requires_grad_(x.is_floating_point()) for x in found]


def test_gradcheck(checked: Checked) -> None:
    """The generated backward against differences, in the interpreter: attention's output, the gate, both tables."""
    call, operands = call_of(checked)
    trained = [x for x in operands if x.requires_grad]
    assert sorted(tuple(x.shape) for x in trained) == [(3,), (5, 12), (7, 3, 4), (7, 12)]
    with counted() as launches:
        assert torch.autograd.gradcheck(call, operands)
    assert len({launch.kernel for launch in launches} - {"sum_runs", "join_parts"}) == 2


def test_opcheck(checked: Checked) -> None:
    call, operands = call_of(checked)
    assert isinstance(call, Fused)
    torch.library.opcheck(call.operator, tuple(operands))


GATED = """
size dim = 12
size heads = 3
axis head_dim = dim / heads
axis seq

model m(x: real[seq, dim]) -> real[seq, heads, head_dim]:
    q = linear(x, dim -> (heads, head_dim))
    mixed = attend(q, q, q, over=head_dim, along=seq, mask=causal)
    return tanh(mixed) * sigmoid(q) - logsumexp(q, over=head_dim)
"""


def test_what_attention_reads_is_read_again_behind_it() -> None:
    """Of the query attention and the formula behind it read: the formula is one region, not one on each side."""
    graph = graph_of(check(Source("gated.weft", GATED), OPS).value(), GPU_PASSES)
    (op,) = [node.target for node in graph.graph.nodes if isinstance(node.target, FusedOp)]
    assert "return tanh(mixed) * sigmoid(q) - logsumexp(q, over=head_dim)" in lines_of(op)
