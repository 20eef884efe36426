"""Rules of the language, each by a small spec: what is accepted, and what is refused with which one mistake."""

from __future__ import annotations

import pytest

from tests.diagnostics import codes, mistakes

ACCEPTED = {
    "loss const": """\
axis seq
model g(t: real[seq]) -> real[seq]:
    return t
objective o(t: real[seq]):
    loss a = sum(g(t), over=seq)
    loss b = 0.5
    loss c = 3
""",
    "mask captured flag": """\
size s: d = 4
axis seq
model g(x: real[seq, d], f: flag[seq]) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=key(f) and not query(f) or causal)
""",
    "mask cross ok": """\
size s: d = 4
axis seq
axis other
model g(x: real[seq, d], y: real[other, d], f: int[other], e: int[seq], n: int) -> real[seq, d]:
    return attend(x, y, y, over=d, along=other, mask=key(f) == query(e) and key(position) < query(n))
""",
    "mask same none": """\
size s: d = 4, n = 3
axis seq
model g(x: real[seq, d], f: id[seq] in n or none) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=same(f))
""",
    "mask param": """\
size s: d = 4, n = 6
axis seq
block a(x: real[seq, d], m: mask = causal) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=m)
model g(x: real[seq, d]) -> real[seq, d]:
    for i in 0 .. n:
        if i mod 3 == 2:
            x = x + a(x)
        else:
            x = x + a(x, causal and window(4))
    return x
""",
    "shared block": """\
size s: d = 4
axis seq
block lay(x: real[seq, d]) -> real[seq, d]:
    return linear(x, d -> d)
shared mid: lay
model g(x: real[seq, d]) -> real[seq, d]:
    for i in 0 .. 3:
        x = x + mid(x)
    return x
""",
    "shared family": """\
size s: d = 4, n = 2
option mult: list = (1, 2, 4)
axis seq
axis wide[i] = d * mult[i]
block up(x: real[..], width: axis, to: axis) -> real[..]:
    return linear(x, width -> to)
shared stage[i]: up(width=wide[i], to=wide[i + 1])
model g(x: real[seq, wide[0]]) -> real[seq, wide[2]]:
    for i in 0 .. n:
        x = stage[i](x)
    return x
""",
    "unread": """\
size s: d = 4, heads = 5
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    return x
""",
    "step own": """\
axis seq
model g(x: real[seq]) -> real[seq]:
    step = x + 1
    return x * step
""",
    "step": """\
size s: d = 4
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    return linear(x, d -> d) as l
objective o(x: real[seq, d]):
    loss b = mean(g(x)^2, over=d) * (1 + real(step))
""",
    "generic nested": """\
size s: d = 4, e = 6
axis seq
axis word
block inner[row, w](x: real[row, w]) -> real[row, w]:
    return linear(x, w -> w)
block outer_[row, w](x: real[row, w], f: block) -> real[row, w]:
    return x + f(x)
model g(x: real[seq, d], y: real[word, e]) -> real[seq, d]:
    a = outer_(x, inner)
    b = outer_(y, inner)
    return a + linear(mean(b, over=word), e -> d)
""",
    "encdec2": """\
size s: dim = 16, vocab = 11
axis src
axis tgt
axis inner = 4 * dim
block layer[row, ctx](x: real[row, dim], c: real[ctx, dim]) -> real[row, dim]:
    h = rms_norm(x) as n1
    x = x + attend(h, h, h, over=dim, along=row, mask=causal)
    h = rms_norm(x) as n2
    x = x + attend(h, c, c, over=dim, along=ctx)
    return x + mlp(rms_norm(x) as n3, inner)
model m(source: id[src] in vocab, target: id[tgt] in vocab) -> real[tgt, vocab]:
    c = embed(source, vocab -> dim) as se
    c = c + attend(c, c, c, over=dim, along=src)
    x = embed(target, vocab -> dim) as te
    for i in 0 .. 2:
        x = layer(x, c)
    return linear(x, dim -> vocab) as head
objective o(source: id[src] in vocab, target: id[tgt] in vocab):
    loss ce = cross_entropy(m(source, target), next(target))
    loss aux = mean(m(source, target)^2, over=vocab) only target > 3
""",
    "tagemb": """\
enum kind: text, image
size s: d = 4
axis seq
model g(t: kind[seq]) -> real[seq, d]:
    return embed(t, kind -> d)
""",
    "nested": """\
axis p
axis c in p
model g(x: real[c], y: real[p]) -> real[c]:
    return x + y
""",
}

REFUSED = {
    "loss only level": (
        "E508",
        """\
size s: d = 4, v = 9
axis seq
axis other
model g(t: id[seq] in v) -> real[seq, v]:
    return embed(t, v -> d) |> linear(d -> v)
objective o(t: id[seq] in v, keep: flag[other]):
    l = g(t)
    loss a = cross_entropy(l, next(t)) only keep
""",
    ),
    "only reduced": (
        "E508",
        """\
size s: d = 4, v = 9
axis seq
model g(t: id[seq] in v) -> real[seq, v]:
    return embed(t, v -> d) |> linear(d -> v)
objective o(t: id[seq] in v, keep: flag[seq]):
    loss a = mean(g(t), over=(seq, v)) only keep
""",
    ),
    "loss flag": (
        "E508",
        """\
size s: d = 4, v = 9
axis seq
model g(t: id[seq] in v) -> real[seq, v]:
    return embed(t, v -> d) |> linear(d -> v)
objective o(t: id[seq] in v, keep: flag[seq]):
    loss a = keep
""",
    ),
    "loss id": (
        "E508",
        """\
size s: d = 4, v = 9
axis seq
model g(t: id[seq] in v) -> real[seq, v]:
    return embed(t, v -> d) |> linear(d -> v)
objective o(t: id[seq] in v, keep: flag[seq]):
    loss a = t
""",
    ),
    "mask captured noflag": (
        "E261",
        """\
size s: d = 4
axis seq
model g(x: real[seq, d], f: int[seq]) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=key(f))
""",
    ),
    "mask other axis capture": (
        "E203",
        """\
size s: d = 4
axis seq
axis other
model g(x: real[seq, d], f: int[other]) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=key(f) == query(f))
""",
    ),
    "mask missing": (
        "E207",
        """\
size s: d = 4
axis seq
model g(x: real[seq, d], f: int[seq]) -> real[seq, d]:
    return attend(x, x, x, over=d, along=seq, mask=key(f) == query(next(f)))
""",
    ),
    "shared bad": (
        "E253",
        """\
size s: d = 4
axis seq
shared mid: laay
model g(x: real[seq, d]) -> real[seq, d]:
    return x + mid
""",
    ),
    "shared shape": (
        "E502",
        """\
size s: d = 4, e = 5
axis seq
block lay[w](x: real[seq, w]) -> real[seq, w]:
    return linear(x, w -> w)
shared mid: lay
model g(x: real[seq, d], y: real[seq, e]) -> real[seq, d]:
    a = mid(y)
    return mid(x) + mean(a, over=e)
""",
    ),
    "unread2": (
        "E303",
        """\
size s: dim = 4, dmi = 5
axis seq
model g(x: real[seq, dim]) -> real[seq, dim]:
    return x
""",
    ),
    "missing ret": (
        "E207",
        """\
axis seq
model g(x: real[seq]) -> real[seq]:
    y = next(x)
    return y
""",
    ),
    "step call": (
        "E310",
        """\
axis seq
model g(x: real[seq]) -> real[seq]:
    return x
objective o(x: real[seq]):
    loss b = g(x)^2 * (1 + real(step()))
""",
    ),
    "step model": (
        "E319",
        """\
axis seq
model g(x: real[seq]) -> real[seq]:
    return x * real(step)
""",
    ),
    "two ragged one value": (
        "E253",
        """\
size s: dim = 12
axis a
axis b
model m(x: real[a, b, dim]) -> real[a, dim]:
    return x
""",
    ),
    "run rebound": (
        "E313",
        """\
size s: d = 4
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    h = linear(x, d -> d)
    h = h + 1
    return h + 1
objective o(x: real[seq, d]):
    run = g(x)
    loss b = mean((run.h - run)^2, over=d)
""",
    ),
    "gradient": (
        "E901",
        """\
size s: d = 4
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    return linear(x, d -> d) as l
objective o(x: real[seq, d]):
    a = mean(g(x)^2, over=(seq, d))
    loss b = gradient(a, l)
""",
    ),
    "unparen map": (
        "E114",
        """\
size s: dim = 4, heads = 2, head_dim = 2
axis seq
model m(x: real[seq, dim]) -> real[seq, heads, head_dim]:
    return linear(x, dim -> heads, head_dim)
""",
    ),
    "unparen map2": (
        "E114",
        """\
size s: dim = 4, heads = 2, head_dim = 2
axis seq
model m(x: real[seq, heads, head_dim]) -> real[seq, dim]:
    return linear(x, heads, head_dim -> dim)
""",
    ),
    "unparen map3": (
        "E114",
        """\
size s: dim = 4, heads = 2, head_dim = 2
axis seq
model m(x: real[seq, heads, head_dim]) -> real[seq, dim]:
    return x |> linear(heads, head_dim -> dim)
""",
    ),
    "unparen map4": (
        "E114",
        """\
size s: dim = 4, heads = 2, head_dim = 2
axis seq
model m(x: real[seq, dim]) -> real[seq, heads, head_dim]:
    return unflatten(x, dim -> heads, head_dim)
""",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    assert [error.describe().title for error in mistakes(ACCEPTED[name])] == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused_once(name: str) -> None:
    code, text = REFUSED[name]
    assert codes(text) == [code]


def test_one_cause_is_told_once() -> None:
    """A name that nothing declares, or that lacks an axis, is one mistake wherever it is read."""
    lacks_seq = "size d = 4\nmodel m(x: real[seq, d]) -> real[seq, d]:\n    return attend(x, x, x, over=d, along=seq)\n"
    assert codes(lacks_seq) == ["E301"]
    lacks_y = "size d = 4\naxis seq\nmodel m(x: real[seq, d]) -> real[seq, d]:\n    a = x + y\n    return a * y\n"
    assert codes(lacks_y) == ["E301"]
    lacks_axis = """\
size d = 4
size e = 5
axis seq
model m(x: real[seq, d]) -> real[seq, d]:
    a = sum(x, over=e)
    return sum(x, over=e) * a
"""
    assert codes(lacks_axis) == ["E204"]


def test_two_causes_are_told_twice() -> None:
    text = (
        "size d = 4\naxis seq\nblock f(x: real[seq, d]) -> real[seq, d]:\n    return x + y\n"
        "model m(x: real[seq, d]) -> real[seq, d]:\n    return f(x) + y + z\n"
    )
    assert codes(text) == ["E301", "E301", "E301"]


def test_operators_without_a_name_are_not_suggested() -> None:
    text = "size d = 4\nmodel m(x: real[seq, d]) -> real[seq, d]:\n    return x\n"
    assert [error.describe().help for error in mistakes(text)] == [None]


def test_owners_of_an_axis_may_be_written_or_not() -> None:
    text = """\
size d = 4
axis picture
axis pixel in picture
block f[row, width](x: real[row, width]) -> real[row, width]:
    return x
block g(x: real[picture, pixel, d]) -> real[pixel, d]:
    return x
model m(x: real[pixel, d]) -> real[picture, pixel, d]:
    return f(x) + g(x)
"""
    assert codes(text) == []
