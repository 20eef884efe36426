"""Requests answered by a model and a `generate` program of its spec: text that goes on token by token, and what the
program does when a token comes that it waits for.

    tell = generation_of(model, guide=1.55)
    answers = answer(model, tell, [[1, 97, 258]], max_new_tokens=20, eos=256)

A prompt is a list of parts: tokens, and rows that are given (`Rows`), such as a picture that was there before. A token
of a prompt that the program waits for has the program run where it stands, unless rows follow it, which are then what
it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..dsl.generation import Generation
from .decoder import Decoder, DecodeState, decoder_of
from .errors import GenerateFault
from .generate import seeds_of, stop_tokens
from .generate_program import GenerateProgram, Watch, scores_of
from .model import Model
from .new_rows import Part, Rows
from .sampling import Sampling, sample


@dataclass(frozen=True)
class Answer:
    """The whole sequence, its prompt included. `stopped` is the token that ended it (not among the parts), None when
    it reached the length."""

    parts: tuple[Part, ...]
    stopped: int | None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(part for part in self.parts if isinstance(part, int))

    @property
    def rows(self) -> tuple[Rows, ...]:
        return tuple(part for part in self.parts if isinstance(part, Rows))


@dataclass
class _Request:
    seed: int
    waiting: list[Part]  # of its prompt
    parts: list[Part] = field(default_factory=list)
    chosen: int = 0
    fired: int = 0  # by tokens that the model chose
    stopped: int | None = None
    is_done: bool = False

    def next_parts(self, events: Collection[int]) -> tuple[list[Part], int | None]:
        """The prompt up to the next token that is waited for, which is the second; None: to its end."""
        for i, part in enumerate(self.waiting):
            follows = self.waiting[i + 1] if i + 1 < len(self.waiting) else None
            if isinstance(part, int) and part in events and not isinstance(follows, Rows):
                given, self.waiting = self.waiting[: i + 1], self.waiting[i + 1 :]
                return given, part
        given, self.waiting = self.waiting, []
        return given, None


def generation_of(model: Model, name: str | None = None, /, **settings: object) -> Generation:
    """A `generate` declaration of a model's spec by name (None: the only one), for these parameters."""
    known = model.checked.generates
    if name is None and len(known) != 1:
        raise GenerateFault(f"{model.checked.source.name} has {len(known)} generate programs: {', '.join(known)}")
    if name is not None and name not in known:
        raise GenerateFault(f"{model.checked.source.name} has no generate program {name}; it has {', '.join(known)}")
    found = next(iter(known.values())) if name is None else known[name]
    return found.again(settings) if settings else found


def answer(
    model: Model,
    generation: Generation,
    prompts: Sequence[Sequence[Part]],
    max_new_tokens: int,
    eos: int | Collection[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | Sequence[int] = 0,
    begin: int | None = None,
    at_most: int = 1,
    stream: Callable[[int, Part], None] | None = None,
    watch: Watch | None = None,
    decoder: Decoder | None = None,
) -> list[Answer]:
    """Answers each prompt until `eos` or `max_new_tokens` that the model chose.

    What a request draws depends on its own seed: `seed` is one number (request i uses seed + i) or one for each.
    `begin` is put in front of every prompt, and is what an empty prompt is. `at_most`: how often the model itself may
    choose a token that is waited for; one more ends the request. `stream(request, part)` is called as parts are made.
    """
    if max_new_tokens < 0 or at_most < 0:
        raise GenerateFault(f"max_new_tokens is {max_new_tokens} and at_most {at_most}, not numbers from 0 up")
    if decoder is None:
        decoder = decoder_of(model) if generation.model is model.program else Decoder(model, generation.model)
    program = GenerateProgram(decoder, generation, begin, watch)
    program.forms.want_plain_tokens(generation.model.name)
    ends = stop_tokens(eos, generation.tokens.count)
    front: list[Part] = [] if begin is None else [begin]
    seeds = seeds_of(seed, len(prompts))
    requests = [_Request(own, [*front, *prompt]) for own, prompt in zip(seeds, prompts, strict=True)]
    for i, request in enumerate(requests):
        if not request.waiting or isinstance(request.waiting[-1], Rows):
            raise GenerateFault(f"prompt {i} ends without a token, and there is nothing to go on from")
    if not requests:
        return []
    rooms = [_room(program, request, max_new_tokens, at_most) for request in requests]
    run = _Run(program, requests, Sampling(temperature, top_k, top_p), ends, max_new_tokens, at_most, stream)
    with torch.inference_mode():
        run.to_end(decoder.begin(len(requests), max(rooms)))
    return [Answer(tuple(request.parts), request.stopped) for request in requests]


def _room(program: GenerateProgram, request: _Request, count: int, at_most: int) -> int:
    """Rows that a request may come to have."""
    asked = _Request(0, list(request.waiting))
    events = []
    while asked.waiting:
        _, token = asked.next_parts(program.events)
        events += [] if token is None else [program.room(token)]
    dearest = [max(kind) for kind in zip(*map(program.room, program.events), strict=True)] or [0, 0]
    kept = sum(kept for kept, _ in events) + at_most * dearest[0]
    return program.forms.size(request.waiting) + count + kept + dearest[1]


class _Run:
    """One batch. `running`: which request each sequence of the state is."""

    def __init__(
        self,
        program: GenerateProgram,
        requests: list[_Request],
        sampling: Sampling,
        ends: frozenset[int],
        max_new_tokens: int,
        at_most: int,
        stream: Callable[[int, Part], None] | None,
    ) -> None:
        self.program = program
        self.decoder = program.decoder
        self.requests = requests
        self.sampling = sampling
        self.ends = ends
        self.max_new_tokens = max_new_tokens
        self.at_most = at_most
        self.stream = stream
        self.running = list(range(len(requests)))
        self.scores_name = program.generation.tokens.scores

    def to_end(self, state: DecodeState) -> None:
        state, scores = self._prompts(state)
        for request in self.requests:
            request.is_done = self.max_new_tokens == 0
        while True:
            chosen = self._choose(scores, state)
            active = [not request.is_done for request in self._own()]
            if not any(active):
                return
            if sum(active) <= len(active) // 2:
                state, chosen = self._without_ended(state, chosen, active)
                active = [True] * state.size
            state, scores = self._step(state, chosen, active)

    def _own(self) -> list[_Request]:
        return [self.requests[which] for which in self.running]

    @property
    def _seeds(self) -> Tensor:
        return torch.tensor([request.seed for request in self._own()], device=self.decoder.model.device)

    # -- prompts -----------------------------------------------------------------------------------

    def _prompts(self, state: DecodeState) -> tuple[DecodeState, Tensor]:
        """Every prompt from end to end, with what the program does on the way, and scores [B, V] of what follows."""
        scores: Tensor | None = None
        while any(request.waiting for request in self.requests):
            taken = [request.next_parts(self.program.events) for request in self.requests]
            state, scores = self._feed(state, [parts for parts, _ in taken], scores)
            state, scores = self._fire(state, [token for _, token in taken], scores)
        assert scores is not None
        return state, scores

    def _feed(self, state: DecodeState, parts: list[list[Part]], scores: Tensor | None) -> tuple[DecodeState, Tensor]:
        for place, own in enumerate(parts):
            self._add(place, own, told=False)
        rows = self.program.forms.of_parts(parts)
        if scores is None:
            results, state = self.decoder.extend(state, rows, last_only=True)
            return state, scores_of(results, self.scores_name)
        results, state = self.decoder.extend(state, rows)
        found = scores_of(results, self.scores_name)
        scores, last = scores.clone(), -1
        for place, own in enumerate(parts):
            last += sum(self.program.forms.of(part) == self.program.forms.of_token for part in own)
            if own:
                scores[place] = found[last]
        return state, scores

    # -- going on ----------------------------------------------------------------------------------

    def _choose(self, scores: Tensor, state: DecodeState) -> Tensor:
        """The next token of each sequence [B], noted where its request still runs."""
        chosen = sample(scores, self.sampling, self._seeds, state.lengths)
        for place, (request, token) in enumerate(zip(self._own(), chosen.tolist(), strict=True)):
            if request.is_done:
                continue
            fires = token in self.program.events
            if token in self.ends or (fires and request.fired >= self.at_most):
                request.stopped, request.is_done = token, True
                continue
            request.chosen += 1
            request.fired += fires
            self._add(place, [token])
            # One that fires goes on for its event.
            request.is_done = request.chosen >= self.max_new_tokens and not fires
        return chosen

    def _step(self, state: DecodeState, chosen: Tensor, active: list[bool]) -> tuple[DecodeState, Tensor]:
        form = self.program.forms.of_token
        rows = {self.program.forms.token: chosen}
        if form.tag is not None:
            rows[form.tag[0]] = torch.full_like(chosen, form.tag[1])
        results, state = self.decoder.step(state, rows, None if all(active) else active)
        events = self.program.events
        fired = [token if on and token in events else None for token, on in zip(chosen.tolist(), active, strict=True)]
        state, scores = self._fire(state, fired, scores_of(results, self.scores_name))
        for request in self._own():
            request.is_done = request.is_done or request.chosen >= self.max_new_tokens
        return state, scores

    def _fire(self, state: DecodeState, tokens: list[int | None], scores: Tensor) -> tuple[DecodeState, Tensor]:
        """Runs the events of the sequences whose last row is a token that is waited for, those of one token
        together."""
        for token in dict.fromkeys(token for token in tokens if token is not None):
            places = [place for place, own in enumerate(tokens) if own == token]
            firing = self.program.fire(token, state, places, self._seeds)
            state = firing.state
            if firing.scores is not None:
                scores = scores.clone()
                scores[places] = firing.scores
            for place, kept in zip(places, firing.kept, strict=True):
                self._add(place, kept)
        return state, scores

    def _without_ended(self, state: DecodeState, chosen: Tensor, active: list[bool]) -> tuple[DecodeState, Tensor]:
        """Ended sequences are computed and ignored until they are half of the batch: leaving costs a copy."""
        kept = [place for place, flag in enumerate(active) if flag]
        self.running = [self.running[place] for place in kept]
        return self.decoder.select(state, kept), chosen[torch.tensor(kept, device=chosen.device)]

    def _add(self, place: int, parts: Sequence[Part], told: bool = True) -> None:
        which = self.running[place]
        self.requests[which].parts += parts
        if told and self.stream is not None:
            for part in parts:
                self.stream(which, part)
