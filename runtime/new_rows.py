"""New rows of a model with rows of several kinds, as its decoder takes them: tokens, and pictures with their places.

A `Part` is one row that something is given for: a token by its number, anything else by the inputs it has. Rows of a
picture are one part, whatever the number of its rows on the decoded axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..codegen.signature import Slot
from ..dsl.axes import Axis, Cut
from ..dsl.generation import Tokens, tag_of
from ..dsl.program import Program
from .decoder import Decoder
from .errors import GenerateFault
from .packed import offsets_of


@dataclass(frozen=True)
class Rows:
    """What the inputs of one part are, by name: `[*static axes]` each."""

    values: Mapping[str, Tensor]


Part = int | Rows


@dataclass(frozen=True)
class Form:
    """What a part along some axis is on the decoded axis: `each` rows, which `tag` says of (an input, and its number
    there)."""

    along: str
    each: int
    tag: tuple[str, int] | None


class Forms:
    """The forms that new rows of a model have."""

    def __init__(self, decoder: Decoder, tokens: Tokens) -> None:
        plan = decoder.graphs.plan
        self.whole = plan.axis.name
        self.dtype = decoder.dtype
        self.slots: tuple[Slot, ...] = decoder.graphs.row_signature.inputs
        self.token = tokens.input.name
        axes = dict.fromkeys(value.type.rows for value in plan.row_inputs)
        self._of = {axis.name: _form(decoder.program, axis) for axis in axes if axis is not None}
        self._along = {slot.name: slot.rows for slot in self.slots}

    @cached_property
    def of_token(self) -> Form:
        return self._of[str(self._along[self.token])]

    def want_plain_tokens(self, model: str) -> None:
        """Text goes on by tokens alone: an input besides them has nobody who gives it."""
        own = {self.whole, self._along[self.token]}
        told = {self.token} | ({self.of_token.tag[0]} if self.of_token.tag else set())
        more = [slot.name for slot in self.slots if slot.rows in own and slot.name not in told]
        if more:
            raise GenerateFault(f"a token of {model} has {more[0]}, too, and text goes on with tokens alone")

    def along(self, axis: str) -> Form:
        return self._of[axis]

    def of(self, part: Part) -> Form:
        if isinstance(part, int):
            return self.of_token
        axes = {self._along.get(name) for name in part.values}
        named = sorted(str(axis) for axis in axes - {self.whole})
        if None in axes or len(named) > 1 or not axes:
            raise GenerateFault(f"rows of {', '.join(part.values) or 'nothing'} are no rows of one axis of the model")
        return self._of[named[0] if named else self.whole]

    def size(self, parts: Sequence[Part]) -> int:
        """Rows of the decoded axis."""
        return sum(self.of(part).each for part in parts)

    # -- as inputs ---------------------------------------------------------------------------------

    def of_parts(self, parts: Sequence[Sequence[Part]]) -> dict[str, tuple[Tensor, Tensor]]:
        """The decoder's inputs, packed, for parts of each sequence in order."""
        pieces: dict[str, list[list[Tensor]]] = {slot.name: [[] for _ in parts] for slot in self.slots}
        for i, own in enumerate(parts):
            for part in own:
                form = self.of(part)
                given = {self.token: torch.tensor(part)} if isinstance(part, int) else part.values
                for name, value in given.items():
                    pieces[name][i].append(value[None])
                if form.tag is not None:
                    pieces[form.tag[0]][i].append(torch.full((form.each,), form.tag[1]))
        return {slot.name: self._packed(slot, pieces[slot.name]) for slot in self.slots}

    def one_each(self, form: Form, values: Mapping[str, Tensor], places: Sequence[int], size: int) -> Any:
        """The same for one part of each of the sequences `places`, of `size` in all. `values`: `[places, ...]`."""
        has = [int(i in set(places)) for i in range(size)]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for slot in self.slots:
            if slot.name in values:
                found[slot.name] = values[slot.name], offsets_of(has)
            elif form.tag is not None and slot.name == form.tag[0]:
                tags = torch.full((form.each * len(places),), form.tag[1])
                found[slot.name] = tags, offsets_of([form.each * n for n in has])
            else:
                found[slot.name] = self._packed(slot, [[] for _ in has])
        return found

    def _packed(self, slot: Slot, pieces: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        rows = [piece for own in pieces for piece in own]
        kind = self.dtype if slot.kind == "real" else torch.bool if slot.kind == "flag" else torch.int64
        values = torch.cat(rows) if rows else torch.empty((0, *slot.shape), dtype=kind)
        return values, offsets_of([sum(len(piece) for piece in own) for own in pieces])


def _form(program: Program, axis: Axis) -> Form:
    cut = program.shown.get(axis)
    each = cut.kind.each if cut is not None and isinstance(cut.kind, Cut) else 1
    return Form(axis.name, each, tag_of(program, axis))
