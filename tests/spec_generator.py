"""Hypothesis strategies for specs that parse, in canonical or untidy layout; what they mean is not looked at.

`specs()` draws whole texts, `expressions()` and `statements()` their parts. `untidy` takes a spec and a source of chance, and
changes what the language says does not matter: spaces, line breaks in brackets, blank lines and comments.
"""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from weft.dsl.diagnostics import Problems
from weft.dsl.lexer import DEDENT, INDENT, NEWLINE, tokenize
from weft.dsl.source import Source
from weft.dsl.tables import END

# Words of the language among them: they are names wherever a name is wanted.
NAMES = (
    "x", "y", "seq", "dim", "heads", "head_dim", "token", "end", "size", "mask", "block", "where", "by", "axis", "loss",
    "match", "input", "on", "grid", "only", "each", "weight", "copy", "as", "at", "into", "model", "use", "param", "when",
)  # fmt: skip
names = st.sampled_from(NAMES)
numbers = st.sampled_from(("0", "1", "32", "50_000", "0.1", "5e5", "1e-6", "3.0", "007"))
strings = st.sampled_from(('"a"', '""', '"a # b"', '"a \\"b\\" \\\\"', '"é (["'))
types = st.sampled_from((
    "real", "real[..]", "real[seq, dim]", "id[seq] in vocab", "id in classes or none", "mask", "example or none",
    "real[level[2], dim]", "real[2, heads]", "flag[seq]", "id in 2 * dim",
))  # fmt: skip
patterns = st.sampled_from(("**", "*", "a.b", "layer.3.x", "**.linear.weight", "layer.*.**.text", "layer.3.4"))
BINARY = ("+", "-", "*", "/", "//", "mod", "and", "or", "==", "!=", "<", "<=", ">", ">=", "^")


def _joined(parts: st.SearchStrategy[str], least: int = 0, most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(parts, min_size=least, max_size=most).map(", ".join)


def _extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    mapping = st.sampled_from(("dim -> heads", "dim -> (heads, head_dim)", "(a, b) -> level[i]", "0 .. 3"))
    value = inner | mapping
    argument = value | st.builds("{}={}".format, names, value)
    call = st.builds("{}({})".format, names, _joined(argument))
    labelled = st.builds("{} as {}".format, call, names)
    return st.one_of(
        st.builds("({})".format, inner),
        st.builds("({} {} {})".format, inner, st.sampled_from(BINARY), inner),
        st.builds("({},)".format, inner),
        st.builds("({})".format, _joined(inner, 2)),
        st.builds("[{}]".format, _joined(inner)),
        st.builds("{}[{}]".format, names, _joined(inner, 1)),
        st.builds("{}.{}".format, names, names),
        st.builds("(-{})".format, inner),
        st.builds("(not {})".format, inner),
        st.builds("{} < {} <= {}".format, names, numbers, names).map("({})".format),
        call,
        labelled,
        st.builds("({} |> {} |> {})".format, call, names, labelled),
    )


def expressions() -> st.SearchStrategy[str]:
    atoms = names | numbers | strings | st.just("()")
    nested = st.recursive(atoms, _extend, max_leaves=8)
    flat = st.builds("{} {} {}".format, nested, st.sampled_from(BINARY), nested)
    return st.one_of(nested, flat, st.builds("{} |> norm as n |> {}".format, nested, names))


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def _nested(statements: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    body = st.lists(statements, min_size=1, max_size=3).map(lambda parts: _indented([x for part in parts for x in part]))

    def headed(heads: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
        return st.builds(lambda head, lines: [head + ":", *lines], heads, body)

    whole = st.builds(
        lambda condition, first, second, third: (
            [f"if {condition}:", *first, "elif x:", *second] + (["else:", *third] if third else [])
        ),
        expressions(),
        body,
        body,
        body | st.just([]),
    )
    arms = st.lists(headed(_joined(names, 1)), min_size=1, max_size=3)
    match = st.builds(lambda arms: ["match kind:", *_indented([x for arm in arms for x in arm])], arms)
    heads = st.one_of(
        st.builds("for {} in 0 .. {}".format, names, names),
        st.builds("routed by {}".format, expressions()),
        st.builds("on {}".format, names),
        st.just("on token == boi"),
        st.builds("on sentence each {}".format, expressions()),
    )
    return headed(heads) | whole | match


def statements() -> st.SearchStrategy[list[str]]:
    """One statement, as lines."""
    e = expressions()
    simple = st.one_of(
        st.builds("{} = {}".format, st.sampled_from(("x", "a, b", "skip[i]", "a, skip[i + 1]")), e),
        st.builds("return {}".format, _joined(e, 1)),
        st.builds("param keys: {} = {}".format, types, e),
        st.builds("param keys: {}".format, types),
        st.builds("input ends: {} = {}".format, types, e),
        st.builds("axis local = {}".format, e),
        st.just("segment seq into line by x"),
        st.builds("segment seq into patch ends where {}, at most {}".format, e, e),
        st.builds("loss = {} only {}".format, e, e),
        st.builds("loss text = {}".format, e),
        st.builds("knowledge <- {}".format, e),
        st.builds("f({})".format, e),
    )
    return st.recursive(simple.map(lambda line: [line]), _nested, max_leaves=6)


def declarations() -> st.SearchStrategy[list[str]]:
    """One declaration, as lines."""
    e = expressions()
    body = st.lists(statements(), min_size=1, max_size=4).map(lambda parts: _indented([x for part in parts for x in part]))
    settings = _joined(st.builds("{} = {}".format, names, e), 1, 6)
    parameter = st.one_of(
        names,
        st.builds("{}: {}".format, names, types),
        st.builds("{}: {} = {}".format, names, types, e),
        st.builds("{} = {}".format, names, e),
    )
    parameters = st.lists(parameter, max_size=6).map(", ".join)
    line = st.one_of(
        st.sampled_from((
            "use std.norm", "use a.b: c, d as e", "use llama as policy", "use lm(dim = 3) as l: x", "axis seq",
            "axis image grid", "axis pixel in picture", "axis patch cut from seq",
            "axis cell = match worth: r8: image / 8, r16: image / 16", "enum modality: text, image",
            "shared values: real[slot, dim]", "shared stage[i]: upstage(width=wide[i])", "optimise by sgd",
            "extern retrieve(query: text) -> text",
        )),
        st.builds("size {}: {}".format, st.sampled_from(("7b", "tiny", "1b")), settings),
        st.builds("size {} = {}".format, names, e),
        st.builds("option {}: {} = {}".format, names, names, e),
        st.builds("axis {} = {}".format, names, e),
        st.builds("axis {}[i] = {}".format, names, e),
        st.builds("axis word = seq where {}".format, e),
        st.builds("shared {}: {} = {}".format, names, types, e),
        st.builds("mask {}({}) = {}".format, names, parameters, e),
        st.builds("init {} = {}".format, patterns, e),
        st.builds("init {} = copy({})".format, patterns, patterns),
        st.builds("freeze {}".format, _joined(patterns, 1)),
        st.builds("freeze {} where {}".format, patterns, e),
        st.builds("memory {}: {}".format, names, settings),
    )  # fmt: skip
    head = st.one_of(
        st.builds("block {}[row, width]({}) -> {}:".format, names, parameters, types),
        st.builds("model {}({}):".format, names, parameters),
        st.builds("objective {}({}) trains {}:".format, names, parameters, _joined(patterns, 1)),
        st.builds("hook {}({}) at {} as x when {}:".format, names, parameters, patterns, e),
        st.builds("generate {}({}):".format, names, parameters),
        st.builds("recipe {}({}):".format, names, parameters),
    )
    weight_lines = st.lists(
        st.one_of(
            st.builds('config "key" = {}'.format, e),
            st.builds('tensor "a.*" = {}'.format, _joined(patterns, 1)),
            st.builds('tensor "a.*" = {} [dim, (heads, head_dim)]'.format, patterns),
        ),
        min_size=1,
        max_size=4,
    )
    with_lines = st.one_of(
        st.builds(lambda lines: ["weights hf:", *_indented(lines)], weight_lines),
        st.builds(
            lambda lines: ["optimise by adamw(lr=3e-4):", *_indented(lines)],
            st.lists(st.builds("{}: decay=0, lr={}".format, patterns, numbers), min_size=1, max_size=3),
        ),
        st.builds(lambda lines: ["size wide:", *_indented(lines)], st.lists(settings, min_size=1, max_size=3)),
    )
    return st.one_of(line.map(lambda text: [text]), st.builds(lambda h, b: [h, *b], head, body), with_lines)


@st.composite
def specs(draw: st.DrawFn, messy: bool = False) -> str:
    """A whole spec; untidy ones have comments and line breaks anywhere they may be."""
    parts = draw(st.lists(declarations(), max_size=5))
    docstring = draw(st.sampled_from(("", '"""A spec."""\n', '"""Two\n\nlines # "."""\n\n')))
    text = docstring + "".join("\n".join(part) + "\n" for part in parts)
    return untidy(text, draw(st.randoms(use_true_random=False))) if messy else text


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
