"""What the documents claim: examples check, generated pages are up to date, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest

from tests.run_examples import run
from weft.codegen.ops import OPS
from weft.dsl.check import check, check_all, presets_of
from weft.dsl.format import format_text
from weft.dsl.source import Source

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Example:
    """A fenced block. `kind` is what follows ```: `weft`, `weft checked`, `weft wrong` or `weft later`."""

    page: Path
    line: int
    kind: str
    text: str


def _examples(page: Path) -> list[Example]:
    found = []
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(weft[ a-z]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(page, line, match[1].strip(), match[2]))
    return found


# The error index repeats the pages of the error classes, which have tests of their own.
EXAMPLES = [e for page in PAGES if page.name != "errors.md" for e in _examples(page)]


def _codes(example: Example) -> list[str]:
    # Blank lines in front, so that a diagnostic names the line of the page.
    source = Source(str(example.page.relative_to(ROOT)), "\n" * example.line + example.text)
    return [error.code for error in check_all(source, OPS).problems.errors]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.page.name}:{e.line}")
def test_examples(example: Example) -> None:
    codes = _codes(example)
    match example.kind:
        case "weft" | "weft checked":
            assert codes == []
        case "weft wrong":
            wanted = re.findall(r"^# (E\d+)$", example.text, re.MULTILINE)
            assert wanted, "say which code, as a comment"
            assert codes == wanted
        case "weft later":
            assert codes
            assert set(codes) == {"E901"}
        case kind:
            pytest.fail(f"no such kind of example: {kind}")


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.kind == "weft"], ids=lambda e: f"{e.page.name}:{e.line}")
def test_examples_run(example: Example) -> None:
    """Every model and objective, on random examples of unequal lengths; at every size that is small."""
    source = Source(str(ROOT / "docs" / "example.weft"), example.text)
    for size in presets_of(source) or (None,):
        checked = check(source, OPS, size).value()
        if sum(prod(weight.shape) for weight in checked.weights.values()) < 10_000_000:
            assert run(checked) > 0


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e.page.name}:{e.line}")
def test_examples_are_in_the_canonical_form(example: Example) -> None:
    assert format_text(Source("<example>", example.text)) == example.text


def _consoles() -> list[tuple[str, str]]:
    """Console blocks: an id, and the text."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            found.append((f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}", match[1]))
    return found


@pytest.mark.parametrize(("place", "text"), _consoles(), ids=[place for place, _ in _consoles()])
def test_commands_print_what_is_shown(place: str, text: str, tmp_path: Path) -> None:
    """Every line that is shown is printed, in this order; `...` stands for lines that are left out."""
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    shown = [line for line in text.splitlines() if not line.startswith("$ ")]
    script = "weft() { " + shlex.quote(sys.executable) + ' -m weft "$@" 2>&1; }\n'
    script += "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    run = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else re.escape(line) + r"\n" for line in shown)
    assert re.fullmatch(pattern, run.stdout), f"{place} shows something else than\n{run.stdout}{run.stderr}"


def test_the_manual_shows_every_declaration_and_statement() -> None:
    """A construct that no example uses is a construct that no reader finds."""
    shown = "\n".join(example.text for example in EXAMPLES)
    words = (
        "size", "option", "axis", "enum", "shared", "mask", "block", "model", "objective", "init", "freeze", "optimise",
        "weights", "hook", "memory", "extern", "generate", "recipe", "use", "for", "if", "elif", "else", "return",
        "param", "loss", "routed", "match", "segment", "input", "on",
    )  # fmt: skip
    missing = [word for word in words if not re.search(rf"^ *{word}\b", shown, re.MULTILINE)]
    assert not missing


def test_the_error_index_is_up_to_date() -> None:
    from weft.error_index import index

    assert (ROOT / "docs" / "errors.md").read_text(encoding="utf-8") == index(), "run python -m weft.error_index"


def test_the_operator_page_is_up_to_date() -> None:
    from weft.op_index import index

    assert (ROOT / "docs" / "operators.md").read_text(encoding="utf-8") == index(), "run python -m weft.op_index"


def test_every_training_setting_is_in_the_manual() -> None:
    from weft.runtime.run_config import RunConfig

    section = (ROOT / "docs" / "manual.md").read_text(encoding="utf-8").partition("## 15.")[2].partition("## 16.")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(RunConfig.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_the_readme_shows_a_spec_of_about_thirty_lines() -> None:
    first = next(example for example in EXAMPLES if example.page.name == "README.md")
    assert 20 <= len([line for line in first.text.splitlines() if line.strip()]) <= 40
