"""What a name or an expression may stand for besides a tensor value: everything known when the spec is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import syntax
from .axes import Axis
from .masks import Mask
from .opdef import AxisMapping, OpDef
from .program import Distribution, Value
from .record import record
from .source import Span
from .value_type import EnumType

if TYPE_CHECKING:
    from .modules import Instance


class _Unknown:
    """The result of a bad expression. Every rule accepts it silently: one cause, one diagnostic."""

    def __repr__(self) -> str:
        return "unknown"


class _None:
    def __repr__(self) -> str:
        return "none"


UNKNOWN = _Unknown()
NONE = _None()


@record
class Member:
    """A member of an enum."""

    enum: EnumType
    name: str

    @property
    def index(self) -> int:
        return self.enum.members.index(self.name)


@record(eq=False)
class BlockRef:
    """A block or a model with the file instance its free names belong to."""

    declaration: syntax.Block
    home: Instance

    @property
    def name(self) -> str:
        return self.declaration.name.text


@record(eq=False)
class MaskRef:
    """A mask definition; without parameters its bare name is the mask."""

    declaration: syntax.Mask
    home: Instance


@record
class Record:
    """Several results read by field: `pick.index`, or the named values of a model's run."""

    what: str
    fields: Mapping[str, object]
    main: Value | None = None  # what the record is when used as a value: a model's result
    rebound: frozenset[str] = frozenset()  # names that the model's body binds more than once


@record(eq=False)
class SharedBlock:
    """`shared stage[i]: upstage(...)`: one block instance; calls read the same weights."""

    block: BlockRef
    settings: tuple[syntax.Argument, ...]
    home: Instance
    path: tuple[str, ...]
    index_name: str | None
    index: int | None


@dataclass(eq=False)
class Family:
    """`skip[i] = h`: values by static index. `made` are the members so far."""

    name: str
    span: Span
    members: dict[int, object] = field(default_factory=dict)


@record(eq=False)
class AxisFamily:
    """`axis level[i] = image / 2^i`: members are made on first use, by the instance that declared it."""

    declaration: syntax.Axis
    home: Instance


@record(eq=False)
class SharedFamily:
    """`shared stage[i]: ...`, read as `stage[2](x)`."""

    declaration: syntax.Shared
    home: Instance


@record
class Builtin:
    """A static function or constant of the language itself: `size`, `static_axis`, `fan_in`."""

    name: str


def describe(value: object) -> str:
    """What a value is, for messages."""
    match value:
        case bool():
            return "a flag"
        case int():
            return f"the number {value}"
        case float():
            return f"the number {value:g}"
        case Axis():
            return f"the axis `{value.name}`" if value.is_ordered else f"the size `{value.name}`"
        case Value():
            return str(value.type)
        case Member():
            return f"`{value.name}` of enum `{value.enum.name}`"
        case BlockRef():
            return f"the {value.declaration.form} `{value.name}`"
        case SharedBlock():
            return f"the shared block `{'.'.join(value.path)}`"
        case OpDef():
            return f"the operator `{value.name}`"
        case Mask() | MaskRef():
            return "a mask"
        case AxisMapping():
            return "a mapping of axes"
        case Distribution():
            return "a distribution"
        case EnumType():
            return f"the enum `{value.name}`"
        case Record():
            return value.what
        case Family() | AxisFamily() | SharedFamily():
            return "a family; choose a member with `[i]`"
        case tuple():
            return "a list"
        case _ if value is NONE:
            return "`none`"
        case Builtin():
            return f"the function `{value.name}`"
        case _:
            return "something else"
