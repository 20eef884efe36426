"""Every mistake a spec can contain: the whole text a person reads, pinned for a corpus of broken specs.

`bad_specs/<what>.weft` holds a mistake (some hold many), `<what>.txt` the expected text. Files in `bad_specs/used/` are
used by others and checked through them.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.diagnostics import CLASSES, checked, command, mistakes, rendered

BAD = Path(__file__).parent / "bad_specs"
SPECS = sorted(path.stem for path in BAD.glob("*.weft"))


@pytest.fixture
def in_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts name the files of the corpus, not where the checkout is."""
    monkeypatch.chdir(BAD)


def _text(name: str) -> str:
    return (BAD / f"{name}.weft").read_text("utf-8")


@pytest.mark.parametrize("name", SPECS)
def test_text(name: str, golden, in_corpus: None) -> None:
    found = mistakes(_text(name), f"{name}.weft")
    assert found, f"{name}.weft has no mistake"
    golden(BAD / f"{name}.txt", rendered(found))


def test_no_expected_text_without_a_spec() -> None:
    assert sorted(path.stem for path in BAD.glob("*.txt")) == SPECS
    assert len(SPECS) >= 90


def test_every_class_occurs(in_corpus: None) -> None:
    seen = {error.code for name in SPECS for error in mistakes(_text(name), f"{name}.weft")}
    assert sorted(set(CLASSES) - seen) == []


@pytest.mark.parametrize("name", SPECS)
def test_wording(name: str, in_corpus: None) -> None:
    for error in mistakes(_text(name), f"{name}.weft"):
        said = error.describe()
        assert said.primary.span is not None
        assert said.primary.span.start <= said.primary.span.end <= len(said.primary.span.source.text)
        for text in (said.title, said.primary.text, *(label.text for label in said.secondary), said.help or "x"):
            assert not text.endswith("."), text
            assert "illegal" not in text
        first = re.sub(r"`[^`]*`", "", said.title).lstrip()
        assert first[:1] == first[:1].lower(), said.title


def _example(page: str, which: str) -> str | None:
    found = re.search(rf"^{which}:\n((?:    .*\n|\n)+)", page + "\n", re.MULTILINE)
    return textwrap.dedent(found[1]) if found else None


@pytest.mark.parametrize("code", CLASSES)
def test_page(code: str) -> None:
    """The examples of `weft explain` are what they say."""
    page = CLASSES[code].page()
    wrong, right = _example(page, "Wrong"), _example(page, "Right")
    assert page.split("\n")[0].endswith("."), "the page opens with one line"
    if code in WITHOUT_EXAMPLE:
        assert wrong is None
        return
    assert wrong
    assert right
    # Whether a model can run row by row is asked when it is to generate.
    asked = "# weft generate\n" if code == "E402" else ""
    assert [error.code for error in mistakes(asked + wrong)] == [code]
    assert [error.describe().title for error in mistakes(asked + right)] == []


# A tab or an invisible character cannot be shown; a hundred levels of brackets need no example.
WITHOUT_EXAMPLE = ("E102", "E110", "E111")


def test_the_text_of_an_exception_is_the_terminals(in_corpus: None) -> None:
    from weft.dsl.diagnostics import SpecErrors

    result = checked(_text("many"), "many.weft")
    with pytest.raises(SpecErrors) as caught:
        result.value()
    assert str(caught.value) + "\n" == rendered(result.problems.errors)
    assert command(_text("many")).size is None
