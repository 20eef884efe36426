"""The canonical form: what it looks like, and that it changes nothing else."""

import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings

from weft.dsl.diagnostics import Problems
from weft.dsl.format import format_text
from weft.dsl.parser import parse, structure
from weft.dsl.source import Source

from .spec_generator import specs, untidy

ROOT = Path(__file__).parent.parent
CORPUS = sorted((ROOT / "tests" / "syntax").glob("*.weft")) + sorted((ROOT / "specs").rglob("*.weft"))


def formatted(text: str) -> str:
    return format_text(Source("<test>", text))


def tree(text: str) -> object:
    problems = Problems()
    file = parse(Source("<test>", text), problems)
    assert not problems, [error.describe().title for error in problems.errors]
    return structure(file)


def comments(text: str) -> list[str]:
    return [comment.text for comment in parse(Source("<test>", text), Problems()).comments]


def check(text: str) -> None:
    once = formatted(text)
    assert tree(once) == tree(text)
    assert formatted(once) == once
    assert sorted(comments(once)) == sorted(comments(text))
    assert not re.search(r"[ \t]\n", re.sub(r'"""[\s\S]*?"""', "", once))
    assert not once or (once.endswith("\n") and not once.endswith("\n\n"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    check(text)
    for seed in range(3):
        check(untidy(text, Random(seed)))


@settings(max_examples=300)
@given(specs())
def test_generated_specs(text: str) -> None:
    check(text)


@settings(max_examples=300)
@given(specs(messy=True))
def test_untidy_specs(text: str) -> None:
    check(text)


LAYOUTS = [
    ("size  7b:layers=32,dim=4096", "size 7b: layers = 32, dim = 4096\n"),
    ("use lm( dim=local )as l:x", "use lm(dim = local) as l: x\n"),
    ("axis  level [ i ]=image/2 ^ i", "axis level[i] = image / 2^i\n"),
    ("size a = x^ - 0.5 + - y*( -z )", "size a = x^-0.5 + -y * (-z)\n"),
    ("mask m( w = 3 )=f( a = -1 )<w", "mask m(w = 3) = f(a=-1) < w\n"),
    ("freeze  * , **.text,layer . * .x", "freeze *, **.text, layer.*.x\n"),
    ("option o:list=(3 ,)", "option o: list = (3,)\n"),
    ("option o:list=(3 ,4,)", "option o: list = (3, 4)\n"),
    ("size a = f(3 ,)", "size a = f(3)\n"),
    ("size a = ( )", "size a = ()\n"),
    (
        "optimise by adamw( lr = 3e-4 ):\n  **.gain :decay = 0 ,lr=f( a = 1 )\n",
        "optimise by adamw(lr=3e-4):\n    **.gain: decay=0, lr=f(a=1)\n",
    ),
    (
        'weights hf:\n  tensor "a"=x . *  [dim,( a,b )]\n  config "k"=dim\n',
        'weights hf:\n    tensor "a" = x.* [dim, (a, b)]\n    config "k" = dim\n',
    ),
    (
        "model m(x:real[ .. ],y=3)->real :\n\n\n   for i in 0..3 :\n     x=f( x,a=1 )as b\n\n\n\n   return x,y\n",
        "model m(x: real[..], y = 3) -> real:\n    for i in 0 .. 3:\n        x = f(x, a=1) as b\n\n    return x, y\n",
    ),
    # Blank lines: as written between one-line declarations, one around bodies, one below the docstring.
    ('"""d"""\naxis a\naxis b\n\n\n\nsize c = 1\n', '"""d"""\n\naxis a\naxis b\n\nsize c = 1\n'),
    (
        "recipe a():\n    f()\nrecipe b():\n    f()\naxis c\n",
        "recipe a():\n    f()\n\nrecipe b():\n    f()\n\naxis c\n",
    ),
    # Comments.
    ("axis a#x\n#y\n\n\n#z\naxis b", "axis a  #x\n#y\n\n#z\naxis b\n"),
    ("axis a\n# x\nrecipe a():\n    f()\n", "axis a\n\n# x\nrecipe a():\n    f()\n"),
    (
        "recipe a():\n  if x:\n    f()\n    # in if\n  # in recipe\n# outside\naxis b\n",
        "recipe a():\n    if x:\n        f()\n        # in if\n    # in recipe\n\n# outside\naxis b\n",
    ),
    (
        "size a = f( # one\n  x + # two\n  y, # three\n  # four\n  z # five\n  # six\n)\n",
        "size a = f(\n    # one\n    # two\n    x + y,  # three\n    # four\n    z,  # five\n    # six\n)\n",
    ),
    (
        "size 7b: a = 1, # one\n  # two\n  b = 2\n",
        "size 7b: a = 1,  # one\n    # two\n    b = 2\n",
    ),
    (
        "recipe r():\n    x = a # one\n      # two\n      |> b |> c # three\n",
        "recipe r():\n    x = a  # one\n        # two\n        |> b\n        |> c  # three\n",
    ),
    ("# only\n", "# only\n"),
    ("", ""),
    ("\n\n\n", ""),
]


@pytest.mark.parametrize(("text", "wanted"), LAYOUTS)
def test_layout(text: str, wanted: str) -> None:
    assert formatted(text) == wanted
    check(text)


def test_long_lines_break_at_brackets() -> None:
    long = ", ".join(f"argument_{number}=value_{number}" for number in range(6))
    assert formatted(f"size a = f({long}, g(x))\n") == (
        "size a = f(\n" + "".join(f"    argument_{n}=value_{n},\n" for n in range(6)) + "    g(x),\n)\n"
    )


def test_long_headers_break_at_the_parameters() -> None:
    parameters = [f"parameter_{number}: real[seq, dim]" for number in range(4)]
    text = f"model m({', '.join(parameters)}) -> real[seq, dim]:\n    return x\n"
    broken = "".join(f"    {parameter},\n" for parameter in parameters)
    assert formatted(text) == f"model m(\n{broken}) -> real[seq, dim]:\n    return x\n"


def test_long_pipes_break_at_every_pipe() -> None:
    steps = [f"step_{number}(argument=value)" for number in range(5)]
    text = f"recipe r():\n    x = start |> {' |> '.join(steps)}\n"
    wanted = "recipe r():\n    x = start\n" + "".join(f"        |> {step}\n" for step in steps)
    assert formatted(text) == wanted


def test_long_presets_are_filled() -> None:
    text = "size big: " + ", ".join(f"setting_{number} = {number}" for number in range(12)) + "\n"
    lines = formatted(text).splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 110 for line in lines)
    assert lines[0].endswith(",")
    assert lines[1].startswith("    setting_")


TABLE = """\
size tiny: layers = 4,  dim = f(1, 2), vocab = 260  # small
size 7b:   layers = 32, dim = 4096,    vocab = 100352
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("size tiny: layers=4, dim=f( 1,2 ), vocab=260 # small\nsize 7b: layers=32,dim=4096,vocab=100352,\n", TABLE),
        # Another setting, a comment and a blank line begin a new table.
        (TABLE + "size a: layers = 1\n", TABLE + "size a: layers = 1\n"),
        (TABLE + "# more\n" + TABLE, TABLE + "# more\n" + TABLE),
        ("size a: b = 1\n\nsize long: b = 2\n", "size a: b = 1\n\nsize long: b = 2\n"),
        ("size a: b = c |> d, e = 1\nsize long: b = f, e = 2\n",) * 2,
        ("size a: (b = 1)\nsize long: b = 2\n", "size a: (b = 1)\nsize long: b = 2\n"),
    ],
)
def test_presets_of_the_same_settings_become_a_table(text: str, wanted: str) -> None:
    assert formatted(text) == wanted
    check(text)


def test_a_table_that_would_be_too_wide_is_none() -> None:
    wide = " + ".join(["dim"] * 14)
    text = f"size a: b = {wide}, c = 1\nsize long: b = 2, c = {wide}\n"
    assert max(map(len, text.splitlines())) < 110
    assert formatted(text) == text


@pytest.mark.parametrize("path", sorted((ROOT / "specs").rglob("*.weft")), ids=lambda path: path.stem)
def test_shipped_specs_are_canonical(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert formatted(text) == text


@pytest.mark.parametrize("text", ["size = \n", "axis a\n\taxis b", "size a = (1,  2\n", "# \u202e\naxis  b"])
def test_a_spec_with_mistakes_is_not_touched(text: str) -> None:
    assert formatted(text) == text
