"""Generation: prompts in, continuations out, token by token with the derived decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.signature import Signature
from .decoder import Decoder, decoder_of
from .errors import GenerateFault
from .model import Model
from .sampling import Sampling, sample

Stream = Callable[[int, int], None]


@dataclass(frozen=True)
class Continuation:
    """What followed one prompt. `stopped` is the token that ended it (not among `tokens`), None when it reached the
    length."""

    tokens: tuple[int, ...]
    stopped: int | None


def generate(
    model: Model,
    prompts: Sequence[Sequence[int] | Tensor],
    max_new_tokens: int,
    eos: int | Collection[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stream: Stream | None = None,
    capacity: int | None = None,
    begin: int | None = None,
    inputs: Mapping[str, Any] | None = None,
    decoder: Decoder | None = None,
) -> list[Continuation]:
    """Continues each prompt until `eos` or `max_new_tokens`.

    A sequence's draws depend on its own seed and positions only: `seed` is one number (sequence i uses seed + i) or
    one per sequence.
    `stream(sequence, token)` is called as tokens are chosen. `begin` is put in front of every prompt. An empty prompt
    begins behind it, or else behind the one `eos`, as a document after another. `capacity` bounds prompt and
    continuation together; without it what is asked for fits. `inputs` are the model's other inputs.
    """
    decoder = decoder or decoder_of(model)
    limit = vocabulary_of(decoder)
    sampling = Sampling(temperature, top_k, top_p)
    ends = stop_tokens(eos, limit)
    given = [_with_begin(prompt, begin) or (list(ends) if len(ends) == 1 else []) for prompt in prompts]
    if not given:
        return []
    if max_new_tokens < 0:
        raise GenerateFault(f"max_new_tokens is {max_new_tokens}, not a number from 0 up")
    for i, prompt in enumerate(given):
        if not len(prompt):
            raise GenerateFault(f"prompt {i} is empty, and there is nothing to continue: give a token to begin with")
        needed = len(prompt) + max_new_tokens
        if capacity is not None and needed > capacity:
            more = f"{max_new_tokens} more make {needed}"
            raise GenerateFault(f"prompt {i} has {len(prompt)} tokens, and {more}: over the capacity of {capacity}")
    if max_new_tokens == 0:
        return [Continuation((), None) for _ in given]
    seeds = seeds_of(seed, len(given))
    room = capacity or max(map(len, given)) + max_new_tokens
    with torch.inference_mode():
        return _run(decoder, given, max_new_tokens, ends, sampling, seeds, stream, room, inputs)


def _run(
    decoder: Decoder,
    prompts: Sequence[Any],
    max_new_tokens: int,
    ends: frozenset[int],
    sampling: Sampling,
    seeds: list[int],
    stream: Stream | None,
    capacity: int,
    inputs: Mapping[str, Any] | None,
) -> list[Continuation]:
    logits, state = decoder.prefill(list(prompts), capacity, inputs)
    device = logits.device
    tokens: list[list[int]] = [[] for _ in prompts]
    stopped: list[int | None] = [None] * len(prompts)
    running = list(range(len(prompts)))  # which prompt each sequence of the state continues
    active = [True] * len(prompts)
    seeds_B = torch.tensor(seeds, dtype=torch.int64, device=device)
    while True:
        chosen = sample(logits, sampling, seeds_B, state.lengths)
        for place, token in enumerate(chosen.tolist()):
            if not active[place]:
                continue
            which = running[place]
            if token in ends:
                stopped[which], active[place] = token, False
                continue
            tokens[which].append(token)
            if stream is not None:
                stream(which, token)
            active[place] = len(tokens[which]) < max_new_tokens
        left = sum(active)
        if not left:
            return [Continuation(tuple(found), end) for found, end in zip(tokens, stopped, strict=True)]
        # Ended sequences are computed and ignored until they are half of the batch: leaving costs a copy of the caches.
        if left <= len(active) // 2:
            kept = [place for place, flag in enumerate(active) if flag]
            state = decoder.select(state, kept)
            index = torch.tensor(kept, dtype=torch.int64, device=device)
            chosen, seeds_B = chosen[index], seeds_B[index]
            running, active = [running[place] for place in kept], [True] * left
        logits, state = decoder.step(state, chosen, None if all(active) else active)


def vocabulary_of(decoder: Decoder) -> int:
    """The number of tokens; the model must take ids along the decoded axis and give a score for each."""
    shape: Signature = decoder.graphs.row_signature
    taken, outputs = shape.inputs, shape.outputs
    if len(taken) != 1 or taken[0].kind != "id" or taken[0].axes:
        described = ", ".join(f"{slot.name}: {slot.describe()}" for slot in taken)
        raise GenerateFault(f"{shape.name} takes {described} along the decoded axis: generation needs one input of ids")
    if len(outputs) != 1 or outputs[0].kind != "real" or outputs[0].axes != (taken[0].of,):
        described = ", ".join(slot.describe() for slot in outputs)
        raise GenerateFault(f"{shape.name} gives {described}: generation needs one score for each {taken[0].of}")
    return taken[0].limit


def _with_begin(prompt: Sequence[int] | Tensor, begin: int | None) -> list[Any]:
    listed = list(prompt) if not isinstance(prompt, Tensor) else prompt.tolist()
    return listed if begin is None else [begin, *listed]


def stop_tokens(eos: int | Collection[int] | None, limit: int) -> frozenset[int]:
    ends = frozenset() if eos is None else frozenset({eos}) if isinstance(eos, int) else frozenset(eos)
    for token in ends:
        if not 0 <= token < limit:
            raise GenerateFault(f"the stop token {token} is not among 0 to {limit - 1}")
    return ends


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise GenerateFault(f"{len(seeds)} seeds were given for {count} prompts")
    for one in seeds:
        if not -(2**63) <= one < 2**63:
            raise GenerateFault(f"the seed {one} has more than 64 bits")
    return seeds
