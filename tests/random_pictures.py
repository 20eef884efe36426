"""Random expressions over grids, windows of rows, scaled axes and nested rows.

As in random_axes.py: a function takes the writer and gives a value whose text is one operand, or None.
"""

from __future__ import annotations

from .random_values import REAL, Typed, Writer, joined

DECLARATIONS = ("axis cell = grid(3, 2)", "axis half_cell = cell / 2", "axis pair = seq / 2", "axis piece in seq")


def pictured(writer: Writer) -> Typed | None:
    """One of the four, in bodies whose rows are those of `seq`."""
    if writer.is_generic or writer.row != "seq":
        return None
    return writer.pick((grid, grid, window, scaled, nested, nested))(writer)


def _widened(writer: Writer, x: Typed, place: str) -> tuple[str, str] | None:
    """x with `place` as a further axis: a name, and one of its own axes."""
    if place in x.axes or not writer.fits((*x.axes, "nine")):
        return None
    width, name = writer.pick(x.axes), writer.name("g")
    writer.line(f"{name} = linear({x.text}, {width} -> ({place}, {width}))")
    return name, width


def grid(writer: Writer) -> Typed | None:
    """Onto a grid, a few steps there, and the mean of its places."""
    x = writer.real(lambda v: v.level == writer.row and bool(v.axes))
    found = x and _widened(writer, x, "cell")
    if x is None or not found:
        return None
    (name, width), place, size = found, "cell", 1.5 * x.size + 0.5
    for _ in range(writer.pick((1, 2, 2, 3))):
        other = "half_cell" if place == "cell" else "cell"
        bias, kernel = writer.pick(("", ", bias=true")), writer.pick((1, 2, 3))
        forms = [
            (f"conv({name}, {place} -> {place}, {width} -> {width}, size={kernel}{bias})", place),
            (f"group_norm({name}, {place}, 1, width={width})", place),
            (f"attend({name}, {name}, {name}, over={width}, along={place})", place),
        ]
        if place == "cell":
            by = writer.pick(("mean", "sum", "first", "last"))
            forms.append((f"conv({name}, cell -> half_cell, {width} -> {width}, size={kernel}, stride=2)", other))
            forms.append((f"pool({name}, cell -> half_cell, by={by})", other))
        else:
            forms.append((f"spread({name}, half_cell -> cell)", other))
        form, place = writer.pick(forms)
        name, size = writer.name("g"), 4 * size
        writer.line(f"{name} = tanh({form})")
    return joined(REAL, f"mean({name}, over={place})", [x], size=1.0)


def window(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: v.level == writer.row and bool(v.axes))
    if x is None:
        return None
    width, pad, size = writer.pick(x.axes), writer.pick(("same", "causal", "causal")), writer.pick((1, 2, 3, 4))
    text = f"conv({x.text}, seq -> seq, {width} -> {width}, size={size}, pad={pad})"
    return joined(REAL, text, [x], ahead=x.ahead or (pad == "same" and size > 1), size=1.5 * x.size + 0.5)


def scaled(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: v.level == writer.row and bool(v.axes))
    if x is None:
        return None
    width, which, name = writer.pick(x.axes), writer.pick(("own", "before", "closed", "closed")), writer.name("g")
    made = writer.pick((
        f"pool({x.text}, seq -> pair, by={writer.pick(('mean', 'sum', 'first', 'last'))})",
        f"conv({x.text}, seq -> pair, {width} -> {width}, size={writer.pick((1, 2))}, stride=2)",
    ))  # fmt: skip
    writer.line(f"{name} = {made}")
    return joined(REAL, f"spread({name}, pair -> seq, {which})", [x], ahead=x.ahead or which == "own", size=2 * x.size)


def nested(writer: Writer) -> Typed | None:
    """Two rows of each row, which meet it and each other, and their mean."""
    x = writer.real(lambda v: v.level == writer.row and bool(v.axes) and "two" not in v.axes)
    found = x and _widened(writer, x, "two")
    if x is None or not found:
        return None
    (name, width), rows = found, writer.name("g")
    writer.line(f"{rows} = flatten({name}, (seq, two) -> piece) + 0.5 * {x.text}")
    size, ahead = 2 * x.size + 0.5, x.ahead
    if len(x.axes) == 1 and writer.maybe():
        mask = writer.pick(("same(seq)", "causal and same(seq)", "causal"))
        made = writer.name("g")
        writer.line(f"{made} = attend({rows}, {rows}, {rows}, over={width}, along=piece, mask={mask})")
        rows = made
    back = writer.pick((
        f"mean({rows}, over=piece)",
        f"pool({rows}, piece -> seq, by=last)",
        f"sum(unflatten({rows}, piece -> (seq, two)), over=two)",
    ))  # fmt: skip
    return joined(REAL, back, [x], ahead=ahead, size=2 * size)
