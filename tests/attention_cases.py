"""Calls of attention kernels, and how far their outputs and gradients are from float64: run with Triton's
interpreter by test_attention_kernels.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weft.codegen.functions.attention import attend_packed
from weft.codegen.functions.caches import attend_step, band_mask
from weft.codegen.gpu import intervals
from weft.codegen.gpu.attention import attend
from weft.codegen.gpu.attention_decode import attend_cached

LENGTHS = (63, 1, 0, 5, 60)
OTHER_LENGTHS = (20, 0, 7, 33, 2)
Nested = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """`read` are tensors that formulas capture, by name: side and whether they have heads; of a table the side is how
    many entries it has. `score` and `predicate` make a formula from them; `dense` is the score again, as torch would
    write it: score [H, Nq, Nk], positions, captured."""

    dtype: torch.dtype = torch.float32
    heads: tuple[int, int] = (2, 1)
    widths: tuple[int, int] = (16, 16)
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = (LENGTHS, LENGTHS)
    low: int | None = None
    high: int | None = None
    bias_heads: int = 0
    ids: bool = False
    predicate: Callable[[dict[str, Tensor]], Nested] | None = None
    read: dict[str, tuple[str | int, bool]] = field(default_factory=dict)
    score: Callable[[dict[str, Tensor]], Nested] | None = None
    dense: Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor] | None = None
    query_shift: int = 0
    key_step: int = 0
    is_fused: bool = False
    segments: bool = False


def _number(value: float) -> Nested:
    return ("number", value)


def _capped(score: Nested) -> Nested:
    return ("*", _number(3.0), ("tanh", ("/", score, _number(3.0))))


def _same(read: dict[str, Tensor]) -> Nested:
    return ("==", ("query", read["ids"]), ("key", read["ids"]))


def _not_multiples(read: dict[str, Tensor]) -> Nested:
    distance = ("-", ("query", "position"), ("key", "position"))
    return ("or", ("not", ("<", ("abs", distance), _number(9))), ("==", ("key", read["ids"]), _number(1)))


def _slopes(read: dict[str, Tensor]) -> Nested:
    distance = ("abs", ("-", ("query", "position"), ("key", "position")))
    falling = ("-", ("score",), ("*", ("query", read["slope"]), ("sqrt", ("+", distance, _number(1.0)))))
    return ("+", falling, ("exp", ("min", ("key", read["gate"]), _number(0.5))))


def _dense_slopes(s: Tensor, query: Tensor, key: Tensor, read: dict[str, Tensor]) -> Tensor:
    distance = (query[:, None] - key[None, :]).abs().to(s.dtype)
    falling = s - read["slope"].T[:, :, None] * (distance + 1.0).sqrt()
    return falling + torch.exp(torch.clamp(read["gate"], max=0.5))[None, None, :]


def _chosen(read: dict[str, Tensor]) -> Nested:
    is_near = ("<=", ("query", "position"), ("+", ("key", "position"), _number(4)))
    far = ("max", ("*", ("key", read["slope"]), ("score",)), ("sigmoid", ("neg", ("score",))))
    return ("where", is_near, ("abs", ("score",)), ("log", ("+", _number(1.5), far)))


def _dense_chosen(s: Tensor, query: Tensor, key: Tensor, read: dict[str, Tensor]) -> Tensor:
    far = torch.maximum(read["slope"].T[:, None, :] * s, torch.sigmoid(-s))
    return torch.where(query[:, None] <= key[None, :] + 4, s.abs(), torch.log(1.5 + far))


def _distance() -> Nested:
    return ("-", ("query", "position"), ("key", "position"))


def _bucketed(read: dict[str, Tensor]) -> Nested:
    """By distance in steps that grow, beyond 31 all alike; every head has its own entries."""
    far = ("+", _number(4), ("int", ("*", ("log", ("/", ("max", _distance(), _number(4)), _number(4))), _number(2.0))))
    bucket = ("where", ("<", _distance(), _number(4)), ("max", _distance(), _number(0)), ("min", far, _number(7)))
    return ("+", ("score",), ("entry", read["table"], bucket))


def _dense_bucketed(s: Tensor, query: Tensor, key: Tensor, read: dict[str, Tensor]) -> Tensor:
    back = (query[:, None] - key[None, :]).long()
    far = (4 + (back.clamp(min=4) / 4).log() * 2).long().clamp(max=7)
    return s + read["table"][:, torch.where(back < 4, back.clamp(min=0), far)]


def _several(read: dict[str, Tensor]) -> Nested:
    """One table read twice, by ids of both signs; another by the score itself, times what a query has."""
    ring = ("entry", read["ring"], ("mod", _distance(), _number(5)))
    whole = ("mod", ("int", ("floor", ("*", ("score",), _number(2.0)))), _number(3))
    paired = ("entry", read["ring"], ("floordiv", ("mod", ("key", "position"), _number(9)), _number(2)))
    chosen = ("*", ("query", read["gate"]), ("entry", read["steps"], whole))
    return ("+", ("*", ("score",), ("exp", ring)), ("+", chosen, ("tanh", paired)))


def _dense_several(s: Tensor, query: Tensor, key: Tensor, read: dict[str, Tensor]) -> Tensor:
    ring = read["ring"][(query[:, None] - key[None, :]).long().remainder(5)]
    heads = torch.arange(s.shape[0])[:, None, None]
    steps = read["steps"][heads, torch.floor(2 * s.detach()).long().remainder(3)]
    paired = read["ring"][torch.div(key.long().remainder(9), 2, rounding_mode="floor")]
    return s * torch.exp(ring) + read["gate"][None, :, None] * steps + torch.tanh(paired)


CASES = {
    "causal": Case(heads=(4, 2), high=0),
    "causal, bf16": Case(torch.bfloat16, (4, 2), (24, 24), high=0),
    "causal, fp16": Case(torch.float16, high=0),
    "full, other widths": Case(heads=(3, 1), widths=(24, 16)),
    "window, two parts": Case(widths=(80, 24), low=-7, high=0),
    "band": Case(heads=(6, 6), low=-40, high=3),
    "band that misses the own row": Case(low=-40, high=-2),
    "wide heads": Case(heads=(1, 1), widths=(192, 256), lengths=((40, 3), (40, 3)), high=0),
    "wide heads of two parts, bf16": Case(torch.bfloat16, (2, 1), (160, 160), ((40, 3), (40, 3)), high=0),
    "wider than kernels": Case(widths=(300, 16), lengths=((9, 2), (9, 2)), high=0),
    "other examples of keys": Case(lengths=(LENGTHS, OTHER_LENGTHS)),
    "other examples of keys, band": Case(torch.float64, lengths=(OTHER_LENGTHS, LENGTHS), low=-3, high=9),
    "no keys at all": Case(lengths=((3, 2), (0, 0))),
    "no queries at all": Case(lengths=((0, 0), (3, 2))),
    "bias of heads": Case(bias_heads=2, high=0),
    "bias, double": Case(torch.float64, bias_heads=1, low=-9),
    "same id, double": Case(torch.float64, heads=(2, 2), ids=True, predicate=_same),
    "no interval": Case(ids=True, predicate=_not_multiples, bias_heads=2),
    "positions of queries": Case(torch.float64, query_shift=3, low=-5, high=0),
    "positions of keys": Case(torch.float64, key_step=2, low=-15, high=4),
    "part of a fused projection": Case(high=0, is_fused=True),
    "causal or same segment": Case(torch.float64, high=0, segments=True),
    "soft cap": Case(high=0, score=lambda _: _capped(("score",)), dense=lambda s, *_: 3 * torch.tanh(s / 3)),
    "soft cap, bf16": Case(
        torch.bfloat16, high=0, bias_heads=2, score=lambda _: _capped(("score",)),
        dense=lambda s, *_: 3 * torch.tanh(s / 3),
    ),
    "soft cap, double": Case(
        torch.float64, low=-9, bias_heads=1, score=lambda _: _capped(("score",)),
        dense=lambda s, *_: 3 * torch.tanh(s / 3),
    ),
    "words of a spec": Case(
        torch.float64, high=0,
        score=lambda _: (
            "mul", ("sub", ("erf", ("softplus", ("score",))), ("sign", ("score",))),
            ("pow", ("cos", ("score",)), ("number", 3)),
        ),
        dense=lambda s, *_: (torch.erf(torch.nn.functional.softplus(s)) - torch.sign(s)) * torch.cos(s) ** 3,
    ),
    "slopes, double": Case(
        torch.float64, read={"slope": ("query", True), "gate": ("key", False)}, score=_slopes,
        dense=_dense_slopes,
    ),
    "choices": Case(read={"slope": ("key", True)}, score=_chosen, dense=_dense_chosen),
    "a table by distance": Case(
        heads=(4, 2), high=0, read={"table": (8, True)}, score=_bucketed, dense=_dense_bucketed
    ),
    "a table by distance, bf16": Case(
        torch.bfloat16, (4, 2), (24, 24), high=0, read={"table": (8, True)}, score=_bucketed, dense=_dense_bucketed
    ),
    "a table by distance, other examples of keys": Case(
        torch.float64, lengths=(OTHER_LENGTHS, LENGTHS), bias_heads=2, low=-40, read={"table": (8, True)},
        score=_bucketed, dense=_dense_bucketed,
    ),
    "a table, no queries": Case(
        lengths=((0, 0), (3, 2)), read={"table": (8, True)}, score=_bucketed, dense=_dense_bucketed
    ),
    "several entries, double": Case(
        torch.float64, (4, 2), (80, 16), read={"ring": (5, False), "steps": (3, True), "gate": ("query", False)},
        score=_several, dense=_dense_several,
    ),
}  # fmt: skip


def _offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)


def _error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if not wanted.any():
        return 0.0 if torch.equal(found.double(), wanted) else math.inf
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


def errors(case: Case) -> dict[str, float]:
    """Of the output and every gradient, by name, relative to the largest entry."""
    torch.manual_seed(0)
    dtype, (heads, key_heads), (width, v_width) = case.dtype, case.heads, case.widths
    q_offsets, k_offsets = _offsets(case.lengths[0]), _offsets(case.lengths[1])
    rows = {"query": int(q_offsets[-1]), "key": int(k_offsets[-1])}
    if case.is_fused:
        fused = torch.randn(rows["query"], heads + 2 * key_heads, width).to(dtype)
        q, k, v = fused.split([heads, key_heads, key_heads], 1)
    else:
        q = torch.randn(rows["query"], heads, width).to(dtype)
        k = torch.randn(rows["key"], key_heads, width).to(dtype)
        v = torch.randn(rows["key"], key_heads, v_width).to(dtype)
    trained = {"q": q, "k": k, "v": v}
    if case.bias_heads:
        trained["bias"] = torch.randn(rows["key"], case.bias_heads).to(dtype)
    for name, (side, has_heads) in case.read.items():
        is_table = isinstance(side, int)
        shape = (side if is_table else rows[side],)
        if has_heads:
            shape = (heads, *shape) if is_table else (*shape, heads)
        trained[name] = torch.rand(shape).to(dtype)
    ids = {"ids": torch.randint(0, 3, (rows["query"],))} if case.ids else {}
    positions = {}
    if case.query_shift:
        positions["q_position"] = intervals.row_positions(q_offsets, rows["query"]) + case.query_shift
    if case.key_step:
        positions["k_position"] = case.key_step * intervals.row_positions(k_offsets, rows["key"])
    d_out = torch.randn(rows["query"], heads, v_width).to(dtype)
    scale = width**-0.5

    def run(tensors: dict[str, Tensor], is_reference: bool) -> Tensor:
        read = {name: tensors[name] for name in case.read} | ids
        bias = tensors.get("bias")
        predicate = None if case.predicate is None else case.predicate(read)
        given = (tensors["q"], tensors["k"], tensors["v"], q_offsets, k_offsets, scale)
        if case.segments:
            return _by_segments(given, case, is_reference)
        if not is_reference:
            score = None if case.score is None else case.score(read)
            return attend(*given, case.low, case.high, predicate, bias, score=score, **positions)
        if case.dense is None:
            return attend_packed(*given, case.low, case.high, predicate, bias, **positions)
        return _dense(given, case, bias, read)

    found = _with_gradients(trained, dtype, lambda tensors: run(tensors, False), d_out)
    wanted = _with_gradients(trained, torch.float64, lambda tensors: run(tensors, True), d_out)
    return {name: _error(found[name], wanted[name]) for name in wanted}


def _with_gradients(
    trained: dict[str, Tensor], dtype: torch.dtype, run: Callable[[dict[str, Tensor]], Tensor], d_out: Tensor
) -> dict[str, Tensor]:
    leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in trained.items()}
    out = run(leaves)
    gradients = torch.autograd.grad(out, list(leaves.values()), d_out.to(dtype))
    return {"output": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def _dense(given: tuple[Any, ...], case: Case, bias: Tensor | None, read: dict[str, Tensor]) -> Tensor:
    """All pairs of rows at once, with the score as torch code."""
    q, k, v, q_offsets, k_offsets, scale = given
    group = q.shape[1] // k.shape[1]
    q_HQD, k_HKD, v_HKD = q.transpose(0, 1), k.repeat_interleave(group, 1).transpose(0, 1), v.transpose(0, 1)
    v_HKD = v_HKD.repeat_interleave(group, 0)
    query, key = intervals.row_positions(q_offsets, len(q)), intervals.row_positions(k_offsets, len(k))
    examples = [intervals.row_examples(o, n) for o, n in ((q_offsets, len(q)), (k_offsets, len(k)))]
    seen = examples[0][:, None] == examples[1][None, :]
    distance = key[None, :] - query[:, None]
    seen &= distance >= (case.low if case.low is not None else -math.inf)
    seen &= distance <= (case.high if case.high is not None else math.inf)
    assert case.dense is not None
    scores = case.dense(scale * (q_HQD @ k_HKD.transpose(1, 2)), query, key, read)
    if bias is not None:
        scores = scores + bias.T[:, None]
    weights = torch.softmax(scores.masked_fill(~seen & seen.any(1, keepdim=True), -math.inf), -1)
    return (weights.masked_fill(~seen, 0) @ v_HKD).transpose(0, 1)


def _by_segments(given: tuple[Any, ...], case: Case, is_reference: bool) -> Tensor:
    """causal or same(segment), with gaps between segments: bounds on one side, a predicate on the other."""
    q_offsets, k_offsets = given[3], given[4]
    rows = given[0].shape[0]
    ids = torch.div(torch.arange(rows), 11, rounding_mode="floor").to(torch.int32)
    ids[torch.arange(rows) % 11 >= 8] = -1
    if not is_reference:
        causal = intervals.band_intervals(q_offsets, k_offsets, rows, rows, high=0)
        same = intervals.run_intervals(ids, ids, q_offsets, k_offsets)
        return attend(*given, intervals=intervals.either(causal, same))
    same_ids = ("and", (">=", ("query", ids), ("number", 0)), ("==", ("query", ids), ("key", ids)))
    return attend_packed(*given, predicate=("or", ("<=", ("key", "position"), ("query", "position")), same_ids))


@dataclass(frozen=True)
class CachedCase:
    dtype: torch.dtype
    heads: tuple[int, int]
    widths: tuple[int, int]
    slots: int
    positions: tuple[int, ...]
    low: int | None = None


CACHED = {
    "cache": CachedCase(torch.float32, (4, 2), (24, 16), 40, (0, 17, 39)),
    "cache, two parts": CachedCase(torch.float64, (4, 2), (80, 16), 100, (0, 57, 99)),
    "cache, window": CachedCase(torch.float32, (3, 1), (16, 16), 100, (0, 57, 99), -9),
    "cache that was written around": CachedCase(torch.float64, (6, 6), (16, 24), 16, (3, 57, 99), -15),
    "cache, bf16": CachedCase(torch.bfloat16, (4, 2), (16, 16), 100, (0, 57, 99)),
}


def cached_errors(case: CachedCase) -> dict[str, float]:
    """Of one new row per sequence, and of three."""
    torch.manual_seed(0)
    position = torch.tensor(case.positions)
    batch, (heads, groups), (width, v_width) = len(position), case.heads, case.widths
    shapes = ((heads, width), (groups, width), (groups, v_width))
    q, k, v = (torch.randn(batch, *shape).to(case.dtype) for shape in shapes)
    keys, values = (torch.randn(batch, groups, case.slots, d).to(case.dtype).double() for d in case.widths)
    columns = min(int(position.max()) + 1, case.slots)
    mask = band_mask(position, case.low, 0, case.slots, columns, False, torch.float64)
    wanted = attend_step(
        q.double(), k.double(), v.double(), keys, values, position, mask, columns, False, width**-0.5, 0
    )
    caches = (keys.to(case.dtype), values.to(case.dtype))  # attend_step has written the new rows
    found = attend_cached(q[:, None], *caches, position, columns, width**-0.5, case.low)
    # Three new rows at once, each of which sees the rows before itself: as three queries of one sequence.
    several = torch.randn(batch, 3, heads, width).to(case.dtype)
    first = position.clamp(min=2) - 2
    if case.low is not None:
        rows = (first + 2)[:, None] - ((first + 2)[:, None] - torch.arange(columns)) % case.slots
    else:
        rows = torch.arange(columns).expand(batch, -1)
    pieces = [_all_at_once(several[b], keys[b], values[b], int(first[b]), rows[b], case, width) for b in range(batch)]
    found_several = attend_cached(several, *caches, first, columns, width**-0.5, case.low)
    return {"output": _error(found[:, 0], wanted), "three rows": _error(found_several, torch.stack(pieces))}


def _all_at_once(
    q: Tensor, keys: Tensor, values: Tensor, first: int, rows: Tensor, case: CachedCase, width: int
) -> Tensor:
    columns = len(rows)
    k, v = keys[:, :columns].transpose(0, 1), values[:, :columns].transpose(0, 1)
    positions = first + torch.arange(3)
    new, cached = (torch.tensor([0, n], dtype=torch.int32) for n in (3, columns))
    known = (">=", ("key", "position"), ("number", 0))
    return attend_packed(
        q.double(), k, v, new, cached, width**-0.5, case.low, 0, known, q_position=positions, k_position=rows
    )
