"""Random specs that are well typed: whole files with blocks, a model and objectives, from a seed.

    spec = random_spec(seed, statements=12)      spec.text is a file; the same seed gives the same text
    @given(random_specs())                       hypothesis, which shrinks the number of statements

Only applications are written whose rule holds, so a spec that does not check is a mistake of ours or of the checker's.
Draws are left out, and so is what is not built. A shorter spec of a seed has the first statements of a longer one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from random import Random

from hypothesis import strategies as st

from . import random_axes, random_pictures, random_pointwise
from .random_blocks import BLOCKS, MASKS, SCORES, SCORES_OF_HEADS
from .random_routes import DECLARED, KIND, route
from .random_values import EXAMPLE, FLAG, INT, REAL, TAG, Typed, Writer, joined, listed

# What every file declares behind the axes of its rows.
COMMON = (
    "axis two = 2",
    "axis three = 3",
    "axis nine = three * three",
    "axis again = dim",
    "axis both = dim + ffn",
    "axis width = heads * head_dim",
    "",
    *MASKS,
    "",
    "\n\n".join((*SCORES, *SCORES_OF_HEADS)),
)


@dataclass(frozen=True)
class RandomSpec:
    """`is_causal`: every output of the model lies along `seq` and reads no later row, so a decoder can be derived.

    `documents`: examples to run it on, where rows are words and pictures of so many `spots` (random_documents.py)."""

    seed: int
    text: str
    is_causal: bool
    documents: tuple[str, ...] = ()
    spots: int = 1


def random_specs(most: int = 14) -> st.SearchStrategy[RandomSpec]:
    return st.builds(random_spec, st.integers(0, 2**32), st.integers(1, most))


def random_spec(seed: int, statements: int = 12) -> RandomSpec:
    return _Spec(Random(seed), seed, statements).made()


class _Spec:
    def __init__(self, chance: Random, seed: int, statements: int) -> None:
        self.chance, self.seed, self.statements = chance, seed, statements
        heads = chance.choice((1, 2, 3, 4))
        kv_heads = chance.choice([n for n in (1, 2, 3, 4) if heads % n == 0])
        head_dim, dim, ffn = chance.choice((1, 2, 4, 3)), chance.choice((1, 3, 4, 6, 8)), chance.choice((1, 2, 5, 7))
        vocab, classes = chance.choice((2, 5, 11)), chance.choice((3, 4))
        self.sizes: dict[str, int | None] = {
            "dim": dim, "ffn": ffn, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "vocab": vocab,
            "classes": classes, "two": 2, "three": 3, "nine": 9, "again": dim, "both": dim + ffn,
            "width": heads * head_dim,
        }  # fmt: skip
        self.has_objective = chance.random() < 0.7
        # Of its own, so that a spec's other choices are what they were without segments.
        self.segments, self.routes = Random(seed ^ 0x5E6), Random(seed ^ 0xA12)
        self.is_routed = self.routes.random() < 0.4
        self.writer = Writer(
            chance, self.sizes, "seq", ("seq", "other"), chance.random() < 0.6, count(), claims=not self.has_objective
        )

    def made(self) -> RandomSpec:
        writer = self.writer
        inputs = self.inputs()
        writer.values += inputs
        shared = self.shared()
        used = {value.level for value in inputs}
        writer.rows = tuple(axis for axis in writer.rows if axis in used)
        texts = []
        for make in self.chance.sample(BLOCKS, self.chance.randrange(len(BLOCKS) + 1)):
            text, block = make(writer)
            texts.append(text)
            writer.blocks += (block,)
        self.segment(inputs)
        # `init` must find a weight.
        writer.line("param first: real[dim] = ones")
        writer.bind(joined(REAL, "(x * first)", [inputs[0]], is_plain=True))
        seeds = [self.chance.randrange(2**32) for _ in range(40)]
        objective_seed = self.chance.randrange(2**32)
        for number in range(self.statements):
            writer.chance = Random(seeds[number])
            statement(writer)
            if self.is_routed and self.routes.random() < 0.4:
                writer.chance = Random(self.routes.randrange(2**32))
                route(writer, same_type)
        writer.chance = Random(objective_seed)
        outputs, is_causal = self.outputs()
        objective = self.objective(inputs, outputs)
        parameters = ", ".join(f"{value.text}: {typed(value)}" for value in inputs)
        model = [f"model m({parameters}):", *writer.lines, f"    return {', '.join(v.text for v in outputs)}"]
        # What is shared must be used.
        body = "\n".join(model)
        shared = [line for line in shared if re.search(rf"\b{line.split()[1][:-1]}\b", body)]
        texts = [text for text in texts if not text.startswith("shared") or f" {text.split()[1][:-1]}(" in body]
        text = "\n\n".join((self.declarations(), *shared, *texts, "\n".join(model), *objective, self.last()))
        return RandomSpec(self.seed, text + "\n", is_causal)

    def segment(self, inputs: list[Typed]) -> None:
        """Cuts `seq`, in some specs. What decides is an input or a row number, so that rounding decides nothing."""
        chance, ends = self.segments, ["position(seq) mod 3 == 1"]
        if chance.random() < 0.55:
            return
        ends += [v.text for v in inputs if v.kind == FLAG]
        ends += [f"{v.text} > 0.2" for v in inputs if v.level == "seq" and v.is_real and not v.axes]
        ends += [f"{v.text} == 1" for v in inputs if v.level == "seq" and v.kind == "vocab"]
        at_most = chance.choice(("", "", ", at most 2", ", at most 3"))
        self.writer.cut = "patch"
        self.writer.line(f"segment seq into patch ends where {chance.choice(ends)}{at_most}")

    # -- the file ----------------------------------------------------------------------------------

    def declarations(self) -> str:
        preset = ", ".join(f"{name} = {self.sizes[name]}" for name in ("dim", "ffn", "heads", "head_dim"))
        return "\n".join((
            f"size tiny: {preset}",
            *(f"size {name} = {self.sizes[name]}" for name in ("kv_heads", "vocab", "classes")),
            "",
            "option wide: flag = " + self.chance.choice(("true", "false")),
            f"option rounds: int = {self.chance.randrange(3)}",
            "enum tone: low, high, flat",
            "",
            "axis seq",
            "axis other",
            *(("axis patch cut from seq",) if self.writer.cut else random_pictures.DECLARATIONS),
            *(DECLARED if self.is_routed else ()),
            *COMMON,
        ))  # fmt: skip

    def last(self) -> str:
        return f"init ** = normal(0.{self.chance.randrange(3, 7)})"

    def inputs(self) -> list[Typed]:
        x = Typed("x", REAL, "seq", ("dim",), is_plain=True)
        more = [
            Typed("tokens", "vocab", "seq"),
            Typed("y", REAL, "seq", ("heads", "dim"), is_plain=True),
            Typed("kind", TAG, "seq"),
            Typed("on", FLAG, "seq"),
            Typed("n", INT, "seq", ("two",)),
            Typed("w", REAL, "seq", (), is_plain=True),
            Typed("z", REAL, "other", ("dim",), is_plain=True),
            Typed("words", "vocab", "other"),
            Typed("c", REAL, EXAMPLE, ("dim",), is_plain=True),
            Typed("label", "classes", EXAMPLE),
            Typed("level", REAL, EXAMPLE, (), is_plain=True),
        ]
        chosen = sorted(self.chance.sample(range(len(more)), self.chance.randrange(1, 5)))
        # What lies on rows or comes from rows of the model's own axis may differ in every row of it.
        inputs = [x, *(more[i] for i in chosen)]
        return [*inputs, KIND] if self.is_routed and KIND not in inputs else inputs

    def shared(self) -> list[str]:
        """Weights that everything may read."""
        tables = [("table", ("vocab", "dim")), ("mix", ("dim", "ffn")), ("gain", ("dim",))]
        chosen = self.chance.sample(tables, self.chance.randrange(3))
        for name, axes in chosen:
            self.writer.values.append(Typed(name, REAL, None, axes, is_plain=True))
        self.shared_names = {name for name, _ in chosen}
        return [f"shared {name}: real[{', '.join(axes)}] = normal(0.5)" for name, axes in chosen]

    def outputs(self) -> tuple[list[Typed], bool]:
        writer = self.writer
        good = [v for v in writer.values if v.is_whole_real and v.has_rows and v.text[0] == "h"]
        causal = [v for v in good if v.level == "seq" and not v.ahead]
        if causal and (writer.causal or self.chance.random() < 0.3):
            return causal[-self.chance.choice((1, 1, 2, 3)) :], True
        if not good:
            return [writer.bind(joined(REAL, "tanh(x)", [writer.values[0]]))], True
        bound = [v for v in writer.values if v.has_rows and not v.missing and v.text[0] == "h"]
        others = [v for v in bound if v.kind in (FLAG, INT)]
        kept = good[-self.chance.choice((1, 2, 3)) :] + others[-1:]
        return kept, all(v.level == "seq" and not v.ahead for v in kept)

    # -- objectives --------------------------------------------------------------------------------

    def objective(self, inputs: list[Typed], outputs: list[Typed]) -> list[str]:
        if not self.has_objective:
            return []
        parameters = ", ".join(f"{value.text}: {typed(value)}" for value in inputs)
        call = f"m({', '.join(value.text for value in inputs)})"
        if len(outputs) == 1:
            # Whatever the model's body binds once may be read.
            inner = [v for v in self.writer.values if v.text[0] == "h" and v.is_real and v.level is not None]
            inner = [v for v in inner if v.is_bound_once] or outputs
            read = {f"run.{v.text}": v for v in inner}
            lines = [f"objective o({parameters}):", f"    run = {call}"]
        else:
            names = [f"out{number}" for number in range(len(outputs))]
            read = {name: v for name, v in zip(names, outputs, strict=True) if v.is_real}
            lines = [f"objective o({parameters}):", f"    {', '.join(names)} = {call}"]
        for number in range(self.chance.choice((1, 2))):
            name, v = self.chance.choice(list(read.items()))
            loss = f"mean({name}^2, over={listed(v.axes)})" if v.axes else f"{name}^2"
            if v.level == "seq" and v.axes and not v.missing and any(value.text == "tokens" for value in inputs):
                scores = f"linear({name}, {listed(v.axes)} -> vocab) as head{number}"
                target = "tokens" if v.ahead else f"next(tokens, {self.chance.choice((1, 2))})"
                loss = self.chance.choice((loss, f"cross_entropy({scores}, {target})"))
            flags = ["position(seq) >= 1", *(value.text for value in inputs if value.kind == FLAG)]
            only = f" only {self.chance.choice(flags)}" if v.level == "seq" and self.chance.random() < 0.4 else ""
            lines.append(f"    loss part{number} = {loss}{only}")
        return ["\n".join(lines)]


def typed(value: Typed) -> str:
    """A type as the spec writes it."""
    axes = [*((value.level,) if value.has_rows else ()), *value.axes]
    brackets = f"[{', '.join(map(str, axes))}]" if axes else ""
    if value.kind in (REAL, INT, FLAG, TAG):
        return value.kind + brackets
    return f"id{brackets} in {value.kind}"


# -- statements --------------------------------------------------------------------------------------------------------


def expression(writer: Writer) -> Typed | None:
    source = random_axes if writer.maybe(0.62) else random_pointwise
    made = writer.pick(source.PRODUCTIONS)(writer)
    if made is not None and writer.causal and made.ahead:
        return None
    return made


def simple(writer: Writer) -> None:
    """One expression bound to a name, after as many tries as it takes."""
    for _ in range(200):
        before = len(writer.lines), len(writer.values)
        made = expression(writer)
        if made is None:
            del writer.lines[before[0] :], writer.values[before[1] :]
            continue
        writer.bind(made, _label(writer, made))
        return


def _label(writer: Writer, made: Typed) -> str:
    is_call = made.text.startswith(("linear(", "rms_norm(", "layer_norm(", "embed(", "swiglu(", "mlp("))
    return f" as {writer.name('call')}" if is_call and made.text.endswith(")") and writer.maybe(0.3) else ""


def statement(writer: Writer) -> None:
    kinds: tuple[Callable[[Writer], bool], ...] = (param, choice, loop, family, block_call, weight_formula)
    if not writer.maybe(0.28) or not writer.pick(kinds)(writer):
        simple(writer)


def param(writer: Writer) -> bool:
    axes = tuple(writer.chance.sample(list(writer.sizes), writer.pick((1, 1, 2))))
    if not writer.fits(axes):
        return False
    name = writer.name("w")
    writer.line(f"param {name}: real[{', '.join(axes)}] = {writer.pick(('normal(0.4)', 'ones', 'uniform(-1, 1)'))}")
    made = Typed(name, REAL, None, axes, is_plain=True)
    user = writer.value(lambda v: v.is_real and v.level is not None and {*axes} <= {*v.axes})
    writer.values.append(made)
    if user is not None:
        writer.bind(joined(REAL, f"({user.text} * {name})", [user, made], size=user.size))
    return True


def weight_formula(writer: Writer) -> bool:
    w = writer.value(lambda v: v.is_real and v.level is None and bool(v.axes))
    if w is None:
        return False
    form = writer.pick(("sigmoid({w})", "softmax({w}, over={a})", "({w} * 0.5 + 1)", "unit({w}, over={a})"))
    writer.bind(joined(REAL, form.format(w=w.text, a=writer.pick(w.axes)), [w]))
    return True


def choice(writer: Writer) -> bool:
    """A static `if`: both branches bind one name with one type."""
    x = writer.real(lambda v: v.level is not None)
    if x is None:
        return False
    condition = writer.pick(("wide", "not wide", "rounds > 1", "heads == 2", "dim > 3 and wide", "training"))
    name = writer.name()
    writer.line(f"if {condition}:")
    ahead = False
    for word in ("", "else:"):
        if word:
            writer.line(word)
        inner = writer.inner()
        if writer.maybe(0.4):
            simple(inner)
        made = same_type(inner, x)
        inner.line(f"{name} = {made.text}")
        ahead = ahead or made.ahead
        writer.adopt(inner)
    made = replace(x, text=name, ahead=ahead or x.ahead, is_plain=False, size=2 * x.size + 2, is_bound_once=False)
    writer.values.append(made)
    return True


def same_type(writer: Writer, x: Typed, label: str = "") -> Typed:
    """A value with the type of x, made from it and what is in reach."""
    y = writer.real(lambda v: v != x and v.level in (None, EXAMPLE, x.level) and {*v.axes} <= {*x.axes}
                    and (x.ahead or not v.ahead))  # fmt: skip
    if x.axes and writer.maybe(0.5):
        axis = writer.pick(x.axes)
        forms = (
            "linear({x}, {a} -> {a})",
            "rms_norm({x}, over={a})",
            "softmax({x}, over={a})",
            "mlp({x}, two, width={a})",
        )
        form = writer.pick(forms if "two" not in x.axes else forms[:3])
        text = form.format(x=x.text, a=axis)
        if not form.startswith("softmax"):
            text += label
        return joined(REAL, text, [x])
    if y is not None and writer.maybe(0.7):
        return joined(REAL, f"tanh({x.text} - {y.text})", [x, y], axes=x.axes)
    return joined(REAL, f"silu({x.text})", [x])


def loop(writer: Writer) -> bool:
    """`for`: a value that each turn goes on from."""
    x = writer.real(lambda v: v.level is not None and v.text[0] == "h")
    if x is None:
        return False
    turn, count_ = writer.name("i"), writer.pick((1, 2, 2, 3))
    numbers = ", ".join(str(2 * n) for n in range(count_))
    over = writer.pick((f"0 .. {count_}", f"0 .. {count_}", f"({numbers},)", "0 .. rounds"))
    carried = writer.bind(replace(x, text=f"(1.0 * {x.text})", is_plain=False))
    writer.line(f"for {turn} in {over}:")
    inner = writer.inner()
    # What is shared must be used, and there may be no rounds.
    inner.values = [v for v in inner.values if v.text not in ("table", "mix", "gain")]
    for _ in range(writer.pick((0, 0, 1, 2))):
        simple(inner)
    if writer.maybe(0.3):
        inner.line(f"if {turn} == 0 and wide:")
        inner.line(f"    {carried.text} = {carried.text} * 0.5")
    made = same_type(inner, carried, f" as {writer.name('step')}")
    inner.line(f"{carried.text} = tanh({carried.text}) + {made.text}")
    writer.adopt(inner)
    at = writer.values.index(carried)
    writer.values[at] = replace(carried, size=3.0, is_bound_once=False)
    return True


def family(writer: Writer) -> bool:
    """A value for each turn of one loop, read by another."""
    x = writer.real(lambda v: v.level is not None and v.text[0] == "h")
    if x is None:
        return False
    name, i, j, turns = writer.name("kept"), writer.name("i"), writer.name("i"), writer.pick((2, 3))
    carried = writer.bind(replace(x, text=f"(0.7 * {x.text})", is_plain=False))
    writer.line(f"for {i} in 0 .. {turns}:")
    inner = writer.inner()
    made = same_type(inner, carried, f" as {writer.name('down')}")
    inner.line(f"{carried.text} = {made.text}")
    inner.line(f"{name}[{i}] = {carried.text}")
    writer.adopt(inner)
    if writer.maybe():
        writer.line(f"for {j} in 0 .. {turns}:")
        writer.line(f"    {carried.text} = tanh({carried.text}) - {name}[{turns} - 1 - {j}]")
    else:
        writer.bind(joined(REAL, f"({name}[{turns - 1}] * 0.5 + {name}[0])", [carried], size=3.0))
    at = writer.values.index(carried)
    writer.values[at] = replace(carried, size=4.0, is_bound_once=False)
    return True


def block_call(writer: Writer) -> bool:
    if not writer.blocks:
        return False
    made = writer.pick(writer.blocks).call(writer)
    if made is None or (writer.causal and made.ahead):
        return False
    writer.bind(made)
    return True
