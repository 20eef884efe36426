"""Running what a `generate` program does when its token has come: the model looked at, samplers, rows kept.

Requests that fire together are computed together; others are in the batch without new rows. Looks behind different
prompts are one batch too: its products round as those of any other number of rows. What a request draws depends on its
own seed and on how many rows it has, so alone it gets what it gets among others. Samplers compute in float32 at least,
whatever the model does. Letters: B sequences of the state, R requests that fire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..codegen.functions.packing import mix
from ..codegen.lower import lower, signature
from ..dsl.generation import (
    Action,
    Append,
    Compute,
    Event,
    Generation,
    Look,
    Looks,
    NewRows,
    Repeat,
    appended,
    looked_at,
)
from ..dsl.program import Constant, Program, Value
from ..dsl.value_type import Flag, Real
from .decoder import Decoder, DecodeState
from .draws import Draws, draw_arguments
from .new_rows import Form, Forms, Part, Rows

Watch = Callable[[int, int], None]


@dataclass
class Firing:
    """One event of some requests: `places` among the sequences of `state`. `keys` [R] tell their draws apart. `kept`:
    the parts that each got. `scores` [R, V] of the token after the last of them; None: nothing was kept. `alone`:
    behind the empty prompt. `beside`: R sequences behind each of several prompts, by which of them are empty."""

    state: DecodeState
    places: tuple[int, ...]
    keys: Tensor
    token: int
    kept: list[list[Part]]
    scores: Tensor | None = None
    alone: DecodeState | None = None
    beside: dict[tuple[bool, ...], DecodeState] = field(default_factory=dict)
    values: dict[Value, Tensor] = field(default_factory=dict)
    computed: int = 0  # straight runs so far: draws in two of them are two draws
    depth: int = 0


class GenerateProgram:
    """A generate declaration with the decoder of its model. `begin` is what stands in front of an empty prompt.
    `watch(turns done, turns)` is called as outermost loops run."""

    def __init__(
        self, decoder: Decoder, generation: Generation, begin: int | None = None, watch: Watch | None = None
    ) -> None:
        self.decoder = decoder
        self.generation = generation
        self.forms = Forms(decoder, generation.tokens)
        self.events: dict[int, Event] = {event.token: event for event in generation.events}
        self._front = [] if begin is None else [begin]
        self._watch = watch
        self._graphs: dict[Program, torch.fx.GraphModule] = {}
        self._working = torch.promote_types(decoder.dtype, torch.float32)

    def room(self, token: int) -> tuple[int, int]:
        """Rows that an event keeps, and those it needs besides for a time."""
        body = self.events[token].body
        kept = sum(self._form(rows).each for rows in appended(body))
        return kept, max((self._form(look.rows).each for look in looked_at(body)), default=0)

    def fire(self, token: int, state: DecodeState, places: Sequence[int], seeds: Tensor) -> Firing:
        """Does what is to be done for the sequences `places`, whose last row is `token`. `seeds` [B]."""
        index = torch.tensor(list(places), dtype=torch.int64, device=seeds.device)
        keys = mix(mix(seeds, 1), state.lengths)[index]
        firing = Firing(state, tuple(places), keys, token, [[] for _ in places])
        self._run(self.events[token].body, firing)
        return firing

    # -- actions -----------------------------------------------------------------------------------

    def _run(self, actions: Sequence[Action], firing: Firing) -> None:
        for action in actions:
            match action:
                case Compute():
                    self._compute(action.program, firing)
                case Look():
                    self._look((action,), firing)
                case Looks():
                    self._look(action.looks, firing)
                case Append():
                    self._append(action.rows, firing)
                case Repeat():
                    self._repeat(action, firing)

    def _compute(self, program: Program, firing: Firing) -> None:
        if program not in self._graphs:
            self._graphs[program] = lower(program, working=self._working)
        graph = self._graphs[program]
        arguments = [firing.values[value] for value in program.inputs]
        if signature(graph).draws:
            draws = Draws(0, firing.computed, firing.keys)
            arguments += draw_arguments(draws, len(firing.places), firing.keys.device)
        firing.computed += 1
        results = graph(*arguments)
        firing.values.update(zip((value for _, value in program.outputs), results, strict=True))

    def _look(self, looks: Sequence[Look], firing: Firing) -> None:
        count = len(firing.places)
        if len(looks) > 1:
            state = self._beside(tuple(look.alone for look in looks), firing)
        else:
            state = self._alone(firing) if looks[0].alone else firing.state
        places = firing.places if state is firing.state else range(count * len(looks))
        results = self.decoder.look(state, self._rows([look.rows for look in looks], firing, places, state.size))
        for i, look in enumerate(looks):
            for name, value in look.made:
                found = (results[name] if isinstance(results, dict) else results)[i * count : (i + 1) * count]
                firing.values[value] = found.to(self._working) if isinstance(value.type.kind, Real) else found

    def _append(self, rows: NewRows, firing: Firing) -> None:
        given = self._rows([rows], firing, firing.places, firing.state.size)
        results, firing.state = self.decoder.extend(firing.state, given)
        firing.beside.clear()
        tokens = self.generation.tokens
        is_token = rows.along is tokens.input.type.rows
        firing.scores = scores_of(results, tokens.scores) if is_token else None
        values = {name: given[name][0] for name, _ in rows.given}
        for i, kept in enumerate(firing.kept):
            own = {name: value[i] for name, value in values.items()}
            kept.append(int(own[tokens.input.name]) if is_token and len(own) == 1 else Rows(own))

    def _repeat(self, loop: Repeat, firing: Firing) -> None:
        values, device = firing.values, firing.keys.device
        for one in loop.carried:
            values[one.value] = self._value(one.start, firing)
        firing.depth += 1
        for done, turn in enumerate(loop.turns, 1):
            values[loop.variable] = torch.tensor(turn, device=device)
            self._run(loop.body, firing)
            ends = [self._value(one.end, firing) for one in loop.carried]
            values.update(zip((one.value for one in loop.carried), ends, strict=True))
            if self._watch is not None and firing.depth == 1:
                self._watch(done, len(loop.turns))
        firing.depth -= 1

    # -- rows --------------------------------------------------------------------------------------

    def _rows(self, each: Sequence[NewRows], firing: Firing, places: Sequence[int], size: int):
        """A row of one kind for each request, of the first of `each`, then of the next."""
        given = [dict(rows.given) for rows in each]
        values = {name: torch.cat([self._entries(one[name], firing) for one in given]) for name in given[0]}
        return self.forms.one_each(self._form(each[0]), values, places, size)

    def _form(self, rows: NewRows) -> Form:
        return self.forms.along(rows.along.name)

    def _entries(self, value: Value, firing: Firing) -> Tensor:
        """A value with one entry for each request: [R, *static]."""
        found, count = self._value(value, firing), len(firing.places)
        return found if value.type.per_example else found.expand(count, *found.shape)

    def _value(self, value: Value, firing: Firing) -> Tensor:
        if not isinstance(value, Constant):
            return firing.values[value]
        kind = value.type.kind
        dtype = self._working if isinstance(kind, Real) else torch.bool if isinstance(kind, Flag) else torch.int64
        return torch.tensor(value.number, dtype=dtype, device=firing.keys.device)

    def _alone(self, firing: Firing) -> DecodeState:
        """The empty prompt and the token, once for each request that fires."""
        if firing.alone is None:
            prompt = [*self._front, firing.token]
            capacity = len(prompt) + self.room(firing.token)[1]
            state = self.decoder.begin(1, capacity)
            _, state = self.decoder.extend(state, self.forms.of_parts([prompt]), last_only=True)
            count = len(firing.places)
            firing.alone = state if count == 1 else self.decoder.select(state, [0] * count)
        return firing.alone

    def _beside(self, alone: tuple[bool, ...], firing: Firing) -> DecodeState:
        """The requests' own rows, or the empty prompt, for each look. Made once for all turns of a loop: looks keep
        nothing."""
        if alone not in firing.beside:
            whole = range(len(firing.places))
            parts = [(self._alone(firing), whole) if one else (firing.state, firing.places) for one in alone]
            longest = max(state.known_lengths[place] for state, places in parts for place in places)
            capacity = longest + self.room(firing.token)[1]
            states = [self.decoder.select(state, places, capacity) for state, places in parts]
            firing.beside[alone] = self.decoder.beside(states)
        return firing.beside[alone]


def scores_of(results, name: str) -> Tensor:
    """Scores for the next token among a decoder's results."""
    return results[name] if isinstance(results, dict) else results
