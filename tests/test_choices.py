"""Static choices: both branches of an `if` are checked, conditions are facts, members belong to an enum."""

from __future__ import annotations

import pytest

from tests.diagnostics import codes, mistakes

ACCEPTED = {
    "enum shared member": """\
enum kind: text, image
enum kind2: text, b
axis seq
model g(t: kind2[seq], x: real[seq]) -> real[seq]:
    return where(t == text, x, 0)
""",
    "enum opt": """\
enum pos: rotary, none
enum act: relu, none
option a: act = none
option p: pos = none
axis seq
model g(x: real[seq]) -> flag[seq]:
    y = x > 0
    if a == none:
        y = x
    if p == none:
        y = y > 0
    return y
""",
    "family first turn": """\
size s: d = 4, n = 3
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    for i in 0 .. n:
        if i > 0:
            x = x + skip[i - 1]
        skip[i] = x
    return x
""",
    "name first turn": """\
size s: d = 4, n = 3
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    h = x
    for i in 0 .. n:
        if i mod 2 == 1:
            x = x + h
        else:
            h = x
    return x
""",
    "wide": """\
size s: d = 4, e = 8
option wide: flag = false
axis seq
model g(x: real[seq, d]) -> real[seq, d]:
    h = x
    if wide:
        h = linear(h, d -> e)
    k = h * 2
    if wide:
        k = linear(k, e -> d)
    return k
""",
    "ff": """\
size s: d = 4, e = 8
axis seq
block f(x: real[..], up: flag) -> real[..]:
    if up:
        y = linear(x, d -> e)
    else:
        y = linear(x, e -> d)
    return y
model g(x: real[seq, d]) -> real[seq, d]:
    h = f(x, true)
    return f(h, false)
""",
    "branch fact": """\
size tiny: dim = 4, other = 4
axis seq
model m(x: real[seq, dim]) -> real[seq, other]:
    if dim == other:
        y = rename(x, dim -> other)
    else:
        y = linear(x, dim -> other)
    return y
""",
    "branch fact2": """\
size tiny: dim = 4, other = 4, k = 2
size big: dim = 4, other = 8, k = 4
axis seq
axis two = 2
model m(x: real[seq, dim]) -> real[seq, other]:
    if k * two != dim:
        y = linear(x, dim -> other)
    else:
        y = unflatten(x, dim -> (k, two)) |> linear((k, two) -> other)
    return y
""",
    "branch opt param": """\
size tiny: dim = 4, other = 8
axis seq
block f(x: real[seq, dim], g: real[seq, dim] = none) -> real[seq, dim]:
    if g != none:
        x = x * g
    return x
model m(x: real[seq, dim]) -> real[seq, dim]:
    return f(x) + f(x, x)
""",
    "branch num": """\
size tiny: dim = 4, heads = 3
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    if dim mod heads == 0:
        x = x * (dim / heads)
    return x
""",
    "field member": """\
enum kind: text, image
enum kind2: text, b
axis seq
model g(t: kind2[seq], x: real[seq]) -> real[seq]:
    return where(t == kind2.text, x, 0)
""",
    "types of turns": """\
option fancy: flag = false
option mult: list = (1, 2, 4)
size s: d = 4
axis wide[i] = d * mult[i]
axis seq
model m(x: real[seq, wide[0]]) -> real[seq, wide[2]]:
    h = x
    for i in 0 .. 2:
        if fancy:
            y = tanh(linear(h, wide[i] -> wide[i + 1]) as a)
        else:
            y = linear(h, wide[i] -> wide[i + 1]) as b
        h = y
    return h
""",
    "types of calls": """\
size s: d = 4, e = 8
axis seq
block f(x: real[seq, d], to: axis, fancy: flag = false) -> real[..]:
    if fancy:
        y = tanh(linear(x, d -> to) as a)
    else:
        y = linear(x, d -> to) as b
    return y
model m(x: real[seq, d]) -> real[seq, e]:
    return f(x, e) + sum(f(x, d) as other, over=d)
""",
    "chosen axis": """\
option big: flag = false
size s: d = 4, e = 8
axis seq
model m(x: real[seq, d]) -> real[seq, d]:
    if big:
        to = e
    else:
        to = d
    h = linear(x, d -> to) as up
    if big:
        h = linear(h, e -> d) as down
    return h
""",
}

REFUSED = {
    "enum opt2": (
        "E315",
        """\
enum pos: rotary, none
enum act: relu, none
option a: act = none
axis seq
model g(x: real[seq]) -> real[seq]:
    if a == rotary:
        y = x
    return x
""",
    ),
    "dead branch type": (
        "E204",
        """\
size tiny: dim = 4, other = 8
option fancy: flag = false
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    if fancy:
        x = x + linear(x, other -> dim)
    return x
""",
    ),
    "dead branch kind": (
        "E201",
        """\
size tiny: dim = 4, other = 8
option fancy: flag = false
axis seq
model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
    if fancy:
        for i in 0 .. 3:
            x = x + f
    return x
""",
    ),
    "dead training": (
        "E201",
        """\
size tiny: dim = 4, other = 8
axis seq
model m(x: real[seq, dim], f: flag[seq]) -> real[seq, dim]:
    if training:
        x = x + f
    return x
""",
    ),
    "branches two types": (
        "E317",
        """\
size tiny: dim = 4, other = 8
option fancy: flag = false
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    if fancy:
        y = x > 0
    else:
        y = x
    return y
""",
    ),
    "branch elif": (
        "E204",
        """\
enum mode: a, b, c
option o: mode = a
size tiny: dim = 4, other = 8
axis seq
model m(x: real[seq, dim]) -> real[seq, dim]:
    if o == a:
        x = x + 1
    elif o == b:
        x = linear(x, other -> dim)
    else:
        x = x + 2
    return x
""",
    ),
    "branch block flag": (
        "E201",
        """\
size tiny: dim = 4, other = 8
axis seq
block f(x: real[seq, dim], g: flag = false) -> real[seq, dim]:
    if g:
        x = x * (x > 0)
    return x
model m(x: real[seq, dim]) -> real[seq, dim]:
    return f(x)
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
