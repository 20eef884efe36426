"""Other people's kernels for what ours compute, on the same operands: what is not installed is absent.

Formulas are recognised by the operands that a call has, and by what it is called in the kernels' own names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from weft.codegen.gpu.attention_library import attend_by_torch
from weft.codegen.gpu.grouped_form import GroupedForm

from .context import Context

Function = Callable[..., Any]
EPS = 1e-6
Z_LOSS = 1e-5


def has(module: str) -> bool:
    return find_spec(module) is not None


# -- row by row ----------------------------------------------------------------------------------------


def of_rows(context: Context, name: str, operands: Sequence[Tensor]) -> dict[str, Function]:
    """Of a fused call: Liger's kernels for gates and for norms with a residual."""
    if "liger" not in context.peers or not has("liger_kernel"):
        return {}
    from liger_kernel.transformers import functional as liger  # type: ignore[import-not-found]

    wide = [place for place, x in enumerate(operands) if x.dim() >= 2 and x.is_floating_point()]
    gains = [place for place, x in enumerate(operands) if x.dim() == 1 and x.is_floating_point()]
    same = len({operands[place].shape for place in wide}) == 1
    if "swiglu" in name and len(wide) == 2 and not gains and same:
        return {"liger": liger.liger_swiglu}
    if name.startswith("rms_norm") and len(wide) == 2 and len(gains) == 1 and same:
        return {"liger": partial(_residual_norm, liger.liger_rms_norm, wide, gains[0])}
    if name.startswith("rms_norm") and "turn" in name and _are_queries_and_keys(operands):
        return {"liger, three kernels": partial(_norms_and_turn, liger, _angles(operands))}
    return {}


def _residual_norm(norm: Function, wide: Sequence[int], gain: int, *operands: Tensor) -> Tensor:
    """The norm of the first, added to the second: which is which moves no other bytes."""
    return operands[wide[1]] + norm(operands[wide[0]], operands[gain], EPS, in_place=False)


def _are_queries_and_keys(operands: Sequence[Tensor]) -> bool:
    """`q [rows, heads * D]`, its gain `[heads, D]`, and the same of k."""
    if len(operands) < 4 or any(x.dim() != 2 for x in operands[:4]):
        return False
    return all(gain.numel() == x.shape[1] for x, gain in (operands[0:2], operands[2:4]))


def _angles(operands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[1, rows, D]`, made beforehand: ours makes its own."""
    q, head = operands[0], operands[1].shape[1]
    turns = 0.01 ** torch.linspace(0, 1, head // 2, device=q.device)
    angles = torch.arange(q.shape[0], device=q.device)[:, None] * turns
    both = torch.cat([angles, angles], -1)[None]
    return both.cos().to(q.dtype), both.sin().to(q.dtype)


def _norms_and_turn(liger: Any, angles: tuple[Tensor, Tensor], *operands: Tensor) -> tuple[Tensor, Tensor]:
    """Both norms over all heads, then the turn."""
    normed = []
    for x, gain in (operands[0:2], operands[2:4]):
        y = liger.liger_rms_norm(x, gain.reshape(-1), EPS, in_place=False)
        normed.append(y.view(1, x.shape[0], *gain.shape).transpose(1, 2))
    return liger.liger_rope(*normed, *angles)


# -- tables --------------------------------------------------------------------------------------------


def of_table(context: Context) -> dict[str, Function]:
    """`(table, ids)`"""
    found: dict[str, Function] = {}
    if "eager" in context.peers:
        found["eager"] = lambda table, ids: functional.embedding(ids, table)
    if "compile" in context.peers:
        found["compile"] = context.compiled(lambda table, ids: functional.embedding(ids, table))
    return found


def of_bag(context: Context, index: Tensor) -> dict[str, Function]:
    """`(table, weight)` at the lists `index [lines, n]`."""
    if "fbgemm" not in context.peers or not has("fbgemm_gpu"):
        return {}
    offsets = torch.arange(0, index.numel() + 1, index.shape[1], device=index.device)
    return {"fbgemm": partial(_fbgemm_bag, index.reshape(-1), offsets)}


def _fbgemm_bag(index: Tensor, offsets: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    """A table-batched bag of one table, whose gradient is dense as ours is."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (  # type: ignore[import-not-found]
        DenseTableBatchedEmbeddingBagsCodegen,
    )

    with torch.device("meta"):
        module: Any = DenseTableBatchedEmbeddingBagsCodegen([tuple(table.shape)], use_cpu=False)
    given = {"weights": table.reshape(-1)}
    found: Any = torch.func.functional_call(module, given, (index, offsets, weight.reshape(-1)), strict=False)
    return found


# -- attention -----------------------------------------------------------------------------------------


def of_attention(context: Context, offsets: Tensor, scale: float, high: int | None) -> dict[str, Function]:
    """`(q, k, v)`, packed; everything or causal. FlexAttention twice: with the mask made beforehand, and with it."""
    found: dict[str, Function] = {}
    if "sdpa" in context.peers:
        found["sdpa, one call an example"] = lambda q, k, v: attend_by_torch(q, k, v, offsets, offsets, scale, high)
    if "varlen" in context.peers and has("torch.nn.attention.varlen") and context.device.type == "cuda":
        found["varlen_attn"] = partial(_varlen, offsets, int(offsets.diff().max()), scale, high is not None)
    if "flex" in context.peers:
        mask, why = context.attempt(lambda: _block_mask(context, offsets, high))
        flex = _flex(context)
        if why is None:
            found["flex"] = lambda q, k, v: _by_flex(flex, mask, scale, q, k, v)
        found["flex, with its mask"] = lambda q, k, v: _by_flex(
            flex, _block_mask(context, offsets, high), scale, q, k, v
        )
    return found


def _varlen(offsets: Tensor, longest: int, scale: float, causal: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import varlen

    if abs(scale * q.shape[2] ** 0.5 - 1) > 1e-6:
        raise ValueError("varlen_attn has a scale of its own")
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    given: Any = varlen.varlen_attn
    try:
        # Newer releases say it as a window.
        window = {"window_size": (-1, 0)} if causal else {}
        return given(q, k, v, offsets, offsets, longest, longest, **window)
    except TypeError:
        return given(q, k, v, offsets, offsets, longest, longest, is_causal=causal)


def _flex(context: Context) -> Function:
    from torch.nn.attention.flex_attention import flex_attention

    return context.compiled(flex_attention) if context.device.type == "cuda" else flex_attention


def _block_mask(context: Context, offsets: Tensor, high: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    create: Any = create_block_mask
    # Compiled, it does not make a table of all pairs first.
    compiles = context.device.type == "cuda" and "_compile" in signature(create).parameters
    rows = int(offsets[-1])
    examples = torch.searchsorted(offsets, torch.arange(rows, device=offsets.device, dtype=offsets.dtype), right=True)

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        same = examples[query] == examples[key]
        return same if high is None else same & (key <= query)

    return create(
        seen, None, None, rows, rows, device=str(context.device), **({"_compile": True} if compiles else {})
    )  # fmt: skip


def _by_flex(flex: Function, mask: Any, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = [x.transpose(0, 1)[None] for x in (q, k, v)]
    y = flex(*parts, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return y[0].transpose(0, 1)


def of_hybrid(context: Context, offsets: Tensor, picture: Tensor, scale: float) -> dict[str, Function]:
    """`(q, k, v)`, packed; causal or of one picture, where `picture [rows]` is not -1."""
    if "flex" not in context.peers:
        return {}
    from torch.nn.attention.flex_attention import create_block_mask

    rows = len(picture)
    example = torch.searchsorted(offsets, torch.arange(rows, device=offsets.device, dtype=offsets.dtype), right=True)

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        is_one = (picture[query] == picture[key]) & (picture[query] >= 0)
        return (example[query] == example[key]) & ((key <= query) | is_one)

    mask, why = context.attempt(lambda: create_block_mask(seen, None, None, rows, rows, device=str(context.device)))
    return {} if why is not None else {"flex": partial(_by_flex, _flex(context), mask, scale)}


def of_grouped(context: Context, form: GroupedForm, towers: Sequence[Tensor], n_x: int) -> dict[str, Function]:
    """Grouped linears `(x.., weights.., weights as one stack)`: torch's grouped product over sorted rows, which are
    sorted before it, or put back after it, where they lie in another order."""
    grouped_mm: Any = getattr(functional, "grouped_mm", None)
    if "grouped_mm" not in context.peers or grouped_mm is None:
        return {}
    rows = torch.cat(list(towers))
    ends = torch.tensor([len(one) for one in towers], device=rows.device).cumsum(0).to(torch.int32)

    def by_grouped_mm(*given: Tensor) -> tuple[Tensor, ...]:
        x = given[0].index_select(0, rows) if form.gathers else torch.cat(given[:n_x])
        y = grouped_mm(x, given[-1].transpose(1, 2), offs=ends)
        if form.scatters:
            y = torch.empty_like(y).index_copy(0, rows, y)
        return y.split(list(form.outputs), 1)

    return {"grouped_mm": by_grouped_mm}


def of_own_rows(context: Context, number: Tensor, scale: float) -> dict[str, Function]:
    """`(q [P, S, H, D], k [N, H, D], v [N, H, D])`: each segment's queries see the rows `number [N]` gives it."""
    found: dict[str, Function] = {}
    if "sdpa" in context.peers:
        found["sdpa, a mask of all pairs"] = partial(_by_mask, number, scale)
    if "flex" in context.peers:
        flex = _flex(context)
        made: dict[tuple[int, int], Any] = {}

        def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            sizes = q.shape[0] * q.shape[1], k.shape[0]
            if sizes not in made:
                made[sizes] = _own_rows_mask(context, number, q.shape[1], sizes)
            return _by_flex(flex, made[sizes], scale, q.flatten(0, 1), k, v).reshape(*q.shape[:3], v.shape[2])

        found["flex"] = by_flex
    return found


def _by_mask(number: Tensor, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As the released model computes it."""
    own = torch.arange(q.shape[0], device=q.device).repeat_interleave(q.shape[1])
    mask = own[:, None] == number[None]
    parts = [x.transpose(0, 1)[None] for x in (q.flatten(0, 1), k, v)]
    y = functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    return y[0].transpose(0, 1).reshape(*q.shape[:3], v.shape[2])


def _own_rows_mask(context: Context, number: Tensor, queries: int, sizes: tuple[int, int]) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    create: Any = create_block_mask
    compiles = context.device.type == "cuda" and "_compile" in signature(create).parameters

    def seen(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return query // queries == number[key]

    return create(seen, None, None, *sizes, device=str(context.device), **({"_compile": True} if compiles else {}))


# -- the loss ------------------------------------------------------------------------------------------


def of_loss(context: Context) -> dict[str, Function]:
    """`(x, weight, ids)` to the sum of cross-entropy, with z-loss where a peer has it."""
    found: dict[str, Function] = {}
    if "eager" in context.peers:
        found["eager"] = plain_loss
    if "compile" in context.peers:
        found["compile"] = context.compiled(plain_loss)
    if "liger" in context.peers and has("liger_kernel"):
        found["liger"] = _liger_loss
    if "cce" in context.peers and has("cut_cross_entropy"):
        found["cce, no z-loss"] = _cce_loss
    if "torch" in context.peers and hasattr(functional, "linear_cross_entropy"):
        found["F.linear_cross_entropy, no z-loss"] = lambda x, w, ids: functional.linear_cross_entropy(
            x, w, ids, reduction="sum"
        )
    return found


def plain_loss(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """As people write it: the logits of all rows, in float32 for the logarithm."""
    logits = functional.linear(x, weight).float()
    partition = torch.logsumexp(logits, -1)
    picked = logits.gather(1, ids[:, None])[:, 0]
    return (partition - picked).sum() + Z_LOSS * partition.square().sum()


def _liger_loss(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from liger_kernel.transformers import functional as liger  # type: ignore[import-not-found]

    return liger.liger_fused_linear_cross_entropy(x, weight, ids, lse_square_scale=Z_LOSS, reduction="sum")


def _cce_loss(x: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return linear_cross_entropy(x, weight, ids, reduction="sum")
