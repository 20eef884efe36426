"""Random row-by-row expressions: formulas, decisions, whole numbers, flags.

A function takes the writer and gives a value whose text is one operand, or None where nothing in reach fits its rule.
"""

from __future__ import annotations

from .random_values import FLAG, INT, REAL, TAG, Typed, Writer, contains, decided, joined, meet

# {x}: the operand, {d}: the operand of a decision, {c}: a number. Steps in place of 1 / x and its like are kept away
# from where they are not defined.
UNARY = (
    "tanh({x})", "sigmoid({x})", "softplus({x})", "sin({x})", "cos({x})", "erf({x})", "silu({x})", "gelu({x})",
    "gelu_tanh({x})", "exp(tanh({x}))", "sqrt({x}^2 + {c})", "rsqrt({x}^2 + {c})", "log({x}^2 + {c})",
    "({x}^2 + {c})^0.7", "(tanh({x})^2 + {c})^-1.5", "{c}^tanh({x})", "(-{x})", "({c} * {x} + {c})", "({x} - {c})",
    "({c} - {x})", "({x} / {c})", "({c} / ({x}^2 + {c}))", "abs({d})", "relu({d})", "stop_gradient({x})",
    "precise({x} * {c})", "clamp({d}, low=-{c}, high={c})", "clamp({d}, high={c})", "maximum({d}, {c})",
    "minimum(-{c}, {d})", "straight_through(round({d}), {x})", "sign({d})", "floor({d} * 2)", "ceil({d} / 2)",
    "({x} |> tanh |> silu)", "where({d} > {c}, {x}, {c})", "where({d} < {c}, 0, {x})",
)  # fmt: skip
SQUARES = ("({x}^2)", "({x}^3)", "({x} * {x})")
BINARY = (
    "({x} + {y})", "({x} - {y})", "({x} * sigmoid({y}))", "({x} / ({y}^2 + {c}))", "({x} * {c} + {y} * {c})",
    "silu({x}) * {y}", "(tanh({x})^2 + {c})^tanh({y})", "where({d} > {y}, {x}, {y})", "where({d} < {y}, {y}, {c})",
    "(({x} + {y}) * rsqrt({x}^2 + {c}))",
)  # fmt: skip
# Ties in these share the gradient: only for operands that cannot tie by accident.
EXTREMES = ("maximum({x}, {y})", "minimum({x}, {y})", "maximum({x}, {c} * {y})")


def _filled(form: str, writer: Writer, x: Typed, y: Typed | None = None) -> str:
    parts = form.split("{c}")
    text = parts[0] + "".join(writer.number() + part for part in parts[1:])
    text = text.format(x=x.text, d=decided(writer, x), y=y.text if y else "")
    return text if text.endswith(")") and (form[0] == "(" or form[0].isalpha()) else f"({text})"


def wrapped(writer: Writer, x: Typed) -> Typed:
    """The operand itself, or now and then a formula of it."""
    if not writer.maybe(0.25):
        return x
    return joined(REAL, f"({_filled(writer.pick(UNARY), writer, x)})", [x], size=x.size + 1)


def unary(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.is_real)
    if x is None:
        return None
    if x.size < 3 and writer.maybe(0.15):
        return joined(REAL, _filled(writer.pick(SQUARES), writer, x), [x], size=x.size**3)
    return joined(REAL, _filled(writer.pick(UNARY), writer, x), [x], size=2 * x.size + 1)


def binary(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.is_real)
    if x is None:
        return None
    first = x
    y = writer.value(lambda v: v.is_real and v != first and meet(v, first) and contains(v, first))
    if y is None:
        return None
    forms = EXTREMES if x.is_plain and y.is_plain and writer.maybe() else BINARY
    x, y = (x, y) if writer.maybe() else (y, x)
    if forms is BINARY and not (x.missing or y.missing):
        y = wrapped(writer, y)
    return joined(REAL, f"({_filled(writer.pick(forms), writer, x, y)})", [x, y], size=2 * (x.size + y.size))


def product(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.is_real)
    y = x and writer.value(lambda v: v.is_real and meet(v, x) and contains(v, x))
    if x is None or y is None or x.size * y.size > 20:
        return None
    return joined(REAL, f"({x.text} * {y.text})", [x, y], size=x.size * y.size)


def choice(writer: Writer) -> Typed | None:
    flag = writer.value(lambda v: v.kind == FLAG)
    x = flag and writer.value(lambda v: v.is_real and meet(v, flag) and contains(v, flag))
    if flag is None or x is None:
        return None
    y = writer.value(lambda v: v.is_real and meet(v, flag) and meet(v, x) and set(v.axes) <= {*x.axes, *flag.axes})
    parts = [flag, x, y] if y is not None and writer.maybe() else [flag, x]
    other = parts[2].text if len(parts) > 2 else writer.number()
    return joined(REAL, f"where({flag.text}, {x.text}, {other})", parts, size=max(p.size for p in parts))


def comparison(writer: Writer) -> Typed | None:
    match writer.chance.randrange(5):
        case 0:
            x = writer.real()
            y = x and writer.real(lambda v: meet(v, x) and contains(v, x))
            if x is None or y is None:
                return None
            return joined(FLAG, f"({decided(writer, x)} {writer.pick('<>')} {y.text})", [x, y])
        case 1:
            tag = writer.value(lambda v: v.kind == TAG)
            return tag and joined(FLAG, f"({tag.text} {writer.pick(('==', '!='))} tone.{writer.pick(TONES)})", [tag])
        case 2:
            number = writer.value(lambda v: v.kind not in (REAL, FLAG, TAG))
            sign = writer.pick(("==", "!=", "<", "<=", ">", ">="))
            if number is None or (number.kind != INT and sign not in ("==", "!=")):
                return None
            return joined(FLAG, f"({number.text} {sign} {writer.chance.randrange(2)})", [number])
    x = writer.value(lambda v: v.is_real)
    if x is None:
        return None
    if writer.maybe(0.3):
        return joined(FLAG, f"(-{writer.number()} < {decided(writer, x)} <= {writer.number()})", [x])
    return joined(FLAG, f"({decided(writer, x)} {writer.pick(('<', '<=', '>', '>='))} {writer.number()})", [x])


TONES = ("low", "high", "flat")


def logic(writer: Writer) -> Typed | None:
    a = writer.value(lambda v: v.kind == FLAG)
    b = a and writer.value(lambda v: v.kind == FLAG and meet(v, a) and contains(v, a))
    if a is None or b is None:
        return None
    if a == b:
        return joined(FLAG, f"(not {a.text})", [a])
    return joined(FLAG, f"({a.text} {writer.pick(('and', 'or', 'and not', 'or not'))} {b.text})", [a, b])


def whole_number(writer: Writer) -> Typed | None:
    match writer.chance.randrange(7):
        case 0:
            axis = writer.pick((*writer.rows, writer.row))
            return Typed(f"position({axis})", INT, axis)
        case 1:
            axis = writer.pick(writer.sizes)
            form = writer.pick(("position({a})", "int(index({a}))"))
            return Typed(form.format(a=axis), INT, None, (axis,))
        case 2:
            axis = writer.pick(writer.rows)
            ahead = axis == writer.row
            return None if writer.causal and ahead else Typed(f"length({axis})", INT, "example", ahead=ahead)
        case 3:
            x = writer.real()
            return x and joined(INT, f"int({decided(writer, x)} * 3)", [x])
        case 4:
            x = writer.value(lambda v: v.kind in (FLAG, TAG) or v.kind in writer.sizes)
            return x and joined(INT, f"int({x.text})", [x])
    i = writer.value(lambda v: v.kind == INT)
    j = i and writer.value(lambda v: v.kind == INT and meet(v, i) and contains(v, i))
    if i is None or j is None:
        return None
    forms = ("({i} + {j} * 3)", "({i} - {j})", "({i} * 31 - 7) mod 11", "(({i} - 5) // 3)", "maximum({i}, {j})",
             "minimum({j}, {i} * 2)", "abs({i} - 4)", "where({i} > {j}, {i}, 1)", "sign({i} - 1)", "({j} mod 4 + {i})",
             "clamp({i}, low=-3, high=9)")  # fmt: skip
    return joined(INT, f"({writer.pick(forms).format(i=i.text, j=j.text)})", [i, j])


def number_as_real(writer: Writer) -> Typed | None:
    x = writer.value(lambda v: v.kind not in (REAL, TAG))
    # Ints may be large; their cosine is not.
    form = "cos(real({x}) * 0.37)" if x is not None and x.kind == INT else "(real({x}) - 0.4)"
    return x and joined(REAL, form.format(x=x.text), [x])


def wrapped_number(writer: Writer) -> Typed | None:
    i = writer.value(lambda v: v.kind == INT and not v.missing)
    axis = writer.pick(writer.sizes)
    return i and joined(axis, f"wrap({i.text} * 5 + 3, {axis})", [i])


PRODUCTIONS = (
    *(unary,) * 4, *(binary,) * 5, *(product,) * 2, choice, comparison, *(logic,) * 2, whole_number, number_as_real,
    wrapped_number,
)  # fmt: skip
