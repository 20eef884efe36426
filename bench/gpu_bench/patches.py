"""The kernels of BLT at the sizes of 1B: what is done to segments of rows, hashes of bytes, and entropies.

Patches have random lengths of four bytes on average. Small specs hold an operation alone where the compiler makes its
kernel from the graph; their reference graph is what `eager` and `compile` run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from weft.codegen.functions import cuts
from weft.codegen.functions import segments as reference
from weft.codegen.gpu import run_attention, segments
from weft.codegen.gpu.cut_scans import scan
from weft.codegen.logits.cost import logits_work
from weft.codegen.logits.op import LogitsOp
from weft.codegen.lower import empty_weights, lower, signature
from weft.codegen.ops import OPS
from weft.codegen.pipeline import GPU_PASSES, optimise
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.kernel_texts import row_work
from weft.codegen.run_attention_text import RunAttention, run_attention_kernels, run_attention_work
from weft.codegen.scatter_text import scatter_kernels, scatter_work, table_gradients
from weft.codegen.segment_text import (
    call_kernels,
    call_work,
    pool_kernels,
    pool_work,
    segment_calls,
    spread_kernels,
    spread_work,
)
from weft.dsl.check import check
from weft.dsl.source import Source
from weft.runtime.graph_walk import GraphWalk, meanings_of
from weft.runtime.kernel_calls import run_wide
from weft.runtime.kernels import attach_kernels
from weft.runtime.sample_inputs import equal_examples

from . import peers
from .contest import Contest, Work, contests
from .context import Context
from .results import Row

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    """`rows` bytes of one example; `width` of the local models, `hidden` of the entropy model."""

    name: str
    rows: int
    width: int
    heads: int
    slots: int
    buckets: int
    hidden: int
    vocab: int = 260

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def spec(self) -> str:
        """What all small specs begin with."""
        return (
            f"size width = {self.width}\nsize heads = {self.heads}\nsize head_dim = {self.head_dim}\n"
            f"size slots = {self.slots}\nsize buckets = {self.buckets}\nsize hidden = {self.hidden}\n"
            f"size vocab = {self.vocab}\naxis seq\naxis patch cut from seq\n"
        )


BLT_1B = Shape("blt 1b", 16384, 1024, 16, 2, 500002, 768)
TINY = Shape("blt tiny", 24, 32, 2, 2, 101, 24, 40)

HASHES = """
model m(bytes: id[seq] in vocab) -> real[seq, width]:
    x = embed(bytes, vocab -> width) as embed
    code = int(bytes)
    for back in 1 .. 8:
        code = previous(int(bytes), back) + 1000000007 * code
        for gram in (3, 4, 5, 6, 7, 8):
            if gram == back + 1:
                x = x + embed(wrap(code, buckets), buckets -> width)
    return x
"""
# Of it the part is run that says where patches are.
SCAN = """
model m(surprise: real[seq]) -> real[seq]:
    segment seq into patch ends where surprise > 0.6745
    return pool(surprise, seq -> patch, by=max) |> spread(patch -> seq, closed)
"""
# A normal number is above 0.6745 in a quarter of all cases.
SLOTS = """
model m(
    q: real[seq, heads, head_dim], x: real[seq, slots, heads, head_dim], f: real[seq]
) -> real[seq, heads, head_dim]:
    segment seq into patch ends where f > 0.6745
    k = pool(x, seq -> patch, by=mean) |> spread(patch -> seq, closed)
    v = pool(x, seq -> patch, by=max) |> spread(patch -> seq, closed)
    return attend(q, k, v, over=head_dim, along=slots)
"""
# Frozen, as the patcher is: then no logits are stored.
ENTROPY = """
model m(bytes: id[seq] in vocab) -> real[seq]:
    x = embed(bytes, vocab -> hidden) as embed
    return entropy(linear(x, hidden -> vocab) as head, over=vocab)
freeze **
"""


def rows(context: Context, ceilings: dict[str, float]) -> Iterator[Row]:
    """A row per kernel."""
    yield from contests(context, ceilings, "blt.weft", TINY if context.tiny else BLT_1B, _CONTESTS)


def compared(context: Context, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """A function of torch alone, as it stands and compiled."""
    found: dict[str, Callable[..., Any]] = {"eager": function} if "eager" in context.peers else {}
    return found | ({"compile": context.compiled(function)} if "compile" in context.peers else {})


# -- segments ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Patches:
    """`surprise [N]`, `number [N]` of each row's patch, `bounds [P + 1]`, `closed [N]`: the last that has ended."""

    surprise: Tensor
    number: Tensor
    bounds: Tensor
    closed: Tensor

    @property
    def count(self) -> int:
        return len(self.bounds) - 1


def patches(context: Context, shape: Shape) -> Patches:
    generator = torch.Generator().manual_seed(0)
    surprise = torch.randn(shape.rows, generator=generator).to(context.device)
    return Patches(surprise, *scanned_by_torch(surprise))


def scanned_by_torch(surprise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference graph has it for one example: the patch of each row, where patches begin, the last one that has
    ended."""
    example = torch.zeros(len(surprise), dtype=torch.int64, device=surprise.device)
    offsets = torch.tensor([0, len(surprise)], device=surprise.device, dtype=torch.int32)
    ends = surprise > 0.6745
    first = cuts.first_rows(ends, None, example)
    number = cuts.own(first, None)
    of_examples = cuts.cut_offsets(first, offsets)
    closed = cuts.closed(ends, first, None, example, of_examples)
    return number, cuts.bounds(cuts.begins(first), number), closed


def _scan(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Bytes are those of one pass with 32-bit numbers. Nothing is rounded, so there is no error to be told."""
    found, ours = patches(context, shape), scanned(context, shape)
    work = Work(4.0 * shape.rows + 8.0 * shape.rows + 4.0 * found.count, 0.0)
    return Contest(
        name, labels, (found.surprise,), frozenset(), ours, compared(context, scanned_by_torch), work, work
    )  # fmt: skip


def scanned(context: Context, shape: Shape) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Of the `surprise [N]` of one example what `scanned_by_torch` finds, as a graph on a GPU has it, in int32."""
    walk = small(context, shape, SCAN, torch.float32).walk
    (made,) = walk.traced.graph.find_nodes(op="call_function", target=scan)
    graph, copied = fx.Graph(), {}
    for node in walk.traced.graph.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if node is made:
            break
    graph.output(copied[made])
    part = fx.GraphModule(walk.traced, graph)
    offsets = torch.tensor([0, shape.rows], device=context.device, dtype=torch.int32)

    def run_part(surprise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = part(surprise, offsets)
        return found.own, found.bounds, found.closed

    return run_part


def _pool(by: str, context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    found = patches(context, shape)
    number, bounds = found.number, found.bounds
    ours, theirs = getattr(segments, f"{by}_rows"), getattr(reference, f"{by}_rows")
    x = torch.randn(shape.rows, shape.width, device=context.device, dtype=DTYPE)
    passes = [
        pool_work(text.name, by, shape.width, DTYPE, shape.rows, found.count).bytes
        for text in pool_kernels(by, shape.width, DTYPE)
    ]
    return Contest(
        name, labels, (x,), frozenset((0,)), lambda x: ours(x, number, bounds),
        compared(context, lambda x: theirs(x, number, bounds)), Work(passes[0], 0.0), Work(sum(passes), 0.0),
        lambda x: theirs(x, number, bounds),
    )  # fmt: skip


def _spread(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    found = patches(context, shape)
    number = found.closed.to(torch.int32)
    p = torch.randn(found.count, shape.width, device=context.device, dtype=DTYPE)
    passes = [
        spread_work(text.name, shape.width, DTYPE, shape.rows, found.count).bytes
        for text in spread_kernels(shape.width, DTYPE)
    ]
    return Contest(
        name, labels, (p,), frozenset((0,)), lambda p: segments.spread(p, number),
        compared(context, lambda p: cuts.spread(p, number)), Work(passes[0], 0.0), Work(sum(passes), 0.0),
        lambda p: cuts.spread(p, number),
    )  # fmt: skip


def _own_rows(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """Each patch's slots attend to its own bytes."""
    found = patches(context, shape)
    scale, (rows_, heads, width) = shape.head_dim**-0.5, (shape.rows, shape.heads, shape.head_dim)
    made = RunAttention(shape.slots, heads, width, width, scale, DTYPE)
    passes = [run_attention_work(made, text.name, rows_, found.count) for text in run_attention_kernels(made)]
    q = torch.randn(found.count, shape.slots, heads, width, device=context.device, dtype=DTYPE)
    k, v = (torch.randn(rows_, heads, width, device=context.device, dtype=DTYPE) for _ in range(2))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run_attention.by_numbers(q, k, v, found.number, scale)

    others = peers.of_own_rows(context, found.number, scale)
    return Contest(
        name, labels, (q, k, v), frozenset((0, 1, 2)),
        lambda q, k, v: run_attention.attend_runs(q, k, v, found.bounds, scale), compared(context, plain) | others,
        Work(passes[0].bytes, 0.0), Work(sum(one.bytes for one in passes), 0.0), plain,
    )  # fmt: skip


# -- small specs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A small spec's graph after the passes, and a walk through the same with its kernels."""

    planned: fx.GraphModule
    walk: GraphWalk


def small(context: Context, shape: Shape, text: str, dtype: torch.dtype = DTYPE) -> Small:
    program = check(Source("blt.weft", shape.spec + text), OPS).value().models["m"]
    weights = empty_weights(program.weights, dtype, "meta")
    reference_graph = lower(program, weights, dtype)
    launched = optimise(reference_graph, GPU_PASSES)
    meanings = meanings_of(launched)
    attach_kernels(launched)
    lengths = equal_examples(signature(launched), shape.rows, shape.rows)
    walk = GraphWalk(launched, lengths, context.device, dtype, meanings)
    return Small(optimise(reference_graph, GPU_PASSES), walk)


def _of_call(text: str, find: Callable[[FusedOp], bool], context: Context, shape: Shape, name: str, labels: Row):
    """The fused call of a small spec that `find` knows, on the operands that the graph gives it."""
    made = small(context, shape, text)
    planned = {node.name: node for node in made.planned.graph.nodes if isinstance(node.target, FusedOp)}
    call = next(one for one in made.walk.calls() if one.node.name in planned and find(planned[one.node.name].target))
    op: Any = planned[call.node.name].target
    derivative = op.derivative
    assert derivative is not None
    trained = {place for place, _ in (*derivative.owners, *derivative.passed)} | {g.place for g in derivative.gathered}
    forward, backward = (row_work(plan, shape.rows).bytes for plan in (op.forward, op.backward))
    # Gradients of tables: rows are sorted by where they go, and added up.
    for gradient, node in table_gradients(made.planned):
        if node.target is op:
            texts = scatter_kernels(gradient.width, gradient.dtype)
            backward += sum(scatter_work(gradient, text.name, shape.rows).bytes for text in texts)
    for segment, node in segment_calls(made.planned):
        if node.target is op:
            backward += sum(call_work(segment, text.name, shape.rows).bytes for text in call_kernels(segment))
    ours: Any = call.node.target
    # In float64 the tables of 1B would take the memory of several devices.
    is_small = sum(x.numel() for x in call.args) < 1 << 28
    truth = (lambda *given: run_wide(op.meaning, given, {})) if is_small else None
    return Contest(
        name, labels, call.args, frozenset(trained), ours, compared(context, op.meaning), Work(forward, 0.0),
        Work(forward + backward, 0.0), truth,
    )  # fmt: skip


def _entropy(context: Context, shape: Shape, name: str, labels: Row) -> Contest:
    """The head and the entropy of what it predicts: without gradients, as the patcher computes it."""
    made = small(context, shape, ENTROPY)
    (planned,) = (node for node in made.planned.graph.nodes if isinstance(node.target, LogitsOp))
    call = next(one for one in made.walk.calls() if one.node.name == planned.name)
    op: Any = planned.target
    if not op.in_tiles or op.form.results != ("partition", "mean"):
        raise ValueError(f"a form that no peer computes: {op.form}")
    launched: Any = call.node.target
    x, weight = call.args

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        partition, mean = launched(x, weight)
        return partition - mean

    work = logits_work(op, shape.rows)
    moved = sum(one.bytes * count for role, (one, count) in work.items() if role in ("statistics", "merge"))
    whole = Work(moved, 2.0 * x.numel() * shape.vocab)
    return Contest(
        name, labels, (x, weight), frozenset(), ours, compared(context, _plain_entropy), whole, whole,
        _entropy_in_float64,
    )  # fmt: skip


def _plain_entropy(x: Tensor, weight: Tensor) -> Tensor:
    """As people write it: the logits of all rows, in float32 for the logarithm."""
    known = torch.log_softmax(torch.nn.functional.linear(x, weight).float(), -1)
    return -(known.exp() * known).sum(-1)


def _entropy_in_float64(x: Tensor, weight: Tensor) -> Tensor:
    known = torch.log_softmax(x @ weight.t(), -1)
    return -(known.exp() * known).sum(-1)


def _reads_tables(op: FusedOp) -> bool:
    return sum(source.is_table for source in op.program.sources) > 1


def _reads_patches(op: FusedOp) -> bool:
    return any(getattr(value, "in_runs", False) for value in op.program.values)


_CONTESTS: dict[str, Callable[[Context, Shape, str, Row], Contest]] = {
    "boundary scan": _scan,
    "max of patches": partial(_pool, "max"),
    "mean of patches": partial(_pool, "mean"),
    "sum of patches": partial(_pool, "sum"),
    "patches at bytes": _spread,
    "n-gram hashes and tables": partial(_of_call, HASHES, _reads_tables),
    "entropy of a head": _entropy,
    "slots attend to bytes": _own_rows,
    "bytes attend to slots": partial(_of_call, SLOTS, _reads_patches),
}
