"""Every generated kernel of OLMo 2 at real sizes, and tiny, those that only BLT has at the sizes of its 1B, those of
Memory Layers, those that route rows in LMFusion 8B: their times, what they attain, and the best of their peers.

A graph is walked on random operands, as in tuning; where a call is met for the first time it is measured on the
operands that the graph gives it. Gradients are asked for every real operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from weft.codegen.functions.attention import attend_packed
from weft.codegen.gpu import tables
from weft.codegen.gpu.attention import attend
from weft.codegen.logits.op import LogitsOp
from weft.codegen.lower import empty_weights, lower, signature
from weft.codegen.passes.measured_choices import plain_attentions
from weft.codegen.pipeline import GPU_PASSES, optimise, with_choices
from weft.codegen.rowwise.derivative import Derivative
from weft.codegen.rowwise.fused import FusedOp
from weft.codegen.rowwise.kernel_texts import row_work
from weft.codegen.score.cost import Rows, kernel_cost
from weft.codegen.score.graph_keys import attention_keys
from weft.codegen.score.kernels import KERNELS, plan_of
from weft.runtime.graph_walk import Call, GraphWalk, meanings_of
from weft.runtime.kernel_calls import run_wide
from weft.runtime.kernels import attach_kernels
from weft.runtime.measured import choices_for, device_name, table_for
from weft.runtime.model import check_file
from weft.runtime.sample_inputs import equal_examples

from . import memories, patches, peers, routed
from .contest import MOST_COMPARED, Contest, Work, run
from .context import Context, DeviceLost
from .results import Row
from .timing import ceilings

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = ROOT / "specs" / "olmo2.weft"


@dataclass(frozen=True)
class Size:
    """A preset with two layers, which have all kernels of any number; `rows` of a step in examples of `length`, or in
    `documents` of several lengths, for attention alone: nothing else knows where examples end."""

    preset: str
    rows: int
    length: int
    settings: tuple[tuple[str, int], ...] = (("layers", 2),)
    documents: tuple[int, ...] = ()

    def called(self, kernel: str) -> str:
        return f"{kernel} of packed documents" if self.documents else kernel


PACKED = (2048, 1024, 512, 1536, 768, 1280, 256, 768) * 2
SIZES = (Size("7b", 16384, 4096), Size("7b", 16384, 4096, documents=PACKED), Size("tiny", 16384, 1024))
FEW = (("layers", 1), ("dim", 32), ("heads", 2), ("kv_heads", 1), ("ffn", 48), ("vocab", 40))
TINY = (Size("tiny", 24, 13, FEW), Size("tiny", 24, 13, FEW, documents=(9, 1, 14)))


def rows(context: Context) -> Iterator[Row]:
    """The ceilings of the device, then a row per kernel."""
    found, why = context.attempt(lambda: ceilings(context))
    if found is None:
        yield {"name": "ceilings", "failure": why}
        return
    yield {"name": "ceilings", **found}
    for size in TINY if context.tiny else SIZES:
        try:
            yield from _of_size(context, size, found)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001  the next size may do
            failure = f"{type(error).__name__}: {error}"[:300]
            yield {"name": f"{size.preset}: {size.called('the walk')}", "failure": failure}
            context.free()
    yield from patches.rows(context, found)
    yield from memories.rows(context, found)
    yield from routed.rows(context, found)


def _of_size(context: Context, size: Size, found: dict[str, float]) -> Iterator[Row]:
    checked = check_file(SPEC, size.preset, dict(size.settings))
    (program,) = checked.objectives.values()
    dtype = torch.bfloat16
    table = table_for(None, SPEC)
    passes = GPU_PASSES
    if table is not None:
        passes = with_choices(passes, choices_for(table, device_name(context.device)))
    module = optimise(lower(program, empty_weights(program.weights, dtype, "meta"), dtype), passes)
    ops: dict[fx.Node, Any] = {node: node.target for node in module.graph.nodes}
    keys = {node: key for key, nodes in attention_keys(module).items() for node in nodes}
    plain = plain_attentions(module)
    meanings = meanings_of(module)
    attach_kernels(module)
    lengths = equal_examples(signature(module), size.rows, size.length)
    if size.documents:
        lengths = dict.fromkeys(lengths, size.documents)
    walk = GraphWalk(module, lengths, context.device, dtype, meanings)
    seen: set[object] = set()
    for call in walk.calls():
        op = ops[call.node]
        key = op.key if isinstance(op, FusedOp | LogitsOp) else (op, keys.get(call.node))
        is_kernel = isinstance(op, FusedOp | LogitsOp) or op in (attend, tables.embedding, tables.read_rows)
        if not is_kernel or key in seen or (size.documents and op is not attend):
            continue
        seen.add(key)
        name = f"{size.preset}: {size.called(_name(op))}"
        if name in context.done:
            continue
        labels = {
            "size": size.preset,
            "kernel": size.called(_name(op)),
            "spec": Path(call.place).name,
            "rows": size.rows,
            "dtype": "bfloat16",
        }
        if context.is_over:
            yield {"name": name, **labels, "failure": "the time budget was used up"}
            continue
        context.begin(name)
        made, why = context.attempt(partial(_contest, context, name, labels, op, call, keys, plain))
        row, failed = (None, why) if made is None else context.attempt(partial(run, context, made, found))
        yield row if row is not None else {"name": name, **labels, "failure": failed}
        del made
        context.free()


def _name(op: Any) -> str:
    if isinstance(op, LogitsOp):
        return "loss"
    return "attention" if op is attend else "table" if op in (tables.embedding, tables.read_rows) else str(op.name)


def _contest(
    context: Context, name: str, labels: Row, op: Any, call: Call, keys: dict[fx.Node, Any], plain: dict[fx.Node, Any]
) -> Contest:
    if isinstance(op, FusedOp):
        return _of_rows(context, name, labels, op, call)
    if isinstance(op, LogitsOp):
        return _of_loss(context, name, labels, op, call)
    if op is attend:
        return _of_attention(context, name, labels, call, keys[call.node], plain.get(call.node))
    return _of_table(context, name, labels, op, call)


def _reals(operands: Sequence[Any]) -> frozenset[int]:
    return frozenset(i for i, x in enumerate(operands) if isinstance(x, Tensor) and x.is_floating_point())


# -- families ------------------------------------------------------------------------------------------


def _of_rows(context: Context, name: str, labels: Row, op: FusedOp, call: Call) -> Contest:
    operands: Sequence[Tensor] = call.args
    trained = frozenset() if op.derivative is None else _trained(op.derivative)
    compared: dict[str, Any] = {}
    if "eager" in context.peers:
        compared["eager"] = op.meaning
    if "compile" in context.peers:
        compared["compile"] = context.compiled(op.meaning)
    compared |= peers.of_rows(context, op.name, operands)
    count = int(labels["rows"])
    forward = row_work(op.forward, count)
    both = forward.bytes + (0.0 if op.backward is None else row_work(op.backward, count).bytes)
    truth = None
    if sum(x.numel() for x in operands) <= MOST_COMPARED:
        truth = lambda *given: run_wide(op.meaning, given, {})  # noqa: E731
    ours: Any = call.node.target
    return Contest(
        name, labels, operands, trained, ours, compared, Work(forward.bytes, 0.0), Work(both, 0.0), truth
    )  # fmt: skip


def _trained(derivative: Derivative) -> frozenset[int]:
    """The operands that have a gradient: one that is a result, the sum of one's rows, or one that is passed on."""
    places = {place for place, _ in (*derivative.owners, *derivative.passed)}
    return frozenset(places | {gathered.place for gathered in derivative.gathered})


def _of_table(context: Context, name: str, labels: Row, op: Any, call: Call) -> Contest:
    table, index = call.args if op is tables.read_rows else (call.args[1], call.args[0])
    entries, width = index.numel(), table[0].numel() * table.element_size()
    forward = 2.0 * entries * width + index.numel() * index.element_size()
    # Backward reads the gradient of every row that was read, and writes that of the whole table.
    both = forward + entries * width + table.shape[0] * width
    return Contest(
        name, labels, (table, index), frozenset((0,)), lambda t, ids: tables.embedding(ids, t),
        peers.of_table(context), Work(forward, 0.0), Work(both, 0.0), lambda t, ids: t[ids],
    )  # fmt: skip


def _of_attention(context: Context, name: str, labels: Row, call: Call, key: Any, known: Any) -> Contest:
    q, k, v, q_offsets, k_offsets, scale = call.args
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    mask = {other: value for other, value in call.kwargs.items() if other != "intervals"}

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, q_offsets, k_offsets, scale, **call.kwargs)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_packed(q, k, v, q_offsets, k_offsets, scale, **mask)

    compared: dict[str, Any] = {"eager": reference} if "eager" in context.peers else {}
    if known is not None:
        compared |= peers.of_attention(context, q_offsets, scale, known[1])
    low, high = mask.get("low"), mask.get("high")
    lengths = [int(length) for length in q_offsets.diff().tolist()]
    pairs = sum(_seen(length, low, high) for length in lengths)
    plan = plan_of(key)
    costs = {kernel: kernel_cost(plan, kernel, Rows(q.shape[0], k.shape[0], pairs)) for kernel in KERNELS}
    # As others count: backward is two and a half times forward, whatever it computes again.
    flops = float(costs["attention_forward"].flops)
    both = Work(float(sum(cost.bytes for cost in costs.values())), 3.5 * flops)
    is_small = pairs * q.shape[1] <= MOST_COMPARED >> 3
    return Contest(
        name, labels, (q, k, v), frozenset((0, 1, 2)), ours, compared,
        Work(float(costs["attention_forward"].bytes), flops), both, reference if is_small else None,
    )  # fmt: skip


def _seen(length: int, low: int | None, high: int | None) -> int:
    """Pairs of rows of an example within the band."""
    first, last = -length if low is None else low, length if high is None else high
    return sum(max(0, min(length - 1, row + last) - max(0, row + first) + 1) for row in range(length))


def _of_loss(context: Context, name: str, labels: Row, op: LogitsOp, call: Call) -> Contest:
    """The sum of cross-entropy and z-loss, made of the statistics that the call gives."""
    x, weight, *rest = call.args
    launched: Any = call.node.target
    ids = rest[-1] if op.form.picks else torch.randint(op.vocabulary, (x.shape[0],), device=x.device)
    if op.form.has_bias or op.form.picks != 1 or not op.form.partition:
        raise ValueError(f"a form that no peer computes: {op.form}")

    def ours(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        found = launched(x, weight, ids)
        results = dict(zip(op.form.results, found if isinstance(found, tuple | list) else (found,), strict=True))
        picked = next(value for result, value in results.items() if result.startswith("pick"))
        partition = results["partition"]
        return (partition - picked).sum() + peers.Z_LOSS * partition.square().sum()

    size = weight.element_size()
    operands = (x.numel() + weight.numel()) * size
    product = 2.0 * x.shape[0] * x.shape[1] * weight.shape[0]
    is_small = x.shape[0] * weight.shape[0] <= MOST_COMPARED
    return Contest(
        name, labels, (x, weight, ids), frozenset((0, 1)), ours, peers.of_loss(context), Work(operands, product),
        Work(2.0 * operands, 3.0 * product), _loss_in_float64 if is_small else None,
    )  # fmt: skip


def _loss_in_float64(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    logits = x @ weight.t()
    partition = torch.logsumexp(logits, -1)
    return (partition - logits.gather(1, ids[:, None])[:, 0]).sum() + peers.Z_LOSS * partition.square().sum()
