"""Axes: named, compared by identity, arranged in a tree of levels (SEMANTICS 2).

Two axes of equal length are still two axes. Static axes have a length known at check time; ordered axes (ragged and
what is derived from them) have a length per example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .length import Length
from .record import record
from .source import Span

if TYPE_CHECKING:
    from .program import Value


@record
class Static:
    """A fixed number of entries."""


@record
class Ragged:
    """One length per example, given by an input."""


@record
class Nested:
    """`axis pixel in picture`: one length per row of the parent."""

    parent: Axis


@record
class Side:
    """One side of a grid: its normal form and its number."""

    length: Length
    size: int


@record
class Grid:
    """`axis image grid`: height and width per example, row-major. `grid(32, 32)` is static with `sides`."""

    sides: tuple[Side, Side] | None = None


@record
class Scaled:
    """`axis half = image / 2`: ceil-divided (per side for a grid)."""

    parent: Axis
    divisor: int


@record
class Cut:
    """`axis patch cut from seq`: born in `segment`.

    With an `owner`, where its rows' own rows stand among others: `flatten(z, (picture, spot) -> place)`, with places
    selected from seq, makes a segment of each picture's `each` rows. They are neighbours on seq too, and are there
    together. That is the data's to keep, and checked in every batch.
    """

    parent: Axis
    owner: Axis | None = None
    each: int = 0


@record(eq=False)
class Group:
    """The examples that run an arm of a `match` on a tag per example: those whose tag `by` is one of `members`. They
    are counted among the examples of `parent`; None: all of the call."""

    name: str
    by: Value
    members: tuple[int, ...]
    parent: Group | None
    span: Span


@record
class Selected:
    """`axis word = seq where kind == text`. `tag` is the tag's parameter name, `members` are its values.

    The axes of arms (`routed by`, `match`) are selections too. They know the tag's value, `by`, and their rows keep the
    numbers they have in `parent`. With a tag per example, `group` says which examples have all their rows, the others
    having none.
    """

    parent: Axis
    tag: str
    members: tuple[str, ...]
    by: Value | None = None
    group: Group | None = None


@record
class Joined:
    """`axis talk = ask + answer`, `axis line = 1 + token`: parts in order, an int is that many rows in front."""

    parts: tuple[Axis | int, ...]


@record
class ByCase:
    """`axis cell = match worth: ...`: chosen per example by an enum."""

    tag: str
    cases: tuple[tuple[str, Axis], ...]


AxisKind = Static | Ragged | Nested | Grid | Scaled | Cut | Selected | Joined | ByCase


@record(eq=False)
class Axis:
    """One axis. `length` is its normal form over sizes (static) or over ragged axes (scaled); `size` its number if
    static."""

    name: str
    kind: AxisKind
    length: Length
    size: int | None
    span: Span

    @property
    def is_static(self) -> bool:
        return self.size is not None

    @property
    def is_ordered(self) -> bool:
        """Rows of it are stored packed: everything that is not static."""
        return self.size is None

    @property
    def parent(self) -> Axis | None:
        """The axis whose rows own rows of this one in the axis tree; None: the example."""
        return self.kind.parent if isinstance(self.kind, Nested) else None

    @property
    def whole(self) -> Axis:
        """The axis that a selection is made from, through all selections; itself for any other."""
        return self.kind.parent.whole if isinstance(self.kind, Selected) else self

    @property
    def ancestors(self) -> tuple[Axis, ...]:
        """Parents upwards, nearest first."""
        return () if self.parent is None else (self.parent, *self.parent.ancestors)

    def __repr__(self) -> str:
        return f"<{self.name}>"
