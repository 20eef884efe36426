"""`generate` programs whose looks at the model are made one after another, to compare with those made at once."""

from __future__ import annotations

from collections.abc import Sequence

from weft.dsl.generation import Action, Event, Generation, Looks, Repeat


def one_by_one(generation: Generation) -> Generation:
    """The same program with one call for every look."""
    events = tuple(Event(event.token, apart(event.body), event.span) for event in generation.events)
    one = generation
    return Generation(one.name, one.model, one.tokens, one.settings, events, one.span, one.again)


def apart(actions: Sequence[Action]) -> tuple[Action, ...]:
    found: list[Action] = []
    for action in actions:
        match action:
            case Looks():
                found += action.looks
            case Repeat():
                found.append(Repeat(action.variable, action.turns, action.carried, apart(action.body)))
            case _:
                found.append(action)
    return tuple(found)
