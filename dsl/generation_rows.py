"""Which rows are meant where a `generate` program gives a model's inputs, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .axes import Axis
from .diagnostics import Mistake
from .errors.generate import BadRows
from .generation import NewRows, standing, tag_of, tokens_of
from .op_call import as_value
from .program import Constant, Program, Value
from .source import Span
from .static_math import number_of
from .statics import describe
from .value_type import Id, Int, Kind, Real, ValueType

if TYPE_CHECKING:
    from .body import Body

Given = Mapping[str, tuple[object, Span]]


def new_rows(body: Body, model: Program, given: Given, at: Span) -> NewRows:
    """One new row for each request. `given`: what the model's inputs are given, with where it is written."""
    inputs = {value.name: value for value in model.inputs}
    along = _along(model, inputs, given, at)
    tag = tag_of(model, along)
    for name, (_, where) in given.items():
        if tag is not None and name == tag[0]:
            raise Mistake(BadRows(where, f"`{name}` follows from what is given: these are rows of {along.name}"))
        if inputs[name].type.rows is None:
            raise Mistake(BadRows(where, f"`{name}` is given once for each request, not with its rows"))
    for name in _wanted(model, along, tag):
        if name not in given:
            what = f"a row of {along.name} has `{name}`, too, which is not given"
            raise Mistake(BadRows(at, what, None, inputs[name].span))
    values = tuple((name, _fitting(body, inputs[name], value, where)) for name, (value, where) in given.items())
    return NewRows(along, values, tag, at)


def _along(model: Program, inputs: Mapping[str, Value], given: Given, at: Span) -> Axis:
    """The one axis that the inputs given lie along. What is given along a selection may come with what every row of
    the whole axis has."""
    axes = dict.fromkeys(rows for name in given if (rows := inputs[name].type.rows) is not None)
    wholes = {standing(model, axis).whole for axis in axes if standing(model, axis).whole is not axis}
    own = [axis for axis in axes if axis not in wholes]
    if not own:
        what = "no input with rows is given, so there is no row"
        raise Mistake(BadRows(at, what, "a token is `append(N)`; other rows are given by the names of inputs"))
    if len(own) > 1:
        what = f"one row is looked at or appended at a time: these are of {own[0].name} and of {own[1].name}"
        raise Mistake(BadRows(at, what))
    tokens = tokens_of(model)
    whole = None if tokens is None or tokens.input.type.rows is None else tokens.input.type.rows.whole
    if whole is not None and standing(model, own[0]).whole is not whole:
        what = f"rows of {own[0].name} are no rows of {whole.name}, along which the model goes on"
        raise Mistake(BadRows(at, what, None, own[0].span))
    return own[0]


def _wanted(model: Program, along: Axis, tag: tuple[str, int] | None) -> tuple[str, ...]:
    """The inputs that a row of `along` has: those along it, and those that every row of the whole axis has."""
    on = {along, standing(model, along), standing(model, along).whole}
    told = None if tag is None else tag[0]
    return tuple(value.name for value in model.inputs if value.type.rows in on and value.name != told)


def _fitting(body: Body, wanted: Value, given: object, at: Span) -> Value:
    """What is given, as one entry of the input for each request."""
    kind, axes = wanted.type.kind, wanted.type.static_axes
    number = number_of(given)
    if isinstance(kind, Id) and number is not None:
        if isinstance(number, float | bool) or not 0 <= number < kind.count:
            raise Mistake(BadRows(at, f"`{wanted.name}` is `{kind}`, 0 to {kind.count - 1}; this is {number}"))
        return Constant(str(number), ValueType(kind), at, number)
    value = as_value(body, given, at, wanted.name)
    if not _is_of_kind(value.type.kind, kind) or set(value.type.axes) != set(axes):
        assert wanted.type.rows is not None
        entry = ValueType(kind, axes)
        what = f"`{wanted.name}` has `{entry}` in a row of {wanted.type.rows.name}; this is {describe(value)}"
        raise Mistake(BadRows(at, what, None, wanted.span))
    return value


def _is_of_kind(found: Kind, wanted: Kind) -> bool:
    match wanted, found:
        case Real(), Int():
            return True
        case Int(), Id():
            return True
        case Id(axis, or_none), Id(own, own_none):
            return own is axis and or_none >= own_none
        case _:
            return found == wanted
