"""Which attention kernels a graph will ask for, from its facts alone: for compiling them before there are tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ..facts import EXAMPLES, Fact, facts
from ..gpu.attention import attend, call_of
from ..gpu.attention_caches import attend_general, attend_step, causal, one_formula
from ..gpu.attention_decode import decode_form
from ..gpu.attention_kernels import AttentionKey, DecodeKey, key_of
from ..gpu.intervals import Bounds, Intervals
from ..gpu.mask_intervals import seen_by_mask
from ..gpu.triton_types import TRITON_TYPES

# How many rows the stand-ins have changes nothing.
_ROWS = 2


def attention_keys(module: fx.GraphModule) -> dict[AttentionKey, list[fx.Node]]:
    """The kernels by what they are made for, with the nodes that launch them."""
    known = facts(module)
    found: dict[AttentionKey, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target is attend:
            found.setdefault(_key(node, known), []).append(node)
    return found


def decode_keys(module: fx.GraphModule, cached: torch.dtype) -> dict[DecodeKey, list[fx.Node]]:
    """The same of a decoding step, whose caches are of a type."""
    known = facts(module)
    found: dict[DecodeKey, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target in (attend_step, attend_general):
            found.setdefault(_decode_key(node, known, cached), []).append(node)
    return found


def _decode_key(node: fx.Node, known: Mapping[fx.Node, Fact], cached: torch.dtype) -> DecodeKey:
    arguments: tuple[Any, ...] = node.args
    (heads, width), (key_heads, _), (_, v_width) = (known[operand].dims for operand in arguments[:3])
    if node.target is attend_step:
        scale, low, high = arguments[7:10]
        form, _ = decode_form(scale)
    else:
        scale, low, high, predicate, bias, _, score = arguments[8:15]
        high = causal(high)
        pair = one_formula(
            score, predicate, bias, _stand_in_rows(known, 1), _stand_in_rows(known, _ROWS),
            lambda table: _stand_in(table, known),
        )  # fmt: skip
        form, _ = decode_form(scale, *pair)
    return DecodeKey(form.text, TRITON_TYPES[cached], heads, key_heads, width, v_width, 1, low, high)


def _stand_in_rows(known: Mapping[fx.Node, Fact], rows: int) -> Callable[[fx.Node], Tensor]:
    """Tensors without entries, `[sequences, rows(, heads)]`."""
    return lambda node: torch.empty((_ROWS, rows, *known[node].dims), dtype=known[node].dtype, device="meta")


def _key(node: fx.Node, known: Mapping[fx.Node, Fact]) -> AttentionKey:
    rows = torch.zeros(_ROWS, dtype=torch.int32, device="meta")
    given: dict[str, Any] = dict.fromkeys(("low", "high", "predicate", "bias", "score", "q_position", "k_position"))
    given |= {name: _stand_in(value, known) for name, value in node.kwargs.items()}
    if given.get("intervals") is not None or given["q_position"] is None:
        seen = node.kwargs.get("intervals")
        is_exact = not (isinstance(seen, fx.Node) and seen.target is seen_by_mask)
        given["intervals"] = Intervals(Bounds(rows, rows), Bounds(rows, rows), is_exact, is_band=True)
    q, k, v, _, _, scale = (_stand_in(value, known) for value in node.args)
    call = call_of(q, k, v, rows, rows, scale, **given)
    return key_of(q, k, v, call.bias, call.form)


def _stand_in(value: Any, known: Mapping[fx.Node, Fact]) -> Any:
    """Tensors without entries for the nodes of an argument."""
    if isinstance(value, fx.Node):
        fact = known.get(value, Fact(EXAMPLES, (), torch.int64))
        lead = () if fact.level is None else (_ROWS,)
        tensor: Tensor = torch.empty((*lead, *fact.dims), dtype=fact.dtype, device="meta")
        return tensor.requires_grad_(fact.is_real)
    if isinstance(value, tuple):
        return tuple(_stand_in(part, known) for part in value)
    return value
