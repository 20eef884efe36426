"""What the writer of random specs knows of each value, and how it picks among the values in reach.

A `Typed` carries what the rules of the language ask about a value (kind, level, static axes, missing rows) and three
things of the writer's own: whether it may look ahead, whether decisions about it are safe, how large it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

REAL, INT, FLAG, TAG = "real", "int", "flag", "tone"
EXAMPLE = "example"
# More entries a row, or a larger number, and the checks take long or lose digits.
MOST_ENTRIES = 150
LARGEST = 30.0


@dataclass(frozen=True)
class Typed:
    """`text` stands where an operand may. `level` is None for weights, `example`, or an ordered axis; an id's kind is
    the axis it counts.

    `ahead`: on rows, it may depend on later rows of the main axis; elsewhere, on any of them. `is_plain`: its entries
    differ, and none is near zero, almost surely: rounding cannot turn a decision about them. `size`: how large its
    entries tend to be. `is_bound_once`: an objective may read it by its name.
    """

    text: str
    kind: str
    level: str | None
    axes: tuple[str, ...] = ()
    missing: bool = False
    ahead: bool = False
    is_plain: bool = False
    size: float = 1.0
    is_bound_once: bool = True

    @property
    def is_real(self) -> bool:
        return self.kind == REAL

    @property
    def is_whole_real(self) -> bool:
        return self.is_real and not self.missing

    @property
    def has_rows(self) -> bool:
        return self.level not in (None, EXAMPLE)


@dataclass(frozen=True)
class Block:
    """A block of the spec: `call` writes its arguments; `ahead`: its rows read later ones."""

    name: str
    call: Callable[[Writer], Typed | None]


@dataclass
class Writer:
    """Writes the statements of one body. `row` is its main ordered axis, `rows` all that it may use; `sizes` the
    static axes with their lengths, None where a generic block does not know.

    `cut`: a `segment` stands at the start of the body. `causal`: nothing may look ahead. `claims`: `next` may be
    written, which an objective would take for a target.
    `names` is shared by all bodies of a spec, so that every name is bound once.
    """

    chance: Random
    sizes: dict[str, int | None]
    row: str
    rows: tuple[str, ...]
    causal: bool
    names: count[int]
    values: list[Typed] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    blocks: tuple[Block, ...] = ()
    is_generic: bool = False
    claims: bool = False
    cut: str | None = None  # an axis whose rows are segments of `row`

    # -- choosing ----------------------------------------------------------------------------------

    def pick(self, items: Iterable):
        return self.chance.choice(tuple(items))

    def maybe(self, probability: float = 0.5) -> bool:
        return self.chance.random() < probability

    def number(self, low: float = 0.2, high: float = 1.9) -> str:
        return f"{self.chance.uniform(low, high):.3g}"

    def value(self, test: Callable[[Typed], bool]) -> Typed | None:
        """A value in reach, later ones more often."""
        found = [value for value in self.values if test(value)]
        return found[int(len(found) * self.chance.random() ** 0.6)] if found else None

    def real(self, test: Callable[[Typed], bool] = lambda value: True) -> Typed | None:
        """A real value without missing rows."""
        return self.value(lambda value: value.is_whole_real and test(value))

    def name(self, letter: str = "h") -> str:
        return f"{letter}{next(self.names)}"

    # -- sizes -------------------------------------------------------------------------------------

    def length(self, axis: str) -> int:
        return self.sizes[axis] or 4

    def fits(self, axes: Iterable[str]) -> bool:
        axes = tuple(axes)
        entries = 1
        for axis in axes:
            entries *= self.length(axis)
        return entries <= MOST_ENTRIES and len(set(axes)) == len(axes) <= 4

    def known(self) -> list[str]:
        """Static axes of a known length."""
        return [axis for axis, size in self.sizes.items() if size is not None]

    # -- writing -----------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append(f"    {text}")

    def bind(self, made: Typed, label: str = "") -> Typed:
        """A statement that names a value."""
        if made.is_real and made.size > LARGEST and not label:
            made = replace(made, text=f"tanh({made.text})", size=1.0, is_plain=False)
        name = self.name()
        self.line(f"{name} = {made.text}{label}")
        bound = replace(made, text=name)
        self.values.append(bound)
        return bound

    def inner(self, **changes) -> Writer:
        """A writer for a nested body: it sees these values, and what it binds stays there."""
        return replace(self, values=list(self.values), lines=[], **changes)

    def adopt(self, inner: Writer) -> None:
        """Takes a nested body's lines in, one step further right."""
        self.lines += [f"    {line}" for line in inner.lines]


def level_of(values: Iterable[Typed]) -> str | None:
    """The lowest level of several that may meet (`meet`)."""
    levels = {value.level for value in values} - {None}
    rows = levels - {EXAMPLE}
    return next(iter(rows)) if rows else EXAMPLE if levels else None


def meet(a: Typed, b: Typed) -> bool:
    """Whether two values may stand side by side: not along two ordered axes."""
    return not (a.has_rows and b.has_rows and a.level != b.level)


def contains(a: Typed, b: Typed) -> bool:
    """Whether one's static axes contain the other's."""
    return set(a.axes) <= set(b.axes) or set(b.axes) <= set(a.axes)


def joined(kind: str, text: str, values: Iterable[Typed], **known) -> Typed:
    """The row-by-row result of several values."""
    values = tuple(values)
    found = {
        "level": level_of(values),
        "axes": max((value.axes for value in values), key=len),
        "missing": any(value.missing for value in values),
        "ahead": any(value.ahead for value in values),
    }
    return Typed(text, kind, **{**found, **known})


def decided(writer: Writer, value: Typed) -> str:
    """The value as a decision may read it: one whose zeros and ties may be rounding is shifted off them."""
    return value.text if value.is_plain else f"({value.text} + {writer.number(0.011, 0.019)})"


def listed(axes: Iterable[str]) -> str:
    axes = tuple(axes)
    return axes[0] if len(axes) == 1 else f"({', '.join(axes)})"
