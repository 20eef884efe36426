"""Blocks of random specs: generic over rows and features, with options, masks and other blocks as parameters."""

from __future__ import annotations

from collections.abc import Callable

from . import random_axes, random_pointwise
from .random_values import EXAMPLE, REAL, Block, Typed, Writer, joined

MASKS = (
    "mask recent(w) = causal and window(w)",
    "mask sinks(w, n) = causal and (window(w) or key(position) < n)",
)
# Of each score of `attend`.
SCORES = (
    "block capped(score: real) -> real:\n    return 2 * tanh(score / 2)",
    "block bent(score: real) -> real:\n    return where(score > 0.137, maximum(score, 0.3 * score^2), 0.5 * score)",
    """\
block stepped(score: real) -> real:
    param step: real[three] = normal(0.5)
    return score + step[wrap(abs(query(position) - key(position)) // 2, three)]""",
)
# The same, where the axis of the heads is `heads`.
SCORES_OF_HEADS = (
    """\
block by_distance(score: real[heads]) -> real[heads]:
    param near: real[nine, heads] = normal(0.5)
    return score + near[wrap(clamp(query(position) - key(position), low=-4, high=4) + 4, nine)]""",
    """\
block by_place(score: real[heads]) -> real[heads]:
    param pair: real[three, heads, two] = normal(0.5)
    param turn: real[three] = normal(0.5)
    at = pick(pair[wrap(query(position) // 2, three)], wrap(key(position), two), over=two)
    return score * (1 + 0.3 * at) + embed(wrap(query(position) - key(position), three), three -> heads) + turn[
        wrap(key(position), three)
    ]""",
)
# Axes that a generic block is used with; its body takes none of them by name.
FEATURES = ("dim", "ffn", "again")
INSIDE = ("two", "three", "heads", "kv_heads", "head_dim")


def formula(spec: Writer) -> tuple[str, Block]:
    """Statements over any rows and features, with a vector of a level above, a number and a flag."""
    name, chance = spec.name("formula"), spec.chance
    sizes = {"features": None, **{axis: spec.sizes[axis] for axis in INSIDE}}
    body = Writer(chance, sizes, "row", ("row",), spec.causal, spec.names, is_generic=True, claims=spec.claims)
    x = Typed("x", REAL, "row", ("features",))
    body.values += [x, Typed("shift", REAL, None, ("features",))]
    for _ in range(chance.randrange(1, 5)):
        _bind_one(body)
    ahead = any(value.ahead for value in body.values)
    result = body.real(lambda v: v.level == "row" and v.axes == ("features",)) or x
    text = "\n".join((
        f"block {name}[row, features](x: real[row, features], shift: real[features], rate: number = 0.5,",
        "        extra: flag = false) -> real[row, features]:",
        *body.lines,
        f"    made = {result.text} * rate + shift",
        "    if extra:",
        "        made = linear(made, features -> features) + x",
        "    return made",
    ))  # fmt: skip

    def call(writer: Writer) -> Typed | None:
        given = writer.real(lambda v: v.has_rows and len(v.axes) == 1 and v.axes[0] in FEATURES)
        above = given and writer.real(lambda v: v.level in (None, EXAMPLE) and v.axes == given.axes)
        if given is None or above is None:
            return None
        said = writer.pick(("", ", 0.25", f", rate={writer.number()}")) + writer.pick(("", ", extra=true"))
        later = given.ahead or above.ahead or (ahead and given.level == writer.row)
        return Typed(f"{name}({given.text}, {above.text}{said})", REAL, given.level, given.axes, ahead=later, size=4.0)

    return text, Block(name, call)


def _bind_one(body: Writer) -> None:
    for _ in range(100):
        before = len(body.lines), len(body.values)
        made = body.pick((*random_axes.PRODUCTIONS, *random_pointwise.PRODUCTIONS))(body)
        if made is None or (body.causal and made.ahead):
            del body.lines[before[0] :], body.values[before[1] :]
            continue
        body.bind(made)
        return


def mixing(spec: Writer) -> tuple[str, Block]:
    """Attention over any rows, with an axis of its own and a mask as a parameter."""
    name = spec.name("mixing")
    text = f"""\
block {name}[row, features](x: real[row, features], parts: size, mask: mask) -> real[row, features]:
    axis part = features / parts
    q = linear(x, features -> (parts, part)) |> {spec.pick(("rms_norm(over=part)", "tanh"))}
    k = linear(x, features -> (parts, part))
    v = linear(x, features -> (parts, part))
    mixed = attend(q, k, v, over=part, along=row, mask=mask)
    return linear(mixed, (parts, part) -> features) as out"""

    def call(writer: Writer) -> Typed | None:
        x = writer.real(lambda v: v.has_rows and len(v.axes) == 1 and v.axes[0] in FEATURES)
        if x is None:
            return None
        parts = writer.pick(n for n in (1, 2, 3) if writer.length(x.axes[0]) % n == 0)
        masks = ("causal", "recent(2)", "sinks(1, 1)", *(() if writer.causal else ("window(2)",)))
        mask = writer.pick(masks)
        later = x.ahead or (mask == "window(2)" and x.level == writer.row)
        # A size as an argument may be a name or a number.
        return joined(REAL, f"{name}({x.text}, {parts}, {mask})", [x], ahead=later)

    return text, Block(name, call)


def through(spec: Writer) -> tuple[str, Block]:
    """A block that calls another, over any axes at all, and gives two results."""
    name = spec.name("through")
    text = f"""\
block {name}(x: real[..], inner: block, rate: number = 1) -> real[..]:
    y = inner(x)
    return y * rate + tanh(x)"""

    def call(writer: Writer) -> Typed | None:
        x = writer.real(lambda v: v.level is not None)
        inner = writer.pick(("silu", "gelu", *(("rms_norm",) if x and len(x.axes) == 1 else ())))
        rate = writer.pick(("", ", rate=0.5"))
        return x and joined(REAL, f"{name}({x.text}, {inner}{rate})", [x], size=2 * x.size + 1)

    return text, Block(name, call)


def shared_stage(spec: Writer) -> tuple[str, Block]:
    """One instance of a block: every call reads the same weights."""
    name = spec.name("stage")
    text = f"""\
shared {name}: {name}_block(count=2)

block {name}_block(x: real[seq, dim], count: size) -> real[seq, dim]:
    y = x
    for turn in 0 .. count:
        y = tanh(linear(y, dim -> dim)) + y
    return y"""

    def call(writer: Writer) -> Typed | None:
        x = writer.real(lambda v: v.level == "seq" and v.axes == ("dim",))
        return x and joined(REAL, f"{name}({x.text})", [x], size=2.0)

    return text, Block(name, call)


BLOCKS: tuple[Callable[[Writer], tuple[str, Block]], ...] = (formula, mixing, through, shared_stage, formula)
