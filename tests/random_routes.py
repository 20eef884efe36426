"""Random statements that go by a tag of each row: `routed by`, `match`, and selections with what runs along them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import random_pointwise
from .random_values import EXAMPLE, REAL, TAG, Typed, Writer, joined

TAGS = ("low", "high", "flat")
SELECTIONS = ("lows", "highs", "flats")
DECLARED = tuple(f"axis {axis} = seq where kind == {tag}" for axis, tag in zip(SELECTIONS, TAGS, strict=True))
KIND = Typed("kind", TAG, "seq")


def route(writer: Writer, made_of: Callable[[Writer, Typed], Typed]) -> None:
    """One statement. `made_of`: a value with the type of another, made row by row from it and what is in reach."""
    x = writer.real(lambda v: v.level == writer.row and (not v.ahead or not writer.causal))
    if x is not None:
        writer.pick((_routed, _match, _selected, _nested))(writer, x, made_of)


def _arm(writer: Writer, x: Typed, made_of: Callable[[Writer, Typed], Typed], name: str, label: str = "") -> bool:
    """The lines of an arm, which end by binding a name. Whether a later row is seen."""
    inner = writer.inner()
    inner.values = [v for v in inner.values if v.level in (None, EXAMPLE, writer.row) and not v.missing]
    if inner.maybe(0.5):
        for _ in range(20):
            before = len(inner.lines), len(inner.values)
            made = inner.pick(random_pointwise.PRODUCTIONS)(inner)
            if made is not None and not (writer.causal and made.ahead) and made.level in (writer.row, EXAMPLE):
                inner.bind(made)
                break
            del inner.lines[before[0] :], inner.values[before[1] :]
    made = made_of(inner, x)
    inner.line(f"{name} = {made.text}{label if made.text.startswith(('linear', 'rms_norm', 'mlp')) else ''}")
    writer.adopt(inner)
    return made.ahead


def _bound(writer: Writer, x: Typed, name: str, ahead: bool) -> None:
    made = replace(x, text=name, ahead=ahead or x.ahead, is_plain=False, size=2 * x.size + 2, is_bound_once=False)
    writer.values.append(made)


def _routed(writer: Writer, x: Typed, made_of: Callable[[Writer, Typed], Typed]) -> None:
    name = writer.name()
    writer.line("routed by kind:")
    _bound(writer, x, name, _arm(writer, x, made_of, name))


def _match(writer: Writer, x: Typed, made_of: Callable[[Writer, Typed], Typed]) -> None:
    """Arms of one tag or of two, in any order; now and then one that leaves a name as it was."""
    name, tags = writer.name(), writer.chance.sample(TAGS, 3)
    arms = writer.pick(((tags[:1], tags[1:2], tags[2:]), (tags[:2], tags[2:]), (tags,)))
    has_before = len(arms) > 1 and writer.maybe(0.3)
    if has_before:
        writer.line(f"{name} = 0.5 * {x.text}")
    writer.line("match kind:")
    ahead = False
    for number, arm in enumerate(arms):
        inner = writer.inner()
        inner.line(f"{', '.join(arm)}:")
        bound = writer.name() if has_before and number == 0 else name
        ahead = _arm(inner, x, made_of, bound, f" as {writer.name('arm')}") or ahead
        writer.adopt(inner)
    _bound(writer, x, name, ahead)


def _nested(writer: Writer, x: Typed, made_of: Callable[[Writer, Typed], Typed]) -> None:
    """Arms in a loop in arms."""
    name, turn = writer.name(), writer.name("i")
    writer.line("routed by kind:")
    writer.line(f"    {name} = 1.0 * {x.text}")
    writer.line(f"    for {turn} in 0 .. {writer.pick((1, 2))}:")
    inner = writer.inner()
    inner.line("match kind:")
    for arm in (TAGS[:1], TAGS[1:]):
        inner.line(f"    {', '.join(arm)}:")
        step = writer.pick((f"tanh({name})", f"silu({name} * 0.7)", f"({name} - 0.25)"))
        if x.axes and writer.maybe():
            step = f"linear({name}, {x.axes[0]} -> {x.axes[0]})"
        inner.line(f"        {name} = {step}")
    writer.lines += [f"        {line}" for line in inner.lines]
    _bound(writer, x, name, x.ahead)


def _selected(writer: Writer, x: Typed, made_of: Callable[[Writer, Typed], Typed]) -> None:
    """Parts that go their own ways, and their rows together again."""
    parts, ahead = [], x.ahead
    for axis in SELECTIONS:
        part = writer.name("s")
        writer.line(f"{part} = take({x.text}, seq -> {axis})")
        forms = [part, f"tanh({part})", f"({part} + previous({part}))", f"({part} * real(position({axis}) + 1) * 0.2)"]
        if x.axes:
            over = writer.pick(x.axes)
            forms.append(f"linear({part}, {over} -> {over})")
            if len(x.axes) == 1:
                forms.append(f"attend({part}, {part}, {part}, over={over}, along={axis}, mask=causal)")
                if not writer.causal:
                    forms.append(f"attend({part}, {part}, {part}, over={over}, along={axis})")
        if not writer.causal:
            forms.append(f"({part} - mean({part}, over={axis}))")
        form = writer.pick(forms)
        if "mask" not in form and ("attend" in form or "mean" in form):
            ahead = True
        made = writer.name("s")
        writer.line(f"{made} = {form}")
        parts.append(made)
    order = writer.chance.sample(range(3), 3)
    values, axes = (", ".join(names[i] for i in order) for names in (parts, SELECTIONS))
    made = joined(REAL, f"join(({values}), ({axes}) -> seq)", [x], ahead=ahead, size=4 * x.size + 1)
    writer.bind(made)
