"""`match` and `routed by`: other weights, or other work, for each value of a tag (SEMANTICS 8).

Each arm is elaborated from the names before the statement; its nodes are moved to the rows or examples that have the
tag (arms.py). A name that all arms leave with one type is joined. One that only some of them bind stays in its arm, or
keeps in the others what it was before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import syntax
from .arms import Mover, OpenArm, joined, joined_type
from .diagnostics import Mistake, Noted
from .errors.axes import MissingRows
from .errors.names import did_you_mean
from .errors.routing import ArmMissing, BadArm, NotATag
from .names_read import first_line
from .op_call import as_value
from .program import ArmOf, Constant, Frame, Value
from .record import record
from .scope import Branched
from .source import Span
from .static_math import is_static
from .statics import UNKNOWN, Family, Record, describe
from .value_type import Tag

if TYPE_CHECKING:
    from .statements import Elaboration

Names = dict[str, object]


@record
class _Arm:
    """An arm as it is written."""

    members: tuple[str, ...]
    body: tuple[syntax.Statement, ...]
    span: Span


@record(eq=False)
class _Ran:
    """An arm after it ran: the names then, and its nodes' place."""

    names: Names
    mover: Mover


def route(body: Elaboration, statement: syntax.Routed | syntax.Match) -> None:
    place = first_line(statement.span)
    body.build.routings += 1
    word = "routed by" if isinstance(statement, syntax.Routed) else "match"
    tag = _tag(body, statement.tag, word)
    arms = _arms(statement, tag, place)
    before = body.scope.snapshot()
    cuts = dict(body.build.cuts)
    label = statement.tag.span.text
    ran: list[_Ran] = []
    for arm in arms:
        ran.append(_run(body, arm, OpenArm(tag, label, arm.members, tag.type.rows, place), before))
        body.build.cuts = dict(cuts)
    body.scope.bound = dict(before)
    _join(body, statement, tuple(ran), before, place)


def _tag(body: Elaboration, expression: syntax.Expression, word: str) -> Value:
    found = body.evaluate(expression)
    if found is UNKNOWN:
        raise Noted
    at = expression.span
    if is_static(found) and not isinstance(found, Record):
        repair = f"what is known when the spec is compiled is chosen by `if {at.text} == ..:`"
        raise Mistake(NotATag(at, word, describe(found), repair))
    tag = as_value(body, found, at, word)
    if not isinstance(tag.type.kind, Tag):
        raise Mistake(NotATag(at, word, describe(found), "a choice by a flag is `where(c, a, b)`"))
    if isinstance(tag, Constant) or tag.type.is_weight_level or tag.type.static_axes:
        raise Mistake(NotATag(at, word, f"`{tag.type}`"))
    if tag.type.missing:
        raise Mistake(MissingRows(at, word))
    return tag


def _arms(statement: syntax.Routed | syntax.Match, tag: Value, place: Span) -> tuple[_Arm, ...]:
    assert isinstance(tag.type.kind, Tag)
    enum = tag.type.kind.enum
    if isinstance(statement, syntax.Routed):
        return tuple(_Arm((member,), statement.body, place) for member in enum.members)
    seen: dict[str, Span] = {}
    for arm in statement.arms:
        for name in arm.tags:
            if name.text not in enum.members:
                repair = did_you_mean(name.text, enum.members) or f"its tags are {', '.join(enum.members)}"
                raise Mistake(BadArm(name.span, f"`{name.text}` is no tag of the enum `{enum.name}`", None, repair))
            if name.text in seen:
                raise Mistake(BadArm(name.span, f"`{name.text}` has two arms", seen[name.text]))
            seen[name.text] = name.span
    lacking = tuple(member for member in enum.members if member not in seen)
    if lacking:
        raise Mistake(ArmMissing(place, lacking, enum.name, enum.span))
    return tuple(_Arm(tuple(name.text for name in arm.tags), arm.body, arm.span) for arm in statement.arms)


def _run(body: Elaboration, arm: _Arm, opened: OpenArm, before: Names) -> _Ran:
    build = body.build
    part = "_or_".join(arm.members)
    path, frames, binding = body.path, body.frames, body.binding
    body.path = (*path, part)
    body.frames = (*frames, Frame(part, None, first_line(arm.span), is_arm=True))
    body.binding = None
    body.scope.bound = {name: _copied(value) for name, value in before.items()}
    build.arms.append(opened)
    body.arms += 1
    begin = len(build.nodes)
    known = dict(build.cuts)
    # What is taken inside is rewritten with the arm, and no part of what stands around it.
    taken, build.taken = build.taken, {}
    build.book.arms.append(ArmOf((opened.name, opened.tag.name), arm.members))
    try:
        body.run(arm.body)
    finally:
        build.book.arms.pop()
        body.arms -= 1
        build.arms.pop()
        build.taken = taken
        body.path, body.frames, body.binding = path, frames, binding
    mover = Mover(build, opened, begin, known, frames)
    if build.make_nodes:
        mover.run()
    return _Ran(body.scope.bound, mover)


def _copied(value: object) -> object:
    return Family(value.name, value.span, dict(value.members)) if isinstance(value, Family) else value


def _join(
    body: Elaboration, statement: syntax.Routed | syntax.Match, ran: tuple[_Ran, ...], before: Names, place: Span
) -> None:
    scope = body.scope
    word = "a `routed by`" if isinstance(statement, syntax.Routed) else "a `match`"
    for name in dict.fromkeys(name for arm in ran for name in arm.names):
        given = [arm.names.get(name) for arm in ran]
        if all(value is before.get(name) for value in given):
            continue
        if all(value is given[0] for value in given) and _is_outer(given[0], ran):
            scope.bind(name, given[0])
            continue
        if isinstance(before.get(name), Family) or any(isinstance(value, Family) for value in given):
            _join_family(body, name, ran, before.get(name))
            continue
        made = _joined(body, name, given, ran)
        if made is not None:
            scope.bind(name, made)
            continue
        absent = any(value is None for value in given)
        shown = tuple(describe(value) for value in given if value is not None)
        scope.bound.pop(name, None)
        scope.branches[name] = Branched(place, None if absent or len(shown) < 2 else (shown[0], _other(shown)), word)


def _is_outer(value: object, ran: tuple[_Ran, ...]) -> bool:
    """Whether all arms bind something that none of them made."""
    if isinstance(value, Value):
        return not any(value in arm.mover.made for arm in ran)
    return not isinstance(value, Record | Family)


def _other(shown: tuple[str, ...]) -> str:
    return next((text for text in shown if text != shown[0]), shown[0])


def _joined(body: Elaboration, name: str, given: list[object], ran: tuple[_Ran, ...]) -> object | None:
    """The value of a name after the arms; None where they do not agree on its type."""
    if any(value is None for value in given):
        return None
    if any(value is UNKNOWN for value in given):
        return UNKNOWN
    if all(isinstance(value, Record) for value in given):
        return _joined_record(body, name, given, ran)
    if all(is_static(value) for value in given) and all(value == given[0] for value in given):
        return given[0]
    values: list[Value] = []
    for value in given:
        try:
            values.append(as_value(body, value, ran[0].mover.arm.at, name))
        except (Mistake, Noted):
            return None
    movers = tuple(arm.mover for arm in ran)
    type = joined_type(movers[0], tuple(values))
    if type is None:
        return None
    if not body.build.make_nodes:
        return Value(name, type, movers[0].arm.at)
    read = tuple(mover.read(value) for mover, value in zip(movers, values, strict=True))
    return joined(movers, read, name, type)


def _joined_record(body: Elaboration, name: str, given: list[object], ran: tuple[_Ran, ...]) -> object | None:
    records = [value for value in given if isinstance(value, Record)]
    fields: Names = {}
    for field in records[0].fields:
        made = _joined(body, name, [record.fields.get(field) for record in records], ran)
        if made is None:
            return None
        fields[field] = made
    return replace(records[0], fields=fields)


def _join_family(body: Elaboration, name: str, ran: tuple[_Ran, ...], before: object) -> None:
    families = [arm.names.get(name) for arm in ran]
    known = before.members if isinstance(before, Family) else {}
    members = [family.members if isinstance(family, Family) else known for family in families]
    for index in dict.fromkeys(index for part in members for index in part):
        given = [part.get(index) for part in members]
        if all(value is known.get(index) for value in given):
            continue
        made = _joined(body, f"{name}_{index}", given, ran)
        if made is not None:
            span = next(family.span for family in families if isinstance(family, Family))
            body.scope.bind_member(name, index, made, span)
