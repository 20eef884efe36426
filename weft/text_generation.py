"""Text in, text out: a checkpoint with its tokenizer, and ids turned into text as they come.

The runtime generates ids; what they spell, and when enough of them are there to print, is settled here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weft.dsl.program import Program
from weft.dsl.value_type import Id
from weft.faults import CommandFault
from weft.runtime.decoder import Decoder, decoder_of
from weft.runtime.errors import GenerateFault
from weft.runtime.generate import generate, vocabulary_of
from weft.runtime.model import Model
from weft.runtime.tokens import Tokens, load_tokens, marks_begin
from weft.trained_models import open_checkpoint

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class TextModel:
    """A model with its decoder, and the vocabulary it speaks."""

    model: Model
    decoder: Decoder
    tokens: Tokens
    begin: int | None  # what the run put in front of every document


@dataclass(frozen=True)
class TextContinuation:
    """`ended` says that the model itself ended the document."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


class TextStream:
    """Ids to text, piece by piece. A character may take several ids, and a piece may depend on the one before."""

    def __init__(self, tokens: Tokens, before: Sequence[int], write: Callable[[str], object]) -> None:
        self._tokens = tokens
        self._write = write
        # A few ids in front, because a tokenizer may drop the space of a first word.
        self._ids = list(before[-8:])
        self._start, self._shown = 0, len(self._ids)

    def add(self, token: int) -> None:
        self._ids.append(token)
        self._emit(last=False)

    def close(self) -> None:
        """What was held back: a character that never became whole."""
        self._emit(last=True)

    def _emit(self, last: bool) -> None:
        known = self._tokens.decode(self._ids[self._start : self._shown])
        text = self._tokens.decode(self._ids[self._start :])
        if len(text) <= len(known) or (text.endswith(BROKEN) and not last):
            return
        self._write(text[len(known) :])
        self._start, self._shown = self._shown, len(self._ids)


def open_text_model(
    path: str,
    tokenizer: str | None,
    precision: str | None,
    device: str | None,
    threads: int | None,
    of: str | None = None,
    tuning: str | None = None,
    mapped: bool = False,
    hot: float | None = None,
) -> TextModel:
    """The newest checkpoint of a run, or the one named, with the tokenizer it was trained with. `of` names a model of
    its spec; without it, the main one is meant, or the only one that continues ids. `mapped` and `hot` are those of
    `model.load`."""
    if threads is not None:
        torch.set_num_threads(threads)
    if precision is not None and precision not in PRECISIONS:
        raise CommandFault(f"--precision is one of {', '.join(PRECISIONS)}, not {precision}", 2)
    opened = open_checkpoint(path, device, PRECISIONS.get(precision or ""), tuning, mapped, hot)
    model = opened.model
    program = _program(model, of)
    decoder = decoder_of(model) if program is model.program else Decoder(model, program)
    run = opened.manifest.run or {}
    name = tokenizer or run.get("tokenizer", "bytes")
    vocabulary = load_tokens(name, _vocabulary(decoder, model), run.get("end_token"))
    begin = vocabulary.begin if marks_begin(name, opened.manifest.run) else None
    return TextModel(model, decoder, vocabulary, begin)


def continue_text(
    opened: TextModel,
    prompts: Sequence[str],
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop_at_end: bool,
    write: Callable[[str], object] | None,
) -> list[TextContinuation]:
    """Continues all prompts together. `write` receives the first prompt's text as it is made."""
    tokens = opened.tokens
    encoded = [tokens.encode(prompt) for prompt in prompts]
    begin = opened.begin
    if begin is None:
        # An empty prompt begins a document: after the mark that ends one, if there is nothing better.
        mark = tokens.begin if tokens.begin is not None else tokens.end
        encoded = [ids if ids or mark is None else [mark] for ids in encoded]
    stream = TextStream(tokens, encoded[0], write) if write is not None else None
    found = generate(
        opened.model,
        encoded,
        count,
        eos=tokens.end if stop_at_end else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        begin=begin,
        decoder=opened.decoder,
        stream=(lambda which, token: stream.add(token) if which == 0 else None) if stream is not None else None,
    )
    if stream is not None:
        stream.close()
    return [TextContinuation(tokens.decode(one.tokens), one.tokens, one.stopped is not None) for one in found]


def _vocabulary(decoder: Decoder, model: Model) -> int:
    try:
        return vocabulary_of(decoder)
    except GenerateFault as fault:
        if not model.checked.generates:
            raise
        raise CommandFault(f"{fault}; `weft sample` runs the spec's generate program") from None


def _program(model: Model, of: str | None) -> Program:
    models = model.checked.models
    if of is not None:
        if of not in models:
            raise CommandFault(f"{model.checked.source.name} has no model {of}; it has {', '.join(models)}", 2)
        return models[of]
    able = [program for program in models.values() if _continues_ids(program)]
    if model.program in able or not able:
        return model.program
    if len(able) > 1:
        raise CommandFault(f"several models continue ids: --of {' or --of '.join(p.name for p in able)}", 2)
    return able[0]


def _continues_ids(program: Program) -> bool:
    """Whether the one output scores the ids of an input along the same axis."""
    if len(program.outputs) != 1:
        return False
    scored = program.outputs[0][1].type
    rows, axes = scored.rows, scored.static_axes
    fed = [value.type for value in program.inputs if rows is not None and value.type.rows is rows]
    return len(fed) == 1 and isinstance(fed[0].kind, Id) and not fed[0].static_axes and axes == (fed[0].kind.axis,)
