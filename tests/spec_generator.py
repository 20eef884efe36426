"""Specs that parse, made at random, in canonical or untidy layout; what they mean is not looked at.

`specs()` is a hypothesis strategy. It draws a seed and how many declarations, and a plain random program writes them:
drawing every choice from hypothesis would take a hundred times as long. `untidy` changes what the language says does
not matter: spaces, line breaks in brackets, blank lines and comments.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from hypothesis import strategies as st

from weft.dsl.diagnostics import Problems
from weft.dsl.lexer import DEDENT, INDENT, NEWLINE, tokenize
from weft.dsl.source import Source
from weft.dsl.tables import END

# Words of the language among them: they are names wherever a name is wanted.
NAMES = (
    "x", "y", "seq", "dim", "heads", "head_dim", "token", "end", "size", "mask", "block", "where", "by", "axis", "loss",
    "match", "input", "on", "grid", "only", "each", "weight", "copy", "as", "at", "into", "model", "use", "param",
    "when",
)  # fmt: skip
NUMBERS = ("0", "1", "32", "50_000", "0.1", "5e5", "1e-6", "3.0", "007")
STRINGS = ('"a"', '""', '"a # b"', '"a \\"b\\" \\\\"', '"é (["')
TYPES = (
    "real", "real[..]", "real[seq, dim]", "id[seq] in vocab", "id in classes or none", "mask", "example or none",
    "real[level[2], dim]", "real[2, heads]", "flag[seq]", "id in 2 * dim",
)  # fmt: skip
PATTERNS = ("**", "*", "a.b", "layer.3.x", "**.linear.weight", "layer.*.**.text", "layer.3.4")
MAPPINGS = ("dim -> heads", "dim -> (heads, head_dim)", "(a, b) -> level[i]", "0 .. 3")
BINARY = ("+", "-", "*", "/", "//", "mod", "and", "or", "==", "!=", "<", "<=", ">", ">=", "^")
LINES = (
    "use std.norm", "use a.b: c, d as e", "use llama as policy", "use lm(dim = 3) as l: x", "axis seq",
    "axis image grid",
    "axis pixel in picture", "axis patch cut from seq", "axis cell = match worth: r8: image / 8, r16: image / 16",
    "enum modality: text, image", "shared values: real[slot, dim]", "shared stage[i]: upstage(width=wide[i])",
    "optimise by sgd", "extern retrieve(query: text) -> text",
)  # fmt: skip


def specs(messy: bool = False) -> st.SearchStrategy[str]:
    """Whole specs; untidy ones have comments and line breaks anywhere they may be."""

    def make(seed: int, count: int) -> str:
        chance = Random(seed)
        text = spec(chance, count)
        return untidy(text, chance) if messy else text

    return st.builds(make, st.integers(0, 2**32), st.integers(0, 5))


def spec(chance: Random, count: int) -> str:
    docstring = chance.choice(("", '"""A spec."""\n', '"""Two\n\nlines # "."""\n\n'))
    writer = _Writer(chance)
    return docstring + "".join("\n".join(writer.declaration()) + "\n" for _ in range(count))


class _Writer:
    """Writes parts of specs; every method makes its choices anew."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.pick = chance.choice

    def name(self) -> str:
        return self.pick(NAMES)

    def several(self, part: Callable[[], str], least: int = 0, most: int = 3) -> str:
        return ", ".join(part() for _ in range(self.chance.randint(least, most)))

    # ---- expressions ---------------------------------------------------------------------------------

    def expression(self, depth: int = 3) -> str:
        inner = depth - 1
        match self.chance.randrange(4):
            case 0:
                return f"{self.operand(inner)} {self.pick(BINARY[:8])} {self.operand(inner)}"
            case 1:
                return f"{self.operand(inner)} |> norm as n |> {self.name()}"
        return self.operand(inner)

    def operand(self, depth: int) -> str:
        if depth <= 0 or self.chance.random() < 0.2:
            return self.pick((self.name(), self.name(), self.pick(NUMBERS), self.pick(STRINGS), "()"))
        inner = depth - 1

        def part() -> str:
            return self.operand(inner)

        match self.chance.randrange(12):
            case 0:
                return f"({self.expression(inner)})"
            case 1:
                return f"({part()} {self.pick(BINARY)} {part()})"
            case 2:
                return f"({part()},)"
            case 3:
                return f"({self.several(part, 2)})"
            case 4:
                return f"[{self.several(part)}]"
            case 5:
                return f"{self.name()}[{self.several(part, 1)}]"
            case 6:
                return f"{self.name()}.{self.name()}"
            case 7:
                return self.pick((f"(-{part()})", f"(not {part()})", f"-{part()}^-{part()}"))
            case 8:
                return f"({self.name()} < {self.pick(NUMBERS)} <= {part()})"
            case 9:
                return f"{self.call(inner)} as {self.name()}"
        return self.call(inner)

    def call(self, depth: int) -> str:
        def argument() -> str:
            value = self.pick(MAPPINGS) if self.chance.random() < 0.2 else self.expression(depth)
            return value if self.chance.random() < 0.5 else f"{self.name()}={value}"

        return f"{self.name()}({self.several(argument)})"

    # ---- statements ----------------------------------------------------------------------------------

    def body(self, depth: int) -> list[str]:
        return [f"    {line}" for _ in range(self.chance.randint(1, 4)) for line in self.statement(depth)]

    def statement(self, depth: int) -> list[str]:
        if depth and self.chance.random() < 0.3:
            return self.nested(depth - 1)
        e, pick = self.expression, self.pick
        match self.chance.randrange(12):
            case 0:
                return [f"return {self.several(e, 1)}"]
            case 1:
                return [f"param keys: {pick(TYPES)} = {e()}"]
            case 2:
                return [f"param keys: {pick(TYPES)}"]
            case 3:
                return [f"input ends: {pick(TYPES)} = {e()}"]
            case 4:
                return [f"axis local = {e()}"]
            case 5:
                return [pick(("segment seq into line by x", f"segment seq into patch ends where {e()}, at most {e()}"))]
            case 6:
                return [f"loss = {e()} only {e()}"]
            case 7:
                return [f"loss text = {e()}"]
            case 8:
                return [f"knowledge <- {e()}"]
            case 9:
                return [f"f({e()})"]
        return [f"{pick(('x', 'a, b', 'skip[i]', 'a, skip[i + 1]'))} = {e()}"]

    def nested(self, depth: int) -> list[str]:
        e = self.expression
        match self.chance.randrange(3):
            case 0:
                other = ["else:", *self.body(depth)] if self.chance.random() < 0.5 else []
                return [f"if {e()}:", *self.body(depth), "elif x:", *self.body(depth), *other]
            case 1:
                arms = [[f"{self.several(self.name, 1)}:", *self.body(depth)] for _ in range(self.chance.randint(1, 3))]
                return ["match kind:", *(f"    {line}" for arm in arms for line in arm)]
        heads = (
            f"for {self.name()} in 0 .. {self.name()}",
            f"routed by {e()}",
            f"on {self.name()}",
            "on token == boi",
            f"on sentence each {e()}",
        )
        return [self.pick(heads) + ":", *self.body(depth)]

    # ---- declarations --------------------------------------------------------------------------------

    def declaration(self) -> list[str]:
        match self.chance.randrange(4):
            case 0:
                return [self.pick(LINES)]
            case 1:
                return [self.line()]
            case 2:
                return [self.head(), *self.body(2)]
        return self.listing()

    def setting(self) -> str:
        return f"{self.name()} = {self.expression()}"

    def parameter(self) -> str:
        type = f": {self.pick(TYPES)}" if self.chance.random() < 0.6 else ""
        return self.name() + type + (f" = {self.expression()}" if self.chance.random() < 0.3 else "")

    def pattern(self) -> str:
        return self.pick(PATTERNS)

    def line(self) -> str:
        e, name, pattern = self.expression, self.name, self.pattern
        lines: tuple[Callable[[], str], ...] = (
            lambda: f"size {self.pick(('7b', 'tiny', '1b'))}: {self.several(self.setting, 1, 6)}",
            lambda: f"size {name()} = {e()}",
            lambda: f"option {name()}: {name()} = {e()}",
            lambda: f"axis {name()} = {e()}",
            lambda: f"axis {name()}[i] = {e()}",
            lambda: f"axis word = seq where {e()}",
            lambda: f"shared {name()}: {self.pick(TYPES)} = {e()}",
            lambda: f"mask {name()}({self.several(self.parameter)}) = {e()}",
            lambda: f"init {pattern()} = ({e()})",
            lambda: f"init {pattern()} = copy({pattern()})",
            lambda: f"freeze {self.several(pattern, 1)}",
            lambda: f"freeze {pattern()} where {e()}",
            lambda: f"memory {name()}: {self.several(self.setting, 1)}",
        )
        return self.pick(lines)()

    def head(self) -> str:
        parameters = self.several(self.parameter, 0, 6)
        name = self.name()
        return self.pick((
            f"block {name}[row, width]({parameters}) -> {self.pick(TYPES)}:",
            f"model {name}({parameters}):",
            f"objective {name}({parameters}) trains {self.several(self.pattern, 1)}:",
            f"hook {name}({parameters}) at {self.pattern()} as x when {self.expression()}:",
            f"generate {name}({parameters}):",
            f"recipe {name}({parameters}):",
        ))  # fmt: skip

    def listing(self) -> list[str]:
        """A declaration with lines of its own."""
        count = range(self.chance.randint(1, 4))

        def weight_line() -> str:
            config = f'config "key" = {self.expression()}'
            axes = self.pick(("", " [dim, (heads, head_dim)]"))
            return self.pick((config, f'tensor "a.*" = {self.several(self.pattern, 1)}{axes}'))

        match self.chance.randrange(4):
            case 0:
                return ["weights hf:", *(f"    {weight_line()}" for _ in count)]
            case 3:
                names = [self.name() for _ in range(self.chance.randint(1, 4))]
                settings = (", ".join(f"{name} = {self.expression(1)}" for name in names) for _ in count)
                return [f"size {self.pick(('7b', 'tiny', '1b'))}: {text}" for text in settings]
            case 1:
                lines = (f"    {self.pattern()}: decay=0, lr={self.pick(NUMBERS)}" for _ in count)
                return ["optimise by adamw(lr=3e-4):", *lines]
        return ["size wide:", *(f"    {self.several(self.setting, 1)}" for _ in count)]


def untidy(text: str, chance: Random) -> str:
    """The same spec in another layout."""
    tokens = tokenize(Source("<generated>", text), Problems())
    out: list[str] = []
    depth, level, number = 0, 0, 0
    at_start, position = True, 0
    unit = chance.choice((2, 4, 5))

    def comment() -> str:
        nonlocal number
        number += 1
        return f"# {number}" if chance.random() < 0.5 else f"#{number} ([:"

    for index, kind in enumerate(tokens.kinds):
        start, end = tokens.starts[index], tokens.ends[index]
        if kind == INDENT:
            level += 1
        elif kind == DEDENT:
            level -= 1
        elif kind == NEWLINE:
            out.append(chance.choice(("", "", " ", "  " + comment())) + chance.choice(("\n", "\r\n", "\n\n\n")))
            at_start = True
        elif kind == END:
            break
        else:
            if at_start:
                for _ in range(chance.choice((0, 0, 0, 1, 2))):
                    out.append(" " * chance.choice((0, unit * level, 7)) + comment() + chance.choice(("\n", "\n\n")))
                out.append(" " * (unit * level))
            else:
                gap = text[position:start]
                margin = " " * chance.choice((0, 3, 9))
                if depth and chance.random() < 0.25:
                    gap = chance.choice(("\n", " " + comment() + "\n", "\n" + comment() + "\n\n")) + (margin or " ")
                elif gap and chance.random() < 0.2:
                    gap = "   "
                out.append(gap)
            at_start = False
            depth += (kind in ("OPEN_ROUND", "OPEN_SQUARE")) - (kind in ("CLOSE_ROUND", "CLOSE_SQUARE"))
            out.append(text[start:end])
            position = end
    if chance.random() < 0.3:
        out.append(comment())
    return "".join(out)
