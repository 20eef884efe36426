"""Puts what was measured on a device in the place of defaults; the last pass, where it is run at all.

    rms_norm (4 rows a program)    ->  rms_norm (1 row a program, 8 warps)
    linear(x, w)                   ->  linear_tiles.linear(x, w, forward=(128, 256, 64, 8, 3))
    grouped(x, y, v, w)            ->  grouped(x, y, v, w), whose gradients the matrix library makes
    attend(q, k, v, ..)            ->  attend_by_torch(q, k, v, ..)

Tiles of attention and of gradients of tables are noted with the graph (`choices_of`): who makes those kernels looks
there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import fx
from torch.nn import functional

from ..choices import TORCH, Choices
from ..configuration import Configuration
from ..facts import FACT, Fact, facts
from ..gpu import linear_tiles as launcher
from ..gpu.attention import attend
from ..gpu.attention_kernels import AttentionKey
from ..gpu.attention_library import attend_by_torch, is_known
from ..grouped.op import GroupedOp
from ..logits.op import LogitsOp
from ..rowwise.fused import FusedOp
from ..score.graph_keys import attention_keys
from ..subjects import (
    PRODUCTS,
    LinearKey,
    grouped_default,
    grouped_subject,
    linear_subject,
    linear_tiles,
    logits_default,
    logits_op,
    logits_subject,
    plain_attention_subject,
    row_default,
    row_plan,
    row_subject,
)

_META = "weft_choices"
# The arguments of `attend` that torch's kernels have no counterpart of.
_OTHERS = ("predicate", "bias", "score", "q_position", "k_position")


def choices_of(module: fx.GraphModule) -> Choices | None:
    """What the graph was made with."""
    return module.meta.get(_META)


def use_choices(module: fx.GraphModule, choices: Choices) -> None:
    module.meta[_META] = choices
    known = facts(module)
    plain = plain_attentions(module)
    for node in module.graph.nodes:
        op = node.target
        if isinstance(op, FusedOp):
            node.target = _fused(op, choices)
        elif isinstance(op, LogitsOp):
            node.target = logits_op(op, choices.of(logits_subject(op), logits_default(op)).configuration)
        elif isinstance(op, GroupedOp):
            node.target = _grouped(op, choices)
        elif node in plain:
            key, high = plain[node]
            if choices.of(plain_attention_subject(key, high), Configuration()).is_torch:
                _keep_fact(node, known)
                node.target, node.kwargs = attend_by_torch, {"high": high}
        elif (key := linear_key(node, known)) is not None:
            _choose_linear(node, key, known, choices)


def _fused(op: FusedOp, choices: Choices) -> FusedOp:
    forward, backward = (
        None if plan is None else row_plan(plan, choices.of(row_subject(plan), row_default(plan)).configuration)
        for plan in (op.forward, op.backward)
    )
    assert forward is not None
    return replace(op, forward=forward, backward=backward)


def _grouped(op: GroupedOp, choices: Choices) -> GroupedOp:
    best = {
        product: choices.of(grouped_subject(op, product), grouped_default(op, product)).configuration
        for product in PRODUCTS
    }
    epilogue = op.epilogue and replace(op.epilogue, call=_fused(op.epilogue.call, choices))
    tiles: dict[str, Any] = {product: linear_tiles(chosen) for product, chosen in best.items()}
    return replace(op, epilogue=epilogue, **tiles)


def _choose_linear(node: fx.Node, key: LinearKey, known: Mapping[fx.Node, Fact], choices: Choices) -> None:
    by_torch = Configuration(implementation=TORCH)
    best = {product: choices.of(linear_subject(key, product), by_torch).configuration for product in PRODUCTS}
    tiles = {product: linear_tiles(one) for product, one in best.items()}
    ours = {product: tuple(found) for product, found in tiles.items() if found is not None}
    if ours:
        _keep_fact(node, known)
        node.target, node.kwargs = launcher.linear, {**node.kwargs, **ours}


def _keep_fact(node: fx.Node, known: Mapping[fx.Node, Fact]) -> None:
    if node in known:
        node.meta[FACT] = known[node]


def linear_key(node: fx.Node, known: Mapping[fx.Node, Fact]) -> LinearKey | None:
    """Of a plain linear over rows."""
    if node.op != "call_function" or node.target is not functional.linear:
        return None
    x, weight = (known.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args[:2])
    if x is None or weight is None or x.level is None or x.dtype != weight.dtype or len(weight.dims) != 2:
        return None
    return LinearKey(weight.dims[1], weight.dims[0], x.dtype)


def plain_attentions(module: fx.GraphModule) -> dict[fx.Node, tuple[AttentionKey, int | None]]:
    """Attention under a mask that torch's kernels know, with `high` of its band."""
    found: dict[fx.Node, tuple[AttentionKey, int | None]] = {}
    if not any(node.target is attend for node in module.graph.nodes):
        return found
    for key, nodes in attention_keys(module).items():
        for node in nodes:
            given: dict[str, Any] = dict(node.kwargs)
            bounds = given.get("low"), given.get("high")
            is_square = node.args[3] is node.args[4] or bounds[1] is None
            if len(node.args) == 6 and is_square and is_known(*bounds, tuple(given.get(name) for name in _OTHERS)):
                found[node] = key, bounds[1]
    return found
