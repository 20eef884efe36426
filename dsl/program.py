"""The typed program: what the checker makes and everything after it reads.

A program is flat: blocks are inlined, loops unrolled. Each node keeps the span of the expression that made it and its
scope (the
chain of block calls and loop turns around it), so that structure can be shown again. Values are compared by identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from math import prod
from typing import TYPE_CHECKING

from .axes import Axis, Cut
from .record import record
from .source import Span
from .value_type import ValueType

if TYPE_CHECKING:
    from .opdef import OpDef


@record(eq=False)
class Value:
    """One SSA value. `name` is for people: the binding's name, or the op's."""

    name: str
    type: ValueType
    span: Span

    def __repr__(self) -> str:
        return f"{self.name}: {self.type}"


@record(eq=False, repr=False)
class Constant(Value):
    """A static number (or flag, enum member, id) used as an operand."""

    number: int | float | bool


@record
class Distribution:
    """How a weight starts: `kind` is a name of `initialisers` in codegen (`normal`, `ones`, ...) and its numbers by
    name.

    `source` is the pattern-resolved path another weight is copied from (`copy(...)`), else None.
    """

    kind: str
    numbers: tuple[tuple[str, float], ...] = ()
    source: str | None = None


@record
class ArmOf:
    """An arm that a weight was made in: the tag's names (as it is written there, and of the value), and its values."""

    names: tuple[str, ...]
    members: tuple[str, ...]


@record(eq=False, repr=False)
class Weight(Value):
    """A parameter. `path` names it in checkpoints; it is unique in the program.

    Stored with the shape of `type.axes` in order. `outputs` is how many leading axes are the output side, for weights
    with two
    sides (linear: outputs first); the others are inputs and give `fan_in`. A two-sided weight may name one axis on
    both sides. `kernel`: how many axes at the end are places of a convolution's kernel. `arms`: of a `match` or
    `routed by` around the call that made it.
    """

    path: str
    init: Distribution
    outputs: int
    frozen: bool = False
    arms: tuple[ArmOf, ...] = ()
    kernel: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_size(axis) for axis in self.type.axes)

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Two-sided weights are stored as matrices `[outputs, inputs]`, those of convolutions with the places of the
        kernel behind, the others as declared."""
        if not self.outputs:
            return self.shape
        inputs = len(self.shape) - self.kernel
        return prod(self.shape[: self.outputs]), prod(self.shape[self.outputs : inputs]), *self.shape[inputs:]

    @property
    def fan_in(self) -> int:
        return prod(self.shape[self.outputs :])


@record
class Frame:
    """One step of scope: a block call (`layer`, with its path part), a loop turn (`layer`, index 3), or an arm of a
    `match` (`text`)."""

    name: str
    index: int | None
    span: Span
    is_arm: bool = False


Scope = tuple[Frame, ...]


@record(eq=False)
class Node:
    """One application of a primitive. `attrs` is the op's own frozen dataclass; it holds no tensors."""

    op: OpDef
    attrs: object
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    span: Span
    scope: Scope
    precise: bool = False  # inside `precise(...)`: computed in at least float32, rounded when something else reads it

    def __repr__(self) -> str:
        outs = ", ".join(map(repr, self.outputs))
        return f"{outs} = {self.op.name}({', '.join(v.name for v in self.inputs)})"


@record(eq=False)
class Segmented:
    """What a `segment` statement made: which rows of `along` end a segment, and with gaps which rows are in one."""

    along: Axis
    ends: Value
    inside: Value | None
    span: Span

    @property
    def values(self) -> tuple[Value, ...]:
        """What an operator that groups rows by the cut has among its inputs."""
        return (self.ends,) if self.inside is None else (self.ends, self.inside)


@record
class LossTerm:
    """`loss NAME = value only cond`: the mean of the rows of `value` over the whole optimiser step (SEMANTICS 9)."""

    name: str
    value: Value
    only: Value | None
    span: Span


@record
class Target:
    """`next(source, k)` met inside an objective: `target` is claimed to be predicted from rows before it."""

    source: Value
    shift: int
    target: Value
    span: Span


# Numbers; a flag for `lazy`; a word for `schedule` and `moments`.
OptimiserSetting = float | tuple[float, ...] | bool | str


@record
class OptimiserLine:
    """Settings for the weights that `pattern` matches; the first matching line wins."""

    pattern: str
    settings: tuple[tuple[str, OptimiserSetting], ...]


@record
class Optimiser:
    """`optimise by adamw(lr=..., betas=..., decay=..., clip=...)` and its lines."""

    kind: str
    settings: tuple[tuple[str, OptimiserSetting], ...]
    lines: tuple[OptimiserLine, ...] = ()


@record(eq=False)
class Program:
    """A model or an objective, elaborated for one choice of sizes.

    `inputs` in the order of the signature. `nodes` in an order that respects use. A model has `outputs` (named
    fields; a single
    result is called `output`), an objective has `losses`. `bindings` are the once-bound names of the body (hook sites,
    `run.name`, inspection). `optional` are values that a caller may give instead, by the name of their input.
    `selected`: the tag that chooses the rows of each declared selection. `shown`: the cut whose segments are the rows
    of an axis that owns rows of a selection, by the owner.
    """

    name: str
    kind: str  # "model" or "objective"
    inputs: tuple[Value, ...]
    weights: tuple[Weight, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, Value], ...]
    losses: tuple[LossTerm, ...]
    span: Span
    trains: tuple[str, ...] = ()
    bindings: dict[str, Value] = field(default_factory=dict)
    optional: dict[str, Value] = field(default_factory=dict)
    selected: dict[Axis, Value] = field(default_factory=dict)
    shown: dict[Axis, Axis] = field(default_factory=dict)

    def given(self, names: Iterable[str]) -> Program:
        """The program whose optional inputs `names` are given: what would have made them is not run for them."""
        chosen = {name: self.optional[name] for name in self.optional if name in set(names)}
        if not chosen:
            return self
        made = set(chosen.values())
        return replace(
            self,
            inputs=(*self.inputs, *chosen.values()),
            nodes=tuple(node for node in self.nodes if not made.intersection(node.outputs)),
            optional={name: value for name, value in self.optional.items() if name not in chosen},
        )

    def rows_that_come(self, axis: Axis) -> Axis:
        """The whole axis that grows as rows of `axis` come: of a selection what it is made from, of what owns rows of
        one (a picture) what they stand in (the text)."""
        cut = self.shown.get(axis)
        return (cut.kind.parent if cut is not None and isinstance(cut.kind, Cut) else axis).whole

    @property
    def ordered_axes(self) -> tuple[Axis, ...]:
        """Ordered axes of the inputs and those that own them, owners first: each is bound to offsets at a call."""
        return _with_owners(axis for value in self.inputs for axis in value.type.axes if axis.is_ordered)

    @property
    def born_axes(self) -> tuple[Axis, ...]:
        """Ordered axes of the outputs that no input has: the program itself makes their rows."""
        axes = [value.type.rows for _, value in self.outputs]
        known = self.ordered_axes
        return tuple(axis for axis in _with_owners(axis for axis in axes if axis is not None) if axis not in known)


def _with_owners(axes: Iterable[Axis]) -> tuple[Axis, ...]:
    return tuple(dict.fromkeys(one for axis in axes for one in (*reversed(axis.ancestors), axis)))


def _size(axis: Axis) -> int:
    assert axis.size is not None, f"weight axis {axis.name} is not static"
    return axis.size
