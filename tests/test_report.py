"""report.html: nothing of a spec is markup, every link leads somewhere, the same spec gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from weft.cli import app
from weft.codegen.emit_report import ReportKernel, report
from weft.codegen.lower import lower
from weft.codegen.ops import OPS
from weft.dsl.check import check
from weft.dsl.source import Source

SPEC = '''"""</code></script><script>alert("doc")</script>"""

size dim = 64
size vocab = 50
axis seq  # <img src=x onerror=alert(1)> & "quoted" 'too'

model m(t: id[seq] in vocab) -> real[seq, vocab]:
    x = embed(t, vocab -> dim) as table
    x = x * rsqrt(mean(x^2, over=dim) + 0.001)  # </span><b onclick="alert(2)">
    return rms_norm(x) |> linear(dim -> vocab) as head
'''
KERNEL = """import triton

@triton.jit
def n_kernel(
    x_ptr,
):
    # evil.weft:9  x = x * rsqrt(mean(x^2, over=dim) + 0.001)  # </span><b onclick="alert(2)">
    scale = tl.rsqrt(x)
    # <script>alert(3)</script>
    other = scale
"""
CODE = """.file 1 "/somewhere/of/this/machine/kernels.py"
.loc 1 8 4   // standard.py:1:1 @[ kernels.py:8:4 ]
rsqrt.approx.f32 %f1, %f0;
// <script>alert(4)</script>
"""


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """The elements of a page in their order, with the text directly inside each."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in ("meta", "img"):
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].text += data

    def of(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def lines(self) -> dict[str, tuple[Element, str]]:
        """Lines and their texts by anchor."""
        found = {}
        for place, element in enumerate(self.elements):
            if element.tag == "span":
                found[element.attributes["id"]] = element, self.elements[place + 2].text
        return found


def page(text: str) -> Page:
    made = Page()
    made.feed(text)
    made.close()
    assert not made.open
    return made


def made(name: str = "evil.weft", kernels: tuple[ReportKernel, ...] = ()) -> str:
    checked = check(Source(name, SPEC), OPS).value()
    return report(checked.source, {"m": lower(checked.model, working=torch.bfloat16)}, kernels, "<i>title</i>")


WITH_KERNEL = (ReportKernel("n_kernel", "forward", "evil.weft:9", KERNEL, (("<u>", "</u>"),), CODE),)


def test_nothing_of_a_spec_is_markup() -> None:
    found = page(made(kernels=WITH_KERNEL))
    allowed = {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "main", "section", "h2", "details",
        "summary", "b", "pre", "span", "a", "i", "code", "script",
    }  # fmt: skip
    assert {element.tag for element in found.elements} == allowed
    assert len(found.of("script")) == 1
    assert not [name for element in found.elements for name in element.attributes if name.startswith("on")]
    assert not [element for element in found.of("b") if element.attributes]
    assert found.of("title")[0].text == "<i>title</i>"
    # Every line of the spec is there as it was written.
    texts = {anchor: text for anchor, (_, text) in found.lines.items()}
    assert [texts[f"s0-{line}"] for line in range(1, len(SPEC.splitlines()) + 1)] == SPEC.splitlines()
    assert "    # <script>alert(3)</script>" in texts.values()
    assert "// <script>alert(4)</script>" in texts.values()


def test_no_other_script_would_run() -> None:
    """The policy names the one script and the one style by their hashes, and nothing may be fetched."""
    found = page(made())
    policy = next(e.attributes["content"] for e in found.of("meta") if "http-equiv" in e.attributes)

    def hash_of(tag: str) -> str:
        return base64.b64encode(hashlib.sha256(found.of(tag)[0].text.encode()).digest()).decode()

    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hash_of('script')}'; style-src 'sha256-{hash_of('style')}'"
    )


def test_links_resolve_and_anchors_are_unique() -> None:
    found = page(made(kernels=WITH_KERNEL))
    anchors = [e.attributes["id"] for e in found.elements if "id" in e.attributes]
    assert len(set(anchors)) == len(anchors)
    links = [e.attributes["href"] for e in found.of("a")]
    assert len(links) > 20
    assert not [link for link in links if link is None or link.removeprefix("#") not in anchors]
    tokens = {token for e, _ in found.lines.values() for token in (e.attributes.get("data-t") or "").split()}
    assert tokens <= set(anchors)


def test_lines_are_linked_to_what_they_became() -> None:
    lines = page(made(kernels=WITH_KERNEL)).lines

    def tokens(text: str, panel: str) -> list[str]:
        (element,) = [e for anchor, (e, said) in lines.items() if anchor.startswith(panel) and text in said]
        return (element.attributes["data-t"] or "").split()

    # The user's line, its kernel and its instruction.
    assert tokens("scale = tl.rsqrt(x)", "k") == ["k0-8", "s0-9"]
    assert tokens("rsqrt.approx", "p") == ["k0-8", "s0-9"]
    # A line that names no line of a spec belongs to the one before.
    assert tokens("other = scale", "k") == ["k0-10", "s0-9"]
    # Graph nodes of a library's line know the call that led there; the file is shown too.
    in_library = [
        e.attributes["data-t"]
        for anchor, (e, said) in lines.items()
        if anchor.startswith("g0") and "torch.rsqrt(" in said
    ]
    assert in_library[0] == "s0-9 s0-7"
    assert in_library[1] is not None
    assert in_library[1].split()[0].startswith("s1-")
    assert in_library[1].split()[1] == "s0-10"


def test_same_bytes_wherever_the_spec_lies() -> None:
    assert made("here/evil.weft") == made("/some/where/else/evil.weft")
    assert "/somewhere/of/this/machine" not in made(kernels=WITH_KERNEL)


def test_without_kernels_there_are_two_panels() -> None:
    assert [e.text for e in page(made()).of("h2")] == ["spec", "graph"]
    assert [e.text for e in page(made(kernels=WITH_KERNEL)).of("h2")] == ["spec", "graph", "kernels", "PTX"]


def test_an_artifact_has_it(tmp_path: Path) -> None:
    (tmp_path / "evil.weft").write_text(SPEC, encoding="utf-8")
    run = CliRunner().invoke(app, ["compile", str(tmp_path / "evil.weft"), "-o", str(tmp_path / "made")])
    assert run.exit_code == 0, run.output
    text = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    assert [e.text for e in page(text).of("h2")] == ["spec", "graph"]
    files = json.loads((tmp_path / "made" / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert files["report.html"] == hashlib.sha256(text.encode()).hexdigest()
    assert str(tmp_path) not in text


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_inspect_writes_it_with_what_kernels_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.weft").write_text(SPEC, encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = str(tmp_path / "evil.weft")
    texts = []
    for name in ("one.html", "two.html"):
        run = CliRunner().invoke(app, ["inspect", file, "report", "-o", str(tmp_path / name)])
        assert run.exit_code == 0, run.output
        texts.append((tmp_path / name).read_text(encoding="utf-8"))
        # Compiled again, not read.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {name}"))
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    found = page(texts[0])
    assert [e.text for e in found.of("h2")] == ["spec", "graph", "kernels", "PTX"]
    # An instruction is linked with the line of the kernel that it comes from.
    lines = found.lines
    code = [
        e.attributes["data-t"] for anchor, (e, said) in lines.items() if anchor[0] == "p" and "rsqrt.approx" in said
    ]
    assert code
    for tokens in code:
        assert tokens is not None
        assert "rsqrt(" in lines[tokens.split()[0]][1]


def test_inspect_wants_a_file_for_it(tmp_path: Path) -> None:
    (tmp_path / "evil.weft").write_text(SPEC, encoding="utf-8")
    for words in (["report"], ["graph", "-o", "graph.html"]):
        run = CliRunner().invoke(app, ["inspect", str(tmp_path / "evil.weft"), *words])
        assert run.exit_code != 0
        assert "-o" in str(run.exception)
