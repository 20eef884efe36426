"""`segment` statements, which give birth to cuts, and inputs with a default (SEMANTICS 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import syntax
from .axes import Axis, Cut
from .diagnostics import Mistake, Noted
from .errors.axes import MissingRows
from .errors.cuts import BadSegment, SegmentedTwice
from .errors.signatures import BadType, NotAnAxis
from .names_read import first_line
from .op_call import as_value
from .program import Segmented, Value
from .statics import UNKNOWN, describe

if TYPE_CHECKING:
    from .statements import Elaboration


def segment(body: Elaboration, statement: syntax.Segment) -> None:
    """Makes the flags that say where segments end, and binds the cut to them."""
    place = first_line(statement.span)
    along, cut = (_axis(body, name) for name in (statement.axis, statement.into))
    if not isinstance(cut.kind, Cut) or cut.kind.parent is not along:
        found = f"cut from {cut.kind.parent.name}" if isinstance(cut.kind, Cut) else "no cut"
        raise Mistake(BadSegment(statement.into.span, along.name, cut.name, found))
    earlier = body.build.cuts.get(cut)
    if earlier is not None:
        raise Mistake(SegmentedTwice(place, cut.name, earlier.span))
    expression = statement.ends or statement.by
    assert expression is not None
    given = body.evaluate(expression)
    if given is UNKNOWN:
        body.build.cuts[cut] = None  # what reads the cut stays silent
        raise Noted
    arguments: dict[str, object] = {"cut": cut, "ends" if statement.ends else "x": given}
    spans = {"cut": statement.into.span, "ends" if statement.ends else "x": expression.span}
    if statement.at_most is not None:
        arguments["at_most"] = body.whole(statement.at_most, "the length of a segment")
        spans["at_most"] = statement.at_most.span
    op = body.build.ops["segment" if statement.ends else "segment_by"]
    body.build.cuts[cut] = None
    made = body.apply(op, arguments, place, spans)
    flags = [value for value in (made if isinstance(made, tuple) else (made,)) if isinstance(value, Value)]
    inside = flags[1] if len(flags) > 1 else None
    body.build.cuts[cut] = Segmented(along, flags[0], inside, place)


def _axis(body: Elaboration, name: syntax.Identifier) -> Axis:
    found = body.read(name.text, name.span)
    if found is UNKNOWN:
        raise Noted
    if not isinstance(found, Axis) or found.is_static:
        raise Mistake(NotAnAxis(name.span, describe(found), "an axis with a length per example"))
    return found


def optional_input(body: Elaboration, statement: syntax.OptionalInput) -> None:
    """`input ends: flag[seq] = EXPR`: what a caller gives, or else EXPR."""
    name = statement.name.text
    given = body.given_inputs.pop(name, None)
    if body.arms:
        raise Mistake(BadType(first_line(statement.span), "an `input` stands in front of the arms of a `match`"))
    if body.form == "block":
        raise Mistake(BadType(first_line(statement.span), "an `input` belongs in a model or an objective"))
    if given is None:
        default = body.evaluate(statement.default)
        value = as_value(body, default, statement.default.span, name)
        at = statement.default.span
    else:
        value, at = given
    body.fits(statement.type, value, name, {}, at)
    if value.type.missing:
        raise Mistake(MissingRows(at, name, "an input has every row"))
    type = body.value_type(statement.type, per_example=value.type.per_example)
    if type.rows is not None and isinstance(type.rows.kind, Cut):
        what = f"`{name}` cannot be given along {type.rows.name}, whose rows the model itself makes"
        raise Mistake(BadType(statement.type.span, what))
    op = body.build.ops["optional_input"]
    naming, body.naming = body.naming, (name, statement.span)
    try:
        made = body.apply(op, {"x": value}, statement.span)
    finally:
        body.naming = naming
    assert isinstance(made, Value)
    body.scope.bind(name, made)
    if given is None:
        # Two of one name, in two models or two calls of one, could not be told apart by who gives them.
        body.build.optional[name] = None if name in body.build.optional else made


def optional_names(declaration: syntax.Block) -> dict[str, syntax.OptionalInput]:
    """The inputs of a model that its body declares."""
    return {statement.name.text: statement for statement in _optional_inputs(declaration.body)}


def _optional_inputs(statements: tuple[syntax.Statement, ...]) -> Iterator[syntax.OptionalInput]:
    for statement in statements:
        if isinstance(statement, syntax.OptionalInput):
            yield statement
        elif isinstance(statement, syntax.If):
            yield from _optional_inputs((*statement.body, *statement.orelse))
