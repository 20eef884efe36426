"""Prompts to text and pictures: a checkpoint whose spec has a `generate` program, with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.dsl.generation import Generation, appended
from weft.faults import CommandFault
from weft.picture_files import PictureForm, picture_input
from weft.runtime.answer import Answer, answer, generation_of
from weft.runtime.latent_scale import LatentScale
from weft.runtime.model import Model
from weft.runtime.new_rows import Part
from weft.runtime.tokens import Tokens, load_tokens, marks_begin
from weft.text_generation import PRECISIONS
from weft.trained_models import open_checkpoint


@dataclass(frozen=True)
class AnsweringModel:
    model: Model
    generation: Generation
    tokens: Tokens
    begin: int | None  # what the run put in front of every document
    picture: PictureForm | None
    latents: LatentScale | None = None  # of the pictures that it learned from

    @property
    def picture_token(self) -> int:
        """The token at which the program makes a picture."""
        name = None if self.picture is None else self.picture.name
        found = [
            event.token
            for event in self.generation.events
            if any(name == given for rows in appended(event.body) for given, _ in rows.given)
        ]
        if len(found) != 1:
            what = f"{len(found)} events of {self.generation.name} make a picture"
            raise CommandFault(f"{what}, so --picture does not say which token to put behind the prompt", 2)
        return found[0]


@dataclass(frozen=True)
class Told:
    """An answer for people: pieces of text, and pictures where they stand. `ended`: by the model itself."""

    pieces: tuple[str | Tensor, ...]
    tokens: tuple[int, ...]
    ended: bool

    @property
    def pictures(self) -> tuple[Tensor, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Tensor))


def open_answering(
    path: str,
    name: str | None,
    settings: Mapping[str, str],
    tokenizer: str | None,
    precision: str | None,
    device: str | None,
    threads: int | None,
    tuning: str | None,
) -> AnsweringModel:
    """The newest checkpoint of a run, or the one named. `name` and `settings` are of its spec's generate program."""
    if threads is not None:
        torch.set_num_threads(threads)
    if precision is not None and precision not in PRECISIONS:
        raise CommandFault(f"--precision is one of {', '.join(PRECISIONS)}, not {precision}", 2)
    opened = open_checkpoint(path, device, PRECISIONS.get(precision or ""), tuning)
    if not opened.model.checked.generates:
        raise CommandFault(f"the spec of {opened.folder} has no generate program: weft generate continues text", 2)
    generation = generation_of(opened.model, name, **settings)
    run = opened.manifest.run or {}
    called = tokenizer or run.get("tokenizer", "bytes")
    vocabulary = load_tokens(called, generation.tokens.count, run.get("end_token"))
    begin = vocabulary.begin if marks_begin(called, opened.manifest.run) else None
    picture, latents = picture_input(generation.model), opened.manifest.latents
    return AnsweringModel(opened.model, generation, vocabulary, begin, picture, latents)


def tell(
    opened: AnsweringModel,
    prompts: Sequence[str],
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop_at_end: bool,
    with_picture: bool,
    at_most: int,
    watch: Callable[[int, int], None] | None,
) -> list[Told]:
    """Answers all prompts together. `with_picture` has a picture made behind each of them."""
    mark = [opened.picture_token] if with_picture else []
    encoded: list[list[Part]] = [[*opened.tokens.encode(prompt), *mark] for prompt in prompts]
    if opened.begin is None:
        first = opened.tokens.begin if opened.tokens.begin is not None else opened.tokens.end
        encoded = [parts if parts or first is None else [first] for parts in encoded]
    found = answer(
        opened.model,
        opened.generation,
        encoded,
        count,
        eos=opened.tokens.end if stop_at_end else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        begin=opened.begin,
        at_most=at_most,
        watch=watch,
    )
    return [Told(_pieces(opened, one), one.tokens, one.stopped is not None) for one in found]


def _pieces(opened: AnsweringModel, found: Answer) -> tuple[str | Tensor, ...]:
    """Text in one piece between pictures. Other rows than pictures say nothing."""
    name = "" if opened.picture is None else opened.picture.name
    pieces: list[str | Tensor] = []
    ids: list[int] = []
    for part in found.parts:
        if isinstance(part, int):
            ids.append(part)
        elif name in part.values:
            pieces += [opened.tokens.decode(ids), part.values[name]]
            ids = []
    return (*pieces, opened.tokens.decode(ids))
