"""`generate` programs, as `weft inspect FILE decode` shows them: for each token that is waited for, what is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weft.dsl.generation import Action, Append, Compute, Generation, Look, Looks, NewRows, Repeat
from weft.dsl.program import Program, Value

from .table import columns


def data(generations: Iterable[Generation]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "model": one.model.name,
            "settings": dict(one.settings),
            "events": [{"token": event.token, "actions": _data(event.body)} for event in one.events],
        }
        for one in generations
    ]


def _data(actions: Iterable[Action]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for action in actions:
        match action:
            case Compute(program):
                made = [name for name, _ in program.outputs]
                found.append({"compute": made, "operations": len(program.nodes), "line": _line(program)})
            case Look(rows, made, alone):
                results = [name for name, _ in made]
                found.append({"look": results, "behind": "the empty prompt" if alone else "the request", **_rows(rows)})
            case Looks(looks):
                found.append({"at once": _data(looks)})
            case Append(rows):
                found.append({"append": rows.along.name, **_rows(rows)})
            case Repeat(variable, turns, carried, body):
                handed = [one.value.name for one in carried]
                found.append({"repeat": variable.name, "turns": len(turns), "carried": handed, "actions": _data(body)})
    return found


def _rows(rows: NewRows) -> dict[str, Any]:
    return {"rows_of": rows.along.name, "given": [name for name, _ in rows.given], "line": rows.span.line}


def text(generations: Iterable[Generation]) -> str:
    parts = []
    for one in generations:
        settings = ", ".join(f"{name} = {_number(value)}" for name, value in one.settings.items())
        rows = [(f"generate {one.name}({settings}) goes on with {one.model.name}", f"line {one.span.line}")]
        for event in one.events:
            rows.append((f"  when token {event.token} comes", f"line {event.span.line}"))
            rows += _lines(event.body, 2, _named(event.body))
        parts.append("\n".join(columns(rows)))
    return "\n\n".join(parts)


def _lines(actions: Iterable[Action], depth: int, names: Mapping[Value, str]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    indent = "  " * depth
    for action in actions:
        match action:
            case Compute(program):
                made = ", ".join(dict.fromkeys(name for name, _ in program.outputs))
                count = len(program.nodes)
                steps = "1 operation" if count == 1 else f"{count} operations"
                lines.append((f"{indent}{made} in {steps}", f"line {_line(program)}"))
            case Look(rows, made, alone):
                results = ", ".join(name for name, _ in made)
                behind = " behind the empty prompt" if alone else ""
                what = f"{indent}look at {results} of a row of {rows.along.name}{behind}, from {_given(rows, names)}"
                lines.append((what, f"line {rows.span.line}"))
            case Looks(looks):
                lines.append((f"{indent}{len(looks)} looks in one call", f"line {looks[0].rows.span.line}"))
                lines += _lines(looks, depth + 1, names)
            case Append(rows):
                lines.append(
                    (f"{indent}keep a row of {rows.along.name}: {_given(rows, names)}", f"line {rows.span.line}")
                )
            case Repeat(variable, turns, carried, body):
                handed = ", ".join(one.value.name for one in carried)
                told = f", handing on {handed}" if handed else ""
                lines.append((f"{indent}{len(turns)} turns of {variable.name}{told}", f"line {variable.span.line}"))
                lines += _lines(body, depth + 1, names)
    return lines


def _given(rows: NewRows, names: Mapping[Value, str]) -> str:
    return ", ".join(f"{name} = {names.get(value, value.name)}" for name, value in rows.given)


def _named(actions: Iterable[Action]) -> dict[Value, str]:
    """What values are called where a statement binds them."""
    found: dict[Value, str] = {}
    for action in actions:
        if isinstance(action, Compute):
            found |= {value: name for name, value in action.program.outputs}
        elif isinstance(action, Repeat):
            found |= _named(action.body)
    return found


def _line(program: Program) -> int:
    """The line of the spec that a straight run ends at: of the call, where a block made its last value."""
    last = program.nodes[-1]
    return (last.scope[1].span if len(last.scope) > 1 else last.span).line


def _number(value: float) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
