"""Random expressions that change axes: products, tables, reductions, choices of entries, parts, other names.

A function takes the writer and gives a value whose text is one operand, or None where nothing in reach fits its rule.
What takes several lines writes all but the last itself.
"""

from __future__ import annotations

from dataclasses import replace

from .random_segments import counted, segmented
from .random_values import EXAMPLE, FLAG, INT, REAL, TAG, Typed, Writer, joined, level_of, listed, meet

# -- products ----------------------------------------------------------------------------------------------------------


def linear(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: bool(v.axes))
    if x is None:
        return None
    gone = _some(writer, x.axes, 2)
    kept = tuple(axis for axis in x.axes if axis not in gone)
    gives = gone if writer.maybe(0.25) else _some(writer, [axis for axis in writer.sizes if axis not in kept], 2)
    if not gives or not writer.fits((*kept, *gives)):
        return None
    bias = writer.pick(("", "", ", bias=true"))
    given = writer.value(lambda v: v.is_real and v.level is None and set(v.axes) == {*gone, *gives})
    weight = f", weight={given.text}" if given is not None and not bias and not {*gone} & {*gives} else ""
    text = f"linear({x.text}, {listed(gone)} -> {listed(gives)}{bias}{weight})"
    return Typed(text, REAL, x.level, (*kept, *gives), ahead=x.ahead, size=1.5 * x.size + 0.5,
                 is_plain=bool(bias) and not weight)  # fmt: skip


def _some(writer: Writer, axes, most: int) -> tuple[str, ...]:
    axes = list(axes)
    count = min(len(axes), writer.pick((1, 1, 1, most)))
    return tuple(writer.chance.sample(axes, count))


def feed_forward(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: bool(v.axes) and v.axes[-1] in writer.sizes)
    inner = writer.pick(writer.sizes)
    if x is None or inner in x.axes or not writer.fits((*x.axes, inner)):
        return None
    name = writer.pick(("swiglu", "mlp"))
    width = writer.pick(x.axes)
    return joined(REAL, f"{name}({x.text}, {inner}, width={width})", [x], size=2.0)


def dot(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: bool(v.axes))
    y = x and writer.real(lambda v: bool({*v.axes} & {*x.axes}) and meet(v, x))
    if x is None or y is None:
        return None
    shared = [axis for axis in x.axes if axis in y.axes]
    over = _some(writer, shared, 2)
    axes = tuple(axis for axis in dict.fromkeys((*x.axes, *y.axes)) if axis not in over)
    if not writer.fits(axes):
        return None
    return joined(REAL, f"dot({x.text}, {y.text}, over={listed(over)})", [x, y], axes=axes, size=2 * x.size * y.size)


def outer(writer: Writer) -> Typed | None:
    x = writer.real()
    y = x and writer.real(lambda v: meet(v, x))
    axes = tuple(dict.fromkeys((*x.axes, *y.axes))) if x and y else ()
    if x is None or y is None or not writer.fits(axes) or x.size * y.size > 20:
        return None
    return joined(REAL, f"outer({x.text}, {y.text})", [x, y], axes=axes, size=x.size * y.size)


# -- reductions --------------------------------------------------------------------------------------------------------


def reduction(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.kind in (REAL, INT, FLAG) and (bool(v.axes) or v.has_rows))
    if x is None:
        return None
    over, level, ahead = _some(writer, x.axes, 2), x.level, x.ahead
    if x.has_rows and (not over or writer.maybe(0.3)):
        if writer.causal and x.level == writer.row:
            return None
        over, level, ahead = (x.level or "", *(over if writer.maybe() else ())), EXAMPLE, ahead or x.level == writer.row
    if not over:
        return None
    if x.kind == FLAG:
        name = writer.pick(("any", "all"))
    elif x.kind == INT:
        name = writer.pick(("sum", "max", "min"))
    else:
        # Ties share the gradient of a maximum, and rounding would decide what ties.
        name = writer.pick(("sum", "mean", "logsumexp", "mean", *(("max", "min") if x.is_plain else ())))
    axes = tuple(axis for axis in x.axes if axis not in over)
    text = f"{name}({x.text}, over={listed(over)})"
    missing = x.missing and level == x.level
    return Typed(text, x.kind, level, axes, missing, ahead, size=4 * x.size if name == "sum" else x.size + 3)


def softmax(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.is_real and (bool(v.axes) or v.has_rows))
    if x is None:
        return None
    if x.has_rows and not x.missing and (not x.axes or writer.maybe(0.2)):
        if writer.causal and x.level == writer.row:
            return None
        return joined(REAL, f"softmax({x.text}, over={x.level})", [x], ahead=x.ahead or x.level == writer.row)
    if not x.axes:
        return None
    return joined(REAL, f"softmax({x.text}, over={listed(_some(writer, x.axes, 2))})", [x])


def norm(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: bool(v.axes))
    if x is None:
        return None
    name = writer.pick(("rms_norm", "rms_norm", "layer_norm", "standardise", "unit"))
    over = _some(writer, x.axes, 2)
    if name in ("layer_norm", "standardise") and all(writer.sizes.get(axis) == 1 for axis in over):
        return None  # one entry less itself is 0, and what divides by its size would divide rounding by it
    said = "" if len(x.axes) == 1 and writer.maybe() else f", over={listed(over)}"
    eps = writer.pick(("", "", ", eps=0.01"))
    return joined(REAL, f"{name}({x.text}{said}{eps})", [x], size=2.0)


def scores(writer: Writer) -> Typed | None:
    """Losses of the standard library as values."""
    x = writer.real(lambda v: bool(v.axes))
    if x is None:
        return None
    name = writer.pick(("z_loss", "entropy"))
    over = writer.pick(x.axes)
    axes = tuple(axis for axis in x.axes if axis != over)
    return joined(REAL, f"{name}({x.text}, over={over})", [x], axes=axes, size=(x.size + 2) ** 2)


def rope(writer: Writer) -> Typed | None:
    # Half of a grid is a grid of half the sides.
    even = [axis for axis in writer.known() if writer.length(axis) % 2 == 0 and axis != "spot"]
    x = writer.real(lambda v: v.has_rows and any(axis in even for axis in v.axes) and writer.is_generic is False)
    if x is None:
        return None
    over = writer.pick(axis for axis in x.axes if axis in even)
    name = writer.pick(("rope", "rope", "rope_interleaved"))
    theta = writer.pick(("", f", theta={writer.chance.randrange(5, 900)}"))
    axes = (*(axis for axis in x.axes if axis != over), over)
    return joined(REAL, f"{name}({x.text}, along={x.level}, over={over}{theta})", [x], axes=axes, size=2 * x.size)


# -- ids ---------------------------------------------------------------------------------------------------------------


def embed(writer: Writer) -> Typed | None:
    i = writer.value(lambda v: not v.missing and (v.kind in writer.sizes or v.kind == TAG))
    if i is None:
        return None
    gives = _some(writer, [axis for axis in writer.sizes if axis not in (*i.axes, i.kind)], 2)
    if not gives or not writer.fits((*i.axes, *gives)):
        return None
    axes = {i.kind, *gives}
    given = writer.value(lambda v: v.is_real and v.level is None and set(v.axes) == axes)
    weight = f", weight={given.text}" if given is not None and writer.maybe(0.7) else ""
    text = f"embed({i.text}, {i.kind} -> {listed(gives)}{weight})"
    return Typed(text, REAL, i.level, (*i.axes, *gives), ahead=i.ahead)


def pick_entry(writer: Writer) -> Typed | None:
    """`pick(x, i, over=A)` or `x[i]`."""
    i = writer.value(lambda v: v.kind in writer.sizes)
    x = i and writer.value(lambda v: v.is_real and i.kind in v.axes and meet(v, i))
    if i is None or x is None:
        return None
    rest = tuple(axis for axis in x.axes if axis != i.kind)
    axes = tuple(dict.fromkeys((*rest, *i.axes)))
    # An id of an axis that has that axis too would meet itself.
    if i.kind in i.axes or not writer.fits(axes):
        return None
    if not (x.missing or i.missing) and writer.maybe():
        # x[i] keeps no order that we need to know.
        return Typed(f"{x.text}[{i.text}]", REAL, level_of((x, i)), axes, ahead=x.ahead or i.ahead, size=x.size)
    if not set(i.axes) <= set(rest):
        return None
    return joined(REAL, f"pick({x.text}, {i.text}, over={i.kind})", [x, i], axes=rest, size=x.size)


def largest(writer: Writer) -> Typed | None:
    """`argmax`, `best` and `topk`, the last with a weighted sum of a table's entries now and then."""
    x = writer.real(lambda v: bool(v.axes) and v.axes[-1] in writer.sizes)
    if x is None:
        return None
    over = writer.pick(x.axes)
    # Equal scores would be told apart by rounding.
    apart = x.text if x.is_plain else f"({x.text} + {writer.number(0.03, 0.07)} * real(position({over})))"
    rest = tuple(axis for axis in x.axes if axis != over)
    few = [axis for axis in ("two", "three") if axis not in x.axes and over in writer.known()]
    few = [axis for axis in few if writer.length(axis) <= writer.length(over)]
    match writer.chance.randrange(5 if few else 2):
        case 0:
            return joined(over, f"argmax({apart}, over={over})", [x], axes=rest)
        case 1:
            field = writer.pick((".score", ".index"))
            return joined(REAL if field == ".score" else over, f"best({apart}, over={over}){field}", [x], axes=rest)
    k = writer.pick(few)
    best = writer.name("t")
    writer.line(f"{best} = topk({apart}, over={over}, k={k})")
    axes = (*rest, k)
    found = joined(over, f"{best}.index", [x], axes=axes)
    score = joined(REAL, f"{best}.score", [x], axes=axes, size=x.size)
    writer.values += [found, score]
    table = writer.real(lambda v: over in v.axes and k not in v.axes and v.level is None)
    # What a generic block is called with may be one per example, and a table is one for all.
    if table is not None and not writer.is_generic and not {*table.axes} & {*rest} and writer.maybe(0.7):
        others = tuple(axis for axis in table.axes if axis != over)
        if writer.fits((*rest, *others, k)):
            text = f"bag({table.text}, {found.text}, weight=softmax({score.text}, over={k}), over={k})"
            return joined(REAL, text, [x, table], axes=(*rest, *others), size=table.size)
    return score if writer.maybe() else found


def thinned(writer: Writer) -> Typed | None:
    """What a linear makes, and 0 for all but its largest entries: the last one that was taken equals itself."""
    x = writer.real(lambda v: bool(v.axes))
    if x is None:
        return None
    gone = writer.pick(x.axes)
    rest = tuple(axis for axis in x.axes if axis != gone)
    free = [axis for axis in writer.known() if axis not in rest]
    chosen = [(over, k) for over in free for k in {"two", "three"} & {*free} - {over}]
    chosen = [(over, k) for over, k in sorted(chosen) if writer.length(k) <= writer.length(over)]
    if not chosen:
        return None
    over, k = writer.pick(chosen)
    if not writer.fits((*rest, over)):
        return None
    made = writer.name("p")
    writer.line(f"{made} = linear({x.text}, {gone} -> {over})")
    least = f"min(topk({made}, over={over}, k={k}).score, over={k})"
    return joined(REAL, f"where({made} >= {least}, {made}, 0)", [x], axes=(*rest, over), size=3 * x.size)


def pairs(writer: Writer) -> Typed | None:
    """`topk_pairs` of keys that a linear makes."""
    x = writer.real(lambda v: bool(v.axes) and not {"two", "three"} & {*v.axes})
    if x is None or {"two", "three"} - {*writer.known()}:
        return None
    gone = writer.pick(x.axes)
    rest = tuple(axis for axis in x.axes if axis != gone)
    k = writer.pick(axis for axis in ("two", "three", "heads") if axis not in rest)
    if not writer.fits((*rest, "two", "three")):
        return None
    made, best = writer.name("p"), writer.name("t")
    writer.line(f"{made} = linear({x.text}, {gone} -> (two, three), bias=true)")
    writer.line(f"{best} = topk_pairs({made}, over=three, pair=two, k={k}, into=nine)")
    found = joined("nine", f"{best}.index", [x], axes=(*rest, k))
    score = joined(REAL, f"{best}.score", [x], axes=(*rest, k), size=3 * x.size)
    writer.values += [found, score]
    return score if writer.maybe() else found


def nearest(writer: Writer) -> Typed | None:
    """Of a table's entries: which, how far, and the entry."""
    x = writer.real(lambda v: bool(v.axes) and v.is_plain and v.level is not None)
    table = x and writer.real(
        lambda v: v.level is None and v.is_plain and len(v.axes) == 2 and bool({*v.axes} & {*x.axes})
    )
    if x is None or table is None:
        return None
    over = writer.pick(axis for axis in table.axes if axis in x.axes)
    (along,) = (axis for axis in table.axes if axis != over)
    rest = tuple(axis for axis in x.axes if axis != over)
    if along in rest:
        return None
    text = f"nearest({x.text}, {table.text}, over={over}, along={along})"
    match writer.chance.randrange(3):
        case 0:
            return joined(along, f"{text}.index", [x], axes=rest)
        case 1:
            return joined(REAL, f"{text}.score", [x, table], axes=rest, size=9.0)
    return joined(REAL, f"{text}.value", [x, table], axes=(*rest, over), size=table.size)


# -- parts and names ---------------------------------------------------------------------------------------------------


def parts(writer: Writer) -> Typed | None:
    """`split`, `select`."""
    x = writer.value(lambda v: v.is_real and any(axis in writer.known() for axis in v.axes))
    if x is None:
        return None
    over = writer.pick(axis for axis in x.axes if axis in writer.known())
    rest = tuple(axis for axis in x.axes if axis != over)
    if writer.maybe() or writer.length(over) not in (2, 3):
        index = writer.chance.randrange(writer.length(over))
        return joined(REAL, f"select({x.text}, over={over}, index={index})", [x], axes=rest, size=x.size)
    made = [replace(joined(REAL, writer.name("s"), [x], axes=rest, size=x.size)) for _ in range(writer.length(over))]
    writer.line(f"{', '.join(part.text for part in made)} = split({x.text}, over={over})")
    writer.values += made
    return joined(REAL, f"({made[-1].text} - {made[0].text})", [x], axes=rest, size=2 * x.size)


def stack(writer: Writer) -> Typed | None:
    over = writer.pick(("two", "three"))
    x = writer.value(lambda v: v.is_real and over not in v.axes)
    if x is None or over not in writer.sizes or not writer.fits((*x.axes, over)):
        return None
    chosen = [x]
    while len(chosen) < writer.length(over):
        other = writer.value(lambda v: v.is_real and meet(v, x) and set(v.axes) <= set(x.axes))
        if other is None or any(not meet(other, one) for one in chosen):
            return None
        chosen.append(other)
    writer.chance.shuffle(chosen)
    text = f"stack(({', '.join(v.text for v in chosen)}), over={over})"
    return joined(REAL, text, chosen, axes=(*x.axes, over), size=max(v.size for v in chosen))


def concat(writer: Writer) -> Typed | None:
    x = writer.real(lambda v: "dim" in v.axes and "ffn" not in v.axes)
    if x is None or "both" not in writer.sizes:
        return None
    rest = {axis for axis in x.axes if axis != "dim"}
    y = writer.real(lambda v: "ffn" in v.axes and meet(v, x) and {*v.axes} - {"ffn"} <= rest)
    if y is None or "both" in rest:
        return None
    pair, sides = ((x, y), "(dim, ffn)")
    axes = (*(axis for axis in x.axes if axis != "dim"), "both")
    text = f"concat(({pair[0].text}, {pair[1].text}), {sides} -> both)"
    return joined(REAL, text, pair, axes=axes, size=max(x.size, y.size)) if writer.fits(axes) else None


def names(writer: Writer) -> Typed | None:
    """`rename`, `flatten`, `unflatten`, between axes that are declared so."""
    ways = (
        ("rename", ("dim",), ("again",)),
        ("rename", ("again",), ("dim",)),
        ("flatten", ("heads", "head_dim"), ("width",)),
        ("unflatten", ("width",), ("heads", "head_dim")),
    )
    way, left, right = writer.pick(ways)
    if not {*left, *right} <= {*writer.sizes}:
        return None
    x = writer.value(lambda v: v.is_real and {*left} <= {*v.axes} and not {*right} & {*v.axes})
    if x is None:
        return None
    axes = (*(axis for axis in x.axes if axis not in left), *right)
    return joined(REAL, f"{way}({x.text}, {listed(left)} -> {listed(right)})", [x], axes=axes, size=x.size)


# -- other rows --------------------------------------------------------------------------------------------------------


def shifted(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.has_rows and v.kind != TAG)
    if x is None:
        return None
    k = writer.pick((1, 1, 2, 3))
    is_main = x.level == writer.row
    if not x.missing and (writer.maybe(0.6) or (writer.causal and is_main)):
        first = writer.value(lambda v: v.kind == x.kind and not v.missing and {*v.axes} <= {*x.axes} and meet(v, x))
        number = "1" if x.kind == INT else writer.number()
        says = "" if writer.maybe() or x.kind not in (REAL, INT) else f", first={number}"
        if first is not None and writer.maybe(0.3):
            return joined(x.kind, f"previous({x.text}, {k}, first={first.text})", [x, first], axes=x.axes, size=x.size)
        return joined(x.kind, f"previous({x.text}, {k}{says})", [x], size=x.size)
    if writer.causal and is_main:
        return None
    claim = (f"next({x.text}, {k})",) * 2 if writer.claims else ()
    form = writer.pick((f"shift({x.text}, -{k})", f"shift({x.text}, {k})", *claim))
    made = joined(x.kind, form, [x], missing=True, ahead=x.ahead or is_main, size=x.size)
    return made if writer.maybe(0.4) else filled(writer, made)


def filled(writer: Writer, made: Typed | None = None) -> Typed | None:
    """`or(x, value)` where rows are missing."""
    x = made or writer.value(lambda v: v.missing and v.kind != TAG)
    if x is None:
        return None
    value = {REAL: writer.number(), FLAG: "true"}.get(x.kind, "0")
    other = writer.value(lambda v: v.kind == x.kind and not v.missing and meet(v, x) and {*v.axes} <= {*x.axes})
    if other is not None and writer.maybe(0.3):
        return joined(x.kind, f"or({x.text}, {other.text})", [x, other], axes=x.axes, missing=False, size=x.size)
    return joined(x.kind, f"or({x.text}, {value})", [x], missing=False, size=x.size)


# -- attention ---------------------------------------------------------------------------------------------------------


def attend(writer: Writer) -> Typed | None:
    """Of values in reach as they are."""
    k = writer.real(lambda v: v.has_rows and bool(v.axes))
    if k is None:
        return None
    over = writer.pick(k.axes)
    shared = {axis for axis in k.axes if axis != over}
    q = writer.real(lambda v: over in v.axes and shared <= {*v.axes} and v.level is not None)
    stays = {axis for axis in q.axes if axis != over} if q else set()
    v = q and writer.real(lambda v: v.level == k.level and shared <= {*v.axes} and not ({*v.axes} - shared) & stays)
    if q is None or v is None:
        return None
    return attended(writer, q, k, v, over, "", shared)


def attention(writer: Writer) -> Typed | None:
    """With linears to heads, shared by groups now and then."""
    x = writer.real(lambda v: v.has_rows and len(v.axes) == 1)
    y = writer.real(lambda v: v.has_rows and len(v.axes) == 1) if writer.maybe(0.3) else x
    if x is None or y is None or "kv_heads" not in writer.sizes or {*x.axes, *y.axes} & {"heads", "kv_heads"}:
        return None
    if "head_dim" in (*x.axes, *y.axes):
        return None
    key_heads = writer.pick(("heads", "kv_heads"))
    group = ", group=heads -> kv_heads" if key_heads == "kv_heads" else ""
    made = []
    for source, heads, turns in ((x, "heads", True), (y, key_heads, True), (y, key_heads, False)):
        name = writer.name("q")
        text = f"linear({source.text}, {source.axes[0]} -> ({heads}, head_dim))"
        if turns and writer.maybe(0.3):
            text += " |> rms_norm(over=head_dim)"
        if turns and writer.length("head_dim") % 2 == 0 and not writer.is_generic and writer.maybe(0.4):
            text += f" |> rope(along={source.level})"
        writer.line(f"{name} = {text}")
        made.append(replace(source, text=name, axes=(heads, "head_dim"), size=1.0, is_plain=False))
    q, k, v = made
    writer.values += made
    return attended(writer, q, k, v, "head_dim", group, {key_heads})


def attended(writer: Writer, q: Typed, k: Typed, v: Typed, over: str, group: str, shared: set[str]) -> Typed | None:
    ahead = any(value.ahead for value in (q, k, v))
    said = ""
    if q.level == k.level:
        mask, captured, is_causal = _mask(writer, q)
        said = f", mask={mask}" if mask else ""
        ahead = ahead or any(value.ahead for value in captured) or (k.level == writer.row and not is_causal)
    elif k.level == writer.row:
        ahead = True
    if writer.causal and ahead:
        return None
    bias = writer.real(lambda b: b.level == k.level and {*b.axes} <= shared and not (writer.causal and b.ahead))
    if bias is not None and not group and writer.maybe(0.25):
        said += f", bias={bias.text}"
        ahead = ahead or bias.ahead
    if writer.maybe(0.2):
        said += f", scale={writer.number()}"
    if writer.maybe(0.3):
        has_heads = "heads" in writer.sizes and [axis for axis in q.axes if axis != over] == ["heads"]
        of_heads = ("by_distance", "by_distance", "by_place", "by_place") if has_heads else ()
        said += f", score={writer.pick(('silu', 'capped', 'bent', 'stepped', *of_heads))}"
    own = tuple(axis for axis in v.axes if axis not in shared)
    axes = (*(axis for axis in q.axes if axis != over), *own)
    if not writer.fits(axes):
        return None
    text = f"attend({q.text}, {k.text}, {v.text}, over={over}, along={k.level}{group}{said})"
    return Typed(text, REAL, q.level, axes, ahead=ahead, size=v.size)


def _mask(writer: Writer, q: Typed) -> tuple[str, tuple[Typed, ...], bool]:
    """A mask, the values it captures, whether it is causal."""
    n = writer.chance.randrange(1, 4)
    causal = ("causal", "causal", f"causal and window({n})", "key(position) < query(position)", f"recent({n})",
              f"sinks({n}, 1)")  # fmt: skip
    ids = writer.value(lambda v: v.level == q.level and v.kind in writer.sizes and not v.axes and not v.missing)
    if ids is not None and writer.maybe(0.25):
        return f"causal and same({ids.text})", (ids,), True
    reals = writer.real(lambda v: v.level == q.level and not v.axes and v.is_plain)
    if reals is not None and writer.maybe(0.2):
        return f"causal and key({reals.text}) < {writer.number()}", (reals,), True
    if writer.causal or writer.maybe(0.6):
        return writer.pick(causal), (), True
    return writer.pick(("", f"window({n})", "not causal", f"causal or window({n})")), (), False


def attend_to_parts(writer: Writer) -> Typed | None:
    """Along a static axis."""
    k = writer.real(lambda v: len(v.axes) >= 2 and v.axes[-1] in writer.sizes)
    if k is None:
        return None
    over, along, *_ = writer.chance.sample(k.axes, 2)
    shared = {axis for axis in k.axes if axis not in (over, along)}
    q = writer.real(lambda v: over in v.axes and shared <= {*v.axes} and v.level == k.level and along not in v.axes)
    if q is None:
        return None
    own = tuple(axis for axis in k.axes if axis not in shared and axis != along)
    axes = (*(axis for axis in q.axes if axis != over), *own)
    if not writer.fits(axes):
        return None
    score = writer.pick(("", "", ", score=capped", ", score=stepped"))
    text = f"attend({q.text}, {k.text}, {k.text}, over={over}, along={along}{score})"
    return Typed(text, REAL, q.level, axes, ahead=q.ahead or k.ahead, size=k.size)


PRODUCTIONS = (
    *(linear,) * 6, feed_forward, dot, outer, *(reduction,) * 2, softmax, *(norm,) * 3, scores, rope, embed, embed,
    pick_entry, *(largest,) * 2, thinned, pairs, nearest, parts, stack, concat, *(names,) * 2, *(shifted,) * 3, filled,
    attend, attend, *(attention,) * 2, attend_to_parts, *(segmented,) * 3, counted,
)  # fmt: skip
