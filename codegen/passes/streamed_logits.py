"""Logits that are only reduced along their row are not stored as a whole.

    logits = linear(x, w)
    lse = logsumexp(logits);  at = logits[target]     ->     lse, at = rows_of_logits(x, w, target)

A formula between the linear and what reduces it, such as a soft cap, is applied where a logit is read.
Everything else the spec makes of the results stays as it is. A model whose logits have another reader keeps them.
`maker` knows the function that a device has for what is asked, or that it has none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..cpu.logits import partition_and_logit
from ..facts import FACT, Fact, facts
from ..gpu.logits_form import LogitsForm
from ..logits.op import LogitsOp
from ..origin import inherit, mark, origin, user_span
from .fuse import needs_gradient
from .logit_readers import LogitReaders, changed_by, readers_of
from .matching import is_call, node_at, replace


@dataclass(frozen=True)
class Streamed:
    """A function of `operands` and what its results are, in their order."""

    function: Callable[..., Any]
    operands: tuple[fx.Node, ...]
    results: tuple[str, ...]


# Given the linear, who reads its logits, and the formula that makes these of its outputs.
Maker = Callable[[fx.Node, LogitReaders, "tuple[Any, ...] | None"], Streamed | None]


# Outputs of a linear, such as a byte's, that a few tiles hold: the rows are read once or twice.
FEW_OUTPUTS = 512


def stream_logits(module: fx.GraphModule, maker: Maker | None = None) -> None:
    """Without a maker, as CPUs do."""
    known = facts(module)
    for node in list(module.graph.nodes):
        if not is_call(node, functional.linear):
            continue
        logits, change = changed_by(node)
        found = readers_of(logits)
        made = (maker or _on_cpu)(node, found, change) if found is not None else None
        if found is not None and made is not None:
            _rewrite(module, logits, found, made, known)


def stream_logits_on_gpu(module: fx.GraphModule) -> None:
    stream_logits(module, _on_gpu(module))


def _on_cpu(logits: fx.Node, found: LogitReaders, change: tuple[Any, ...] | None) -> Streamed | None:
    if change is not None or set(found.nodes) != {"partition", "pick_0"} or logits.args[2:] not in ((), (None,)):
        return None
    operands = (node_at(logits, 0), node_at(logits, 1), *found.ids)
    return Streamed(partition_and_logit, operands, ("partition", "pick_0"))


def _on_gpu(module: fx.GraphModule) -> Maker:
    known = facts(module)
    ops: dict[object, LogitsOp] = {}
    return partial(_kernels, known=known, wanted=needs_gradient(module, known), ops=ops)


def _kernels(
    logits: fx.Node,
    found: LogitReaders,
    change: tuple[Any, ...] | None,
    known: dict[fx.Node, Fact],
    wanted: set[fx.Node],
    ops: dict[object, LogitsOp],
) -> Streamed | None:
    operands = {
        name: operand
        for name, operand in zip(("x", "weight", "bias"), logits.args, strict=False)
        if isinstance(operand, fx.Node)
    }
    x, weight = known.get(operands["x"]), known.get(operands["weight"])
    if x is None or weight is None or len(x.dims) != 1 or x.level is None:
        return None
    form = LogitsForm(
        partition="partition" in found.nodes or "mean" in found.nodes,
        mean="mean" in found.nodes,
        top="top" in found.nodes,
        place="place" in found.nodes,
        picks=len(found.ids),
        has_bias="bias" in operands,
        gradients=tuple(name for name, operand in operands.items() if operand in wanted)
        if set(found.nodes) != {"place"}
        else (),
        change=None if change is None else repr(change),
    )
    # Without gradients tiles multiply once, as blocks do, and a row's statistics are all that reaches memory.
    in_tiles = not form.gradients and weight.dims[0] <= FEW_OUTPUTS
    op = LogitsOp(_name(logits), form, weight.dims[1], weight.dims[0], x.dtype, in_tiles, user_span(logits))
    if op.key not in ops:
        same = sum(other.name.startswith(op.name) for other in ops.values())
        ops[op.key] = op.renamed(f"{op.name}_{same + 1}") if same else op
    return Streamed(ops[op.key], (*operands.values(), *found.ids), form.results)


def _name(logits: fx.Node) -> str:
    """After the block or binding that the linear stands in, as the spec calls it."""
    frames = [frame.name for frame in origin(logits).scope if frame.index is None and frame.name.isidentifier()]
    return f"{frames[-1]}_logits" if frames else "logits"


def _rewrite(
    module: fx.GraphModule, logits: fx.Node, found: LogitReaders, made: Streamed, known: dict[fx.Node, Fact]
) -> None:
    graph = module.graph
    # Ids may be computed after the logits.
    place = {node: position for position, node in enumerate(graph.nodes)}
    after = max((logits, *found.ids), key=place.__getitem__)
    if any(place[user] < place[after] for reader in found.all for user in reader.users):
        return  # a reader's result is used before the last id is known
    with graph.inserting_after(after):
        call = inherit(graph.call_function(made.function, made.operands), logits)
        mark(call, replace_fields(origin(call), value=None))  # what it gives is not the logits
    for name, nodes in found.nodes.items():
        for node in nodes:
            replace(node, _read(graph, call, made.results, name, node, known))


def _read(
    graph: fx.Graph, call: fx.Node, results: tuple[str, ...], name: str, node: fx.Node, known: dict[fx.Node, Fact]
) -> fx.Node:
    """The result of the call that stands for a reader, in the reader's type: real results are wide."""
    last, fact = call, known.get(node)
    if len(results) > 1:
        with graph.inserting_after(last):
            last = inherit(graph.call_function(operator.getitem, (call, results.index(name))), node)
    if fact is None:
        return last
    wide = torch.promote_types(fact.dtype, torch.float32) if fact.is_real else fact.dtype
    last.meta[FACT] = replace_fields(fact, dtype=wide)
    if wide != fact.dtype:
        with graph.inserting_after(last):
            last = inherit(graph.call_function(torch.Tensor.to, (last, fact.dtype)), node)
    return last
