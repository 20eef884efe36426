"""Examples of words and whole pictures for random specs: their rows, inputs that agree with them, parts of them.

A document is a letter for each of its parts: `l` and `h` are words with the tags low and high, `p` is a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weft.dsl.program import Program

from . import op_samples

WORDS, PICTURE = "lh", "p"
TAGS = {"l": 0, "h": 1, PICTURE: 2}


def lengths_of(documents: Sequence[str], spots: int) -> dict[str, tuple[int, ...]]:
    """Rows of each document along each axis."""
    pictures = tuple(document.count(PICTURE) for document in documents)
    words = tuple(len(document) - n for document, n in zip(documents, pictures, strict=True))
    places = tuple(n * spots for n in pictures)
    rows = tuple(a + b for a, b in zip(words, places, strict=True))
    return {"seq": rows, "word": words, "place": places, "picture": pictures}


def inputs_of(program: Program, documents: Sequence[str], spots: int, seed: int) -> list[Tensor]:
    """Inputs of a program, packed."""
    values = op_samples.inputs(program, lengths_of(documents, spots), seed=seed)
    tags = [TAGS[part] for document in documents for part in document for _ in range(rows_of(part, spots))]
    names = [value.name for value in program.inputs]
    values[names.index("kind")] = torch.tensor(tags, dtype=torch.int64)
    return values


def rows_of(part: str, spots: int) -> int:
    return spots if part == PICTURE else 1


def between(
    documents: Sequence[str], begins: Sequence[int], ends: Sequence[int], spots: int
) -> dict[str, list[tuple[int, int]]]:
    """Along each axis, the rows of each document that its parts `begin` to `end` have."""
    before, upto = (
        lengths_of([one[:end] for one, end in zip(documents, bounds, strict=True)], spots) for bounds in (begins, ends)
    )
    return {axis: list(zip(before[axis], upto[axis], strict=True)) for axis in before}
