"""What a primitive must provide. No primitive is named here: the table comes from codegen/ops and is passed in.

A primitive is one place: parameters, type rule, causality rule, lowering to torch, cost, samples. The checker needs
the first three and never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from .axes import Axis
from .diagnostics import SpecError
from .length import Length
from .program import Distribution, Node, Segmented, Value, Weight
from .record import record
from .source import Span
from .value_type import ValueType

if TYPE_CHECKING:
    from .frontier import Frontier


class Accepts(Enum):
    """What an argument of a primitive may be, and what the rule then receives."""

    VALUE = "a value"  # Value; a static number becomes a Constant
    VALUES = "a list of values"  # tuple[Value, ...]
    AXIS = "an axis"  # Axis
    AXES = "axes"  # tuple[Axis, ...]
    MAPPING = "a mapping"  # AxisMapping
    NUMBER = "a number"  # int | float
    INTEGER = "an integer"  # int
    FLAG = "true or false"  # bool
    MASK = "a mask"  # masks.Mask
    BLOCK = "a block"  # statics.BlockRef, for OpCall.traced
    INIT = "a distribution"  # Distribution
    CHOICE = "one of its choices"  # str
    ENUM = "an enum"  # value_type.EnumType
    INDEX = "a list of numbers"  # tuple of numbers


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@record
class Param:
    """One parameter. Without a default it is required. `choices` for CHOICE."""

    name: str
    accepts: Accepts
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()


@record
class AxisMapping:
    """`dim -> (heads, head_dim)`."""

    left: tuple[Axis, ...]
    right: tuple[Axis, ...]


@record
class Inferred:
    """What a type rule answers: the node to make. `fields` names several results (`pick.index`); empty for one."""

    attrs: object
    inputs: tuple[Value, ...]
    types: tuple[ValueType, ...]
    fields: tuple[str, ...] = ()


@record
class Traced:
    """What a block given as an argument makes of a value. `nodes` are between, and in no program. `reads`: values that
    stand for `query(e)` and `key(e)`, with the side and e, None for the position."""

    given: Value
    result: Value
    nodes: tuple[Node, ...]
    reads: Mapping[Value, tuple[str, Value | None]]


class OpCall(Protocol):
    """What a type rule may ask of the call it types. The elaborator implements it."""

    span: Span

    def at(self, parameter: str) -> Span:
        """Where an argument is written; the call itself for a default."""
        ...

    def fail(self, error: SpecError) -> Exception:
        """The exception to raise for a mistake: `raise call.fail(AxisMissing(call.at("x"), ...))`."""
        ...

    def weight(
        self, name: str, axes: tuple[Axis, ...], init: Distribution, outputs: int = 0, kind: Any = None, kernel: int = 0
    ) -> Weight:
        """A new weight of this call (path: the call's path, then `name`). `init` may be overridden by
        the spec. `kernel`: how many axes at the end are places of a convolution's kernel."""
        ...

    def equal(self, left: Length, right: Length) -> bool:
        """Whether two lengths are equal, as formulas or by the conditions around the call."""
        ...

    def segmented(self, axis: Axis) -> Segmented | None:
        """What the `segment` statement of a cut made; None for an axis that is no cut. Fails where there has been
        none yet."""
        ...

    def owned(self, axis: Axis, owner: Axis, each: Length) -> None:
        """Notes that each row of `owner` has so many rows of `axis`. Fails where it was another number."""
        ...

    def shown(self, axis: Axis, owner: Axis, each: int) -> Axis:
        """The cut of a selected axis whose segments are the rows of each row of `owner`: so many, and neighbours."""
        ...

    def shown_among(self, rows: Axis, owner: Axis) -> Axis | None:
        """The cut that `shown` made where rows of `owner` are rows of this axis or stand among them; None: none."""
        ...

    def selected(self, axis: Axis) -> Value:
        """The tag that selects the rows of a selected axis. Fails where none is known."""
        ...

    def traced(self, block: Any, type: ValueType) -> Traced:
        """A block given as an argument, on a value of this type that no operator makes. It may read `query(e)` and
        `key(e)`, and names that are visible where the operator is called."""
        ...

    def keep(self, nodes: Iterable[Node]) -> None:
        """Puts nodes of a traced block into the program: what they make is read as an ordinary value."""
        ...

    def emit(self, op: str, **arguments: Any) -> Value:
        """Another primitive's result, for rules that are made of others (`silu`, `mean` over a missing value)."""
        ...


@record
class Cost:
    """Floating-point operations, and bytes read plus written at 1 byte per element-byte of the working type."""

    flops: float
    bytes: float


@record(eq=False)
class OpDef:
    """A primitive.

    infer     `(call, **arguments) -> Inferred`; raises call.fail(...) for a user's mistake
    frontier  `(node, operands) -> Frontier`, or one for each output: where the result may look, given its operands
              (SEMANTICS 6)
    lower     `(context, node) -> fx node(s)`: codegen's business; opaque here
    cost      `(node, rows) -> Cost`
    """

    name: str
    params: tuple[Param, ...]
    infer: Callable[..., Inferred]
    frontier: Callable[[Node, tuple[Frontier, ...]], Frontier | tuple[Frontier, ...]]
    lower: Callable[..., Any]
    doc: str
    cost: Callable[[Node, Mapping[Axis, int]], Cost] | None = None
    samples: tuple[str, ...] = ()
    is_random: bool = False
    step: Callable[..., Any] | None = None  # how it lowers in the derived decoder, when not row by row
    row_wise: bool = True  # False: a row of the result may read other rows; ask `is_row_wise`
    row_wise_when: Callable[[Node], bool] | None = None  # for an op that does so only with some arguments
    decides: bool = False  # the result jumps where an operand's last digit changes (SEMANTICS 10)
    multiplies: bool = False  # sums of products, of operands in the working type
    counts: bool = False  # gives whole numbers as reals, which may have more digits than the working type
    table: int | None = None  # which operand, where it is a weight, is read by rows
    target_shift: Callable[[Node], int] | None = None  # `next`: by how many rows, which marks a target (SEMANTICS 6)

    @property
    def is_called(self) -> bool:
        """Whether specs write its name: `+` and `x[index]` are written otherwise."""
        return f"{self.name}(" in self.doc or not self.params

    def is_row_wise(self, node: Node) -> bool:
        return self.row_wise if self.row_wise_when is None else self.row_wise_when(node)


@record
class OpTable:
    """The primitives by name."""

    ops: Mapping[str, OpDef] = field(default_factory=dict)

    @cached_property
    def choices(self) -> frozenset[str]:
        """Every word that some parameter takes as one of its choices."""
        return frozenset(word for op in self.ops.values() for param in op.params for word in param.choices)

    def __contains__(self, name: str) -> bool:
        return name in self.ops

    def __getitem__(self, name: str) -> OpDef:
        return self.ops[name]
