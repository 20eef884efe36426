"""Entropies of documents: how hard each next token is to foresee, by a trained model.

The value is the model's own `surprise` (or another real along the rows that it binds), else the entropy in nats of the
distribution that a language model predicts at each token, about the one after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..dsl.program import Program
from ..dsl.value_type import Id, Real
from .errors import RuntimeFault
from .model import Model
from .packed import Packed, offsets_of

BOUND = "surprise"


@dataclass(frozen=True)
class Measure:
    """What is computed: a value the model binds, or (None) the entropy of its predictions. `vocab` is of its input."""

    bound: str | None
    vocab: int


def measure_of(model: Model, name: str | None = None) -> Measure:
    """What a model measures of each token. `name` asks for a binding."""
    program = model.program
    inputs = program.inputs
    kind = inputs[0].type.kind if len(inputs) == 1 else None
    if not isinstance(kind, Id) or len(inputs[0].type.axes) != 1 or not inputs[0].type.axes[0].is_ordered:
        takes = ", ".join(f"{value.name}: {value.type}" for value in inputs)
        raise RuntimeFault(f"{program.name} takes {takes}; text gives one input of ids along an axis")
    wanted = name or (BOUND if BOUND in program.bindings else None)
    if wanted is None:
        if not _predicts(program, kind):
            raise RuntimeFault(
                f"{program.name} binds no {BOUND} and does not predict the next token: there is no entropy to measure"
            )
        return Measure(None, kind.count)
    value = program.bindings.get(wanted)
    if value is None:
        raise RuntimeFault(f"{program.name} binds no {wanted} once; it binds {', '.join(program.bindings) or 'none'}")
    if not isinstance(value.type.kind, Real) or value.type.rows is not inputs[0].type.rows or value.type.static_axes:
        raise RuntimeFault(f"{wanted} is {value.type}: one real for each token was wanted")
    return Measure(wanted, kind.count)


def _predicts(program: Program, kind: Id) -> bool:
    if len(program.outputs) != 1:
        return False
    scored = program.outputs[0][1].type
    return scored.rows is program.inputs[0].type.rows and scored.static_axes == (kind.axis,)


def measure_documents(
    model: Model,
    measure: Measure,
    documents: Sequence[np.ndarray],
    window: int = 0,
    tokens_per_batch: int = 8192,
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[np.ndarray]:
    """float32 values for each token of each document (ids with marks).

    `window` 0 reads each document from its start, whole; else it is read in windows of so many tokens, each from its
    own start, as a run with that `max_length` reads it.
    """
    pieces: list[np.ndarray] = []
    for batch in _batches(_pieces(documents, window), tokens_per_batch):
        pieces += measure_batch(model, measure, batch)
        progress(sum(map(len, batch)))
    left = iter(pieces)
    found = []
    for ids in documents:
        count = -(-len(ids) // window) if window else 1
        found.append(np.concatenate([next(left) for _ in range(count)]))
    return found


@torch.no_grad()
def measure_batch(model: Model, measure: Measure, examples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """float32 values for each token of each example, all in one call."""
    lengths = [len(ids) for ids in examples]
    packed = (torch.from_numpy(np.concatenate(examples).astype(np.int64)), offsets_of(lengths))
    if measure.bound is None:
        result = model(packed)
        assert isinstance(result, Packed)
        values = entropy_of(result.values)
    else:
        result = model.values((measure.bound,), packed)[measure.bound]
        values = result.values
    if not torch.isfinite(values).all():
        raise RuntimeFault("a value is not a finite number: the weights are damaged, or of a run that went wrong")
    return np.split(values.float().cpu().numpy(), np.cumsum(lengths)[:-1])


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy over the last axis in nats, in at least float32, as specs/std/loss.weft has it: [N, vocab] -> [N]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def _pieces(documents: Sequence[np.ndarray], window: int) -> Iterator[np.ndarray]:
    for ids in documents:
        for begin in range(0, len(ids), window or len(ids)):
            yield ids[begin : begin + (window or len(ids))]


def _batches(pieces: Iterator[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    rows = 0
    for ids in pieces:
        if batch and rows + len(ids) > most:
            yield batch
            batch, rows = [], 0
        batch.append(ids)
        rows += len(ids)
    if batch:
        yield batch
