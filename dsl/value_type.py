"""Types of values: what one entry is, which axes it has, and the level at which it lives (SEMANTICS 1 and 2)."""

from __future__ import annotations

from dataclasses import replace

from .axes import Axis, Group
from .record import record
from .source import Span


@record
class Real:
    def __str__(self) -> str:
        return "real"


@record
class Int:
    """64 bits, wraps."""

    def __str__(self) -> str:
        return "int"


@record
class Flag:
    def __str__(self) -> str:
        return "flag"


@record(eq=False)
class EnumType:
    """A declared enum. Identity is the declaration."""

    name: str
    members: tuple[str, ...]
    span: Span


@record
class Tag:
    enum: EnumType

    def __str__(self) -> str:
        return self.enum.name


@record
class Id:
    """An integer 0 .. count-1 of `axis` (a static axis or a size used as one); `or_none` adds the value `count`."""

    axis: Axis
    or_none: bool = False

    @property
    def count(self) -> int:
        assert self.axis.size is not None
        return self.axis.size + self.or_none

    def __str__(self) -> str:
        return f"id in {self.axis.name}" + (" or none" if self.or_none else "")


Kind = Real | Int | Flag | Tag | Id


@record
class ValueType:
    """`kind` and `axes`: ordered axes first, then static ones, as first met.

    `per_example` marks a value with one entry per example and no ordered axis. `missing` says that some rows may be
    absent (`next` leaves the last ones so): lowering carries a second, boolean tensor for such values. `group`: an
    entry for each example of an arm only.
    """

    kind: Kind
    axes: tuple[Axis, ...] = ()
    per_example: bool = False
    missing: bool = False
    group: Group | None = None

    @property
    def rows(self) -> Axis | None:
        """The lowest ordered axis: the one whose packed rows the value is stored along."""
        ordered = [axis for axis in self.axes if axis.is_ordered]
        return ordered[-1] if ordered else None

    @property
    def static_axes(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.is_static)

    @property
    def is_weight_level(self) -> bool:
        return self.rows is None and not self.per_example

    def with_axes(self, axes: tuple[Axis, ...]) -> ValueType:
        return replace(self, axes=axes)

    def __str__(self) -> str:
        names = ", ".join(axis.name for axis in self.axes)
        brackets = f"[{names}]" if names else ""
        match self.kind:
            case Id(axis, or_none):
                return f"id{brackets} in {axis.name}" + (" or none" if or_none else "")
            case kind:
                return f"{kind}{brackets}"


def ordered_first(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The order in which a result stores its axes: ordered, then static, each as first met; repeats dropped.

    A value lives at its lowest node, so `real[picture, pixel]` is `real[pixel]`: owners of an axis that is met are
    dropped.
    """
    unique = tuple(dict.fromkeys(axes))
    owners = {owner for axis in unique for owner in axis.ancestors}
    ordered = tuple(axis for axis in unique if axis.is_ordered and axis not in owners)
    return ordered + tuple(axis for axis in unique if axis.is_static)


def level_words(value: ValueType) -> str:
    """`per row of seq`, `per example`, `for all examples`."""
    if value.rows is not None:
        return f"per row of {value.rows.name}"
    return "per example" if value.per_example else "for all examples"
