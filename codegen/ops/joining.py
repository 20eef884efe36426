"""How values of different axes and levels meet, for the type rules of the ops (SEMANTICS 2 and 3).

A value lives at the lowest ordered axis it has, at the example, or at the weights. Values of an ancestor meet values
of a descendant; separate ordered axes do not meet. Static axes of row-by-row operands must be contained in those of
one operand.
"""

from __future__ import annotations

from ...dsl.axes import Axis
from ...dsl.errors.axes import (
    AxisMissing,
    KindMismatch,
    LowerLevel,
    MissingRows,
    NotContained,
    SidewaysLevels,
    WrongAxisKind,
)
from ...dsl.errors.operators import IdMismatch
from ...dsl.opdef import OpCall
from ...dsl.program import Constant, Value
from ...dsl.record import record
from ...dsl.source import Span
from ...dsl.value_type import Flag, Id, Int, Kind, Real, Tag, ValueType, level_words, ordered_first


@record
class NoAttrs:
    """For ops whose call says nothing beyond its operands."""


@record
class Operand:
    """An operand with where it is written."""

    value: Value
    at: Span

    @property
    def type(self) -> ValueType:
        return self.value.type


@record
class Joint:
    """Where a result lives: its axes in order, and whether it has an entry per example only, or missing rows."""

    axes: tuple[Axis, ...]
    per_example: bool
    missing: bool

    def type(self, kind: Kind) -> ValueType:
        return ValueType(kind, self.axes, self.per_example, self.missing)

    @property
    def rows(self) -> Axis | None:
        return self.type(Real()).rows


def operands(call: OpCall, **values: Value | None) -> tuple[Operand, ...]:
    """The operands that are given, in order, by parameter name."""
    return tuple(Operand(value, call.at(name)) for name, value in values.items() if value is not None)


def axis_names(axes: tuple[Axis, ...]) -> tuple[str, ...]:
    return tuple(axis.name for axis in axes)


def lowest_rows(call: OpCall, operator: str, given: tuple[Operand, ...]) -> tuple[Axis, ...]:
    """The lowest ordered axis met, where the result lives. All must lie on one path of the axis tree."""
    lowest: Operand | None = None
    for operand in given:
        rows = operand.type.rows
        if rows is None:
            continue
        if lowest is None or (old := lowest.type.rows) is None or old in rows.ancestors:
            lowest = operand
        elif rows is not old and rows not in old.ancestors:
            raise call.fail(SidewaysLevels(operand.at, operator, old.name, rows.name, lowest.at, operand.at))
    rows = None if lowest is None else lowest.type.rows
    return () if rows is None else (rows,)


def join(call: OpCall, operator: str, given: tuple[Operand, ...], contained: bool = True) -> Joint:
    """Where the result of a row-by-row operator lives. `contained=False` allows every pair of static entries."""
    ordered = lowest_rows(call, operator, given)
    widest = max(given, key=lambda operand: len(operand.type.static_axes))
    static = widest.type.static_axes
    for operand in given:
        if contained and not set(operand.type.static_axes) <= set(static):
            left, right = sorted((widest, operand), key=given.index)
            raise call.fail(
                NotContained(
                    call.span,
                    operator,
                    axis_names(left.type.static_axes),
                    axis_names(right.type.static_axes),
                    left.at,
                    right.at,
                )
            )
    if not contained:
        static = ordered_first(tuple(axis for operand in given for axis in operand.type.static_axes))
    rows = ordered[-1] if ordered else None
    for operand in given:
        if operand.type.missing and operand.type.rows is not rows:
            raise call.fail(MissingRows(operand.at, operator, "the other operand lives below them"))
    missing = any(operand.type.missing for operand in given)
    per_example = rows is None and any(operand.type.per_example for operand in given)
    return Joint(ordered + static, per_example, missing)


def without(value: ValueType, axes: tuple[Axis, ...]) -> Joint:
    """A value's place after the axes are gone: the rows of the next owner up, at last the example."""
    kept = tuple(axis for axis in value.axes if axis not in axes)
    per_example = value.per_example
    rows = value.rows
    if rows is not None and rows in axes:
        owner = rows.parent
        if owner is not None and owner not in kept:
            kept = (owner, *kept)
        per_example = not any(axis.is_ordered for axis in kept)
    missing = value.missing and rows not in axes
    return Joint(ordered_first(kept), per_example, missing)


def has_ints(value: Value) -> bool:
    """An int, or an id, which counts as one in arithmetic."""
    return isinstance(value.type.kind, Int | Id)


def kind_words(value: Value) -> str:
    match value.type.kind:
        case Real():
            return "a real"
        case Int():
            return "an int"
        case Flag():
            return "a flag"
        case Tag(enum):
            return f"a tag of {enum.name}"
        case Id() as kind:
            return f"an {kind}"


def _converted(call: OpCall, name: str, kind: str) -> str:
    """`real(x > 0)`: an operand as it is written, brought to another kind. Long ones are left out."""
    text = call.at(name).text
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1]
    shown = text if len(text) <= 30 and "\n" not in text and call.at(name) != call.span else ".."
    return f"`{kind}({shown})`"


def want_real(call: OpCall, operator: str, **values: Value | None) -> None:
    """Every operand is a real, or a written number."""
    for name, value in values.items():
        if value is None or isinstance(value.type.kind, Real):
            continue
        if isinstance(value, Constant) and not isinstance(value.number, bool):
            continue
        repair = None if isinstance(value.type.kind, Tag) else f"{_converted(call, name, 'real')} makes it one"
        raise call.fail(KindMismatch(call.at(name), operator, kind_words(value), "a real", repair=repair))


def want_flag(call: OpCall, operator: str, **values: Value) -> None:
    for name, value in values.items():
        if not isinstance(value.type.kind, Flag):
            raise call.fail(
                KindMismatch(call.at(name), operator, kind_words(value), "a flag", repair="compare it: `.. > 0`")
            )


def want_int(call: OpCall, operator: str, **values: Value) -> None:
    for name, value in values.items():
        if not has_ints(value):
            raise call.fail(
                KindMismatch(
                    call.at(name),
                    operator,
                    kind_words(value),
                    "an int",
                    repair=f"{_converted(call, name, 'int')} makes it one",
                )
            )


def number_kind(call: OpCall, operator: str, **values: Value | None) -> Kind:
    """Real if a real is met, else int: the kind of arithmetic on the operands. Written whole numbers fit both."""
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value.type.kind, Real | Int | Id):
            repair = f"{_converted(call, name, 'real')} makes it one" if isinstance(value.type.kind, Flag) else None
            raise call.fail(KindMismatch(call.at(name), operator, kind_words(value), "a number", repair=repair))
    reals = [name for name, value in given.items() if isinstance(value.type.kind, Real)]
    if not reals:
        return Int()
    for name, value in given.items():
        if has_ints(value) and not isinstance(value, Constant):
            first = reals[0]
            raise call.fail(
                KindMismatch(
                    call.at(name),
                    operator,
                    kind_words(value),
                    "operands of one kind",
                    call.at(first),
                    kind_words(given[first]),
                    f"{_converted(call, name, 'real')} makes it a real",
                )
            )
    return Real()


def same_kind(call: OpCall, operator: str, **values: Value) -> Kind:
    """The one kind of all operands: numbers meet as in arithmetic, ids keep their axis if they agree, flags and tags
    are themselves."""
    kinds = {name: value.type.kind for name, value in values.items()}
    fixed = {name: kind for name, kind in kinds.items() if not isinstance(values[name], Constant)} or kinds
    first = next(iter(fixed))
    kind = fixed[first]
    if isinstance(kind, Flag | Tag):
        for name, other in kinds.items():
            if other != kind:
                raise call.fail(
                    KindMismatch(
                        call.at(name),
                        operator,
                        kind_words(values[name]),
                        "operands of one kind",
                        call.at(first),
                        kind_words(values[first]),
                    )
                )
        return kind
    if isinstance(kind, Id) and all(other == kind for other in fixed.values()):
        numbers = [value.number for value in values.values() if isinstance(value, Constant)]
        if all(isinstance(number, int) and 0 <= number < (kind.axis.size or 0) + kind.or_none for number in numbers):
            return kind
    return number_kind(call, operator, **values)


def want_id(call: OpCall, operator: str, name: str, index: Value, axis: Axis) -> None:
    """`index` is an id that stays inside `axis`: of that axis, or of a static one that is no longer."""
    kind = index.type.kind
    if isinstance(index, Constant) and isinstance(index.number, int) and axis.size is not None:
        if 0 <= index.number < axis.size:
            return
    elif isinstance(kind, Id):
        if kind.axis is axis and not kind.or_none:
            return
        if kind.axis.size is not None and axis.size is not None and kind.count <= axis.size:
            return
    elif isinstance(kind, Tag) and axis.size is not None and len(kind.enum.members) <= axis.size:
        return
    size = "one per row" if axis.size is None else str(axis.size)
    raise call.fail(IdMismatch(call.at(name), operator, kind_words(index), axis.name, size))


def want_axes(call: OpCall, operator: str, name: str, value: Value, at: Span, axes: tuple[Axis, ...]) -> None:
    """The value of parameter `name` has all these axes."""
    for axis in axes:
        if axis not in value.type.axes:
            near = next((a.name for a in value.type.static_axes if a.size == axis.size and axis.is_static), None)
            raise call.fail(AxisMissing(at, axis.name, axis_names(value.type.axes), call.at(name), near))


def want_static(call: OpCall, operator: str, at: Span, axes: tuple[Axis, ...]) -> None:
    for axis in axes:
        if not axis.is_static:
            raise call.fail(
                WrongAxisKind(at, operator, axis.name, "a static axis", "ordered: it has a length per example")
            )


def want_whole(call: OpCall, operator: str, **values: Value | None) -> None:
    """No operand has missing rows."""
    for name, value in values.items():
        if value is not None and value.type.missing:
            raise call.fail(MissingRows(call.at(name), operator))


def want_weight_level(call: OpCall, operator: str, name: str, value: Value) -> None:
    if not value.type.is_weight_level:
        raise call.fail(LowerLevel(call.at(name), operator, level_words(value.type), "one value for all examples"))
