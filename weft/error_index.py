"""All error classes, and the page that lists them.

docs/errors.md is made of the classes' own docstrings: `python -m weft.error_index` writes it, and a test compares.
"""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.dsl.diagnostics import SpecError

_PART = {
    "E1": "Syntax",
    "E2": "Axes and types",
    "E3": "Names, sizes and weights",
    "E4": "Causality",
    "E5": "Weights, objectives and limits",
    "E6": "Generate programs",
    "E9": "Not built yet",
}

_HEAD = """# Error index

Every mistake that `weft check` can find, by code. `weft explain CODE` prints one of these pages in the terminal.
This file is generated from the error classes in `dsl/errors` by `python -m weft.error_index`; edit them, not it.
"""


def error_classes() -> dict[str, type[SpecError]]:
    """Every error class by code, in order. A class is known once its module is imported."""
    from weft.dsl.diagnostics import SpecError

    for item in (files("weft.dsl") / "errors").iterdir():
        if item.name.endswith(".py"):
            import_module(f"weft.dsl.errors.{item.name.removesuffix('.py')}")
    return dict(sorted(SpecError.by_code.items()))


def index() -> str:
    """The text of docs/errors.md."""
    parts = [_HEAD]
    part = None
    for code, kind in error_classes().items():
        if code[:2] != part:
            part = code[:2]
            parts.append(f"## {_PART.get(part, part + 'xx')}\n")
        parts.append(f"### {code}: {kind.__name__}\n\n{_markdown(kind.page())}\n")
    return "\n".join(parts)


def _markdown(page: str) -> str:
    """A page with its indented specs as fenced blocks."""
    out: list[str] = []
    block: list[str] = []

    def close() -> None:
        while block and not block[-1].strip():
            block.pop()
        if block:
            out.extend(["```weft", *block, "```", ""])
            block.clear()

    for line in page.split("\n"):
        if line.startswith("    ") or (block and not line.strip()):
            block.append(line[4:])
        else:
            had_block = bool(block)
            close()
            if line in ("Wrong:", "Right:"):
                out.extend([line, ""])
            elif line.strip() or not had_block:
                out.append(line)
    close()
    text = "\n".join(out).rstrip()
    return text.replace("\n\n\n", "\n\n")


if __name__ == "__main__":
    Path("docs/errors.md").write_text(index(), encoding="utf-8")
