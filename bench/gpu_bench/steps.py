"""A whole training step of 1B parameters, and decoding: ours against transformers, eager and with torch.compile.

Training keeps float32 weights and moments and computes in bfloat16 on every side, with one optimiser (fused AdamW,
clipping at 1). Ours adds a z-loss. The others compute padded batches; ours has no padding.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weft.runtime.generate import generate

from . import models
from .context import Context
from .models import Batch
from .results import Row
from .timing import seconds

Step = Callable[[], object]
EQUAL = [2048] * 4
DOCUMENTS = [2048, 1024, 512, 1536, 768, 1280, 256, 768]
PROMPT, NEW_TOKENS = 128, 128


def rows(context: Context) -> Iterator[Row]:
    """Each contender by itself, so that one has all of the memory."""
    tiny = context.tiny
    batches = {
        "equal lengths": [7, 7] if tiny else EQUAL,
        "documents": [9, 4, 1] if tiny else DOCUMENTS,
    }
    for title, lengths in batches.items():
        for side, make in _sides(context, _TRAINING).items():
            name = f"training step, {title}: {side}"
            labels = {"what": "training step", "case": title, "side": side, "rows": sum(lengths)}
            yield from _row(context, name, labels, partial(_train, context, lengths, make))
    for sequences in (1, 2) if tiny else (1, 8):
        for side, make in _sides(context, _DECODING).items():
            name = f"decoding, {sequences} x {5 if tiny else NEW_TOKENS}: {side}"
            labels = {"what": "decoding", "case": f"{sequences} sequences", "side": side, "rows": sequences}
            yield from _row(context, name, labels, partial(_decode, context, sequences, make))


def _sides(context: Context, known: dict[str, Any]) -> dict[str, Any]:
    wanted = context.peers
    return {
        side: make
        for side, make in known.items()
        if side == "ours" or ("transformers" in wanted and ("compile" in wanted or "compile" not in side))
    }


def _row(context: Context, name: str, labels: Row, measure: Callable[[], Row]) -> Iterator[Row]:
    if name in context.done:
        return
    if context.is_over:
        yield {"name": name, **labels, "failure": "the time budget was used up"}
        return
    context.begin(name)
    found, failure = context.attempt(measure)
    yield {"name": name, **labels, **(found or {"failure": failure})}
    context.free()


# -- training --------------------------------------------------------------------------------------------


def _train(context: Context, lengths: list[int], make: Callable[[Context], Callable[[Batch], Tensor]]) -> Row:
    batch = models.batch(context, lengths)
    is_gpu = context.device.type == "cuda"
    loss_of = make(context)
    model: Any = loss_of.keywords["model"]  # type: ignore[attr-defined]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    losses: list[float] = []

    def step() -> None:
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())

    first = seconds(context, step)
    for _ in range(2 if is_gpu else 0):
        step()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(context.device)
    times = [seconds(context, step) for _ in range(10 if is_gpu else 1)]
    median = statistics.median(times)
    return {
        "ms": 1e3 * median,
        "least_ms": 1e3 * min(times),
        "tokens_per_s": sum(lengths) / median,
        "first_s": first,
        "first_loss": losses[0],
        "peak_bytes": torch.cuda.max_memory_allocated(context.device) if is_gpu else None,
    }


def _our_loss(batch: Batch, model: Any) -> Tensor:
    parts = model.loss(None, (batch.ids, batch.offsets), working=torch.bfloat16)
    return torch.stack([total / count for total, count in parts.values()]).sum()


def _their_loss(batch: Batch, model: Any, forward: Any) -> Tensor:
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        found = forward(input_ids=batch.padded, attention_mask=batch.mask, labels=batch.labels, use_cache=False)
    return found.loss


def _ours_training(context: Context) -> Any:
    return partial(_our_loss, model=models.ours(context, torch.float32))


def _eager_training(context: Context) -> Any:
    model = models.theirs(context, torch.float32)
    return partial(_their_loss, model=model, forward=model)


def _compiled_training(context: Context) -> Any:
    model = models.theirs(context, torch.float32)
    return partial(_their_loss, model=model, forward=context.compiled(model))


_TRAINING = {
    "ours": _ours_training,
    "transformers, eager": _eager_training,
    "transformers, torch.compile": _compiled_training,
}


# -- decoding --------------------------------------------------------------------------------------------


def _decode(context: Context, sequences: int, make: Callable[[Context], Callable[[Tensor, int], Tensor]]) -> Row:
    prompt, new = (6, 5) if context.tiny else (PROMPT, NEW_TOKENS)
    batch = models.batch(context, [prompt] * sequences)
    is_gpu = context.device.type == "cuda"
    continue_ = make(context)
    first = seconds(context, lambda: continue_(batch.padded, new))
    continue_(batch.padded, 1)  # compiles for the caches of that length
    whole = statistics.median(seconds(context, lambda: continue_(batch.padded, new)) for _ in range(3 if is_gpu else 1))
    # The prompt and the first token by themselves: the rest is decoding.
    short = statistics.median(seconds(context, lambda: continue_(batch.padded, 1)) for _ in range(3 if is_gpu else 1))
    each = (whole - short) / (new - 1)
    tokens = continue_(batch.padded, new)
    return {
        "ms_per_token": 1e3 * each,
        "tokens_per_s": sequences / each if each > 0 else None,
        "prompt_ms": 1e3 * short,
        "first_s": first,
        "tokens": tokens[0, :8].tolist(),
    }


@torch.inference_mode()
def _we_continue(model: Any, prompts: Tensor, new: int) -> Tensor:
    found = generate(model, list(prompts), new)
    return torch.tensor([one.tokens for one in found])


@torch.inference_mode()
def _they_continue(model: Any, cache: str | None, compiles: bool, prompts: Tensor, new: int) -> Tensor:
    found = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new, do_sample=False,
        cache_implementation=cache, disable_compile=not compiles,
    )  # fmt: skip
    return found[:, prompts.shape[1] :]


def _ours_decoding(context: Context) -> Any:
    model = models.ours(context, torch.bfloat16)
    model.requires_grad_(False)
    return partial(_we_continue, model)


def _their_decoding(context: Context, cache: str | None, compiles: bool) -> Any:
    model = models.theirs(context, torch.bfloat16).eval()
    if compiles:
        model.forward = context.compiled(model.forward)
    return partial(_they_continue, model, cache, False)


_DECODING = {
    "ours": _ours_decoding,
    "transformers, eager": partial(_their_decoding, cache=None, compiles=False),
    "transformers, static cache": partial(_their_decoding, cache="static", compiles=False),
    "transformers, torch.compile": partial(_their_decoding, cache="static", compiles=True),
}
