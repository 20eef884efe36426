"""What kind of attention a call is, apart from its tensors: the text that names its kernels.

Custom ops take tensors, numbers and text. A form is written as text when a graph is made and read back where kernels
are chosen, so equal text means equal kernels.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from .formula import Entry, Formula, Row, applied, from_tuple, to_tuple
from .triton_types import TRITON_TYPES

# Of a table whose gradient is made beside that of the queries: sums of all entries stay in registers.
MOST_ENTRIES = 1024


@dataclass(frozen=True)
class Captured:
    """A tensor that the score or the mask reads: `[rows of side]`, or `[rows, heads]` if has_heads. Of the side "table"
    are `[entries]`, or `[heads, entries]`."""

    side: str
    type: str
    has_heads: bool
    has_gradient: bool
    entries: int = 0

    @property
    def is_table(self) -> bool:
        return self.side == "table"


@dataclass(frozen=True)
class AttentionForm:
    """softmax(score(scale * q . k) + bias) over the keys in a row's bounds for which `predicate` holds.

    has_exact_key_bounds: the bounds of a key hold no query but those whose bounds hold the key. Where they are looser,
    no tile can be taken to be wholly seen from the key's side.
    """

    scale: float
    score: Formula | None = None
    predicate: Formula | None = None
    captured: tuple[Captured, ...] = ()
    has_exact_key_bounds: bool = True

    @property
    def trained_tables(self) -> tuple[int, ...]:
        """Captured tables that have a gradient."""
        return tuple(index for index, c in enumerate(self.captured) if c.is_table and c.has_gradient)

    @property
    def has_long_table(self) -> bool:
        """One whose gradient kernels do not make: they visit the entries that a tile reads one by one."""
        return any(self.captured[index].entries > MOST_ENTRIES for index in self.trained_tables)

    @property
    def text(self) -> str:
        score = None if self.score is None else to_tuple(self.score)
        predicate = None if self.predicate is None else to_tuple(self.predicate)
        captured = tuple((c.side, c.type, c.has_heads, c.has_gradient, c.entries) for c in self.captured)
        return repr((self.scale, score, predicate, captured, self.has_exact_key_bounds))


@lru_cache(maxsize=1024)
def read_form(text: str) -> AttentionForm:
    scale, score, predicate, captured, is_exact = ast.literal_eval(text)
    return AttentionForm(
        scale,
        None if score is None else from_tuple(score),
        None if predicate is None else from_tuple(predicate),
        tuple(Captured(*fields) for fields in captured),
        is_exact,
    )


@lru_cache(maxsize=1024)
def without_gradients(text: str) -> str:
    """The form of the forward kernel, which is the same whatever is trained."""
    form = read_form(text)
    return replace(form, captured=tuple(replace(c, has_gradient=False) for c in form.captured)).text


@dataclass
class Capture:
    """Turns nested tuples that hold tensors into a formula and a list of those tensors.

    `position` gives the tensor read by ("query", "position") and ("key", "position").
    """

    position: Callable[[str], Tensor]
    tensors: list[Tensor]
    captured: list[Captured]

    def formula(self, nested: tuple[Any, ...], differentiates: bool) -> Formula:
        match nested:
            case ("query" | "key" as side, read):
                tensor = self.position(side) if isinstance(read, str) else read
                return Row(side, self._index(side, tensor, differentiates))
            case ("entry", table, at):
                return Entry(self._index("table", table, differentiates), self.formula(at, False))
            case ("number" | "score", *_):
                return from_tuple(nested)
            case (str() as name, *parts):
                return applied(name, tuple(self.formula(part, differentiates) for part in parts))
            case _:
                raise ValueError(f"not a formula of a score: {nested!r}")

    def _index(self, side: str, tensor: Tensor, differentiates: bool) -> int:
        needs = differentiates and tensor.is_floating_point() and tensor.requires_grad
        entries = tensor.shape[-1] if side == "table" else 0
        entry = Captured(side, TRITON_TYPES[tensor.dtype], tensor.dim() == 2, needs, entries)
        for index, (known, given) in enumerate(zip(self.captured, self.tensors, strict=True)):
            if given is tensor and known == entry:
                return index
        self.tensors.append(tensor)
        self.captured.append(entry)
        return len(self.tensors) - 1
