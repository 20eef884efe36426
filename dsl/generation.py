"""A `generate` program as the runtime takes it: for each token that is waited for, what is done when it comes.

    Compute    a straight run of statements, a program of its own: schedules, samplers, draws
    Look       the model at new rows behind a request's, of which nothing is kept
    Looks      several of them at once, each behind a prompt of its own
    Append     new rows that are kept
    Repeat     a loop, with what one turn hands to the next

Values are those of one request; numbers that are one for all requests, such as a loop's variable, have no entry for
each. What a program is run with (its parameters) is static: it was elaborated for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .axes import Axis, Cut, Selected
from .program import Constant, Node, Program, Value
from .record import record
from .source import Span
from .value_type import Id, Real


@record(eq=False)
class Compute:
    """`program` is of kind "generate": its inputs are what earlier actions made, its outputs what later ones read."""

    program: Program


@record(eq=False)
class NewRows:
    """One row of `along` for each request, by what the model's inputs are given. `tag`: the input that tells rows of
    the decoded axis apart, and the number of the member that these have."""

    along: Axis
    given: tuple[tuple[str, Value], ...]
    tag: tuple[str, int] | None
    span: Span


@record(eq=False)
class Look:
    """Results of the model at new rows: `made` pairs the name of a result with its value. `alone`: behind the empty
    prompt, with the token that was waited for, in the place of the request's own rows."""

    rows: NewRows
    made: tuple[tuple[str, Value], ...]
    alone: bool


@record(eq=False)
class Looks:
    """Looks at rows of one kind behind different prompts, of which none reads what another gives: one call of the
    model, with a sequence for each look of a request."""

    looks: tuple[Look, ...]


@record(eq=False)
class Append:
    rows: NewRows


@record(eq=False)
class Carried:
    """What a turn of a loop hands on: `start` is there before the first, `value` in each turn and afterwards, `end`
    at the end of one."""

    start: Value
    value: Value
    end: Value


@record(eq=False)
class Repeat:
    variable: Value
    turns: range
    carried: tuple[Carried, ...]
    body: tuple[Action, ...]


Action = Compute | Look | Looks | Append | Repeat


@record(eq=False)
class Event:
    """`on token == N`: what is done once the token has its row."""

    token: int
    body: tuple[Action, ...]
    span: Span


@record(eq=False)
class Tokens:
    """How a model goes on with text: the input of its tokens, and the result that scores the next one."""

    input: Value
    scores: str

    @property
    def count(self) -> int:
        assert isinstance(self.input.type.kind, Id)
        return self.input.type.kind.count


@record(eq=False)
class Generation:
    """A `generate` declaration for one choice of its parameters. `again` makes it for another."""

    name: str
    model: Program
    tokens: Tokens
    settings: Mapping[str, int | float | bool]
    events: tuple[Event, ...]
    span: Span
    again: Callable[[Mapping[str, object]], Generation]


# ---- what rows a model takes ----------------------------------------------------------------------


def tokens_of(model: Program) -> Tokens | None:
    """The one input of ids with a row each, and the result along its rows with a score for each id."""
    ids = [
        value
        for value in model.inputs
        if isinstance(value.type.kind, Id) and value.type.rows is not None and not value.type.static_axes
    ]
    if len(ids) != 1:
        return None
    (tokens,) = ids
    kind, rows = tokens.type.kind, tokens.type.rows
    assert isinstance(kind, Id)
    scores = [
        name
        for name, value in model.outputs
        if isinstance(value.type.kind, Real)
        and value.type.rows in (rows, rows.whole if rows is not None else None)
        and value.type.static_axes == (kind.axis,)
    ]
    return Tokens(tokens, scores[0]) if len(scores) == 1 and not kind.or_none else None


def standing(model: Program, along: Axis) -> Axis:
    """The axis that a row of `along` has its rows on: itself, or the selection that the rows of an owner are of."""
    cut = model.shown.get(along)
    if cut is None:
        return along
    assert isinstance(cut.kind, Cut)
    return cut.kind.parent


def tag_of(model: Program, along: Axis) -> tuple[str, int] | None:
    """The input that says which rows of the whole axis are of a selection, and the number of what it says there."""
    selection = standing(model, along)
    if not isinstance(selection.kind, Selected) or selection not in model.selected:
        return None
    tag = model.selected[selection]
    return tag.name, tag.type.kind.enum.members.index(selection.kind.members[0])  # type: ignore[union-attr]


def appended(actions: tuple[Action, ...]) -> tuple[NewRows, ...]:
    """The rows that actions keep, in order."""
    found: list[NewRows] = []
    for action in actions:
        match action:
            case Append():
                found.append(action.rows)
            case Repeat():
                found += appended(action.body) * len(action.turns)
    return tuple(found)


def looked_at(actions: tuple[Action, ...]) -> tuple[Look, ...]:
    """Every look among actions, those of a loop once."""
    found: list[Look] = []
    for action in actions:
        match action:
            case Look():
                found.append(action)
            case Looks():
                found += action.looks
            case Repeat():
                found += looked_at(action.body)
    return tuple(found)


# ---- from statements in order to actions ----------------------------------------------------------


@record(eq=False)
class Straight:
    """Nodes between two other actions, before it is known which of their values are read later."""

    nodes: tuple[Node, ...]


def settled(
    actions: tuple[Action | Straight, ...], wanted: frozenset[Value], span: Span, names: Mapping[Value, str]
) -> tuple[tuple[Action, ...], frozenset[Value]]:
    """The actions without what nobody reads, with programs for straight runs; and what they read from before.
    `names`: what statements call values that blocks made."""
    kept: list[Action] = []
    for action in reversed(_at_once(actions)):
        match action:
            case Straight():
                program = _program(action.nodes, wanted, span, names)
                if program is not None:
                    kept.append(Compute(program))
                    wanted = wanted - {value for _, value in program.outputs} | set(program.inputs)
            case Look() | Looks():
                looks = action.looks if isinstance(action, Looks) else (action,)
                read = tuple(look for look in looks if any(value in wanted for _, value in look.made))
                if read:
                    kept.append(read[0] if len(read) == 1 else Looks(read))
                    made = {value for look in read for _, value in look.made}
                    wanted = wanted - made | {value for look in read for value in _read(look.rows)}
            case Append():
                kept.append(action)
                wanted = wanted | _read(action.rows)
            case Repeat():
                handed = {one.value for one in action.carried}
                body, read = settled(action.body, frozenset(one.end for one in action.carried), span, names)
                if handed & wanted or appended(body):
                    kept.append(Repeat(action.variable, action.turns, action.carried, body))
                    outside = read - handed - {action.variable}
                    wanted = wanted - handed | outside | {one.start for one in action.carried}
            case Compute():
                raise AssertionError("settled twice")
    return tuple(reversed(kept)), frozenset(value for value in wanted if not isinstance(value, Constant))


def _at_once(actions: Sequence[Action | Straight]) -> list[Action | Straight]:
    """The actions with looks that do not wait for one another as one call. What stands between them goes in front of
    it, or behind it where it reads what one of them gives; rows that are kept would be seen by looks behind them."""
    found: list[Action | Straight] = []
    left = list(actions)
    while left:
        looks, count, given = _group(left)
        between = [node for action in left[:count] if isinstance(action, Straight) for node in action.nodes]
        if len(looks) < 2:
            found.append(left.pop(0))
            continue
        _go_on(found, [node for node in between if not given.intersection(node.outputs)])
        found.append(Looks(tuple(looks)))
        del left[:count]
        _go_on(found, [node for node in between if given.intersection(node.outputs)])
        before, after = found[-1], left[0] if left else None
        if isinstance(before, Straight) and isinstance(after, Straight):
            left[0] = Straight((*before.nodes, *after.nodes))
            found.pop()
    return found


def _group(actions: Sequence[Action | Straight]) -> tuple[list[Look], int, set[Value]]:
    """The looks from the first action on that can be one call, how many actions they and what stands between them are,
    and which values follow from what they give."""
    looks: list[Look] = []
    given: set[Value] = set()
    count = 0
    for place, action in enumerate(actions):
        match action:
            case Look() if not given & _read(action.rows) and _go_together(looks, action):
                looks.append(action)
                given.update(value for _, value in action.made)
                count = place + 1
            case Straight() if looks:
                for node in action.nodes:
                    given.update(node.outputs if given.intersection(node.inputs) else ())
            case _:
                break
    return looks, count, given


def _go_on(found: list[Action | Straight], nodes: list[Node]) -> None:
    """Nodes behind the actions found, in one straight run with those at their end."""
    before = found[-1] if found else None
    if isinstance(before, Straight):
        found[-1] = Straight((*before.nodes, *nodes))
    elif nodes:
        found.append(Straight(tuple(nodes)))


def _go_together(looks: Sequence[Look], other: Look) -> bool:
    """Whether a look can be a call with others. Two behind one prompt would need a copy of it."""

    def form(rows: NewRows) -> object:
        return rows.along, rows.tag, frozenset(name for name, _ in rows.given)

    return all(form(one.rows) == form(other.rows) and one.alone != other.alone for one in looks)


def _read(rows: NewRows) -> set[Value]:
    return {value for _, value in rows.given}


def _program(
    nodes: tuple[Node, ...], wanted: frozenset[Value], span: Span, names: Mapping[Value, str]
) -> Program | None:
    """A straight run for what is wanted of it; None when nothing is."""
    needed, live = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            live.append(node)
            needed.update(node.inputs)
    if not live:
        return None
    live.reverse()
    made = [value for node in live for value in node.outputs]
    inputs = dict.fromkeys(
        value for node in live for value in node.inputs if value not in made and not isinstance(value, Constant)
    )
    outputs = tuple((names.get(value, value.name), value) for value in made if value in wanted)
    return Program("compute", "generate", tuple(inputs), (), tuple(live), outputs, (), span)
