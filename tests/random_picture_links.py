"""Statements that lead from one axis of words, places and pictures to another, and attention by picture.

Each takes the writer of all axes, and says whether there was something to write about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .random_routes import route
from .random_specs import same_type
from .random_values import EXAMPLE, REAL, Typed, Writer, joined

# Of rows that stand in one text: what a row sees is its own picture and what came before.
CAUSAL = (
    "causal or same(picture)", "causal or same(picture)", "(causal or same(picture)) and window({n})",
    "causal and same(picture)", "same(picture)", "same(picture) or recent({n})",
    "same(picture) or key(position) < query(position)",
)  # fmt: skip
AHEAD = ("same(picture) or window({n})", "window({n}) and (same(picture) or causal)")


def along(writer: Writer, axis: str, write: Callable[[Writer], object]) -> object:
    """A statement by a writer that knows the values of one axis, and those of no rows."""
    values = [v for v in writer.values if v.level in (None, EXAMPLE, axis)]
    cut = writer.cut if axis == "seq" else None
    own = replace(writer, row=axis, rows=(axis,), values=values, cut=cut)
    result = write(own)
    known = {value.text: value for value in own.values}
    writer.values[:] = [known.pop(value.text, value) for value in writer.values] + list(known.values())
    return result


# -- from one axis to another ------------------------------------------------------------------------------------------


def _rows(writer: Writer, axis: str, test: Callable[[Typed], bool] = lambda v: True) -> Typed | None:
    return writer.real(lambda v: v.level == axis and not (writer.causal and v.ahead) and test(v))


def _taken(writer: Writer) -> bool:
    x, axis = writer.value(lambda v: v.level == "seq" and not v.missing), writer.pick(("word", "place"))
    if x is not None:
        writer.bind(replace(x, text=f"take({x.text}, seq -> {axis})", level=axis))
    return x is not None


def _joined(writer: Writer) -> bool:
    """Of words and places with the same axes, in either order."""
    words = _rows(writer, "word")
    places = words and _rows(writer, "place", lambda v: {*v.axes} == {*words.axes})
    if words is None or places is None:
        return False
    (a, b), order = ((words, places), "word, place") if writer.maybe() else ((places, words), "place, word")
    text = f"join(({a.text}, {b.text}), ({order}) -> seq)"
    writer.bind(joined(REAL, text, [a, b], level="seq", size=max(a.size, b.size)))
    return True


def _flattened(writer: Writer) -> bool:
    x = _rows(writer, "picture", lambda v: "spot" in v.axes)
    if x is not None:
        axes = tuple(axis for axis in x.axes if axis != "spot")
        writer.bind(replace(x, text=f"flatten({x.text}, (picture, spot) -> place)", level="place", axes=axes))
    return x is not None


def _unflattened(writer: Writer) -> bool:
    x = _rows(writer, "place", lambda v: "spot" not in v.axes and writer.fits((*v.axes, "spot")))
    if x is not None:
        text = f"unflatten({x.text}, place -> (picture, spot))"
        writer.bind(replace(x, text=text, level="picture", axes=("spot", *x.axes)))
    return x is not None


def _told(writer: Writer) -> bool:
    """What is one of a picture, at each of its places."""
    x = _rows(writer, "picture", lambda v: bool(v.axes) and "spot" not in v.axes and writer.fits((*v.axes, "spot")))
    if x is None:
        return False
    axis = writer.pick(x.axes)
    wide = joined(REAL, f"linear({x.text}, {axis} -> (spot, {axis}))", [x], axes=("spot", *x.axes), size=1.5 * x.size)
    wide = writer.bind(wide)
    writer.bind(replace(wide, text=f"flatten({wide.text}, (picture, spot) -> place)", level="place", axes=x.axes))
    return True


def _convolved(writer: Writer) -> bool:
    x = _rows(writer, "picture", lambda v: "spot" in v.axes and len(v.axes) > 1)
    if x is None:
        return False
    axis = writer.pick(axis for axis in x.axes if axis != "spot")
    text = f"conv({x.text}, spot -> spot, {axis} -> {axis}, size={writer.pick((1, 2, 3))})"
    writer.bind(joined(REAL, text, [x], size=3 * x.size))
    return True


def _routed(writer: Writer) -> bool:
    along(writer, "seq", lambda own: route(own, same_type))
    return True


def _attended(writer: Writer) -> bool:
    """By picture, along the text or along places; the residual now and then."""
    axis = writer.pick(("seq", "seq", "seq", "place"))
    x = _rows(writer, axis, lambda v: len(v.axes) == 1 and v.axes[0] not in ("heads", "kv_heads", "head_dim"))
    if x is None:
        return False
    is_ahead = not writer.causal and writer.maybe(0.2)
    mask = writer.pick(AHEAD if is_ahead else CAUSAL).format(n=writer.pick((1, 2, 3, 5)))
    said = f", scale={writer.number()}" if writer.maybe(0.2) else ""
    if writer.maybe(0.25):
        said += f", score={writer.pick(('silu', 'capped', 'bent', 'stepped'))}"
    (width,), key_heads = x.axes, writer.pick(("heads", "kv_heads"))
    if writer.maybe(0.3):
        text = f"attend({x.text}, {x.text}, {x.text}, over={width}, along={axis}, mask={mask}{said})"
        made = writer.bind(joined(REAL, text, [x], ahead=x.ahead or is_ahead))
    else:
        turned = f" |> rope(along={axis})" if writer.length("head_dim") % 2 == 0 and writer.maybe(0.4) else ""
        q, k, v = (writer.name("q") for _ in range(3))
        for name, heads, turn in ((q, "heads", turned), (k, key_heads, turned), (v, key_heads, "")):
            writer.line(f"{name} = linear({x.text}, {width} -> ({heads}, head_dim)){turn}")
        group = ", group=heads -> kv_heads" if key_heads == "kv_heads" else ""
        text = f"attend({q}, {k}, {v}, over=head_dim, along={axis}{group}, mask={mask}{said})"
        made = Typed(text, REAL, axis, ("heads", "head_dim"), ahead=x.ahead or is_ahead)
        made = writer.bind(made)
        made = writer.bind(replace(made, text=f"linear({made.text}, (heads, head_dim) -> {width})", axes=x.axes))
    if writer.maybe(0.6):
        writer.bind(joined(REAL, f"({x.text} + {made.text})", [x, made]))
    return True


def _layers(writer: Writer) -> bool:
    """Two layers: attention by picture, and a tower for each tag or for pictures and words."""
    x = _rows(writer, "seq", lambda v: len(v.axes) == 1 and v.axes[0] not in ("two", "three"))
    if x is None:
        return False
    (width,), turn, mask = x.axes, writer.name("i"), writer.pick(CAUSAL).format(n=writer.pick((2, 4)))
    made = writer.bind(joined(REAL, f"(1.0 * {x.text})", [x]))
    q, mixed = writer.name("q"), writer.name("q")
    writer.line(f"for {turn} in 0 .. 2:")
    inner = writer.inner()
    if writer.maybe():
        inner.line("routed by kind:")
        inner.line(f"    {q} = linear({made.text}, {width} -> {width})")
    else:
        inner.line(f"{q} = rms_norm({made.text}, over={width})")
    inner.line(f"{mixed} = attend({q}, {made.text}, {q}, over={width}, along=seq, mask={mask})")
    inner.line(f"{made.text} = tanh({made.text} + {mixed})")
    fed = f"{made.text} = {made.text} + mlp({made.text}, two, width={width})"
    by_tag = ("routed by kind:", f"    {fed}")
    apart = (
        "match kind:",
        "    low, high:",
        f"        {fed}",
        "    flat:",
        f"        {fed.replace(', two', ', three')}",
    )
    for line in writer.pick((by_tag, apart)):
        inner.line(line)
    writer.adopt(inner)
    writer.values[writer.values.index(made)] = replace(made, size=4.0, is_bound_once=False)
    return True


LINKS = (
    *(_attended,) * 3, _layers, _taken, _joined, _flattened, _unflattened, _told, _convolved, *(_routed,) * 2,
)  # fmt: skip
